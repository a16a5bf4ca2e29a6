//! `orchestra config`: the settings as they are now.

use std::process::ExitCode;

use clap::Args;

use super::program::{Common, Stopped, pretty};
use crate::config::SETTINGS;

#[derive(Debug, Args)]
pub(super) struct Config {
    /// List all settings with what they do and their defaults
    #[arg(long)]
    all: bool,
}

impl Config {
    pub(super) fn run(self, common: &Common) -> Result<ExitCode, Stopped> {
        if self.all {
            for setting in SETTINGS {
                println!("{} = {}\n    {}", setting.name, setting.default, setting.about);
            }
        } else {
            println!("{}", pretty(&common.settings()?.shown().into()));
        }
        Ok(ExitCode::SUCCESS)
    }
}
