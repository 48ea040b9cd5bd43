//! Redis Cluster: which slot a key belongs to, and where the slots are.

use std::hash::{DefaultHasher, Hash, Hasher};

use redis::{ServerError, Value};

use crate::error::{Error, ErrorKind, Result};

/// Into so many slots a cluster divides its keys.
pub(super) const SLOTS: usize = 16384;

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

/// The slot of a key: of what is between the first `{` and the next `}`, if that is not empty, else of all of it.
pub(super) fn slot_of(key: &[u8]) -> u16 {
    let tag = || {
        let open = key.iter().position(|byte| *byte == b'{')? + 1;
        let length = key[open..].iter().position(|byte| *byte == b'}')?;
        (length > 0).then(|| &key[open..open + length])
    };
    crc16(tag().unwrap_or(key)) % SLOTS as u16
}

/// CRC-16/XMODEM. The redis crate has the same, but does not tell the number.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| CRC16[usize::from((crc >> 8) as u8 ^ byte)] ^ (crc << 8))
}

const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// Slots, from the first to the last, and the primary that has them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) slots: std::ops::RangeInclusive<u16>,
    pub(super) owner: Address,
}

/// Reads the reply to `CLUSTER SLOTS` of the node at `asked`.
pub(super) fn ranges(reply: &Value, asked: &str) -> Result<Vec<Range>> {
    let Value::Array(items) = reply else { return Err(not_understood()) };
    let range = |item: &Value| {
        let Value::Array(parts) = item else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = parts.as_slice() else { return None };
        let [host, Value::Int(port), ..] = primary.as_slice() else { return None };
        let host = match host {
            // A node that was not told its own address, or whose is unknown: where it was asked.
            Value::Nil => asked,
            Value::BulkString(bytes) => match std::str::from_utf8(bytes).ok()? {
                "" | "?" => asked,
                host => host,
            },
            _ => return None,
        };
        let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        let owner = Address { host: host.to_owned(), port: u16::try_from(*port).ok()? };
        (usize::from(last) < SLOTS).then_some(Range { slots: first..=last, owner })
    };
    items.iter().map(|item| range(item).ok_or_else(not_understood)).collect()
}

/// Where a command is to go instead.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Redirect {
    /// The slot has another owner.
    Moved(u16, Address),
    /// The key is already, or will be, where its slot is being moved to.
    Ask(Address),
}

impl Redirect {
    /// Reads a refusal of the node at `asked`. None: it says nothing of where the key is.
    pub(super) fn of(refusal: &ServerError, asked: &str) -> Option<Redirect> {
        Redirect::read(refusal.code(), refusal.details()?, asked)
    }

    /// As [`Redirect::of`], of a command that failed with it.
    pub(super) fn of_error(error: &Error, asked: &str) -> Option<Redirect> {
        let cause = std::error::Error::source(error)?.downcast_ref::<redis::RedisError>()?;
        Redirect::read(cause.code()?, cause.detail()?, asked)
    }

    fn read(code: &str, details: &str, asked: &str) -> Option<Redirect> {
        let mut words = details.split_ascii_whitespace();
        let slot: u16 = words.next()?.parse().ok()?;
        let (host, port) = words.next()?.rsplit_once(':')?;
        let host = if host.is_empty() { asked } else { host };
        let address = Address { host: host.to_owned(), port: port.parse().ok()? };
        match code {
            "MOVED" if usize::from(slot) < SLOTS && host != "?" => Some(Redirect::Moved(slot, address)),
            "ASK" if host != "?" => Some(Redirect::Ask(address)),
            _ => None,
        }
    }
}

/// What a node's own line of `CLUSTER NODES` says of the slots that it has. It changes with each slot that comes or goes, and
/// with each failover. `Err` while a slot is on its way.
pub(super) fn layout(nodes: &str) -> Result<u64> {
    let line = nodes
        .lines()
        .find(|line| line.split(' ').nth(2).is_some_and(|flags| flags.split(',').any(|flag| flag == "myself")));
    let words: Vec<&str> = line.ok_or_else(not_understood)?.split_ascii_whitespace().collect();
    let [id, _, _, _, _, _, epoch, _, slots @ ..] = words.as_slice() else { return Err(not_understood()) };
    if slots.iter().any(|slot| slot.starts_with('[')) {
        return Err(Error::new(
            ErrorKind::Overloaded,
            "slots are being moved between nodes of the Redis Cluster; its keys are listed when that is done",
        ));
    }
    Ok(digest(&(id, epoch, slots)))
}

/// A number that tells apart what is not equal, within a process.
pub(super) fn digest(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

fn not_understood() -> Error {
    Error::new(ErrorKind::Protocol, "can't understand what the Redis Cluster says of its slots")
}

/// How far a listing of all keys is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// How the slots were distributed when it began.
    pub(super) layout: u64,
    /// The node that is being listed.
    pub(super) node: Address,
    /// `SCAN`'s own.
    pub(super) cursor: u64,
}

impl Place {
    pub(super) fn to_text(&self) -> String {
        format!("{} {} {} {}", self.layout, self.cursor, self.node.port, self.node.host)
    }

    pub(super) fn parse(text: &str) -> Option<Place> {
        let mut words = text.splitn(4, ' ');
        let (layout, cursor) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let port = words.next()?.parse().ok()?;
        Some(Place { layout, cursor, node: Address { host: words.next()?.to_owned(), port } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str, port: u16) -> Address {
        Address { host: host.into(), port }
    }

    #[test]
    fn slots_of_keys() {
        // From the specification: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"{user1000}.followers"));
        assert_eq!(slot_of(b"foo{}{bar}"), crc16(b"foo{}{bar}") % 16384);
        assert_eq!(slot_of(b"foo{{bar}}zap"), slot_of(b"{bar"));
        assert_eq!(slot_of(b"foo{bar}{zap}"), slot_of(b"bar"));
        assert_eq!(slot_of(b"}a{"), crc16(b"}a{") % 16384);
        assert_eq!(slot_of(b""), 0);
    }

    fn range(first: i64, last: i64, host: Value, port: i64) -> Value {
        let primary = Value::Array(vec![host, Value::Int(port), Value::BulkString(b"id".to_vec())]);
        Value::Array(vec![Value::Int(first), Value::Int(last), primary])
    }

    #[test]
    fn the_map_of_a_cluster() {
        let name = |name: &str| Value::BulkString(name.as_bytes().to_vec());
        let reply = Value::Array(vec![
            range(0, 5, name("a"), 1),
            range(6, 6, name(""), 2),
            range(7, 16383, Value::Nil, 3),
            range(9, 9, name("?"), 4),
        ]);
        let found: Vec<(u16, Address)> =
            ranges(&reply, "asked").unwrap().into_iter().map(|range| (*range.slots.end(), range.owner)).collect();
        assert_eq!(found, [(5, at("a", 1)), (6, at("asked", 2)), (16383, at("asked", 3)), (9, at("asked", 4))]);
        for wrong in [Value::Okay, Value::Array(vec![Value::Nil]), Value::Array(vec![range(0, 16384, name("a"), 1)])] {
            assert_eq!(ranges(&wrong, "").unwrap_err().kind(), ErrorKind::Protocol);
        }
    }

    #[test]
    fn redirects() {
        let read = |code, details| Redirect::read(code, details, "asked");
        assert_eq!(read("MOVED", "3999 127.0.0.1:6381"), Some(Redirect::Moved(3999, at("127.0.0.1", 6381))));
        assert_eq!(read("MOVED", "1 ::1:6381"), Some(Redirect::Moved(1, at("::1", 6381))));
        assert_eq!(read("ASK", "3999 :6381"), Some(Redirect::Ask(at("asked", 6381))));
        let none = [("MOVED", "16384 a:1"), ("MOVED", "1 ?:1"), ("MOVED", "1"), ("ASK", "1 a"), ("ERR", "1 a:1")];
        for (code, details) in none {
            assert_eq!(read(code, details), None, "{code} {details}");
        }
    }

    #[test]
    fn a_layout_changes_with_slots_and_epochs() {
        let nodes = |line: &str| format!("b1 127.0.0.1:2@3 master - 0 0 2 connected 6-9\na1 127.0.0.1:1@2 {line}\n");
        let stable = layout(&nodes("myself,master - 0 0 1 connected 0-5 7")).unwrap();
        assert_eq!(layout(&nodes("myself,master - 0 99 1 connected 0-5 7")).unwrap(), stable);
        for other in ["myself,master - 0 0 3 connected 0-5 7", "myself,master - 0 0 1 connected 0-5"] {
            assert_ne!(layout(&nodes(other)).unwrap(), stable, "{other}");
        }
        for moving in ["0-5 [5->-b1]", "0-5 [9-<-b1]"] {
            let error = layout(&nodes(&format!("myself,master - 0 0 1 connected {moving}"))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Overloaded);
        }
        assert_eq!(layout("").unwrap_err().kind(), ErrorKind::Protocol);
        assert_eq!(layout(&nodes("myself,master")).unwrap_err().kind(), ErrorKind::Protocol);
    }

    #[test]
    fn a_place_is_read_back() {
        let place = Place { layout: u64::MAX, node: at("::1", 7), cursor: 1 << 63 };
        assert_eq!(Place::parse(&place.to_text()), Some(place));
        assert_eq!(Place::parse("17"), None);
    }
}
