//! Wall clocks of workers that are set while they run: each sees the time through a small library in C that is loaded
//! before the others (`wallclock.c`), which the compiler that links the tests makes.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use orchestra::client::Call;

use crate::support::{Folder, Redis, Worker, until};

/// An hour, in seconds.
pub const HOUR: i64 = 3600;

/// Seconds of the clock that nobody sets, the same for all processes of this machine.
pub fn steady() -> f64 {
    Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap()).as_secs_f64()
}

/// The wall clock of a worker, and of the one that takes its place.
pub struct WallClock {
    folder: Folder,
    off_by: File,
}

impl WallClock {
    /// One that is right.
    pub fn new() -> Self {
        static LIBRARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
            let (folder, source) = (
                Folder::new(),
                Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/wallclock.c"),
            );
            let library = folder.path().join("wallclock.so");
            let made = Command::new("cc")
                .args(["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"])
                .args([&library, &source])
                .arg("-ldl")
                .status();
            assert!(made.expect("there is a C compiler, `cc`").success());
            std::fs::read(library).unwrap()
        });
        let folder = Folder::new();
        std::fs::write(folder.path().join("wallclock.so"), &*LIBRARY).unwrap();
        let off_by = File::create(folder.path().join("off_by")).unwrap();
        let clock = Self { folder, off_by };
        clock.set(0);
        clock
    }

    /// Sets it so many seconds ahead, or back, of what is right.
    pub fn set(&self, seconds: i64) {
        // In its place: the worker has the file in its memory.
        self.off_by.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    /// What a worker that goes by this clock has in its environment.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        let path = |name| self.folder.path().join(name).into_os_string().into_string().unwrap();
        [("LD_PRELOAD", path("wallclock.so")), ("TEST_CLOCK", path("off_by"))]
    }
}

/// What it waited for is an hour away by its clock, and by the other clock it is due. Its log goes by its clock, so that
/// this cannot pass with a clock that stays right.
#[tokio::test(flavor = "multi_thread")]
async fn etas_are_counted_anew_when_the_clock_is_set() {
    let (redis, clock) = (Redis::start(), WallClock::new());
    let environment = clock.environment();
    let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
    let worker = Worker::start_with(&redis, &[], &environment);
    let client = redis.client().await;
    let send = async |countdown| {
        let call = Call::new("hello.add").arg(2).arg(2).countdown(countdown);
        client.send(call).await.unwrap()
    };
    let held = async || redis.length("HLEN", "unacked") == 1;
    let minute = Duration::from_secs(60);

    clock.set(-HOUR);
    worker.wait_for_log("the clock of this machine was set");
    let (sent, soon) = (Instant::now(), send(Duration::from_secs(2)).await);
    until("it is held, for an hour and two seconds", held).await;
    clock.set(0);
    assert_eq!(soon.get::<i64>(minute).await.unwrap(), 4);
    assert!(sent.elapsed() >= Duration::from_secs(2), "{:?}", sent.elapsed());

    let (sent, late) = (Instant::now(), send(minute * 59).await);
    until("it is held, for fifty-nine minutes", held).await;
    clock.set(HOUR);
    assert_eq!(late.get::<i64>(minute).await.unwrap(), 4);
    assert!(sent.elapsed() < minute, "{:?}", sent.elapsed());

    let log = worker.log();
    let hours: HashSet<&str> = log.lines().filter_map(|line| line.get(..13)).collect();
    assert!(hours.len() >= 3, "it did not see its clock set:\n{log}");
}
