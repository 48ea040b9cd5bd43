//! Settings of the server.

use crate::database::Session;
use crate::waiting::eventually;
use crate::world::World;
use std::time::Duration;

/// A setting for the whole server, back to its default when this is dropped.
pub struct Setting {
    name: &'static str,
}

impl Setting {
    /// `ALTER SYSTEM SET`, in force at once.
    pub fn set(world: &mut World, name: &'static str, value: &str) -> Self {
        world.db.exec(&format!("ALTER SYSTEM SET {name} = '{value}'"));
        world.db.exec("SELECT pg_reload_conf()");
        eventually("the setting is in force", Duration::from_secs(10), || {
            world.connect().value(&format!("SELECT setting <> boot_val FROM pg_settings WHERE name = '{name}'")) == "t"
        });
        Self { name }
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let mut db = Session::connect("postgres");
        let _ = db.try_exec(&format!("ALTER SYSTEM RESET {}", self.name));
        let _ = db.try_exec("SELECT pg_reload_conf()");
    }
}
