//! Ways from one table to another along foreign keys.

use crate::catalog::acting::privileged;
use crate::catalog::ours;
use crate::catalog::source::Table;
use crate::server::quoted;
use pgrx::{Spi, pg_sys};

/// A step of a way: rows of the next table whose `to` columns equal the `from` columns of a row here.
#[derive(Clone, Debug)]
struct Step {
    start: pg_sys::Oid,
    end: pg_sys::Oid,
    /// The table that the step leads to, as SQL text needs it.
    name: String,
    from: Vec<String>,
    to: Vec<String>,
}

/// A way, of one step at least.
#[derive(Clone, Debug)]
pub struct Path(Vec<Step>);

impl Path {
    /// The columns of the first table that matter.
    pub fn columns(&self) -> &[String] {
        &self.0[0].from
    }

    /// The query from `changed`, which has these columns, to the key of the last table; None if the columns are that key, in
    /// its order.
    pub fn keys(&self, key: &[String]) -> Option<String> {
        if let [only] = self.0.as_slice()
            && only.to == key
        {
            return None;
        }
        let joins: Vec<String> = self
            .0
            .iter()
            .enumerate()
            .map(|(n, step)| {
                let before = if n == 0 { "changed".to_owned() } else { format!("t{n}") };
                let alias = format!("t{}", n + 1);
                let conditions: Vec<String> = step
                    .from
                    .iter()
                    .zip(&step.to)
                    .map(|(from, to)| format!("{alias}.{} = {before}.{}", quoted(to), quoted(from)))
                    .collect();
                format!("JOIN {} AS {alias} ON {}", step.name, conditions.join(" AND "))
            })
            .collect();
        let last = format!("t{}", self.0.len());
        let columns: Vec<String> = key.iter().map(|column| format!("{last}.{}", quoted(column))).collect();
        Some(format!("SELECT {} FROM changed {}", columns.join(", "), joins.join(" ")))
    }
}

/// The shortest ways from a table to another, by way of tables that are among `between`.
pub fn paths(from: &Table, to: &Table, between: &[pg_sys::Oid]) -> Vec<Path> {
    let mut tables: Vec<pg_sys::Oid> = between.to_vec();
    tables.extend([from.oid, to.oid]);
    let steps = privileged(|| ours(steps(&tables)));
    let mut ways = vec![(from.oid, Vec::<Step>::new())];
    // No way visits a table twice, so none is longer than there are tables.
    for _ in 0..tables.len() {
        let mut longer = Vec::new();
        for (at, way) in &ways {
            for step in steps.iter().filter(|step| step.start == *at) {
                let seen = step.end == from.oid || way.iter().any(|before| before.end == step.end);
                if !seen {
                    let mut way = way.clone();
                    way.push(step.clone());
                    longer.push((step.end, way));
                }
            }
        }
        let arrived: Vec<Path> =
            longer.iter().filter(|(at, _)| *at == to.oid).map(|(_, way)| Path(way.clone())).collect();
        if !arrived.is_empty() || longer.is_empty() {
            return arrived;
        }
        ways = longer;
    }
    Vec::new()
}

/// The foreign keys among some tables, each in both directions.
///
/// The last column of one with PERIOD, which 18 brought, is not compared for equality: the others lead to more rows, and
/// to all that matter.
fn steps(tables: &[pg_sys::Oid]) -> Result<Vec<Step>, pgrx::spi::Error> {
    let sql = "SELECT c.conrelid, c.confrelid, a.columns, b.columns
        FROM pg_catalog.pg_constraint AS c
        CROSS JOIN LATERAL (
            SELECT pg_catalog.cardinality(c.conkey)
                - CASE WHEN pg_catalog.to_jsonb(c) @> '{\"conperiod\": true}' THEN 1 ELSE 0 END AS compared) AS n
        CROSS JOIN LATERAL (
            SELECT pg_catalog.array_agg(t.attname::text ORDER BY k.place) AS columns
            FROM pg_catalog.unnest(c.conkey[:n.compared]) WITH ORDINALITY AS k (number, place)
            JOIN pg_catalog.pg_attribute AS t ON t.attrelid = c.conrelid AND t.attnum = k.number) AS a
        CROSS JOIN LATERAL (
            SELECT pg_catalog.array_agg(t.attname::text ORDER BY k.place) AS columns
            FROM pg_catalog.unnest(c.confkey[:n.compared]) WITH ORDINALITY AS k (number, place)
            JOIN pg_catalog.pg_attribute AS t ON t.attrelid = c.confrelid AND t.attnum = k.number) AS b
        WHERE c.contype = 'f' AND c.conparentid = 0 AND c.conrelid = ANY ($1) AND c.confrelid = ANY ($1)
        ORDER BY c.oid";
    Spi::connect(|client| {
        let mut steps = Vec::new();
        for row in client.select(sql, None, &[tables.to_vec().into()])? {
            let referring = row.get::<pg_sys::Oid>(1)?.unwrap_or(pg_sys::InvalidOid);
            let referred = row.get::<pg_sys::Oid>(2)?.unwrap_or(pg_sys::InvalidOid);
            let columns: Vec<String> = row.get(3)?.unwrap_or_default();
            let others: Vec<String> = row.get(4)?.unwrap_or_default();
            let name = |oid| Table::find(oid).map(|table| table.quoted()).unwrap_or_default();
            steps.push(Step {
                start: referring,
                end: referred,
                name: name(referred),
                from: columns.clone(),
                to: others.clone(),
            });
            steps.push(Step { start: referred, end: referring, name: name(referring), from: others, to: columns });
        }
        Ok(steps)
    })
}
