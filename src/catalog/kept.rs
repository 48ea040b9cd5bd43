//! What was read from the catalog, kept by the backend until PostgreSQL says that it may have changed: reading it for every
//! search costs a good part of a fast one.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;

/// Values by key, `MOST` at the most: for more it begins anew. For a thread_local of the main thread.
pub struct Kept<K, V, const MOST: usize> {
    all: RefCell<HashMap<K, Rc<V>>>,
    /// Grows with every invalidation: what was read before is then no longer believed.
    invalidations: Cell<u64>,
    /// The count at which `all` was begun.
    begun_at: Cell<u64>,
}

impl<K, V, const MOST: usize> Default for Kept<K, V, MOST> {
    fn default() -> Self {
        Kept { all: RefCell::default(), invalidations: Cell::new(0), begun_at: Cell::new(0) }
    }
}

impl<K: Eq + Hash, V, const MOST: usize> Kept<K, V, MOST> {
    /// To be called by the callbacks of the caches. Only counts: they may come at any time.
    pub fn invalidate(&self) {
        self.invalidations.set(self.invalidations.get().wrapping_add(1));
    }

    /// The value of a key; `read` gives it anew if none is kept, and whether it is as of now and so may be.
    pub fn get<E>(&self, key: K, read: impl FnOnce(&K) -> Result<(V, bool), E>) -> Result<Rc<V>, E> {
        let now = self.invalidations.get();
        if self.begun_at.replace(now) != now {
            self.all.borrow_mut().clear();
        }
        if let Some(value) = self.all.borrow().get(&key) {
            return Ok(Rc::clone(value));
        }
        let (value, as_of_now) = read(&key)?;
        let value = Rc::new(value);
        // Reading may itself have taken in an invalidation: then this is good for now, but not for later.
        if as_of_now && self.invalidations.get() == now {
            let mut all = self.all.borrow_mut();
            if all.len() >= MOST {
                all.clear();
            }
            all.insert(key, Rc::clone(&value));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_kept_until_it_may_have_changed() {
        let kept = Kept::<i32, i32, 2>::default();
        let read = |value, as_of_now| kept.get(1, |_| Ok::<_, ()>((value, as_of_now))).map(|value| *value);
        assert_eq!(read(10, false), Ok(10), "not kept: as of another time");
        assert_eq!(read(11, true), Ok(11));
        assert_eq!(read(12, true), Ok(11), "kept");
        kept.invalidate();
        assert_eq!(kept.get(1, |_| Err("gone")).map(|value| *value), Err("gone"));
        let meanwhile = kept.get(1, |_| {
            kept.invalidate();
            Ok::<_, ()>((13, true))
        });
        assert_eq!(meanwhile.map(|value| *value), Ok(13));
        assert_eq!(read(14, true), Ok(14), "what changed while it was read is not kept");
        for key in 2..9 {
            let _ = kept.get(key, |_| Ok::<_, ()>((key, true)));
            assert!(kept.all.borrow().len() <= 2);
        }
    }
}
