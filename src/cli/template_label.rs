//! `orchestra templates label` and `diff`: which version runs under a name, and what is different in another.

use std::path::Path;
use std::process::ExitCode;

use clap::Args;
use similar::TextDiff;

use super::program::{Common, Stopped, usage, world};
use super::templates::failure;
use crate::ai::Engine;
use crate::ai::template::{LABELS, Label, Labels, Template};

/// Moves a label.
#[derive(Debug, Args)]
pub(super) struct Move {
    /// NAME@LABEL
    name: String,
    /// The version that it is to stand for
    #[arg(required_unless_present = "remove")]
    version: Option<u64>,
    /// Another version for a part of the tasks
    #[arg(long, requires = "percent")]
    canary: Option<u64>,
    /// How many of a hundred tasks
    #[arg(long, requires = "canary")]
    percent: Option<f64>,
    /// Take the label away
    #[arg(long, conflicts_with_all = ["version", "canary"])]
    remove: bool,
}

impl Move {
    pub(super) fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        let settings = common.settings()?.ai;
        let folder = settings.templates.path();
        // Also where the label is what keeps the templates from being in order.
        let labels = Labels::load(folder).unwrap_or_default();
        let (template, label) = self.name.rsplit_once('@').unwrap_or((&self.name, ""));
        let before = labels.of_template(template).find(|(name, _)| *name == label);
        let before = before.map_or_else(|| "was not there".to_owned(), |(_, before)| format!("was {before}"));
        let to = self
            .version
            .map(|version| Label::new(version, self.canary.zip(self.percent)));
        let text = Labels::moved(folder, &self.name, to.as_ref()).map_err(usage)?;
        let old = std::fs::read_to_string(folder.join(LABELS)).ok();
        write(folder, Some(&text))?;
        // Only with all files is known whether that is right.
        if let Err(error) = Engine::load(&settings) {
            write(folder, old.as_deref())?;
            return Err(usage(error));
        }
        match to {
            Some(to) => println!("{} is {to}; it {before}", self.name),
            None => println!("{} is gone; it {before}", self.name),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// In one step: a worker that reads the file at this moment sees the one or the other.
fn write(folder: &Path, text: Option<&str>) -> Result<(), Stopped> {
    let path = folder.join(LABELS);
    let written = match text {
        None => std::fs::remove_file(&path),
        Some(text) => {
            let new = folder.join(format!(".{LABELS}.{}", std::process::id()));
            std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &path))
        }
    };
    written.map_err(|error| world(format!("{} cannot be written: {error}", path.display())))
}

/// Labels that stand for a version, for people.
pub(super) fn of_version(labels: &Labels, template: &Template) -> Vec<String> {
    let mut shown = Vec::new();
    for (name, label) in labels.of_template(template.name()) {
        match label.canary {
            Some((canary, percent)) if canary == template.version() => shown.push(format!("{name} {percent} %")),
            Some((_, percent)) if label.version == template.version() => {
                shown.push(format!("{name} {} %", 100.0 - percent));
            }
            None if label.version == template.version() => shown.push(name.to_owned()),
            _ => {}
        }
    }
    shown
}

pub(super) fn diff(common: &Common, old: &str, new: Option<&str>) -> Result<ExitCode, Stopped> {
    let engine = common.engine()?;
    let newest = old.split('@').next().unwrap_or(old);
    let old = engine.template(old).map_err(failure)?;
    let new = engine.template(new.unwrap_or(newest)).map_err(failure)?;
    let text = |template: &Template| {
        let read = std::fs::read_to_string(template.path());
        read.map_err(|error| world(format!("{}: {error}", template.path().display())))
    };
    let (before, after) = (text(&old)?, text(&new)?);
    if before == after {
        return Ok(ExitCode::SUCCESS);
    }
    let lines = TextDiff::from_lines(&before, &after);
    print!("{}", lines.unified_diff().header(&old.title(), &new.title()));
    Ok(ExitCode::from(1))
}
