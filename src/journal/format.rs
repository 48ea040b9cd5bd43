//! The layout of a journal tuple's payload. Frozen: an old catalog meets a new library, so the first byte says the version.
//!
//! ```text
//! payload  := 0x01 group*
//! group    := varint(sync id) 0x00 signature:u32le varint(columns) varint(count) address{count}
//!           | varint(sync id) 0x01                                   -- marker: all of the sync must be reconciled
//! address  := column{columns}
//! column   := varint(0)                                              -- NULL
//!           | varint(1 + length) byte{length}
//! varint   := LEB128, unsigned
//! ```

/// Version of the layout, the first byte of each payload.
pub const VERSION: u8 = 1;

/// The longest payload that fits a heap page: MaxHeapTupleSize (8160) less tuple header (24), xid8 (8) and varlena header (4).
pub const MAX_PAYLOAD: usize = 8100;

/// The longest address that is journalled; a sync with a longer one is marked for reconciliation instead.
pub const MAX_ADDRESS: usize = MAX_PAYLOAD - 64;

const ADDRESSES: u8 = 0;
const RECONCILE: u8 = 1;

/// Appends an unsigned LEB128 number.
#[inline]
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes an unsigned LEB128 number off the front of `input`.
#[inline]
pub fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Appends one column of an address.
#[inline]
pub fn put_column(out: &mut Vec<u8>, value: Option<&[u8]>) {
    match value {
        None => out.push(0),
        Some(bytes) => {
            put_varint(out, bytes.len() as u64 + 1);
            out.extend_from_slice(bytes);
        }
    }
}

/// Takes one column off the front of `input`; the outer None says that the input is malformed.
#[inline]
pub fn take_column<'a>(input: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = take_varint(input)?;
    if length == 0 {
        return Some(None);
    }
    let length = usize::try_from(length - 1).ok()?;
    let (bytes, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(Some(bytes))
}

/// Takes a whole address of `columns` columns off the front of `input`.
#[inline]
pub fn take_address<'a>(input: &mut &'a [u8], columns: usize) -> Option<&'a [u8]> {
    let start = *input;
    for _ in 0..columns {
        take_column(input)?;
    }
    Some(&start[..start.len() - input.len()])
}

/// What no address begins with: zero, as LEB128 never writes it.
const RELATED: [u8; 2] = [0x80, 0x00];

/// The address of a row in a related table, as a sync holds it among those of its source.
pub fn of_relation(relation: i32, address: &[u8]) -> Vec<u8> {
    [&RELATED[..], &relation.to_le_bytes(), address].concat()
}

/// The relation and the address there, if this is what [`of_relation`] made.
pub fn related(address: &[u8]) -> Option<(i32, &[u8])> {
    let (relation, address) = address.strip_prefix(&RELATED)?.split_first_chunk::<4>()?;
    Some((i32::from_le_bytes(*relation), address))
}

/// What no address, and nothing of a relation, begins with: a NULL as put_column does not write it.
const ORPHAN: [u8; 3] = [0x80, 0x80, 0x00];

/// A document of a target to be deleted, unless it was written since. It stands among the addresses of a sync where no address
/// is known: its id is the hash of a key, or that of a key of other types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan<'a> {
    /// Its id.
    pub id: &'a str,
    /// What decides on its shard instead of the id.
    pub routing: Option<&'a str>,
    /// Its concrete index, where there is one a period.
    pub index: Option<&'a str>,
    /// The version that it has.
    pub version: u64,
}

impl<'a> Orphan<'a> {
    /// With which it is journalled: so many columns, as [`Orphan::to_address`] writes them. A library that does not know of these
    /// takes them for a key of other types, and reconciles the sync.
    pub const LAYOUT: Layout = Layout { signature: 0, columns: 5 };

    /// The address that stands for it.
    pub fn to_address(self) -> Vec<u8> {
        let mut address = ORPHAN.to_vec();
        put_column(&mut address, Some(self.id.as_bytes()));
        put_column(&mut address, self.routing.map(str::as_bytes));
        put_column(&mut address, self.index.map(str::as_bytes));
        put_column(&mut address, Some(&self.version.to_le_bytes()));
        address
    }

    /// The document that an address stands for, if it does not stand for a row.
    pub fn of(address: &'a [u8]) -> Option<Self> {
        let mut rest = address.strip_prefix(&ORPHAN)?;
        let id = text(take_column(&mut rest)?)??;
        let routing = text(take_column(&mut rest)?)?;
        let index = text(take_column(&mut rest)?)?;
        let version = u64::from_le_bytes(take_column(&mut rest)??.try_into().ok()?);
        rest.is_empty().then_some(Self { id, routing, index, version })
    }
}

/// A column's text; the outer None says that it is none.
fn text(column: Option<&[u8]>) -> Option<Option<&str>> {
    column.map(std::str::from_utf8).transpose().ok()
}

/// What identifies the meaning of the bytes of a sync's addresses: how many columns of which types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Hash of the columns' types; see `capture::image`.
    pub signature: u32,
    /// How many address columns there are.
    pub columns: u32,
}

/// Packs groups of addresses into payloads that fit a page each.
pub struct Packer<F: FnMut(&[u8])> {
    payload: Vec<u8>,
    emit: F,
}

impl<F: FnMut(&[u8])> Packer<F> {
    /// `emit` receives each finished payload.
    pub fn new(emit: F) -> Self {
        let mut payload = Vec::with_capacity(256);
        payload.push(VERSION);
        Self { payload, emit }
    }

    fn flush(&mut self) {
        if self.payload.len() > 1 {
            (self.emit)(&self.payload);
            self.payload.truncate(1);
        }
    }

    /// Adds the marker that all of the sync must be reconciled.
    pub fn reconcile(&mut self, sync: i32) {
        if self.payload.len() + 16 > MAX_PAYLOAD {
            self.flush();
        }
        put_varint(&mut self.payload, sync as u32 as u64);
        self.payload.push(RECONCILE);
    }

    /// Adds addresses of one sync: `addresses` holds `count` of them, one after the other.
    pub fn addresses(&mut self, sync: i32, layout: Layout, mut addresses: &[u8], mut count: usize) {
        while count > 0 {
            let room = MAX_PAYLOAD.saturating_sub(self.payload.len() + 32);
            // The longest prefix of whole addresses that fits.
            let (mut rest, mut taken) = (addresses, 0);
            if addresses.len() <= room {
                (rest, taken) = (&[], count);
            } else {
                while taken < count {
                    let mut next = rest;
                    if take_address(&mut next, layout.columns as usize).is_none() || addresses.len() - next.len() > room
                    {
                        break;
                    }
                    (rest, taken) = (next, taken + 1);
                }
            }
            if taken == 0 {
                if self.payload.len() > 1 {
                    self.flush();
                    continue;
                }
                // Callers keep addresses below MAX_ADDRESS, so this is a malformed image: never lose it silently.
                self.reconcile(sync);
                return;
            }
            put_varint(&mut self.payload, sync as u32 as u64);
            self.payload.push(ADDRESSES);
            self.payload.extend_from_slice(&layout.signature.to_le_bytes());
            put_varint(&mut self.payload, layout.columns.into());
            put_varint(&mut self.payload, taken as u64);
            self.payload.extend_from_slice(&addresses[..addresses.len() - rest.len()]);
            (addresses, count) = (rest, count - taken);
        }
    }

    /// Emits what is left.
    pub fn finish(mut self) {
        self.flush();
    }
}

/// One thing that a payload says.
#[derive(Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// This address of this sync changed.
    Address { sync: i32, layout: Layout, address: &'a [u8] },
    /// All of this sync must be reconciled.
    Reconcile { sync: i32 },
}

/// Calls `visit` for each entry of a payload. Err if the payload is malformed or of a version that is not known.
pub fn unpack<'a>(payload: &'a [u8], mut visit: impl FnMut(Entry<'a>)) -> Result<(), Malformed> {
    let (&version, mut input) = payload.split_first().ok_or(Malformed)?;
    if version != VERSION {
        return Err(Malformed);
    }
    while !input.is_empty() {
        let sync = take_varint(&mut input).ok_or(Malformed)? as u32 as i32;
        let (&kind, rest) = input.split_first().ok_or(Malformed)?;
        input = rest;
        match kind {
            RECONCILE => visit(Entry::Reconcile { sync }),
            ADDRESSES => {
                let (signature, rest) = input.split_first_chunk::<4>().ok_or(Malformed)?;
                input = rest;
                let columns = take_varint(&mut input).ok_or(Malformed)?;
                let count = take_varint(&mut input).ok_or(Malformed)?;
                if columns == 0 || columns > 1664 {
                    return Err(Malformed);
                }
                let layout = Layout { signature: u32::from_le_bytes(*signature), columns: columns as u32 };
                for _ in 0..count {
                    let address = take_address(&mut input, columns as usize).ok_or(Malformed)?;
                    visit(Entry::Address { sync, layout, address });
                }
            }
            _ => return Err(Malformed),
        }
    }
    Ok(())
}

/// A payload that this version of the library cannot read.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn address(columns: &[Option<Vec<u8>>]) -> Vec<u8> {
        let mut out = Vec::new();
        for column in columns {
            put_column(&mut out, column.as_deref());
        }
        out
    }

    proptest! {
        #[test]
        fn an_orphan_is_read_back_from_a_journal_and_is_no_address(
            id in any::<String>(), routing in any::<Option<String>>(), index in any::<Option<String>>(), version in any::<u64>(),
            columns in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..20)), 1..6),
        ) {
            let orphan = Orphan { id: &id, routing: routing.as_deref(), index: index.as_deref(), version };
            let address_of_it = orphan.to_address();
            prop_assert_eq!(Orphan::of(&address_of_it), Some(orphan));
            prop_assert_eq!(related(&address_of_it), None);
            for other in [address(&columns), of_relation(version as i32, &address(&columns))] {
                prop_assert!(Orphan::of(&other).is_none());
            }
            prop_assert_eq!(Orphan::of(&address_of_it[..address_of_it.len() - 1]), None);
            let mut payloads: Vec<Vec<u8>> = Vec::new();
            let mut packer = Packer::new(|payload: &[u8]| payloads.push(payload.to_vec()));
            packer.addresses(7, Orphan::LAYOUT, &address_of_it, 1);
            packer.finish();
            let mut found = Vec::new();
            unpack(&payloads[0], |entry| if let Entry::Address { address, .. } = entry { found.push(address.to_vec()) }).unwrap();
            prop_assert_eq!(found, [address_of_it]);
        }

        #[test]
        fn what_is_packed_is_unpacked(
            groups in prop::collection::vec(
                (any::<i32>(), any::<u32>(), prop::collection::vec(
                    prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..700)), 2), 0..40)), 0..6),
            marker in any::<i32>(),
        ) {
            let mut payloads: Vec<Vec<u8>> = Vec::new();
            let mut packer = Packer::new(|payload: &[u8]| payloads.push(payload.to_vec()));
            let mut expected = Vec::new();
            for (sync, signature, rows) in &groups {
                let layout = Layout { signature: *signature, columns: 2 };
                let images: Vec<Vec<u8>> = rows.iter().map(|row| address(row)).collect();
                packer.addresses(*sync, layout, &images.concat(), images.len());
                expected.extend(images.into_iter().map(|image| (*sync, Some((layout, image)))));
            }
            packer.reconcile(marker);
            expected.push((marker, None));
            packer.finish();
            let mut found = Vec::new();
            for payload in &payloads {
                prop_assert!(payload.len() <= MAX_PAYLOAD);
                unpack(payload, |entry| found.push(match entry {
                    Entry::Address { sync, layout, address } => (sync, Some((layout, address.to_vec()))),
                    Entry::Reconcile { sync } => (sync, None),
                })).unwrap();
            }
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = unpack(&bytes, |_| ());
        }
    }
}
