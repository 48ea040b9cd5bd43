//! Ways from one table to another along foreign keys.

use crate::catalog::acting::privileged;
use crate::catalog::document::Readings;
use crate::catalog::ours;
use crate::catalog::source::Table;
use crate::server::quoted;
use pgrx::{Spi, pg_sys};

/// More ways than anybody means.
const MOST_WAYS: usize = 16;
/// Ways of one length that are looked at.
const MOST_OPEN: usize = 1000;

/// A step of a way: rows of the next table whose `to` columns equal the `from` columns of a row here.
#[derive(Clone, Debug)]
struct Step {
    start: pg_sys::Oid,
    end: pg_sys::Oid,
    /// The table that the step leads to, as SQL text needs it.
    name: String,
    from: Vec<String>,
    to: Vec<String>,
    /// From what refers to what is referred to: to one row at most.
    up: bool,
}

impl Step {
    /// True if it leads from each row back to the one that `before` came from.
    fn undoes(&self, before: &Step) -> bool {
        self.up && !before.up && self.end == before.start && self.from == before.to && self.to == before.from
    }
}

/// A way, of one step at least.
#[derive(Clone, Debug)]
pub struct Path(Vec<Step>);

impl Path {
    /// The columns of the first table that matter.
    pub fn columns(&self) -> &[String] {
        &self.0[0].from
    }

    /// The conditions that it joins by, as a message shows them.
    pub fn conditions(&self, start: &str) -> String {
        let mut before = start.to_owned();
        let mut conditions = Vec::new();
        for step in &self.0 {
            for (from, to) in step.from.iter().zip(&step.to) {
                conditions.push(format!("{before}.{} = {}.{}", quoted(from), step.name, quoted(to)));
            }
            before.clone_from(&step.name);
        }
        conditions.join(", ")
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

/// Where a table leads to along foreign keys.
pub struct Ways {
    /// All of them, the shortest first.
    pub paths: Vec<Path>,
    /// There are more than that.
    pub more: bool,
    /// The query repeats itself: a way by a table that refers to itself may be of any length.
    pub endless: bool,
}

impl Ways {
    /// Those of the fewest steps.
    pub fn shortest(&self) -> &[Path] {
        let steps = |path: &Path| path.0.len();
        let fewest = self.paths.first().map_or(0, steps);
        &self.paths[..self.paths.iter().take_while(|path| steps(path) == fewest).count()]
    }

    /// True if following only the shortest might miss documents.
    pub fn differ(&self) -> bool {
        self.more || self.endless || self.shortest().len() < self.paths.len()
    }
}

/// The ways from a table to another by way of the tables that a query reads. None goes by a table more often than the query
/// reads it: each row that it joins is of another reading.
pub fn ways(from: &Table, to: &Table, readings: &Readings) -> Ways {
    let mut tables: Vec<pg_sys::Oid> = readings.tables.clone();
    tables.extend([from.oid, to.oid]);
    tables.sort_unstable_by_key(|oid| oid.to_u32());
    tables.dedup();
    let steps = privileged(|| ours(steps(&tables)));
    let refers_to_itself = |oid: pg_sys::Oid| steps.iter().any(|step| step.start == oid && step.end == oid);
    let allowed = |oid: pg_sys::Oid| {
        let read = readings.tables.iter().filter(|&&read| read == oid).count().max(1);
        // Once more shows that there is no end.
        read + usize::from(readings.recursive && refers_to_itself(oid))
    };
    let mut ways = Ways { paths: Vec::new(), more: false, endless: false };
    let mut open = vec![(from.oid, Vec::<Step>::new())];
    while !open.is_empty() {
        let mut longer = Vec::new();
        for (at, way) in &open {
            let onward = |step: &&Step| step.start == *at && !way.last().is_some_and(|before| step.undoes(before));
            for step in steps.iter().filter(onward) {
                let visits =
                    way.iter().filter(|before| before.end == step.end).count() + usize::from(step.end == from.oid);
                if visits < allowed(step.end) {
                    let mut way = way.clone();
                    way.push(step.clone());
                    longer.push((step.end, way));
                }
            }
        }
        ways.paths.extend(longer.iter().filter(|(at, _)| *at == to.oid).map(|(_, way)| Path(way.clone())));
        if ways.paths.len() > MOST_WAYS || longer.len() > MOST_OPEN {
            ways.paths.truncate(MOST_WAYS);
            ways.more = true;
            return ways;
        }
        open = longer;
    }
    let by_itself = |path: &Path| path.0.iter().any(|step| step.start == step.end);
    ways.endless = readings.recursive && ways.paths.iter().any(by_itself);
    ways
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
                up: true,
            });
            steps.push(Step {
                start: referred,
                end: referring,
                name: name(referring),
                from: others,
                to: columns,
                up: false,
            });
        }
        Ok(steps)
    })
}
