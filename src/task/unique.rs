//! Calls of which one runs and the others get its result.

use std::time::Duration;

/// How long a result is given again if nobody says: as long as Celery keeps results.
pub const PERIOD: Duration = Duration::from_secs(86_400);

/// Calls of a task with the same arguments are one run; the others get its result. A message says the same of itself
/// with the header `idempotency_key`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unique {
    /// How long a result is given again, from the end of the run.
    pub period: Duration,
    /// A success counts. Without it only calls that come while one runs wait for that, and then run.
    pub success: bool,
    /// A failure counts, after the last retry. Without it the next call runs.
    pub failure: bool,
}

impl Unique {
    /// A success counts for a day; who comes after a failure runs.
    pub const DEFAULT: Self = Self {
        period: PERIOD,
        success: true,
        failure: false,
    };

    /// Takes the states that count by their names.
    ///
    /// # Errors
    /// A text for people.
    pub fn with_states<'a>(mut self, names: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        (self.success, self.failure) = (false, false);
        for name in names {
            match name {
                "SUCCESS" => self.success = true,
                "FAILURE" => self.failure = true,
                other => return Err(format!("{other:?} is no state that can count: use SUCCESS and FAILURE")),
            }
        }
        Ok(self)
    }

    /// Takes the period in seconds.
    ///
    /// # Errors
    /// A text for people.
    pub fn with_period(mut self, seconds: f64) -> Result<Self, String> {
        // A year is more than anybody waits, and what Redis can count.
        match Duration::try_from_secs_f64(seconds) {
            Ok(period) if (1.0..=31_536_000.0).contains(&seconds) => {
                self.period = period;
                Ok(self)
            }
            _ => Err(format!("{seconds} must be between 1 second and a year (31536000)")),
        }
    }

    /// The states that count, by name.
    pub fn states(&self) -> Vec<&'static str> {
        let counting = [(self.success, "SUCCESS"), (self.failure, "FAILURE")];
        counting
            .into_iter()
            .filter_map(|(counts, name)| counts.then_some(name))
            .collect()
    }

    /// Whether the end of a task in that state counts.
    pub fn counts(&self, state: &str) -> bool {
        self.states().contains(&state)
    }
}

impl Default for Unique {
    fn default() -> Self {
        Self::DEFAULT
    }
}
