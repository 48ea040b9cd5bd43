//! Redis: pipelined batches over one connection to each server, and the few commands that the SQL functions need.

mod batch;
mod cluster;
mod control;
mod node;
mod report;

use std::time::Instant;

use redis::{Cmd, FromRedisValue, ServerError, Value};

pub use self::batch::{RedisBatch, RedisOutcome};
use self::cluster::{Address, Place, Redirect, SLOTS};
use self::node::Node;
use crate::config::{REDIS_PORT, RedisConfig};
use crate::error::{Error, ErrorKind, Result};

/// How often a command may be sent on by nodes of a cluster that don't have its key (any more).
const DETOURS: usize = 4;

/// In the place of a cursor: from the start.
const ANEW: &str = "anew";

/// A page of keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyPage {
    /// Keys; one may come twice, as with `SCAN`. Keys that are not UTF-8 are left out: none of ours.
    pub keys: Vec<String>,
    /// For the next page; `None` after the last one.
    pub cursor: Option<String>,
}

/// A Redis, or a Redis Cluster with a connection to each of its primaries.
///
/// Order is kept by there being only one connection to a server, which ends the one before it. In a cluster a key is written
/// by the node that owns its slot: one that has given the slot away refuses what comes late.
#[derive(Debug)]
pub struct RedisTarget {
    config: RedisConfig,
    /// Without a cluster just one. Of a cluster the primaries, by address; until it was asked, nodes at the URLs.
    nodes: Vec<(Address, Node)>,
    /// Of a cluster: the place in `nodes` of each slot's owner. Empty: to be asked.
    owners: Vec<u16>,
}

/// Commands of a batch that go to one node together.
#[derive(Default)]
struct Part {
    bytes: Vec<u8>,
    /// Places in the batch, and whether `ASKING` goes before.
    entries: Vec<(usize, bool)>,
}

impl RedisTarget {
    /// Connects.
    pub fn connect(config: &RedisConfig) -> Result<RedisTarget> {
        let mut target = RedisTarget::new(config)?;
        if config.cluster {
            target.refresh()?;
        } else {
            target.nodes[0].1.connection()?;
        }
        Ok(target)
    }

    /// As [`RedisTarget::connect`], without connecting yet.
    pub(crate) fn new(config: &RedisConfig) -> Result<RedisTarget> {
        let node = |url| Ok((address(url), Node::new(config, url)?));
        let nodes = config.urls.iter().map(node).collect::<Result<_>>()?;
        Ok(RedisTarget { config: config.clone(), nodes, owners: Vec::new() })
    }

    /// `PING`, of all nodes; the answer is the server's version if we may see it.
    pub fn probe(&mut self) -> Result<Option<String>> {
        if self.config.cluster {
            self.refresh()?;
        }
        self.nodes.iter_mut().try_for_each(|(_, node)| node.query::<Value>(&redis::cmd("PING")).map(drop))?;
        Ok(self.nodes[0].1.version())
    }

    /// Sends a batch, once, and reads every reply. `Err`: it failed as a whole. A missing right
    /// ([`ErrorKind::Unauthorized`]) fails the whole batch, though the rest of it was done: to send that again, with
    /// rows read anew, is harmless.
    pub fn send(&mut self, batch: &RedisBatch) -> Result<Vec<(u32, RedisOutcome)>> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let refusals = if self.config.cluster { self.send_by_slots(batch) } else { self.send_to_one(batch) };
        let refusals = refusals.map_err(|error| match error.kind() {
            ErrorKind::ConnectionLost if self.probe().is_ok() => {
                Error::new(ErrorKind::Cut, error.message().to_owned()).with_source(error)
            }
            _ => error,
        })?;
        batch.outcomes(refusals)
    }

    fn send_to_one(&mut self, batch: &RedisBatch) -> Result<Vec<Option<ServerError>>> {
        let deadline = Instant::now() + self.config.request_timeout;
        let node = &mut self.nodes[0].1;
        let refusals = node.send(&batch.bytes).and_then(|()| batch.read_refusals(|| node.receive(deadline)));
        refusals.inspect_err(|_| node.hang_up())
    }

    /// To all nodes what is theirs; then the replies of all. What a node refuses because the key is elsewhere goes there.
    fn send_by_slots(&mut self, batch: &RedisBatch) -> Result<Vec<Option<ServerError>>> {
        let deadline = Instant::now() + self.config.request_timeout;
        let mut refusals: Vec<Option<ServerError>> = Vec::new();
        refusals.resize_with(batch.len(), || None);
        // The place of a command in the batch, and where it was asked to be sent.
        let mut waiting: Vec<(usize, Option<usize>)> = (0..batch.len()).map(|entry| (entry, None)).collect();
        for _ in 0..DETOURS {
            let mut parts: Vec<Part> = Vec::new();
            for &(entry, ask) in &waiting {
                let place = match ask {
                    Some(place) => place,
                    None => self.owner_of(batch.key(entry))?,
                };
                if parts.len() <= place {
                    parts.resize_with(place + 1, Part::default);
                }
                if ask.is_some() {
                    batch::push_asking(&mut parts[place].bytes);
                }
                parts[place].bytes.extend_from_slice(batch.command(entry));
                parts[place].entries.push((entry, ask.is_some()));
            }
            if let Err(error) = self.exchange(batch, &parts, deadline, &mut refusals) {
                self.owners.clear();
                return Err(error);
            }
            waiting.clear();
            for (place, part) in parts.iter().enumerate() {
                for &(entry, _) in &part.entries {
                    let Some(refusal) = &refusals[entry] else { continue };
                    match Redirect::of(refusal, &self.nodes[place].0.host) {
                        Some(redirect) => waiting.push((entry, self.follow(redirect)?)),
                        // A node that has no slots any more, or does not know enough: it is asked for again.
                        None if refusal.code() == "CLUSTERDOWN" => self.owners.clear(),
                        None => {}
                    }
                }
            }
            if waiting.is_empty() || self.owners.is_empty() {
                break;
            }
            // In the order of the batch, should a key be in it twice.
            waiting.sort_unstable();
        }
        Ok(refusals)
    }

    /// Sends each part to the node of its place, then reads all replies.
    fn exchange(
        &mut self,
        batch: &RedisBatch,
        parts: &[Part],
        deadline: Instant,
        refusals: &mut [Option<ServerError>],
    ) -> Result<()> {
        let asked: Vec<(usize, &Part)> =
            parts.iter().enumerate().filter(|(_, part)| !part.entries.is_empty()).collect();
        // All of them, before anything is sent to one.
        for &(place, _) in &asked {
            self.nodes[place].1.connection()?;
        }
        let mut talk = || {
            for &(place, part) in &asked {
                self.nodes[place].1.send(&part.bytes)?;
            }
            for &(place, part) in &asked {
                let node = &mut self.nodes[place].1;
                for &(entry, asking) in &part.entries {
                    if asking {
                        node.receive(deadline)?;
                    }
                    refusals[entry] = batch.read_refusal(entry, &mut || node.receive(deadline))?;
                }
            }
            Ok(())
        };
        let result = talk();
        if result.is_err() {
            // Replies that were not read would be taken for those of the next batch.
            asked.iter().for_each(|&(place, _)| self.nodes[place].1.hang_up());
        }
        result
    }

    /// A page of keys that match `glob`; `cursor` is `None` for the first.
    ///
    /// A cluster is listed node by node. Where a slot has changed its owner meanwhile, a key may have gone from a node that was not
    /// listed yet to one that was, so the listing begins anew by itself; while a slot is on its way it fails for now.
    pub fn scan_keys(&mut self, glob: &str, cursor: Option<&str>, count: usize) -> Result<KeyPage> {
        if !self.config.cluster {
            let cursor = cursor.and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
            let (cursor, keys) = scan(&mut self.nodes[0].1, glob, cursor, count)?;
            return Ok(KeyPage { keys, cursor: (cursor != 0).then(|| cursor.to_string()) });
        }
        let mut place = match cursor.and_then(Place::parse) {
            Some(place) => {
                if self.owners.is_empty() {
                    self.refresh()?;
                }
                place
            }
            None => {
                let layout = self.layout()?;
                Place { layout, node: self.nodes[0].0.clone(), cursor: 0 }
            }
        };
        let Some(at) = self.nodes.iter().position(|(address, _)| *address == place.node) else {
            return Ok(KeyPage { keys: Vec::new(), cursor: Some(ANEW.to_owned()) });
        };
        let (cursor, keys) = scan(&mut self.nodes[at].1, glob, place.cursor, count)?;
        place.cursor = cursor;
        if cursor == 0 {
            if self.layout()? != place.layout {
                return Ok(KeyPage { keys, cursor: Some(ANEW.to_owned()) });
            }
            let next = self.nodes.iter().find(|(address, _)| *address > place.node);
            let Some((next, _)) = next else { return Ok(KeyPage { keys, cursor: None }) };
            place.node = next.clone();
        }
        Ok(KeyPage { keys, cursor: Some(place.to_text()) })
    }

    /// `GET`.
    pub fn get(&mut self, key: &str) -> Result<Option<Vec<u8>>> {
        self.query_key(key, redis::cmd("GET").arg(key))
    }

    /// `MGET`: what is no string counts as missing.
    pub fn mget(&mut self, keys: &[&str]) -> Result<Vec<Option<Vec<u8>>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        if !self.config.cluster {
            return self.nodes[0].1.query(redis::cmd("MGET").arg(keys));
        }
        let value = |value| match value {
            Value::ServerError(error) if error.code() == "WRONGTYPE" => Ok(None),
            value => reply(value),
        };
        self.each("GET", keys)?.into_iter().map(value).collect()
    }

    /// `SET`, with `PX` if a ttl is given (0 counts as 1).
    pub fn set(&mut self, key: &str, value: &[u8], ttl_ms: Option<u64>) -> Result<()> {
        let mut command = redis::cmd("SET");
        command.arg(key).arg(value);
        if let Some(ttl_ms) = ttl_ms {
            command.arg("PX").arg(ttl_ms.max(1));
        }
        self.query_key(key, &command)
    }

    /// `DEL`; how many there were.
    pub fn del(&mut self, keys: &[&str]) -> Result<u64> {
        if keys.is_empty() {
            return Ok(0);
        }
        if !self.config.cluster {
            return self.nodes[0].1.query(redis::cmd("DEL").arg(keys));
        }
        self.each("DEL", keys)?.into_iter().map(reply::<u64>).sum()
    }

    /// `PTTL` in milliseconds; `None`: no such key; `Some(None)`: no expiry.
    pub fn ttl_ms(&mut self, key: &str) -> Result<Option<Option<u64>>> {
        // -2: no key; -1: no expiry.
        let ttl: i64 = self.query_key(key, redis::cmd("PTTL").arg(key))?;
        Ok(if ttl == -2 { None } else { Some(u64::try_from(ttl).ok()) })
    }

    /// One command about a key, one reply.
    fn query_key<T: FromRedisValue>(&mut self, key: &str, command: &Cmd) -> Result<T> {
        self.at_owner(key, |node, asking| {
            if asking {
                node.asking()?;
            }
            node.query(command)
        })
    }

    /// The same command for each key, those of a node in one go. An error of one key is that key's own: a WRONGTYPE must not hide
    /// the others.
    fn each(&mut self, command: &str, keys: &[&str]) -> Result<Vec<Value>> {
        let mut by_node: Vec<Vec<usize>> = Vec::new();
        for (number, key) in keys.iter().enumerate() {
            let place = self.owner_of(key.as_bytes())?;
            if by_node.len() <= place {
                by_node.resize_with(place + 1, Vec::new);
            }
            by_node[place].push(number);
        }
        let mut values = vec![Value::Nil; keys.len()];
        let mut elsewhere = Vec::new();
        for (place, numbers) in by_node.iter().enumerate().filter(|(_, numbers)| !numbers.is_empty()) {
            let mut pipeline = redis::pipe();
            for &number in numbers {
                pipeline.cmd(command).arg(keys[number]);
            }
            pipeline.ignore_errors();
            let (address, node) = &mut self.nodes[place];
            let replies: Vec<Value> = node.pipeline(&pipeline)?;
            if replies.len() != numbers.len() {
                return Err(Error::new(ErrorKind::Protocol, "the replies are not as many as the commands"));
            }
            for (&number, reply) in numbers.iter().zip(replies) {
                match &reply {
                    Value::ServerError(error) if Redirect::of(error, &address.host).is_some() => elsewhere.push(number),
                    _ => values[number] = reply,
                }
            }
        }
        for number in elsewhere {
            values[number] = self.query_key(keys[number], redis::cmd(command).arg(keys[number]))?;
        }
        Ok(values)
    }

    /// Has `ask` ask the node that has a key, and the one that this sends it on to. It gets told whether the node needs to hear
    /// `ASKING` before.
    fn at_owner<T>(&mut self, key: &str, mut ask: impl FnMut(&mut Node, bool) -> Result<T>) -> Result<T> {
        let mut detours = 0;
        let mut asked = None;
        loop {
            let place = match asked {
                Some(place) => place,
                None => self.owner_of(key.as_bytes())?,
            };
            let (address, node) = &mut self.nodes[place];
            let error = match ask(node, asked.is_some()) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            detours += 1;
            match Redirect::of_error(&error, &address.host) {
                Some(redirect) if self.config.cluster && detours < DETOURS => asked = self.follow(redirect)?,
                _ => {
                    if error.kind() != ErrorKind::BadRequest {
                        self.owners.clear();
                    }
                    return Err(error);
                }
            }
        }
    }

    /// Notes who owns a slot. The answer is the place of a node that is to be asked this once, and does not own it.
    fn follow(&mut self, redirect: Redirect) -> Result<Option<usize>> {
        match redirect {
            Redirect::Moved(slot, address) => {
                let place = self.place(address)?;
                if let Some(owner) = self.owners.get_mut(usize::from(slot)) {
                    *owner = place as u16;
                }
                Ok(None)
            }
            Redirect::Ask(address) => self.place(address).map(Some),
        }
    }

    /// The place in `nodes` of the one that has a key.
    fn owner_of(&mut self, key: &[u8]) -> Result<usize> {
        if !self.config.cluster {
            return Ok(0);
        }
        if self.owners.is_empty() {
            self.refresh()?;
        }
        Ok(usize::from(self.owners[usize::from(cluster::slot_of(key))]))
    }

    /// The place of a node that others have named.
    fn place(&mut self, address: Address) -> Result<usize> {
        if let Some(place) = self.nodes.iter().position(|(known, _)| *known == address) {
            return Ok(place);
        }
        let node = self.node(&address)?;
        self.nodes.push((address, node));
        Ok(self.nodes.len() - 1)
    }

    fn node(&self, address: &Address) -> Result<Node> {
        let mut url = self.config.urls[0].clone();
        let bracketed = format!("[{}]", address.host);
        let host = if address.host.contains(':') { &bracketed } else { &address.host };
        let unfit = || Error::new(ErrorKind::Protocol, "a node of the Redis Cluster has an address that is none");
        url.set_host(Some(host)).map_err(|_| unfit())?;
        url.set_port(Some(address.port)).map_err(|()| unfit())?;
        Node::new(&self.config, &url)
    }

    /// Asks a node of the cluster where the slots are.
    fn refresh(&mut self) -> Result<()> {
        // Those known, then those that it began with: all others may have gone meanwhile.
        for url in &self.config.urls.clone() {
            self.place(address(url))?;
        }
        let mut failed = None;
        // Not always the same first: one that is cut off from the others knows of no change.
        let known = self.nodes.len();
        let first = fastrand::usize(..known.max(1));
        for place in (first..known).chain(0..first) {
            let (address, node) = &mut self.nodes[place];
            let reply = node.query::<Value>(redis::cmd("CLUSTER").arg("SLOTS"));
            match reply.and_then(|reply| cluster::ranges(&reply, &address.host)) {
                Ok(ranges) if ranges.is_empty() => {
                    failed = Some(Error::new(ErrorKind::Overloaded, "the Redis Cluster has no slots assigned yet"));
                }
                Ok(ranges) => return self.settle(ranges),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| Error::new(ErrorKind::TlsOrConfig, "no node is known")))
    }

    /// Takes over a map. Nodes without slots are left; what a connection to them has sent and is late they would refuse.
    fn settle(&mut self, ranges: Vec<cluster::Range>) -> Result<()> {
        // The places are others from here on.
        self.owners.clear();
        for range in &ranges {
            self.place(range.owner.clone())?;
        }
        self.nodes.retain(|(address, _)| ranges.iter().any(|range| range.owner == *address));
        self.nodes.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        // What nobody owns any node refuses, for now.
        let mut owners = vec![0; SLOTS];
        for range in ranges {
            let place = self.place(range.owner)?;
            owners[usize::from(*range.slots.start())..=usize::from(*range.slots.end())].fill(place as u16);
        }
        self.owners = owners;
        Ok(())
    }

    /// What stays the same as long as no slot changes its owner; fails while one does.
    fn layout(&mut self) -> Result<u64> {
        self.refresh()?;
        let mut all = Vec::with_capacity(self.nodes.len());
        for (address, node) in &mut self.nodes {
            let nodes: String = node.query(redis::cmd("CLUSTER").arg("NODES"))?;
            all.push((address.clone(), cluster::layout(&nodes)?));
        }
        Ok(cluster::digest(&all))
    }

    /// Which run of the server this is, or of all nodes, if we may know it.
    pub fn run_id(&mut self) -> Result<Option<String>> {
        if self.config.cluster {
            // A connection that has been idle may lead to a run that has ended.
            self.probe()?;
        } else {
            self.nodes[0].1.connection()?;
        }
        let runs: Option<Vec<&str>> = self.nodes.iter().map(|(_, node)| node.run_id()).collect();
        Ok(runs.map(|runs| runs.join(",")))
    }

    /// The id of this connection at the server, if we may know it.
    #[doc(hidden)]
    pub fn client_id(&self) -> Option<i64> {
        self.nodes[0].1.client_id()
    }
}

/// Where a URL leads. Of a socket it is not asked.
fn address(url: &url::Url) -> Address {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    Address { host, port: url.port().unwrap_or(REDIS_PORT) }
}

fn scan(node: &mut Node, glob: &str, cursor: u64, count: usize) -> Result<(u64, Vec<String>)> {
    let mut command = redis::cmd("SCAN");
    command.arg(cursor).arg("MATCH").arg(glob).arg("COUNT").arg(count.max(1));
    let (cursor, keys): (u64, Vec<Vec<u8>>) = node.query(&command)?;
    Ok((cursor, keys.into_iter().filter_map(|key| String::from_utf8(key).ok()).collect()))
}

/// The reply that one of several commands got.
fn reply<T: FromRedisValue>(value: Value) -> Result<T> {
    let read = value.extract_error().and_then(|value| Ok(redis::from_redis_value(value)?));
    read.map_err(|error| node::failure(&error, "a node of the cluster", true))
}
