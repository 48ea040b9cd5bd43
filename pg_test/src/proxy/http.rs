//! As much of HTTP/1.1 as two well-behaved ends need.

use super::{Fault, Item, Request, Shared};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;

/// Head and body as they came.
struct Message {
    /// The first line.
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Message {
    /// Reads one. None at the end of the connection.
    fn read(from: &mut BufReader<TcpStream>, without_body: bool) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if from.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut headers = Vec::new();
        loop {
            let mut header = String::new();
            from.read_line(&mut header)?;
            match header.trim_end().split_once(':') {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => break,
            }
        }
        let mut message = Self { line: line.trim_end().to_owned(), headers, body: Vec::new() };
        if !without_body {
            message.read_body(from)?;
        }
        Ok(Some(message))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn read_body(&mut self, from: &mut BufReader<TcpStream>) -> io::Result<()> {
        if self.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            loop {
                let mut size = String::new();
                from.read_line(&mut size)?;
                let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
                let start = self.body.len();
                self.body.resize(start + size, 0);
                from.read_exact(&mut self.body[start..])?;
                let mut end = String::new();
                from.read_line(&mut end)?;
                if size == 0 {
                    return Ok(());
                }
            }
        }
        let length = self.header("content-length").map_or(Ok(0), str::parse).map_err(io::Error::other)?;
        self.body.resize(length, 0);
        from.read_exact(&mut self.body)
    }

    fn status(&self) -> u16 {
        self.line.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0)
    }

    /// As bytes, with a length instead of chunks.
    fn bytes(&self, with_body: bool) -> Vec<u8> {
        let mut out = format!("{}\r\n", self.line).into_bytes();
        for (name, value) in &self.headers {
            let length = name == "content-length" && with_body;
            if !length && name != "transfer-encoding" {
                out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
            }
        }
        if with_body {
            out.extend_from_slice(format!("content-length: {}\r\n", self.body.len()).as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(&self.body);
        out
    }
}

/// Serves one connection.
pub(super) fn serve(client: TcpStream, upstream: TcpStream, shared: &Shared) -> io::Result<()> {
    let (mut to_client, mut to_target) = (client.try_clone()?, upstream.try_clone()?);
    let (mut client, mut upstream) = (BufReader::new(client), BufReader::new(upstream));
    while let Some(mut message) = Message::read(&mut client, false)? {
        let mut words = message.line.split(' ').map(str::to_owned);
        let request = Request {
            name: words.next().unwrap_or_default(),
            path: words.next().unwrap_or_default(),
            body: message.body.clone(),
            bytes: message.body.len(),
        };
        let fault = shared.decide(&request);
        let mut refused = None;
        match &fault {
            Fault::Delay(time) => thread::sleep(*time),
            Fault::Hang => {
                shared.hang();
                return Ok(());
            }
            Fault::Reset | Fault::Error(_) => return Ok(()),
            Fault::Answer(status, body) => {
                let answer = format!(
                    "HTTP/1.1 {status} Fault\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                );
                to_client.write_all(answer.as_bytes())?;
                continue;
            }
            Fault::Items(items) => refused = Some(take_out(&mut message.body, items)),
            Fault::Pass | Fault::Mute | Fault::LostReply | Fault::HalfReply => {}
        }
        // An empty bulk request would be an error: then the proxy answers alone.
        let answered_alone = refused.is_some() && message.body.is_empty();
        let mut reply = if answered_alone {
            Message {
                line: "HTTP/1.1 200 OK".into(),
                headers: vec![("content-type".into(), "application/json".into())],
                body: br#"{"items":[]}"#.to_vec(),
            }
        } else {
            to_target.write_all(&message.bytes(true))?;
            let Some(reply) = Message::read(&mut upstream, request.name == "HEAD")? else { return Ok(()) };
            reply
        };
        if let Some(refused) = refused
            && reply.status() == 200
        {
            put_in(&mut reply.body, refused)?;
        }
        let bytes = reply.bytes(request.name != "HEAD");
        match fault {
            Fault::Mute => {
                shared.hang();
                return Ok(());
            }
            Fault::LostReply => return Ok(()),
            Fault::HalfReply => return to_client.write_all(&bytes[..bytes.len() / 2]),
            _ => to_client.write_all(&bytes)?,
        }
    }
    Ok(())
}

/// An action of a bulk request.
pub(super) struct Action {
    pub(super) id: String,
    delete: bool,
    /// Where it stands in the body, with its document.
    bytes: std::ops::Range<usize>,
}

/// The actions of a bulk request.
pub(super) fn actions(body: &[u8]) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut at = 0;
    let end_of_line = |from: usize| body[from..].iter().position(|&byte| byte == b'\n').map(|length| from + length + 1);
    while let Some(end) = end_of_line(at) {
        let Ok(head) = serde_json::from_slice::<Value>(&body[at..end]) else { break };
        if head.get("update").is_some() {
            // The guard at the end of a batch is for no document.
            break;
        }
        let delete = head.get("delete").is_some();
        let id = head[if delete { "delete" } else { "index" }]["_id"].as_str().unwrap_or_default().to_owned();
        let last = if delete { end } else { end_of_line(end).unwrap_or(body.len()) };
        actions.push(Action { id, delete, bytes: at..last });
        at = last;
    }
    actions
}

/// Takes actions out of a body, and gives what is answered in their place.
fn take_out(body: &mut Vec<u8>, items: &BTreeMap<usize, Item>) -> Vec<(usize, Value)> {
    let (mut kept, mut answers, mut end) = (Vec::new(), Vec::new(), 0);
    for (place, action) in actions(body).into_iter().enumerate() {
        end = action.bytes.end;
        match items.get(&place) {
            None => kept.extend_from_slice(&body[action.bytes]),
            Some(item) => {
                let (status, kind, reason) = match item {
                    Item::Malformed => (400, "mapper_parsing_exception", "failed to parse, says the proxy".to_owned()),
                    Item::NoIndex => (404, "index_not_found_exception", "no such index, says the proxy".to_owned()),
                    Item::Conflict(version) => (
                        409,
                        "version_conflict_engine_exception",
                        format!(
                            "[{}]: version conflict, current version [{version}] is higher than the one provided [1]",
                            action.id
                        ),
                    ),
                    Item::Busy => (429, "es_rejected_execution_exception", "busy, says the proxy".to_owned()),
                    Item::Unavailable => (503, "unavailable_shards_exception", "no shard, says the proxy".to_owned()),
                };
                let name = if action.delete { "delete" } else { "index" };
                let answer =
                    json!({name: {"_id": action.id, "status": status, "error": {"type": kind, "reason": reason}}});
                answers.push((place, answer));
            }
        }
    }
    kept.extend_from_slice(&body[end..]);
    *body = kept;
    answers
}

/// Puts answers into a bulk reply, at the places of their actions.
fn put_in(reply: &mut Vec<u8>, answers: Vec<(usize, Value)>) -> io::Result<()> {
    let mut parsed: Value = serde_json::from_slice(reply)?;
    if let Some(items) = parsed["items"].as_array_mut() {
        for (place, answer) in answers {
            items.insert(place.min(items.len()), answer);
        }
    }
    *reply = parsed.to_string().into_bytes();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_that_are_taken_out_are_answered_in_their_places() {
        let mut body =
            b"{\"index\":{\"_id\":\"a\"}}\n{\"n\":1}\n{\"delete\":{\"_id\":\"b\"}}\n{\"index\":{\"_id\":\"c\"}}\n{}\n{\"update\":{}}\n{}\n"
                .to_vec();
        assert_eq!(actions(&body).iter().map(|it| it.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
        let answers = take_out(&mut body, &BTreeMap::from([(0, Item::Busy), (1, Item::Conflict(7))]));
        assert_eq!(body, b"{\"index\":{\"_id\":\"c\"}}\n{}\n{\"update\":{}}\n{}\n");
        let mut reply = br#"{"items":[{"index":{"_id":"c","status":201}}]}"#.to_vec();
        put_in(&mut reply, answers).expect("a bulk reply");
        let reply: Value = serde_json::from_slice(&reply).expect("JSON");
        assert_eq!(reply["items"][0]["index"]["status"], 429);
        assert_eq!(reply["items"][1]["delete"]["_id"], "b");
        assert_eq!(reply["items"][2]["index"]["_id"], "c");
    }
}
