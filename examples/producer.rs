//! Sends tasks from Rust, and deals with what can go wrong.
//!
//! ```sh
//! cargo run --example hello_task &      # a worker
//! cargo run --example producer
//! ```

use std::time::Duration;

use orchestra::client::{Call, Client, Error};

#[tokio::main]
async fn main() -> Result<(), Error> {
    let url = std::env::var("CELERY_BROKER_URL").unwrap_or_else(|_| "redis://127.0.0.1:6379/0".into());
    let client = Client::connect(&url).await?;

    // One task, and its result with a type.
    let pending = client.send(Call::new("hello.add").arg(2).kwarg("y", 3)).await?;
    let sum: i64 = pending.get(Duration::from_secs(10)).await?;
    println!("2 + 3 = {sum}");

    // Many tasks leave together. `send_all` is for millions: it remembers none of them.
    let calls: Vec<Call> = (0..100).map(|n| Call::new("hello.add").arg(n)).collect();
    let mut total = 0;
    for pending in client.send_many(&calls).await? {
        total += pending.get::<i64>(Duration::from_secs(10)).await?;
    }
    println!("0 + 1 + … + 99 = {total}");

    // A failure is the exception that Python would raise.
    let pending = client.send(Call::new("hello.add").arg("two")).await?;
    match pending.get::<i64>(Duration::from_secs(10)).await {
        Err(Error::Failed { exception, .. }) => println!("failed: {exception}"),
        other => println!("{other:?}"),
    }

    // A running task is ended.
    let pending = client.send(Call::new("hello.sleep").arg(60)).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    pending.revoke(true).await?;
    match pending.get::<String>(Duration::from_secs(10)).await {
        Err(Error::Revoked(why)) => println!("revoked: {why}"),
        other => println!("{other:?}"),
    }
    Ok(())
}
