//! The service unit, and what systemd is told: with a real socket in the place of systemd's.

use std::os::unix::net::UnixDatagram;

use nix::sys::signal::Signal;

use crate::support::{Folder, LONG, Redis, Worker};

fn told(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 512];
    let count = socket.recv(&mut bytes).expect("systemd is told something");
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn systemd_is_told_of_the_start_of_life_and_of_the_stop() {
    let (redis, folder) = (Redis::start(), Folder::new());
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let path = path.to_str().unwrap();
    let mut worker = Worker::start_with(&redis, &[], &[("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "200000")]);
    assert!(told(&socket).starts_with("READY=1\n"));
    for _ in 0..3 {
        assert_eq!(told(&socket), "WATCHDOG=1");
    }
    worker.process.signal(Signal::SIGTERM);
    let stops = (0..1000).map(|_| told(&socket)).find(|told| told != "WATCHDOG=1");
    assert!(stops.unwrap().starts_with("STOPPING=1\n"));
    assert_eq!(worker.process.wait(), Some(0));
}

/// A watchdog that is meant for somebody else gets nothing, and a socket that is not there is no reason to stop.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_a_systemd_that_listens_works() {
    let redis = Redis::start();
    let settings = [
        ("NOTIFY_SOCKET", "/nowhere/notify"),
        ("WATCHDOG_USEC", "1000"),
        ("WATCHDOG_PID", "1"),
    ];
    let mut worker = Worker::start_with(&redis, &[], &settings);
    let sum = redis
        .client()
        .await
        .send(orchestra::client::Call::new("hello.add").arg(1))
        .await
        .unwrap();
    assert_eq!(sum.get::<i64>(LONG).await.unwrap(), 1);
    assert_eq!(worker.stop(), Some(0), "{}", worker.log());
}
