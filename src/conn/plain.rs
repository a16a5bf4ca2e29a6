//! A server that is asked with TLS and has none says nothing at all; asked without, it says what it is.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Whether a Redis without TLS answers there, within that time.
pub(super) async fn speaks_plainly(host: &str, port: u16, within: Duration) -> bool {
    let answer = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut beginning = [0; 4];
        stream.read_exact(&mut beginning).await?;
        std::io::Result::Ok(beginning)
    };
    let answer = tokio::time::timeout(within, answer).await;
    // It may want a password, or have no time; a Redis it is.
    matches!(answer, Ok(Ok(text)) if [*b"+PON", *b"-NOA", *b"-LOA", *b"-DEN"].contains(&text))
}
