//! What goes wrong below HTTP, or in bytes that no HTTP library would send: a second listener, before the API.
//!
//! A request for one of the models in [`NAMES`] gets its bytes from here, as they are; all others go on to the API,
//! each over a connection of its own.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Largest request that is looked at.
const LARGEST: usize = 64 << 20;
/// Between two bytes of `wire-drip`.
const DRIP: Duration = Duration::from_millis(10);

/// The models, by what their answers are like. README.md has the table for readers.
pub const NAMES: [&str; 27] = [
    "wire-refuse",
    "wire-close",
    "wire-cut-head",
    "wire-hang-head",
    "wire-cut-chunk",
    "wire-cut",
    "wire-reset",
    "wire-no-last-chunk",
    "wire-drip",
    "wire-one-chunk",
    "wire-split",
    "wire-crlf",
    "wire-long-line",
    "wire-huge-line",
    "wire-not-utf8",
    "wire-html",
    "wire-bad-chunk",
    "wire-short-body",
    "wire-wrong-types",
    "wire-nulls",
    "wire-redirect",
    "wire-401",
    "wire-429",
    "wire-502",
    "wire-odd-end",
    "wire-thought-out",
    "wire-tool-at-end",
];

enum Act {
    Send(Vec<u8>),
    Wait(Duration),
    /// The end, with a FIN.
    Close,
    /// The end, with a RST.
    Reset,
    /// Nothing more, until the client goes.
    Hang,
}

/// Serves for as long as the program runs; without a listener it waits.
pub async fn serve(listener: Option<TcpListener>, api: SocketAddr) -> io::Result<()> {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        let (client, _) = listener.accept().await?;
        tokio::spawn(async move {
            // A client that went is no trouble of the server.
            let _ = one(client, api).await;
        });
    }
}

async fn one(mut client: TcpStream, api: SocketAddr) -> io::Result<()> {
    client.set_nodelay(true)?;
    let Some((head, body)) = request(&mut client).await? else {
        return Ok(());
    };
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let model = asked["model"].as_str().unwrap_or_default();
    let model = model.strip_suffix(":latest").unwrap_or(model);
    let is_question = [" /api/generate ", " /api/chat "]
        .iter()
        .any(|path| head.contains(path));
    // An empty question loads or unloads, which the API does.
    let says_something = asked.get("prompt").is_some() || asked.get("messages").is_some();
    match answer(model).filter(|_| is_question && says_something) {
        Some(acts) => play(client, acts).await,
        None => pass_on(client, api, &head, &body).await,
    }
}

/// The head of a request, with the blank line, and its body; nothing when the client went.
async fn request(client: &mut TcpStream) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end + 4]).into_owned();
            let length = head
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .and_then(|(_, length)| length.trim().parse().ok())
                .unwrap_or(0);
            if bytes.len() >= end + 4 + length {
                return Ok(Some((head, bytes.split_off(end + 4))));
            }
        }
        if bytes.len() > LARGEST || client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    }
}

/// One request and its answer, and then the end: the next one may be for us.
async fn pass_on(mut client: TcpStream, api: SocketAddr, head: &str, body: &[u8]) -> io::Result<()> {
    let mut server = TcpStream::connect(api).await?;
    let head = head.trim_end_matches("\r\n");
    server
        .write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    server.write_all(body).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}

async fn play(mut client: TcpStream, acts: Vec<Act>) -> io::Result<()> {
    for act in acts {
        match act {
            Act::Send(bytes) => client.write_all(&bytes).await?,
            Act::Wait(time) => tokio::time::sleep(time).await,
            Act::Close => return client.shutdown().await,
            Act::Reset => return client.set_zero_linger(),
            Act::Hang => break,
        }
    }
    let mut rest = [0; 1024];
    while client.read(&mut rest).await? > 0 {}
    Ok(())
}

fn answer(model: &str) -> Option<Vec<Act>> {
    use Act::{Close, Hang, Reset, Send};
    let text = |text: &str| Send(text.into());
    let words = || ["one", " two", " three"].map(|word| frame(&format!("{word:?}"), false));
    let whole = || words().concat() + &end("");
    // A head and some pieces, each in a chunk of its own.
    let begun = |pieces: &[String]| -> Vec<Act> {
        let chunks = pieces.iter().map(|piece| Send(chunk(piece.as_bytes())));
        std::iter::once(text(HEAD)).chain(chunks).collect()
    };
    let last = || text("0\r\n\r\n");
    let with = |mut acts: Vec<Act>, end: Vec<Act>| {
        acts.extend(end);
        acts
    };
    let plain = |status: &str, more: &str, kind: &str, body: &str| {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}\r\n");
        vec![text(&head), text(body), Close]
    };
    let json = "application/json; charset=utf-8";
    Some(match model {
        "wire-refuse" => vec![Reset],
        "wire-close" => vec![Close],
        "wire-cut-head" => vec![text("HTTP/1.1 200 OK\r\nContent-Ty"), Close],
        "wire-hang-head" => vec![text(HEAD), Hang],
        "wire-cut-chunk" => vec![text(HEAD), text("ff\r\n{\"response\":\"on"), Close],
        "wire-cut" => with(begun(&words()), vec![Close]),
        "wire-reset" => with(begun(&words()), vec![Act::Wait(Duration::from_millis(50)), Reset]),
        "wire-no-last-chunk" => with(begun(&[whole()]), vec![Close]),
        "wire-drip" => {
            let bytes = [HEAD.as_bytes(), &chunk(whole().as_bytes()), b"0\r\n\r\n"].concat();
            let drops = bytes.into_iter().flat_map(|byte| [Send(vec![byte]), Act::Wait(DRIP)]);
            drops.chain([Close]).collect()
        }
        "wire-one-chunk" => with(begun(&[whole()]), vec![last(), Close]),
        "wire-split" => {
            let answer = frame("\"größer \"", false) + &frame("\"日本\"", false) + &end("");
            let chunks = answer.bytes().map(|byte| Send(chunk(&[byte])));
            std::iter::once(text(HEAD))
                .chain(chunks)
                .chain([last(), Close])
                .collect()
        }
        "wire-crlf" => {
            let answer = whole().replace('\n', "\r\n\r\n");
            with(begun(&[answer.trim_end().to_owned()]), vec![last(), Close])
        }
        "wire-long-line" => {
            let long = frame(&format!("{:?}", "x".repeat(8 << 20)), false);
            with(begun(&[long, end("")]), vec![last(), Close])
        }
        "wire-huge-line" => with(
            begun(&[frame(&format!("{:?}", "x".repeat(32 << 20)), false)]),
            vec![Hang],
        ),
        "wire-not-utf8" => {
            let mut broken = frame("\"one ?\"", false).into_bytes();
            if let Some(at) = broken.iter().position(|byte| *byte == b'?') {
                broken[at] = 0xff;
            }
            vec![
                text(HEAD),
                Send(chunk(&broken)),
                Send(chunk(end("").as_bytes())),
                last(),
                Close,
            ]
        }
        "wire-html" => plain("200 OK", "", "text/html", "<html><h1>It works!</h1></html>"),
        "wire-bad-chunk" => vec![text(HEAD), text("zz\r\n{}\r\n"), Close],
        "wire-short-body" => {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: 10000\r\n\r\n";
            vec![text(head), text(&frame("\"one\"", false)), Close]
        }
        "wire-wrong-types" => with(begun(&[frame("[1, 2]", false), end("")]), vec![last(), Close]),
        "wire-nulls" => with(
            begun(&[frame("null", false), frame("\"one\"", false), end("")]),
            vec![last(), Close],
        ),
        "wire-redirect" => plain(
            "302 Found",
            "Location: http://169.254.169.254/latest/meta-data/\r\n",
            json,
            "{}",
        ),
        "wire-401" => {
            let body = "{\"error\":\"unauthorized\",\"signin_url\":\"https://ollama.com/connect?name=x\"}";
            plain("401 Unauthorized", "", json, body)
        }
        "wire-429" => plain(
            "429 Too Many Requests",
            "Retry-After: 2\r\n",
            json,
            "{\"error\":\"rate limit exceeded\"}",
        ),
        "wire-502" => plain(
            "502 Bad Gateway",
            "",
            "text/html",
            "<html><h1>502 Bad Gateway</h1></html>",
        ),
        "wire-odd-end" => {
            let odd = r#"{"response":"","done":true,"done_reason":"flown","eval_count":1,"eval_duration":1000,"new":{"x":[1]}}"#;
            with(begun(&[words().concat(), format!("{odd}\n")]), vec![last(), Close])
        }
        "wire-thought-out" => {
            let thought = "{\"response\":\"\",\"thinking\":\"hm\",\"done\":false}\n".to_owned();
            let end = r#"{"response":"","done":true,"done_reason":"length","eval_count":1}"#;
            with(begun(&[thought, format!("{end}\n")]), vec![last(), Close])
        }
        "wire-tool-at-end" => {
            let call = r#"{"function":{"name":"nobody","arguments":{"x":1}}}"#;
            let end = format!(
                r#"{{"message":{{"role":"assistant","content":"","tool_calls":[{call}]}},"done":true,"done_reason":"stop"}}"#
            );
            with(begun(&[format!("{end}\n")]), vec![last(), Close])
        }
        _ => return None,
    })
}

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

fn frame(response: &str, done: bool) -> String {
    format!("{{\"model\":\"m\",\"created_at\":\"2026-08-21T10:00:00Z\",\"response\":{response},\"done\":{done}}}\n")
}

fn end(text: &str) -> String {
    let metrics = "\"done_reason\":\"stop\",\"total_duration\":5,\"eval_count\":3,\"eval_duration\":3";
    let frame = frame(&format!("{text:?}"), true);
    frame.replace("\"done\":true", &format!("\"done\":true,{metrics}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_an_answer() {
        assert!(NAMES.iter().all(|name| answer(name).is_some()));
        assert!(answer("echo").is_none());
        let last: Value = serde_json::from_str(&end("")).expect("JSON");
        assert_eq!((&last["done"], &last["done_reason"]), (&true.into(), &"stop".into()));
    }
}
