//! The table that a sync reads: what it must be, what a caller must be allowed to do with it, which columns it has.

use crate::catalog::acting::privileged;
use crate::catalog::ours;
use crate::error::failure;
use crate::server::{quoted, role_name};
use pgrx::prelude::*;
use pgrx::spi::SpiClient;
use pgrx::{Spi, pg_sys};

/// A column of a source.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    pub type_oid: pg_sys::Oid,
    pub type_modifier: i32,
    /// Computed when read (PostgreSQL 18): a trigger can't see it.
    pub computed: bool,
}

/// A source table, as the catalog describes it.
#[derive(Clone, Debug)]
pub struct Table {
    pub oid: pg_sys::Oid,
    pub schema: String,
    pub name: String,
    pub owner: pg_sys::Oid,
    pub columns: Vec<Column>,
    /// Tables that inherit from it without being partitions, at any depth, in the order of their OIDs.
    pub heirs: Vec<pg_sys::Oid>,
    kind: String,
    persistence: String,
    /// One of them is a foreign table.
    has_foreign_heir: bool,
}

impl Table {
    /// Reads the catalog. None if there is no such relation.
    pub fn find(oid: pg_sys::Oid) -> Option<Self> {
        privileged(|| ours(read(oid)))
    }

    /// Reads the catalog, or an ERROR.
    pub fn get(oid: pg_sys::Oid) -> Self {
        Self::find(oid).unwrap_or_else(|| {
            failure(
                PgSqlErrorCode::ERRCODE_UNDEFINED_TABLE,
                format!("relation with OID {} does not exist", oid.to_u32()),
            )
            .hint("Name the table: 'schema.table'.")
            .raise()
        })
    }

    /// Schema and name as SQL text needs them.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quoted(&self.schema), quoted(&self.name))
    }

    /// The column of that name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The names of all columns, for a DETAIL.
    pub fn column_names(&self) -> String {
        self.columns.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Raises unless a sync can read such a relation.
    pub fn check_kind(&self) {
        let refuse = |what: &str, hint: &str| -> ! {
            failure(
                PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
                format!("\"{}\" can't be the source of a sync: it is {what}", self.name),
            )
            .hint(hint)
            .raise()
        };
        let base_tables = "A sync reads an ordinary or a partitioned table, or a materialized view; name the table that the rows are in.";
        match self.kind.as_str() {
            // A materialized view has no triggers: it is reconciled when it was refreshed.
            "r" | "p" | "m" => {}
            "v" => refuse("a view", base_tables),
            "f" => {
                refuse("a foreign table", "Its changes happen elsewhere, where no trigger of this database sees them.")
            }
            "S" => refuse("a sequence", base_tables),
            "i" | "I" => refuse("an index", base_tables),
            "c" => refuse("a composite type", base_tables),
            "t" => refuse("a TOAST table", base_tables),
            _ => refuse("no table", base_tables),
        }
        if self.persistence == "t" {
            refuse("a temporary table", "Only the session that made it can read it; use an ordinary table.");
        }
        if matches!(self.schema.as_str(), "pg_catalog" | "information_schema" | "pg_toast") {
            refuse("a system catalog", "System catalogs have no triggers.");
        }
        if self.schema == "fanout" {
            refuse("a table of pg_fanout itself", base_tables);
        }
        if self.has_foreign_heir {
            refuse(
                "the parent of a foreign table",
                "Changes of that happen elsewhere: take it out with ALTER FOREIGN TABLE … NO INHERIT, or sync the others.",
            );
        }
    }

    /// Raises unless `role` may put our trigger on the table and read all of it: it is the worker's right to read later.
    pub fn check_rights(&self, role: pg_sys::Oid) {
        // SAFETY: privilege look-ups on the main thread for a relation that the catalog just described.
        let (owns, triggers, selects, rls) = unsafe {
            (
                self.owned_by(role) || !self.has_triggers(),
                pg_sys::pg_class_aclcheck(self.oid, role, pg_sys::ACL_TRIGGER as pg_sys::AclMode)
                    == pg_sys::AclResult::ACLCHECK_OK,
                pg_sys::pg_class_aclcheck(self.oid, role, pg_sys::ACL_SELECT as pg_sys::AclMode)
                    == pg_sys::AclResult::ACLCHECK_OK,
                pg_sys::check_enable_rls(self.oid, role, true),
            )
        };
        let name = role_name(role);
        if !(owns || triggers) || !selects {
            let lacking = if selects { "TRIGGER" } else { "SELECT" };
            failure(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("permission denied for table {}", self.name),
            )
            .detail(format!(
                "A sync is made by who owns the table or has SELECT and TRIGGER on it: role \"{name}\" lacks {lacking}."
            ))
            .hint(format!("GRANT SELECT, TRIGGER ON {} TO {};", self.quoted(), quoted(&name)))
            .raise();
        }
        if rls == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32 {
            failure(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("row-level security would hide rows of \"{}\" from the sync", self.name),
            )
            .detail(format!("The worker reads as role \"{name}\", for whom policies apply."))
            .hint("Make the sync as a role that policies don't apply to: the table's owner (unless FORCE ROW LEVEL SECURITY) or a role with BYPASSRLS.")
            .raise();
        }
    }

    /// True for a materialized view.
    pub fn is_refreshed(&self) -> bool {
        self.kind == "m"
    }

    /// Whether its rows are in partitions.
    pub fn is_partitioned(&self) -> bool {
        self.kind == "p"
    }

    /// Whether changes of its rows fire triggers.
    pub fn has_triggers(&self) -> bool {
        matches!(self.kind.as_str(), "r" | "p")
    }

    /// Whether `role` counts as the table's owner.
    pub fn owned_by(&self, role: pg_sys::Oid) -> bool {
        // SAFETY: a role look-up on the main thread.
        unsafe { pg_sys::has_privs_of_role(role, self.owner) }
    }

    /// Whether `role` may read all columns.
    pub fn readable_by(&self, role: pg_sys::Oid) -> bool {
        // SAFETY: a privilege look-up on the main thread for a relation that the catalog just described.
        unsafe {
            pg_sys::pg_class_aclcheck(self.oid, role, pg_sys::ACL_SELECT as pg_sys::AclMode)
                == pg_sys::AclResult::ACLCHECK_OK
        }
    }

    /// Takes the lock that CREATE TRIGGER takes, before any table of ours is touched: everybody locks sources first, so
    /// that a writer, who holds the source and will want the journal, can't be in a deadlock with us. As LOCK TABLE does,
    /// it takes what inherits from the table with it.
    pub fn lock(&self) {
        for &table in std::iter::once(&self.oid).chain(&self.heirs) {
            // SAFETY: a plain lock request on the main thread, kept until the transaction ends.
            unsafe { pg_sys::LockRelationOid(table, pg_sys::ShareRowExclusiveLock as pg_sys::LOCKMODE) };
        }
    }
}

fn read(oid: pg_sys::Oid) -> Result<Option<Table>, pgrx::spi::Error> {
    Spi::connect(|client| {
        let table = client.select(
            "SELECT n.nspname::text, c.relname::text, c.relowner, c.relkind::text, c.relpersistence::text
             FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
            Some(1),
            &[oid.into()],
        )?;
        if table.is_empty() {
            return Ok(None);
        }
        let table = table.first();
        let mut columns = Vec::new();
        for row in client.select(
            "SELECT a.attname::text, a.atttypid, a.atttypmod, a.attgenerated::text = 'v'
             FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            None,
            &[oid.into()],
        )? {
            columns.push(Column {
                name: row.get(1)?.unwrap_or_default(),
                type_oid: row.get(2)?.unwrap_or(pg_sys::InvalidOid),
                type_modifier: row.get(3)?.unwrap_or(-1),
                computed: row.get(4)?.unwrap_or_default(),
            });
        }
        let kind: String = table.get(4)?.unwrap_or_default();
        let heirs = if kind == "r" { heirs(client, oid)? } else { Vec::new() };
        Ok(Some(Table {
            oid,
            schema: table.get(1)?.unwrap_or_default(),
            name: table.get(2)?.unwrap_or_default(),
            owner: table.get(3)?.unwrap_or(pg_sys::InvalidOid),
            kind,
            persistence: table.get(5)?.unwrap_or_default(),
            has_foreign_heir: heirs.iter().any(|&(_, foreign)| foreign),
            heirs: heirs.into_iter().filter(|&(_, foreign)| !foreign).map(|(heir, _)| heir).collect(),
            columns,
        }))
    })
}

/// What inherits from a table that is not partitioned, and whether it is a foreign table. Temporary ones only their own
/// session sees.
fn heirs(client: &SpiClient, table: pg_sys::Oid) -> Result<Vec<(pg_sys::Oid, bool)>, pgrx::spi::Error> {
    client
        .select(
            "WITH RECURSIVE tree(relid) AS (
                 SELECT i.inhrelid FROM pg_catalog.pg_inherits i WHERE i.inhparent = $1
                 UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree ON i.inhparent = tree.relid)
             SELECT c.oid, c.relkind = 'f' FROM tree JOIN pg_catalog.pg_class c ON c.oid = tree.relid
             WHERE c.relkind IN ('r', 'f') AND c.relpersistence <> 't' ORDER BY c.oid",
            None,
            &[table.into()],
        )?
        .map(|row| Ok((row.get(1)?.unwrap_or(pg_sys::InvalidOid), row.get(2)?.unwrap_or_default())))
        .collect()
}
