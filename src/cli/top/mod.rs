//! `orchestra top`: workers, queues, tasks and models, live, in a terminal.
//!
//! `watch` asks and listens, `model` keeps what is known, `view` draws it, `keys` says what a key does.

mod keys;
mod model;
mod view;
mod watch;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event;
use tokio::sync::mpsc;

use super::program::{Common, Stopped, number_of_seconds, seconds, usage, world};
use super::signals::asked_to_stop;
use crate::clock;
use keys::Wish;
use model::Model;
use watch::{News, Watch};

/// What came from the keyboard, or that the window has another size.
type Input = event::Event;

#[derive(Debug, Args)]
pub(super) struct Top {
    /// Seconds between two looks
    #[arg(short = 'i', long, value_name = "SECONDS", value_parser = number_of_seconds, default_value = "2")]
    interval: f64,
}

impl Top {
    pub(super) async fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        if !std::io::stdout().is_terminal() {
            return Err(usage(
                "top needs a terminal; in a pipe use `orchestra events` or `orchestra inspect`",
            ));
        }
        let interval = seconds("interval", self.interval)?.max(Duration::from_millis(200));
        let settings = common.settings()?;
        let client = common.sender().await?;
        let broker = settings.broker().map_err(usage)?.to_string();
        let (news_to, news) = mpsc::unbounded_channel();
        let watch = Watch::start(client, &settings.event_exchange(), interval, news_to)
            .await
            .map_err(world)?;
        let ended = asked_to_stop(None).map_err(|error| world(format!("cannot listen to signals: {error}")))?;
        let mut terminal =
            ratatui::try_init().map_err(|error| world(format!("the terminal cannot be used: {error}")))?;
        let shown = tokio::select! {
            shown = show(&mut terminal, Model::new(broker), news, read_input(), &watch) => shown,
            () = watch.run() => Ok(()),
            () = ended => Ok(()),
        };
        ratatui::restore();
        shown.map_err(|error| world(format!("the terminal cannot be used: {error}")))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Draws whenever there is something new, until somebody has seen enough.
async fn show(
    terminal: &mut DefaultTerminal,
    mut model: Model,
    mut news: mpsc::UnboundedReceiver<News>,
    mut input: mpsc::UnboundedReceiver<Input>,
    watch: &Watch,
) -> std::io::Result<()> {
    // Ages go on although nothing comes.
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        model.at(clock::now(), clock::instant());
        terminal.draw(|frame| view::draw(frame, &mut model))?;
        tokio::select! {
            Some(new) = news.recv() => {
                model.hear(new);
                // A flood of events is drawn once, not event by event.
                while let Ok(new) = news.try_recv() {
                    model.hear(new);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            input = input.recv() => {
                let Some(input) = input else { return Ok(()) };
                match keys::press(&input, &mut model) {
                    Wish::Nothing => {}
                    Wish::Quit => return Ok(()),
                    Wish::Tell(method, arguments) => watch.tell(method, arguments),
                }
            }
            _ = tick.tick() => {}
        }
    }
}

/// Keys are read by a thread: nothing else can wait for a terminal. It ends with the process.
fn read_input() -> mpsc::UnboundedReceiver<Input> {
    let (to, input) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if to.send(event).is_err() {
                break;
            }
        }
    });
    input
}
