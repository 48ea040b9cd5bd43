//! Ownership in Redis: one control key a target, changed under WATCH, which needs no right to run scripts.

use std::collections::BTreeMap;

use redis::Value;

use super::RedisTarget;
use super::cluster::slot_of;
use super::node::Node;
use crate::error::{Error, ErrorKind, Result};
use crate::ownership::{self, CONTROL_KEY_PREFIX, Claim, ClaimOutcome, Control, Decision, Fence, Heartbeat, Ownership};

impl RedisTarget {
    /// Claims a target; see [`crate::ownership`].
    pub fn claim(&mut self, claim: &Claim) -> Result<ClaimOutcome> {
        let run = self.run_id()?;
        self.at_control(&claim.target, |control| {
            let found = control.watch()?;
            let state = found.as_ref().map(|(control, text)| (control, control.state(text)));
            let mut taken = match claim.decide(state) {
                Decision::Take(taken) => taken,
                Decision::Leave(outcome) => {
                    control.unwatch()?;
                    return Ok(Some(outcome));
                }
            };
            if found.is_some_and(|(found, _)| found.is_of_another_run(run.as_deref())) {
                // It may have come back with less than it had: this is no going on.
                taken.begin_anew();
            }
            taken.server.clone_from(&run);
            let text = taken.to_json().to_string();
            let written = control.exec(Some(&text))?;
            Ok(written.then(|| ClaimOutcome::Owned(Ownership::new(claim, taken.epoch, Fence::Text(text)))))
        })
    }

    /// Renews ownerships, in transactions of many where nothing has changed behind our back. One outcome for each; see
    /// [`Self::heartbeat`].
    pub fn heartbeats(&mut self, ownerships: &[Ownership]) -> Result<Vec<Result<Heartbeat>>> {
        ownership::heartbeats(self, ownerships, Self::renew_all, Self::heartbeat)
    }

    /// The new fences of those control keys that could be written. In a cluster there is a transaction for each slot.
    fn renew_all(&mut self, ownerships: &[Ownership]) -> Result<Vec<Option<Fence>>> {
        let run = self.run_id()?;
        let mut by_slot: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (number, ownership) in ownerships.iter().enumerate() {
            let slot = if self.config.cluster { slot_of(control_key(&ownership.target).as_bytes()) } else { 0 };
            by_slot.entry(slot).or_default().push(number);
        }
        let mut fences: Vec<Option<Fence>> = vec![None; ownerships.len()];
        for some in by_slot.values() {
            let of_slot: Vec<&Ownership> = some.iter().map(|&number| &ownerships[number]).collect();
            let renewed = self.at_owner(&control_key(&of_slot[0].target), |node, asking| {
                renew(node, asking, &of_slot, run.as_deref())
            })?;
            some.iter().zip(renewed).for_each(|(&number, fence)| fences[number] = fence);
        }
        Ok(fences)
    }

    /// Renews an ownership. A control key that is gone (evicted, flushed, a restart without persistence) is reported as
    /// superseded by nobody: what else is gone is not known, so the caller claims anew and fills the keyspace again. So is
    /// one that was written to an earlier run of the server, which may have come back with an older snapshot. In a cluster,
    /// each of the nodes that it was written for has to be there.
    pub fn heartbeat(&mut self, ownership: &Ownership) -> Result<Heartbeat> {
        let run = self.run_id()?;
        self.at_control(&ownership.target, |control| {
            match control.watch()? {
                Some((found, _)) if found.is_of(ownership) => {
                    if found.is_of_another_run(run.as_deref()) {
                        let removed = control.exec(None)?;
                        return Ok(removed.then(|| Heartbeat::Superseded { by: String::new() }));
                    }
                }
                found => {
                    control.unwatch()?;
                    let by = found.map_or_else(String::new, |(found, _)| found.by);
                    return Ok(Some(Heartbeat::Superseded { by }));
                }
            }
            let renewed = Control { server: run.clone(), ..Control::renewed(ownership) };
            let text = renewed.to_json().to_string();
            let written = control.exec(Some(&text))?;
            Ok(written.then(|| Heartbeat::Kept(ownership.with_fence(Fence::Text(text)))))
        })
    }

    /// Gives an ownership up, if it is still ours. A sign of life of ours may come in between.
    pub fn release(&mut self, ownership: &Ownership) -> Result<()> {
        self.at_control(&ownership.target, |control| match control.watch()? {
            Some((found, _)) if found.is_of(ownership) => Ok(control.exec(None)?.then_some(())),
            _ => control.unwatch().map(Some),
        })
    }

    /// At the node that has the control key of a target; `attempt` as in [`ownership::attempts`].
    fn at_control<T>(
        &mut self,
        target: &str,
        mut attempt: impl FnMut(&mut ControlKey) -> Result<Option<T>>,
    ) -> Result<T> {
        let key = control_key(target);
        self.at_owner(&key, |node, asking| {
            let mut control = ControlKey { node, asking, key: &key };
            ownership::attempts(|| attempt(&mut control))
        })
    }
}

/// Where it is written who feeds a target.
pub(super) fn control_key(target: &str) -> String {
    format!("{CONTROL_KEY_PREFIX}{target}")
}

/// The new fences of those control keys that could be written. In a cluster they are of one slot.
fn renew(node: &mut Node, asking: bool, ownerships: &[&Ownership], run: Option<&str>) -> Result<Vec<Option<Fence>>> {
    let keys: Vec<String> = ownerships.iter().map(|ownership| control_key(&ownership.target)).collect();
    if asking {
        node.asking()?;
    }
    node.query::<()>(redis::cmd("WATCH").arg(&keys))?;
    let mut look = redis::pipe();
    for key in &keys {
        if asking {
            look.cmd("ASKING").ignore();
        }
        look.cmd("GET").arg(key);
    }
    let found: Vec<Option<String>> = node.pipeline(&look)?;
    let mut write = redis::pipe();
    write.atomic();
    let mut fences = Vec::with_capacity(keys.len());
    for ((ownership, key), text) in ownerships.iter().zip(&keys).zip(found) {
        let found: Option<Control> = text.and_then(|text| serde_json::from_str(&text).ok());
        let kept = |found: &Control| found.is_of(ownership) && !found.is_of_another_run(run);
        fences.push(found.filter(kept).map(|_| {
            let text = Control { server: run.map(str::to_owned), ..Control::renewed(ownership) }.to_json().to_string();
            write.cmd("SET").arg(key).arg(&text).ignore();
            Fence::Text(text)
        }));
    }
    if fences.iter().all(Option::is_none) {
        node.query::<()>(&redis::cmd("UNWATCH"))?;
        return Ok(fences);
    }
    if asking {
        node.asking()?;
    }
    // Nil: one of the keys changed since it was looked at, and none was written.
    let written: Value = node.pipeline(&write)?;
    Ok(if written == Value::Nil { vec![None; fences.len()] } else { fences })
}

/// A control key at the node that has it.
struct ControlKey<'a> {
    node: &'a mut Node,
    /// Its slot is on its way to that node.
    asking: bool,
    key: &'a str,
}

impl ControlKey<'_> {
    fn watch(&mut self) -> Result<Option<(Control, String)>> {
        let key = self.key;
        self.ask()?;
        self.node.query::<()>(redis::cmd("WATCH").arg(key))?;
        self.ask()?;
        let text: Option<String> = self.node.query(redis::cmd("GET").arg(key))?;
        let Some(text) = text else { return Ok(None) };
        let control = serde_json::from_str(&text).map_err(|error| {
            Error::new(ErrorKind::Conflict, format!("the key \"{key}\" was not written by pg_fanout"))
                .with_source(error)
        });
        match control {
            Ok(control) => Ok(Some((control, text))),
            Err(error) => {
                self.unwatch()?;
                Err(error)
            }
        }
    }

    /// False: the key changed since it was watched, nothing was done.
    fn exec(&mut self, text: Option<&str>) -> Result<bool> {
        let result = self.try_exec(text);
        if result.is_err() {
            // A command refused within MULTI leaves it open: what comes next would only be queued.
            self.node.hang_up();
        }
        result
    }

    fn try_exec(&mut self, text: Option<&str>) -> Result<bool> {
        // Good for all of the transaction.
        self.ask()?;
        self.node.query::<()>(&redis::cmd("MULTI"))?;
        match text {
            Some(text) => self.node.query::<()>(redis::cmd("SET").arg(self.key).arg(text))?,
            None => self.node.query::<()>(redis::cmd("DEL").arg(self.key))?,
        }
        Ok(self.node.query::<Value>(&redis::cmd("EXEC"))? != Value::Nil)
    }

    fn unwatch(&mut self) -> Result<()> {
        self.node.query(&redis::cmd("UNWATCH"))
    }

    fn ask(&mut self) -> Result<()> {
        if self.asking { self.node.asking() } else { Ok(()) }
    }
}
