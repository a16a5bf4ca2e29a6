//! `orchestra up`: one command for a first try. Uses what is there, starts what is missing and can be started, and
//! stops exactly what it started.

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};

use super::children::{Running, Start, find};
use super::program::{Common, Stopped, usage, world};
use crate::ai::ollama::Ollama;
use crate::ai::{CallLimits, Host};
use crate::config::Settings;
use crate::conn::{Link, LinkOptions};

/// How long a program may take until it answers.
const READY: Duration = Duration::from_secs(20);
/// How long a program may take to stop; running tasks end within it or go back to their queue.
const PATIENCE: Duration = Duration::from_secs(30);

const REDIS: &str = "redis";

#[derive(Debug, Args)]
pub(super) struct Up {
    /// Do not start Flower
    #[arg(long)]
    no_flower: bool,
    /// Port of Flower
    #[arg(long, default_value_t = 5555)]
    flower_port: u16,
    /// Folder for the data of a private Redis [default: the user's state folder]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Options for orchestra-worker
    #[arg(last = true)]
    worker: Vec<OsString>,
}

/// What is running, and what to tell about it.
#[derive(Default)]
struct House {
    running: Vec<Running>,
    told: Vec<(&'static str, String)>,
}

impl Up {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let mut interrupt = signal(SignalKind::interrupt()).map_err(world)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(world)?;
        // Those that were started have process groups of their own: a terminal that is closed does not reach them. What
        // stays behind its terminal on purpose (nohup) has another stdin.
        let mut hangup = signal(SignalKind::hangup()).map_err(world)?;
        let has_terminal = std::io::stdin().is_terminal();
        let settings = common.settings()?;
        let mut house = House::default();
        let raised = tokio::select! {
            raised = self.raise(common, &settings, &mut house) => raised,
            _ = interrupt.recv() => Err(world("stopped before everything was up")),
            _ = terminate.recv() => Err(world("stopped before everything was up")),
            _ = hangup.recv(), if has_terminal => Err(world("stopped before everything was up")),
        };
        let ended = match raised {
            Ok(()) => {
                house.tell();
                tokio::select! {
                    _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
                    _ = terminate.recv() => Ok(ExitCode::SUCCESS),
                    _ = hangup.recv(), if has_terminal => Ok(ExitCode::SUCCESS),
                    text = house.broken() => Err(world(text)),
                }
            }
            Err(stopped) => Err(stopped),
        };
        tokio::select! {
            () = house.fall() => {}
            // Whoever presses twice does not want to wait; dropping ends the rest at once.
            _ = interrupt.recv() => {}
        }
        ended
    }

    async fn raise(&self, common: &Common, settings: &Settings, house: &mut House) -> Result<(), Stopped> {
        self.redis(settings, house).await?;
        self.ollama(settings, house).await;
        self.worker(common, settings, house).await?;
        if !self.no_flower {
            self.flower(settings, house).await;
        }
        Ok(())
    }

    async fn redis(&self, settings: &Settings, house: &mut House) -> Result<(), Stopped> {
        let endpoint = settings.broker().map_err(usage)?;
        let error = match Link::connect(&endpoint, LinkOptions::default()).await {
            Ok(_) => {
                house.told.push(("redis", format!("{endpoint} (was running)")));
                return Ok(());
            }
            Err(error) => error,
        };
        // What takes the connection is there, whatever it says: a password is missing, or it is no Redis.
        let Some(port) = endpoint.loopback_port() else {
            return Err(world(error));
        };
        if TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return Err(world(error));
        }
        let Some(program) = find("redis-server").or_else(|| find("valkey-server")) else {
            return Err(world(format!(
                "{error}. Install one, for example with: apt-get install redis-server"
            )));
        };
        let folder = self
            .data
            .clone()
            .or_else(state_folder)
            .unwrap_or_else(|| ".orchestra".into())
            .join("redis");
        std::fs::create_dir_all(&folder)
            .map_err(|error| world(format!("cannot make {}: {error}", folder.display())))?;
        let port = port.to_string();
        let options = [
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--appendonly",
            "yes",
            "--maxmemory-policy",
            "noeviction",
            "--dir",
        ];
        let arguments: Vec<&OsStr> = options
            .into_iter()
            .map(OsStr::new)
            .chain([folder.as_os_str()])
            .collect();
        house.running.push(
            Running::start(Start {
                name: REDIS,
                optional: false,
                quiet: true,
                program: &program,
                arguments: &arguments,
                environment: &[],
            })
            .map_err(world)?,
        );
        let connected = house
            .until(async || Link::connect(&endpoint, LinkOptions::default()).await.is_ok())
            .await;
        if !connected {
            return Err(world(format!(
                "{} does not come up on port {port}; does another program use it?",
                program.display()
            )));
        }
        house
            .told
            .push(("redis", format!("{endpoint} (started; data in {})", folder.display())));
        Ok(())
    }

    async fn ollama(&self, settings: &Settings, house: &mut House) {
        let Ok(ollama) = Ollama::new(CallLimits::default()) else {
            return;
        };
        let Some(Ok(host)) = settings.ai.hosts.first().map(Host::new) else {
            return;
        };
        let (server, host) = (&host.server, host.url());
        if let Ok(version) = ollama.version(server).await {
            house
                .told
                .push(("ollama", format!("{host} (was running, version {version})")));
            return;
        }
        let local = host == crate::ai::DEFAULT_HOST;
        if let Some(program) = find("ollama").filter(|_| local) {
            let start = Start {
                name: "ollama",
                optional: true,
                quiet: true,
                program: &program,
                arguments: &["serve".as_ref()],
                environment: &[],
            };
            if let Ok(running) = Running::start(start) {
                house.running.push(running);
                if house.until(async || ollama.version(server).await.is_ok()).await {
                    house.told.push(("ollama", format!("{host} (started)")));
                    return;
                }
            }
        }
        let text = format!(
            "none at {host}; get it from ollama.com, or name another with OLLAMA_HOST. AI tasks are tried again until then"
        );
        house.told.push(("ollama", text));
    }

    async fn worker(&self, common: &Common, settings: &Settings, house: &mut House) -> Result<(), Stopped> {
        let Some(program) = find("orchestra-worker") else {
            return Err(world("there is no orchestra-worker beside this program or on PATH"));
        };
        let mut arguments: Vec<OsString> = vec!["--quiet".into(), "-E".into()];
        let mut give = |name: &str, value: &OsStr| arguments.extend([name.into(), value.to_owned()]);
        let folders = [
            ("--config", &common.config),
            ("--templates", &common.templates),
            ("--tasks", &common.tasks),
        ];
        for (name, path) in folders {
            if let Some(path) = path {
                give(name, path.as_os_str());
            }
        }
        for host in &common.ollama_host {
            give("--ollama-host", host.as_ref());
        }
        give("--loglevel", "INFO".as_ref());
        arguments.extend(self.worker.iter().cloned());
        let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
        let mut environment = vec![("ORCHESTRA_BROKER_URL", settings.broker_url.as_str())];
        environment.extend(
            settings
                .result_backend
                .as_deref()
                .map(|url| ("ORCHESTRA_RESULT_BACKEND", url)),
        );
        let start = Start {
            name: "worker",
            optional: false,
            quiet: false,
            program: &program,
            arguments: &arguments,
            environment: &environment,
        };
        let mut running = Running::start(start).map_err(world)?;
        // A mistake in its options or files ends it at once, after saying what it was.
        let soon = tokio::time::timeout(Duration::from_millis(700), running.ended()).await;
        house.running.push(running);
        if let Ok(text) = soon {
            return Err(world(text));
        }
        house.told.push(("worker", "running".to_owned()));
        Ok(())
    }

    async fn flower(&self, settings: &Settings, house: &mut House) {
        const HOW: &str = "not installed; get it with: pip install flower";
        let Some(program) = find("celery") else {
            return house.told.push(("flower", HOW.into()));
        };
        if TcpStream::connect(("127.0.0.1", self.flower_port)).await.is_ok() {
            let text = format!("port {} is taken; choose another with --flower-port", self.flower_port);
            return house.told.push(("flower", text));
        }
        let port = format!("--port={}", self.flower_port);
        let arguments: Vec<&OsStr> = ["flower", "--address=127.0.0.1", &port]
            .into_iter()
            .map(OsStr::new)
            .collect();
        let mut environment = vec![("CELERY_BROKER_URL", settings.broker_url.as_str())];
        // Its API can stop workers and send tasks: to anybody on this machine only where all of it was started here.
        if house.has_own_redis() {
            environment.push(("FLOWER_UNAUTHENTICATED_API", "true"));
        }
        let start = Start {
            name: "flower",
            optional: true,
            quiet: true,
            program: &program,
            arguments: &arguments,
            environment: &environment,
        };
        let Ok(running) = Running::start(start) else {
            return house.told.push(("flower", HOW.into()));
        };
        house.running.push(running);
        let up = house
            .until(async || TcpStream::connect(("127.0.0.1", self.flower_port)).await.is_ok())
            .await;
        let text = if up {
            format!("http://127.0.0.1:{}", self.flower_port)
        } else {
            HOW.to_owned()
        };
        house.told.push(("flower", text));
    }
}

impl House {
    /// Says what is up. A reader that has gone must not end us before what was started is stopped.
    fn tell(&self) {
        let mut text = "orchestra is up\n".to_owned();
        for (name, what) in &self.told {
            text.push_str(&format!("  {name:<8} {what}\n"));
        }
        text.push_str("Ctrl-C stops what was started here.\n");
        let _ = std::io::stdout().write_all(text.as_bytes());
    }

    /// Whether the Redis is one that was started here.
    fn has_own_redis(&self) -> bool {
        self.running.iter().any(|running| running.name == REDIS)
    }

    /// Waits until a program that was just started answers, has ended, or takes too long.
    async fn until(&mut self, ready: impl AsyncFn() -> bool) -> bool {
        let waited = tokio::time::timeout(READY, async {
            loop {
                if ready().await {
                    return true;
                }
                if self.running.last_mut().is_none_or(Running::has_ended) {
                    return false;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        waited.await.unwrap_or(false)
    }

    /// Waits until something ends that the others need.
    async fn broken(&mut self) -> String {
        loop {
            for running in self.running.iter_mut().filter(|running| !running.optional) {
                if running.has_ended() {
                    return running.ended().await;
                }
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    /// Stops everything, the last first.
    async fn fall(&mut self) {
        while let Some(running) = self.running.pop() {
            running.stop(PATIENCE).await;
        }
    }
}

/// Where programs keep what they may lose (XDG base directories).
fn state_folder() -> Option<PathBuf> {
    let set = std::env::var_os("XDG_STATE_HOME")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from);
    set.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state")))
        .map(|path| path.join("orchestra"))
}
