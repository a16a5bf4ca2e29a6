//! An HTTP server that answers after 200 ms, as a model or a service would: what `make bench` calls. It is quicker than
//! its callers, so that they are what is measured. `/took` tells the seconds from the first request to the last answer.
//!
//! ```sh
//! cargo run --release --example slow_http -- 8080
//! ```

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// When the first request came, and when the last answer left.
type Seen = Rc<Cell<Option<(Instant, Instant)>>>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::args().nth(1).ok_or("which port?")?.parse()?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    let seen = Seen::default();
    let tasks = tokio::task::LocalSet::new();
    tasks
        .run_until(async {
            loop {
                let (stream, _) = listener.accept().await?;
                let seen = seen.clone();
                // A caller that goes away ends its connection, and nothing else.
                tokio::task::spawn_local(async move { serve(stream, seen).await.ok() });
            }
        })
        .await
}

async fn serve(mut stream: TcpStream, seen: Seen) -> std::io::Result<()> {
    let mut request = Vec::with_capacity(512);
    while stream.read_buf(&mut request).await? > 0 {
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        let body = if request.starts_with(b"GET /took ") {
            let took = seen.get().map_or(Duration::ZERO, |(first, last)| last - first);
            took.as_secs_f64().to_string()
        } else {
            let now = Instant::now();
            seen.set(Some(seen.get().unwrap_or((now, now))));
            tokio::time::sleep(Duration::from_millis(200)).await;
            seen.set(seen.get().map(|(first, _)| (first, Instant::now())));
            "ok".to_owned()
        };
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).await?;
        request.clear();
    }
    Ok(())
}
