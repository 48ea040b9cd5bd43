//! Threads without signals: Postgres' handlers must run on the main thread and on no other.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;

/// All signals blocked in this thread, until dropped. A thread that is started in the meantime inherits that for good.
pub struct Blocked {
    before: libc::sigset_t,
}

impl Blocked {
    /// Blocks them. Fails only where the system knows no such call.
    pub fn all() -> io::Result<Blocked> {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigfillset initialises the set that it is given; it fails for invalid pointers only.
        unsafe { libc::sigfillset(all.as_mut_ptr()) };
        // SAFETY: both pointers are valid for the call, `all` was initialised above. The mask of this thread alone is
        // changed.
        let failure = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
        if failure != 0 {
            return Err(io::Error::from_raw_os_error(failure));
        }
        // SAFETY: pthread_sigmask succeeded, so it has written the mask that was in force.
        Ok(Blocked { before: unsafe { before.assume_init() } })
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        // SAFETY: `before` is the mask that pthread_sigmask gave us. It can't fail with a valid `how`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(signal: libc::c_int) -> bool {
        let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: a null set only asks for the mask, which is written to valid memory.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), mask.as_mut_ptr());
            libc::sigismember(mask.as_ptr(), signal) == 1
        }
    }

    #[test]
    fn a_thread_started_meanwhile_has_all_signals_blocked() {
        let signals = [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGHUP, libc::SIGALRM];
        let thread = {
            let _blocked = Blocked::all().unwrap();
            std::thread::spawn(move || signals.map(blocked))
        };
        assert_eq!(thread.join().unwrap(), [true; 5]);
        assert_eq!(signals.map(blocked), [false; 5]);
    }
}
