//! The names of kombu's keys and channels.

use super::Options;

/// kombu's separator.
pub(super) const SEP: &str = "\x06\x16";

/// Names keys as the options say.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    sep: String,
    steps: Vec<u8>,
    /// Before the name of a fanout exchange.
    fanout: String,
    fanout_patterns: bool,
}

impl Keys {
    pub(super) fn new(options: &Options, db: i64) -> Self {
        let mut steps = options.priority_steps.clone();
        steps.sort_unstable();
        steps.dedup();
        if steps.is_empty() {
            steps.push(0);
        }
        Self {
            prefix: options.global_keyprefix.clone(),
            sep: options.sep.clone(),
            steps,
            fanout: options.fanout_prefix.replace("{db}", &db.to_string()),
            fanout_patterns: options.fanout_patterns,
        }
    }

    /// With the global prefix.
    pub(super) fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The list of a queue for a priority.
    pub(super) fn queue(&self, queue: &str, priority: u8) -> String {
        format!("{}{queue}{}", self.prefix, self.suffix(priority))
    }

    /// What follows a queue's name: the largest step that is not above the priority (P-003).
    pub(super) fn suffix(&self, priority: u8) -> String {
        let step = self
            .steps
            .iter()
            .rev()
            .find(|step| **step <= priority)
            .or(self.steps.first());
        match step.copied().unwrap_or(0) {
            0 => String::new(),
            step => format!("{}{step}", self.sep),
        }
    }

    /// Between the parts of a binding and before a priority step.
    pub(super) fn sep(&self) -> &str {
        &self.sep
    }

    /// All lists of all queues, in the order in which they are looked at: priority before queue (P-004). With each
    /// comes the index of its queue.
    pub(super) fn all<'a>(&self, queues: impl Iterator<Item = (usize, &'a str)> + Clone) -> Vec<(String, usize)> {
        self.steps
            .iter()
            .flat_map(|step| {
                queues
                    .clone()
                    .map(move |(index, queue)| (self.step(queue, *step), index))
            })
            .collect()
    }

    fn step(&self, queue: &str, step: u8) -> String {
        match step {
            0 => self.name(queue),
            step => format!("{}{queue}{}{step}", self.prefix, self.sep),
        }
    }

    pub(super) fn bindings(&self, exchange: &str) -> String {
        format!("{}_kombu.binding.{exchange}", self.prefix)
    }

    /// The member of a binding set: routing key, pattern, queue; all three always there (P-011).
    pub(super) fn binding(&self, routing_key: &str, queue: &str) -> String {
        format!("{routing_key}{0}{0}{queue}", self.sep)
    }

    /// The member of a topic exchange's binding set: with the expression that kombu makes of the routing key, in which
    /// `*` is a word and `#` is any number of them.
    pub(super) fn topic_binding(&self, routing_key: &str, queue: &str) -> String {
        let escape = |word: &str| {
            let plain = |char: char| char.is_alphanumeric() || char == '#' || char == '*';
            let escaped = word.chars().map(|char| match char {
                char if plain(char) => char.to_string(),
                char => format!("\\{char}"),
            });
            escaped.collect::<String>()
        };
        let words = routing_key.split('.').map(|word| match word {
            "*" => r".*?[^\.]".to_owned(),
            "#" => ".*?".to_owned(),
            word => escape(word),
        });
        let pattern = words.collect::<Vec<_>>().join(r"\.");
        format!("{routing_key}{0}^{pattern}${0}{queue}", self.sep)
    }

    pub(super) fn permanent_bindings(&self, exchange: &str) -> String {
        format!("{}_kombu.binding_permanent.{exchange}", self.prefix)
    }

    pub(super) fn deadlines(&self) -> String {
        self.name("_kombu.binding_deadlines")
    }

    /// The channel of a fanout exchange.
    pub(super) fn channel(&self, exchange: &str, routing_key: &str) -> String {
        let channel = format!("{}{}{exchange}", self.prefix, self.fanout);
        if routing_key.is_empty() || !self.fanout_patterns {
            channel
        } else {
            format!("{channel}/{routing_key}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_002_p_003_p_004_queue_keys() {
        let keys = Keys::new(&Options::default(), 0);
        assert_eq!(keys.queue("q", 0), "q");
        assert_eq!(keys.queue("q", 2), "q");
        assert_eq!(keys.queue("q", 5), "q\x06\x163");
        assert_eq!(keys.queue("q", 9), "q\x06\x169");
        let all = keys.all([(0, "a"), (1, "b")].into_iter());
        let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).take(3).collect();
        assert_eq!(names, ["a", "b", "a\x06\x163"]);
        assert_eq!(keys.channel("celeryev", "worker.online"), "/0.celeryev/worker.online");
        assert_eq!(keys.channel("celery.pidbox", ""), "/0.celery.pidbox");
        assert_eq!(
            keys.topic_binding("a_b.*.#", "q"),
            "a_b.*.#\x06\x16^a\\_b\\..*?[^\\.]\\..*?$\x06\x16q"
        );
    }
}
