//! `fanout.retry()`: dead letters are tried anew.

use crate::capture::{enqueue_image, image};
use crate::catalog::acting::privileged;
use crate::catalog::admin::{not_parked, owned};
use crate::catalog::enqueue::layout;
use crate::catalog::ours;
use crate::error::not_null;
use pgrx::prelude::*;
use pgrx::{Spi, default};

extension_sql_file!("../../sql/views.sql", name = "views", requires = ["bootstrap"]);

/// Enqueues the dead letters of a sync (or the one with this document id) anew. Returns how many. They stay in
/// fanout.dead_letters until they are delivered.
#[pg_extern(schema = "fanout")]
fn retry(sync: Option<&str>, id: default!(Option<&str>, "NULL")) -> i64 {
    let sync = not_parked(owned(not_null("sync", sync)));
    let addresses = privileged(|| {
        ours(Spi::connect(|client| -> Result<Vec<Vec<u8>>, pgrx::spi::Error> {
            let mut addresses = Vec::new();
            for row in client.select(
                "SELECT coalesce(whole, address) FROM fanout.dead_letter
                 WHERE sync_id = $1 AND ($2 IS NULL OR document_id = $2)",
                None,
                &[sync.id.into(), id.into()],
            )? {
                addresses.extend(row.get::<Vec<u8>>(1)?);
            }
            Ok(addresses)
        }))
    });
    let layout = image::layout(layout(&sync));
    for address in &addresses {
        enqueue_image(sync.id, layout, address);
    }
    addresses.len() as i64
}
