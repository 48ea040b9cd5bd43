//! Subscriptions of logical replication, where the publisher has the extension as well.
//!
//! A publication FOR ALL TABLES has our tables in it: PostgreSQL cannot leave out any, and publishes those of extensions.
//! What is in them concerns the publisher alone: its syncs, its pending addresses, its clock. Here it would be taken for ours,
//! or conflict with it for ever. A subscription applies changes of a table only if the table is in pg_subscription_rel, where
//! CREATE SUBSCRIPTION and REFRESH PUBLICATION put it; of others it drops rows and TRUNCATE alike. A trigger could drop rows
//! only, and would run at each row that we write ourselves.

use super::acting::privileged;
use super::{ours, own_relation};
use pgrx::{Spi, pg_sys};

/// Takes our tables out of all subscriptions of the database. Called after each statement that may have put them in, within its
/// transaction: so no worker sees them there.
pub fn leave_out_ours() {
    if own_relation(c"sync") == pg_sys::InvalidOid {
        return;
    }
    // Others than i (new) and r (ready) are being copied, by a worker that keeps a slot on the publisher.
    let sql = "DELETE FROM pg_catalog.pg_subscription_rel AS r \
        USING pg_catalog.pg_depend AS d, pg_catalog.pg_extension AS e \
        WHERE r.srsubstate IN ('i', 'r') \
            AND d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = r.srrelid AND d.deptype = 'e' \
            AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.refobjid = e.oid \
            AND e.extname = 'pg_fanout'";
    privileged(|| ours(Spi::connect_mut(|client| client.update(sql, None, &[]).map(|_| ()))));
}
