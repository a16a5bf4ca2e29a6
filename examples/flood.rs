//! Sends as many tasks as Redis takes, and says how many a second that were.
//!
//! ```sh
//! cargo run --release --example flood -- redis://127.0.0.1:6379/0 hello.add 100000
//! ```

use std::time::Instant;

use orchestra::client::{Call, Client, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [url, task, count] = &words[..] else {
        eprintln!("flood: URL TASK COUNT");
        return Ok(());
    };
    let count: u64 = count.parse().unwrap_or(1000);
    let client = Client::connect(url).await?;
    let began = Instant::now();
    // Calls are made as they are sent: a million of them need no more memory than a thousand.
    let sent = client
        .send_all((0..count).map(|n| Call::new(task).arg(n).arg(2)))
        .await?;
    println!(
        "{sent} tasks, {:.0} a second",
        sent as f64 / began.elapsed().as_secs_f64()
    );
    Ok(())
}
