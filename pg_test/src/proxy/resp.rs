//! As much of Redis' protocol as a pipeline needs: arrays of bulk strings in, one reply of version 2 for each out.

use super::{Fault, Request, Shared};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;

/// One command as it came. None at the end of the connection.
fn read_command(from: &mut BufReader<TcpStream>) -> io::Result<Option<(Vec<u8>, Request)>> {
    let mut bytes = Vec::new();
    if from.read_until(b'\n', &mut bytes)? == 0 {
        return Ok(None);
    }
    let count = number(&bytes)?;
    let mut words: Vec<String> = Vec::new();
    for place in 0..count {
        let start = bytes.len();
        from.read_until(b'\n', &mut bytes)?;
        let length = usize::try_from(number(&bytes[start..])?).map_err(io::Error::other)?;
        let start = bytes.len();
        bytes.resize(start + length + 2, 0);
        from.read_exact(&mut bytes[start..])?;
        if place < 2 {
            words.push(String::from_utf8_lossy(&bytes[start..start + length]).into_owned());
        }
    }
    let mut words = words.into_iter();
    let name = words.next().unwrap_or_default().to_uppercase();
    let request = Request { name, path: words.next().unwrap_or_default(), body: Vec::new(), bytes: bytes.len() };
    Ok(Some((bytes, request)))
}

/// The number in a line such as `*3` or `$-1`.
fn number(line: &[u8]) -> io::Result<i64> {
    let text = std::str::from_utf8(line.get(1..).unwrap_or_default()).map_err(io::Error::other)?;
    text.trim_end().parse().map_err(io::Error::other)
}

/// Appends one reply, with all that is nested in it.
fn read_reply(from: &mut BufReader<TcpStream>, bytes: &mut Vec<u8>) -> io::Result<()> {
    let start = bytes.len();
    if from.read_until(b'\n', bytes)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match bytes[start] {
        b'$' => {
            if let Ok(length) = usize::try_from(number(&bytes[start..])?) {
                let at = bytes.len();
                bytes.resize(at + length + 2, 0);
                from.read_exact(&mut bytes[at..])?;
            }
        }
        b'*' => {
            for _ in 0..number(&bytes[start..])?.max(0) {
                read_reply(from, bytes)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Serves one connection.
pub(super) fn serve(client: TcpStream, upstream: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    let (mut to_client, mut to_target) = (client.try_clone()?, upstream.try_clone()?);
    let (mut client, mut upstream) = (BufReader::new(client), BufReader::new(upstream));
    // A command within MULTI was refused: EXEC does nothing then.
    let (mut within, mut spoilt) = (false, false);
    // Replies to what came together go back together.
    let mut replies = Vec::new();
    while let Some((bytes, request)) = read_command(&mut client)? {
        let fault = shared.decide(&request);
        let mut send = bytes;
        match &fault {
            Fault::Delay(time) => thread::sleep(*time),
            Fault::Hang => {
                to_client.write_all(&replies)?;
                shared.hang();
                return Ok(());
            }
            Fault::Reset | Fault::Answer(..) | Fault::Items(_) => return to_client.write_all(&replies),
            Fault::Error(text) => {
                spoilt |= within;
                replies.extend_from_slice(format!("-{text}\r\n").as_bytes());
                send.clear();
            }
            Fault::Pass | Fault::Mute | Fault::LostReply | Fault::HalfReply => {}
        }
        let before = replies.len();
        if !send.is_empty() {
            match request.name.as_str() {
                "MULTI" => (within, spoilt) = (true, false),
                "EXEC" | "DISCARD" => within = false,
                _ => {}
            }
            if request.name == "EXEC" && std::mem::take(&mut spoilt) {
                to_target.write_all(b"*1\r\n$7\r\nDISCARD\r\n")?;
                read_reply(&mut upstream, &mut Vec::new())?;
                replies.extend_from_slice(b"-EXECABORT Transaction discarded because of previous errors.\r\n");
            } else {
                to_target.write_all(&send)?;
                read_reply(&mut upstream, &mut replies)?;
            }
        }
        match fault {
            Fault::Mute => {
                to_client.write_all(&replies[..before])?;
                shared.hang();
                return Ok(());
            }
            Fault::LostReply => return to_client.write_all(&replies[..before]),
            Fault::HalfReply => return to_client.write_all(&replies[..before + (replies.len() - before) / 2]),
            _ => {}
        }
        if client.buffer().is_empty() || replies.len() > 64 * 1024 {
            to_client.write_all(&replies)?;
            replies.clear();
        }
    }
    Ok(())
}
