//! Ownership in Redis: one control key a target, changed under WATCH, which needs no right to run scripts.

use redis::Value;

use super::RedisTarget;
use crate::error::{Error, ErrorKind, Result};
use crate::ownership::{self, CONTROL_KEY_PREFIX, Claim, ClaimOutcome, Control, Decision, Fence, Heartbeat, Ownership};

/// Attempts against others that change the key at the same time.
const ATTEMPTS: usize = 5;

impl RedisTarget {
    /// Claims a target; see [`crate::ownership`].
    pub fn claim(&mut self, claim: &Claim) -> Result<ClaimOutcome> {
        for _ in 0..ATTEMPTS {
            let found = self.watch_control(&claim.target)?;
            let state = found.as_ref().map(|(control, text)| (control, control.state(text)));
            match claim.decide(state) {
                Decision::Leave(outcome) => {
                    self.unwatch()?;
                    return Ok(outcome);
                }
                Decision::Take(mut control) => {
                    let run = self.run_id();
                    if found.is_some_and(|(found, _)| found.is_of_another_run(run.as_deref())) {
                        // It may have come back with less than it had: this is no going on.
                        control.begin_anew();
                    }
                    control.server = run;
                    let text = control.to_json().to_string();
                    if self.exec_control(&claim.target, Some(&text))? {
                        return Ok(ClaimOutcome::Owned(Ownership::new(claim, control.epoch, Fence::Text(text))));
                    }
                }
            }
        }
        Err(Error::new(ErrorKind::Conflict, "others claim the target at the same time"))
    }

    /// Renews ownerships, in transactions of many where nothing has changed behind our back. One outcome for each; see
    /// [`Self::heartbeat`].
    pub fn heartbeats(&mut self, ownerships: &[Ownership]) -> Result<Vec<Result<Heartbeat>>> {
        ownership::heartbeats(self, ownerships, Self::renew, Self::heartbeat)
    }

    /// The new fences of those control keys that could be written.
    fn renew(&mut self, ownerships: &[Ownership]) -> Result<Vec<Option<Fence>>> {
        let keys: Vec<String> =
            ownerships.iter().map(|ownership| format!("{CONTROL_KEY_PREFIX}{}", ownership.target)).collect();
        let mut look = redis::pipe();
        look.cmd("WATCH").arg(&keys).ignore();
        for key in &keys {
            look.cmd("GET").arg(key);
        }
        let found: Vec<Option<String>> = self.pipeline(&look)?;
        let run = self.run_id();
        let mut write = redis::pipe();
        write.atomic();
        let mut fences = Vec::with_capacity(keys.len());
        for ((ownership, key), text) in ownerships.iter().zip(&keys).zip(found) {
            let found: Option<Control> = text.and_then(|text| serde_json::from_str(&text).ok());
            let kept = |found: &Control| found.is_of(ownership) && !found.is_of_another_run(run.as_deref());
            fences.push(found.filter(kept).map(|_| {
                let text = Control { server: run.clone(), ..Control::renewed(ownership) }.to_json().to_string();
                write.cmd("SET").arg(key).arg(&text).ignore();
                Fence::Text(text)
            }));
        }
        if fences.iter().all(Option::is_none) {
            self.unwatch()?;
            return Ok(fences);
        }
        // Nil: one of the keys changed since it was looked at, and none was written.
        let written: Value = self.pipeline(&write)?;
        Ok(if written == Value::Nil { vec![None; fences.len()] } else { fences })
    }

    /// Renews an ownership. A control key that is gone (evicted, flushed, a restart without persistence) is reported as
    /// superseded by nobody: what else is gone is not known, so the caller claims anew and fills the keyspace again. So is
    /// one that was written to an earlier run of the server, which may have come back with an older snapshot.
    pub fn heartbeat(&mut self, ownership: &Ownership) -> Result<Heartbeat> {
        for _ in 0..ATTEMPTS {
            match self.watch_control(&ownership.target)? {
                Some((control, _)) if control.is_of(ownership) => {
                    if control.is_of_another_run(self.run_id().as_deref()) {
                        if self.exec_control(&ownership.target, None)? {
                            return Ok(Heartbeat::Superseded { by: String::new() });
                        }
                        continue;
                    }
                }
                found => {
                    self.unwatch()?;
                    let by = found.map_or_else(String::new, |(control, _)| control.by);
                    return Ok(Heartbeat::Superseded { by });
                }
            }
            let control = Control { server: self.run_id(), ..Control::renewed(ownership) };
            let text = control.to_json().to_string();
            if self.exec_control(&ownership.target, Some(&text))? {
                return Ok(Heartbeat::Kept(ownership.with_fence(Fence::Text(text))));
            }
        }
        Err(Error::new(ErrorKind::Conflict, "the control key changes all the time"))
    }

    /// Gives an ownership up, if it is still ours.
    pub fn release(&mut self, ownership: &Ownership) -> Result<()> {
        match self.watch_control(&ownership.target)? {
            Some((control, _)) if control.is_of(ownership) => {
                // Changed in between: no longer ours.
                self.exec_control(&ownership.target, None).map(|_| ())
            }
            _ => self.unwatch(),
        }
    }

    fn watch_control(&mut self, target: &str) -> Result<Option<(Control, String)>> {
        let key = format!("{CONTROL_KEY_PREFIX}{target}");
        self.query::<()>(redis::cmd("WATCH").arg(&key))?;
        let text: Option<String> = self.query(redis::cmd("GET").arg(&key))?;
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
    fn exec_control(&mut self, target: &str, text: Option<&str>) -> Result<bool> {
        let result = self.try_exec_control(target, text);
        if result.is_err() {
            // A command refused within MULTI leaves it open: what comes next would only be queued.
            self.connection = None;
        }
        result
    }

    fn try_exec_control(&mut self, target: &str, text: Option<&str>) -> Result<bool> {
        let key = format!("{CONTROL_KEY_PREFIX}{target}");
        self.query::<()>(&redis::cmd("MULTI"))?;
        match text {
            Some(text) => self.query::<()>(redis::cmd("SET").arg(&key).arg(text))?,
            None => self.query::<()>(redis::cmd("DEL").arg(&key))?,
        }
        Ok(self.query::<Value>(&redis::cmd("EXEC"))? != Value::Nil)
    }

    fn unwatch(&mut self) -> Result<()> {
        self.query(&redis::cmd("UNWATCH"))
    }
}
