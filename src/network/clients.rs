//! Clients that are kept from one request to the next.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Whose client: the foreign server and the role whose user mapping is used, as object identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientKey {
    /// The foreign server.
    pub server: u32,
    /// The role.
    pub user: u32,
}

/// More clients than this in one backend means that roles come and go: the old ones are closed.
pub const MAX_CLIENTS: usize = 32;

/// Clients `T`, each with the configuration `C` that it was made from.
pub struct Clients<C, T>(HashMap<ClientKey, (C, T)>);

impl<C, T> Default for Clients<C, T> {
    fn default() -> Self {
        Clients(HashMap::new())
    }
}

impl<C: Clone + PartialEq, T> Clients<C, T> {
    /// The client, made anew by `make` if there is none for this very configuration.
    pub fn get(
        &mut self,
        key: ClientKey,
        config: &C,
        make: impl FnOnce(&C) -> delivery::Result<T>,
    ) -> delivery::Result<&mut T> {
        if self.0.get(&key).is_some_and(|(made_from, _)| made_from != config) {
            self.0.remove(&key);
        }
        if self.0.len() >= MAX_CLIENTS && !self.0.contains_key(&key) {
            self.0.clear();
        }
        Ok(match self.0.entry(key) {
            Entry::Occupied(known) => &mut known.into_mut().1,
            Entry::Vacant(place) => &mut place.insert((config.clone(), make(config)?)).1,
        })
    }

    /// Closes a client, so that the next request begins with a new one.
    pub fn forget(&mut self, key: ClientKey) {
        self.0.remove(&key);
    }
}
