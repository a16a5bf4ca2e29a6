//! What tests start: a Redis, workers, a model server. Everything ends with the test.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use orchestra::client::Client;
use serde_json::Value;

/// A patience that no healthy machine needs.
pub const LONG: Duration = Duration::from_secs(60);

/// A folder that goes with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("orchestra-test-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A process that ends with the test.
pub struct Process {
    child: Child,
}

impl From<Child> for Process {
    fn from(child: Child) -> Self {
        Self { child }
    }
}

impl Process {
    pub fn id(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.id()), signal).unwrap();
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end; the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        self.ended().expect("the process does not end").code()
    }

    /// Waits for its end as long as that may take.
    fn ended(&mut self) -> Option<ExitStatus> {
        let end = Instant::now() + LONG;
        while Instant::now() < end {
            let status = self.child.try_wait().unwrap();
            if status.is_some() {
                return status;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A Redis of the test's own.
pub struct Redis {
    process: Process,
    folder: Folder,
    pub port: u16,
    tls_port: u16,
    arguments: Vec<String>,
}

impl Redis {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With more arguments, in groups.
    pub fn start_with(arguments: &[&[&str]]) -> Self {
        let arguments: Vec<String> = arguments.concat().into_iter().map(str::to_owned).collect();
        // Another process may take the port in between: then the next one is tried.
        for _ in 0..10 {
            let (port, folder) = (free_port(), Folder::new());
            let mut arguments = arguments.clone();
            let tls_port = free_port();
            if arguments.iter().any(|argument| argument.starts_with("--tls")) {
                arguments.extend(["--tls-port".to_owned(), tls_port.to_string()]);
            }
            let process = Self::spawn(port, folder.path(), &arguments);
            let mut redis = Self {
                process,
                folder,
                port,
                tls_port,
                arguments,
            };
            if redis.answers() {
                return redis;
            }
        }
        panic!("redis-server does not start; is it on PATH?");
    }

    fn spawn(port: u16, folder: &Path, arguments: &[String]) -> Process {
        let child = Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "yes",
                "--dir",
            ])
            .arg(folder)
            .args(arguments)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is on PATH");
        Process { child }
    }

    fn answers(&mut self) -> bool {
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end && self.process.is_running() {
            let pong = self.try_command(&["PING"]);
            let asks_for_password = |error: &redis::RedisError| error.to_string().contains("NOAUTH");
            if matches!(pong, Ok(redis::Value::SimpleString(_))) || pong.is_err_and(|error| asks_for_password(&error)) {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// For a server that was started with `--tls-…`.
    pub fn tls_url(&self) -> String {
        format!("rediss://127.0.0.1:{}/0", self.tls_port)
    }

    pub fn try_command(&self, words: &[&str]) -> redis::RedisResult<redis::Value> {
        let mut connection = redis::Client::open(self.url())?.get_connection_with_timeout(Duration::from_secs(5))?;
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query(&mut connection)
    }

    /// One command, as in `redis-cli`.
    pub fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        redis::from_redis_value(self.try_command(words).unwrap()).unwrap()
    }

    /// The length of a list or hash.
    pub fn length(&self, command: &str, key: &str) -> usize {
        self.command(&[command, key])
    }

    /// Lets the leases of all that is held run out, as they do when its holders are gone for long.
    pub fn end_leases(&self) {
        for tag in self.command::<Vec<String>>(&["HKEYS", "unacked"]) {
            self.command::<i64>(&["ZADD", "unacked_index", "0", &tag]);
        }
    }

    /// Lets the server hang (SIGSTOP) and go on (SIGCONT).
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        self.process.signal(signal);
    }

    /// Stops the server; its data stays in its append-only file.
    pub fn stop(&mut self) {
        // All that it has confirmed: while its disk is busy it holds back what it was told in up to two seconds.
        let _ = self.writes_at_once();
        self.process.kill();
    }

    fn writes_at_once(&self) -> redis::RedisResult<()> {
        let patience = Duration::from_secs(2);
        let mut connection = redis::Client::open(self.url())?.get_connection_with_timeout(patience)?;
        connection.set_read_timeout(Some(patience))?;
        let mut command = redis::cmd("CONFIG");
        command.arg(&["SET", "appendfsync", "always"]).exec(&mut connection)
    }

    /// Starts it again on the same port with the same data.
    pub fn start_again(&mut self) {
        self.process = Self::spawn(self.port, self.folder.path(), &self.arguments);
        assert!(self.answers(), "redis-server does not come back");
    }

    pub async fn client(&self) -> Client {
        Client::connect(&self.url()).await.unwrap()
    }
}

/// A program of this package or of its examples, as cargo built it.
pub fn program(name: &str) -> PathBuf {
    let programs = Path::new(env!("CARGO_BIN_EXE_orchestra-worker")).parent().unwrap();
    let path = [programs.join(name), programs.join("examples").join(name)]
        .into_iter()
        .find(|path| path.exists());
    path.unwrap_or_else(|| panic!("{name} is not built: run `cargo build --workspace --examples`"))
}

/// A worker and its log.
pub struct Worker {
    pub process: Process,
    folder: Folder,
}

impl Worker {
    /// The tasks of `examples/hello_task.rs` and the built-in ones.
    pub fn start(redis: &Redis, arguments: &[&str]) -> Self {
        Self::start_program("hello_task", redis, arguments, &[])
    }

    pub fn start_with(redis: &Redis, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_program("hello_task", redis, arguments, environment)
    }

    pub fn start_program(name: &str, redis: &Redis, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let worker = Self::spawn(name, redis, arguments, environment);
        worker.wait_for_log("orchestra-worker: ready");
        worker
    }

    /// With a broker at another address than a [`Redis`] has.
    pub fn start_at(url: &str, arguments: &[&str]) -> Self {
        let worker = Self::spawn_at("hello_task", url, arguments, &[]);
        worker.wait_for_log("orchestra-worker: ready");
        worker
    }

    /// Does not wait until it is ready.
    pub fn spawn(name: &str, redis: &Redis, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::spawn_words(name, &["--quiet"], redis, arguments, environment)
    }

    /// A program whose first words are others.
    pub fn spawn_words(
        name: &str,
        words: &[&str],
        redis: &Redis,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        Self::spawn_process(name, words, &redis.url(), arguments, environment)
    }

    pub fn spawn_at(name: &str, url: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::spawn_process(name, &["--quiet"], url, arguments, environment)
    }

    /// The most general way to start one.
    pub fn spawn_process(
        name: &str,
        words: &[&str],
        url: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let folder = Folder::new();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        // Without one it is in the environment.
        let broker = if url.is_empty() { vec![] } else { vec!["--broker", url] };
        let child = Command::new(program(name))
            .args(words)
            .args(broker)
            .args(["--loglevel", "INFO"])
            .args(arguments)
            .env_clear()
            .envs(environment.iter().copied())
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            process: Process { child },
            folder,
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub fn wait_for_log(&self, text: &str) {
        let end = Instant::now() + LONG;
        while !self.log().contains(text) {
            assert!(Instant::now() < end, "no {text:?} in the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops it as systemd would; the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.process.signal(nix::sys::signal::Signal::SIGTERM);
        let Some(status) = self.process.ended() else {
            panic!("the worker does not end:\n{}", self.log());
        };
        status.code()
    }
}

/// A model server that plays its answers from a script.
pub struct Sim {
    pub process: Process,
    pub url: String,
    control: String,
    arguments: Vec<String>,
}

impl Sim {
    /// Starts it again at the same address, after it ended.
    pub fn restart(&mut self) {
        let address = self.url.trim_start_matches("http://").to_owned();
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        *self = Self::start_at(&address, &arguments);
    }

    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", arguments)
    }

    fn start_at(address: &str, arguments: &[&str]) -> Self {
        // Another process may take the port in between: then the next one is tried.
        for _ in 0..10 {
            let control = format!("127.0.0.1:{}", free_port());
            let mut child = Command::new(program("ollama-sim"))
                .args(["--host", address, "--control", &control])
                .args(arguments)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            let out = child.stdout.take().unwrap();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
            let process = Process { child };
            if let Some(url) = line.trim().rsplit(' ').next().filter(|url| url.starts_with("http://")) {
                return Self {
                    process,
                    url: url.to_owned(),
                    control: format!("http://{control}"),
                    arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
                };
            }
        }
        panic!("ollama-sim does not start at {address}; it says why above");
    }

    /// Its counters.
    pub async fn stats(&self) -> Value {
        get(&format!("{}/_stats", self.control))
            .await
            .unwrap()
            .json()
            .await
            .unwrap()
    }
}

impl Sim {
    /// The latest requests as they came.
    pub async fn requests(&self) -> Vec<Value> {
        let requests = get(&format!("{}/_requests", self.control)).await.unwrap();
        requests.json().await.unwrap()
    }
}

/// An HTTP request.
pub async fn get(url: &str) -> reqwest::Result<reqwest::Response> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build()?.get(url).send().await
}

/// Waits until something is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + LONG;
    while !is_so().await {
        assert!(Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A Python with Celery.
pub fn python() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    match std::env::var_os("ORCHESTRA_TEST_PYTHON") {
        Some(path) => path.into(),
        None => root.join(".venv/bin/python"),
    }
}

/// What Python programs of tests have in common.
const PYTHON_HELPERS: &str = "
import time
def raised(result, timeout=20):
    try:
        value = result.get(timeout=timeout)
    except Exception as error:
        return error
    raise SystemExit(f'no exception but {value!r}')
def until(what, test):
    for _ in range(400):
        if test():
            return
        time.sleep(0.05)
    raise SystemExit(f'never: {what}')
";

/// A Python with the oldest Celery whose clients are served.
pub fn oldest_python() -> PathBuf {
    match std::env::var_os("ORCHESTRA_TEST_OLDEST_PYTHON") {
        Some(path) => path.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv-oldest/bin/python"),
    }
}

/// Runs a Python program with `url` as its only argument; what it printed.
pub fn run_python(program: &str, url: &str) -> String {
    run_python_of(&python(), program, url)
}

/// The same, with that interpreter.
pub fn run_python_of(python: &Path, program: &str, url: &str) -> String {
    let out = Command::new(python)
        .args(["-c", &[PYTHON_HELPERS, program].concat(), url])
        .env(
            "PYTHONPATH",
            Path::new(env!("CARGO_MANIFEST_DIR")).join("python-client"),
        )
        .output()
        .expect("there is a Python; `make test` makes one");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    text
}

/// A port on which nothing listens. It is below those that the system gives to connections by itself, and given once:
/// what is free now is free when it is wanted, unless another program takes it.
pub fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id().wrapping_mul(61);
    loop {
        let number = first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let port = 11_000 + u16::try_from(number).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
