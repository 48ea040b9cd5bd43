//! A descriptor that becomes readable when there is something to look at.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Wakes the caller. Never blocks.
#[derive(Debug, Clone)]
pub struct Wake {
    stream: Arc<UnixStream>,
}

impl Wake {
    /// Makes the reader's descriptor readable.
    pub fn wake(&self) {
        // A full buffer means that there are wake-ups enough; a closed one that nobody is left to be woken.
        let _ = (&*self.stream).write(&[1]);
    }
}

/// The caller's end of a [`Wake`].
#[derive(Debug)]
pub struct WakeReader {
    stream: UnixStream,
}

impl WakeReader {
    /// The descriptor to wait on for reading. It belongs to this reader: don't close it.
    pub fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Takes back all wake-ups so far. Call it before looking at the reports, so that none is missed. Never blocks.
    pub fn drain(&self) {
        let mut buffer = [0; 256];
        while matches!((&self.stream).read(&mut buffer), Ok(read) if read == buffer.len()) {}
    }
}

/// Makes a pair. One reader serves any number of senders. Both descriptors are closed on exec.
pub fn wake_pair() -> io::Result<(Wake, WakeReader)> {
    let (writer, reader) = UnixStream::pair()?;
    writer.set_nonblocking(true)?;
    reader.set_nonblocking(true)?;
    Ok((Wake { stream: Arc::new(writer) }, WakeReader { stream: reader }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(reader: &WakeReader) -> bool {
        matches!((&reader.stream).read(&mut [0]), Ok(1))
    }

    #[test]
    fn any_number_of_wake_ups_is_one() {
        let (wake, reader) = wake_pair().unwrap();
        assert!(!readable(&reader));
        for _ in 0..1_000_000 {
            wake.wake();
        }
        assert!(readable(&reader));
        reader.drain();
        assert!(!readable(&reader));
        wake.wake();
        assert!(readable(&reader));
        drop(reader);
        wake.wake();
    }
}
