//! Settings: one table, from which come the file's keys, the environment's names, the checks and the documentation.
//!
//! Later wins: default, file, environment, command line. Celery's settings keep Celery's names (`celery.app.defaults`,
//! new lowercase form); what Celery does not have starts with `ai_` or stands with its neighbours.

mod celery;
mod certificates;
mod load;
mod places;
mod queues;
mod secrets;
mod settings;
mod table;
#[cfg(test)]
mod tests;
mod values;

pub use settings::Settings;
pub use table::{SETTINGS, Setting, defaults};
