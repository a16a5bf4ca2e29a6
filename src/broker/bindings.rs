//! Which queues hang on which exchanges, as kombu writes it down.

use std::collections::BTreeSet;

use super::{Broker, Error};

/// A queue of an exchange.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    /// The queue.
    pub queue: String,
    /// The exchange.
    pub exchange: String,
    /// The key that a message has which goes to this queue.
    pub routing_key: String,
}

impl Broker {
    /// All bindings, by queue. All keys are looked through for the exchanges.
    ///
    /// # Errors
    /// Redis cannot be reached, or refuses.
    pub async fn bindings(&self) -> Result<Vec<Binding>, Error> {
        let mut bindings = BTreeSet::new();
        for exchange in self.scan(&self.keys.bindings(""), "", "set").await? {
            let members: Vec<String> = self
                .writer
                .query(redis::cmd("SMEMBERS").arg(self.keys.bindings(&exchange)))
                .await?;
            bindings.extend(members.iter().filter_map(|member| {
                let mut parts = member.split(self.keys.sep());
                let (routing_key, _, queue) = (parts.next()?, parts.next()?, parts.next()?);
                Some(Binding {
                    queue: queue.to_owned(),
                    exchange: exchange.clone(),
                    routing_key: routing_key.to_owned(),
                })
            }));
        }
        Ok(bindings.into_iter().collect())
    }

    /// What stands between `beginning` and `end` in the keys of that type.
    pub(super) async fn scan(&self, beginning: &str, end: &str, kind: &str) -> Result<BTreeSet<String>, Error> {
        let literal = |text: &str| -> String {
            let escaped = |char| "*?[]\\".contains(char).then_some('\\').into_iter().chain([char]);
            text.chars().flat_map(escaped).collect()
        };
        let pattern = format!("{}*{}", literal(beginning), literal(end));
        let (mut cursor, mut names) = (0_u64, BTreeSet::new());
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern);
            scan.arg("COUNT").arg(1000).arg("TYPE").arg(kind);
            let (next, keys): (u64, Vec<String>) = self.writer.query(&scan).await?;
            let middle = keys
                .iter()
                .filter_map(|key| key.strip_prefix(beginning)?.strip_suffix(end));
            names.extend(middle.map(str::to_owned));
            if next == 0 {
                return Ok(names);
            }
            cursor = next;
        }
    }
}
