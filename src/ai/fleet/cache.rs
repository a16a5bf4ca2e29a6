//! The exact cache: the same call gets the same answer, and of calls that are the same at the same time one asks a model
//! while the others hear what it hears, whichever workers they run in.

use std::time::Duration;

use serde_json::{Value, json};

use super::super::ollama::{Answer, Request};
use super::Fleet;
use super::calls::{Hear, Heard, hash};
use super::catalog::canonical;
use super::flight::{Listener, Said};
use crate::conn::Link;

/// A call that asks says so again within this time; if not, another asks.
const HELD: Duration = Duration::from_secs(6);
/// Between two looks whether the answer is there.
const LOOK: Duration = Duration::from_millis(50);
/// Answers that are larger are not kept.
const LARGEST: usize = 1 << 20;

/// What a call finds that may be answered from the cache.
pub(super) enum Flight {
    /// The answer, which has been heard; `cache`, or `joined` where it was waited for.
    Known(Box<Answer>, &'static str),
    /// Nobody has asked this yet: we do.
    Ours(Kept),
    /// There is no cache.
    None,
}

/// The right to ask for others.
pub(super) struct Kept {
    link: Link,
    answer: String,
    flight: String,
    said: String,
    token: String,
    time: Duration,
}

impl Fleet {
    /// Looks for the answer, or waits for the one who asks already.
    pub(super) async fn flight(&self, request: &Request, time: Duration, hear: Hear<'_>) -> Flight {
        let Some(link) = self.link().await else {
            return Flight::None;
        };
        let prefix = self.options().redis.as_ref().map_or("", |(_, prefix)| prefix);
        // The weights are a part of what is the same.
        self.keeper().know().await;
        let key = self.cache_key(request);
        let kept = Kept {
            link: link.clone(),
            answer: format!("{prefix}orchestra:cache:{key}"),
            flight: format!("{prefix}orchestra:flight:{key}"),
            said: format!("{prefix}orchestra:said:{key}"),
            token: uuid::Uuid::new_v4().simple().to_string(),
            time,
        };
        let mut waited = false;
        let mut listener = Listener::new(&kept.said);
        loop {
            match kept.answer().await {
                Ok(Some(answer)) => return known(answer, waited, &listener, hear),
                Ok(None) => {}
                // Without an answer of Redis there is no cache, and a model is asked.
                Err(_) => return Flight::None,
            }
            let mut hold = redis::cmd("SET");
            hold.arg(&kept.flight)
                .arg(&kept.token)
                .arg("NX")
                .arg("PX")
                .arg(milliseconds(HELD));
            match link.query::<Option<String>>(&hold).await {
                // Who asked before may have got its answer between the look and this.
                Ok(Some(_)) => match kept.answer().await {
                    Ok(Some(answer)) => {
                        kept.give_up().await;
                        return known(answer, waited, &listener, hear);
                    }
                    _ => {
                        // Who asked gave no answer: what was heard of it is no part of ours.
                        if listener.has_heard() {
                            hear(Heard::Again);
                        }
                        return Flight::Ours(kept);
                    }
                },
                Ok(None) => waited = true,
                Err(_) => return Flight::None,
            }
            tokio::time::sleep(LOOK).await;
            listener.listen(link, hear).await;
        }
    }

    /// What makes two calls the same: everything that is asked, and the weights of the model.
    fn cache_key(&self, request: &Request) -> String {
        let model = canonical(request.model());
        let catalogs = self.keeper().catalogs();
        let digests: std::collections::BTreeSet<&String> = catalogs
            .values()
            .filter_map(|catalog| catalog.models.get(&model))
            .collect();
        let asked = self.route(request).prompt_sha256;
        hash(&json!([model, digests.first(), asked]))
    }
}

impl Kept {
    /// The answer, if it is there.
    async fn answer(&self) -> Result<Option<Box<Answer>>, crate::conn::Error> {
        let known: Option<Vec<u8>> = self.link.query(redis::cmd("GET").arg(&self.answer)).await?;
        Ok(known.and_then(|known| serde_json::from_slice(&known).ok()))
    }

    /// Another may ask.
    async fn give_up(&self) {
        let _ = self
            .link
            .query::<redis::Value>(redis::cmd("DEL").arg(&self.flight))
            .await;
    }

    /// Holds the right while the model is asked, and tells the others what it says.
    pub(super) async fn guard<T>(&self, asking: impl Future<Output = T>, mut said: Said) -> T {
        let beside = async {
            said.begin(&self.link, &self.said).await;
            loop {
                tokio::select! {
                    () = said.tell(&self.link, &self.said) => {}
                    () = tokio::time::sleep(HELD / 3) => {
                        let mut hold = redis::cmd("SET");
                        hold.arg(&self.flight).arg(&self.token).arg("PX").arg(milliseconds(HELD));
                        // If it is lost, another asks as well.
                        let _ = self.link.query::<redis::Value>(&hold).await;
                    }
                }
            }
        };
        tokio::select! {
            done = asking => done,
            () = beside => std::future::pending().await,
        }
    }

    /// Keeps the answer for those who wait and those who come; without one, another asks.
    pub(super) async fn land(&self, request: &Request, answer: Option<&Answer>) {
        let mut pipe = redis::pipe();
        let good = answer.filter(|answer| is_whole(request, answer));
        if let Some(Ok(bytes)) = good.map(serde_json::to_vec)
            && bytes.len() <= LARGEST
        {
            let mut set = redis::cmd("SET");
            set.arg(&self.answer).arg(bytes).arg("PX").arg(milliseconds(self.time));
            pipe.add_command(set);
        }
        pipe.del(&self.flight).del(&self.said);
        let _ = self.link.pipeline(&pipe).await;
    }
}

/// A known answer, as if it came now: what was not heard of it yet is.
fn known(answer: Box<Answer>, waited: bool, listener: &Listener, hear: Hear<'_>) -> Flight {
    listener.hear_rest(&answer, hear);
    Flight::Known(answer, if waited { "joined" } else { "cache" })
}

/// What is cut off, empty or of another form than was asked for is not given again.
fn is_whole(request: &Request, answer: &Answer) -> bool {
    let says_something = !answer.text.trim().is_empty() || !answer.tool_calls.is_empty();
    let is_json = || serde_json::from_str::<Value>(&answer.text).is_ok();
    says_something && !answer.truncated && (request.format().is_none() || is_json())
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}
