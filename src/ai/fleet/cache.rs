//! The exact cache: the same call gets the same answer, and of calls that are the same at the same time one asks a
//! model while the others hear what it hears, whichever workers they run in.

use std::time::Duration;

use serde_json::json;

use super::super::ollama::{Answer, Request};
use super::super::schema::Shape;
use super::Fleet;
use super::calls::{Hear, Heard, hash};
use super::catalog::canonical;
use super::flight::{Listener, Said};
use crate::conn::Link;

/// A call that asks says so again within this time; if not, another asks.
const HELD: Duration = Duration::from_secs(6);
/// Between two looks whether the answer is there.
const LOOK: Duration = Duration::from_millis(50);
/// How long those who wait may still look how it ended.
const ENDED: Duration = Duration::from_secs(10);

/// What a call finds that may be answered from the cache.
pub(super) enum Flight {
    /// The answer, which has been heard; `cache`, or `joined` where it was waited for.
    Known(Box<Answer>, &'static str),
    /// Nobody has asked this yet, or whoever did got no answer: we do.
    Ours(Kept),
    /// There is no cache.
    Alone,
}

/// The right to ask for others.
pub(super) struct Kept {
    link: Link,
    answer: String,
    flight: String,
    said: String,
    /// Begins the names of how flights ended.
    ended: String,
    token: String,
    time: Duration,
    /// Answers that are larger are not kept (`ai_max_cached_bytes`).
    largest: usize,
    /// Whoever asked before got no answer: those who waited ask at once, each for itself.
    is_alone: bool,
}

impl Fleet {
    /// Looks for the answer, or waits for the one who asks already.
    pub(super) async fn flight(
        &self,
        request: &Request,
        time: Duration,
        shape: Option<&Shape>,
        hear: Hear<'_>,
    ) -> Flight {
        let Some(link) = self.link().await else {
            return Flight::Alone;
        };
        let prefix = self.options().redis.as_ref().map_or("", |(_, prefix)| prefix);
        // The weights are a part of what is the same.
        self.keeper().know().await;
        let key = self.cache_key(request);
        let mut kept = Kept {
            link: link.clone(),
            answer: format!("{prefix}orchestra:cache:{key}"),
            flight: format!("{prefix}orchestra:flight:{key}"),
            said: format!("{prefix}orchestra:said:{key}"),
            ended: format!("{prefix}orchestra:flown:"),
            token: uuid::Uuid::new_v4().simple().to_string(),
            time,
            largest: self.options().limits.cached_bytes,
            is_alone: false,
        };
        // Who asks already, if anybody does.
        let mut asks: Option<String> = None;
        let mut listener = Listener::new(&kept.said);
        let ours = |kept: Kept, listener: &Listener, hear: Hear<'_>| {
            // Who asked gave no answer: what was heard of it is no part of ours.
            if listener.has_heard() {
                hear(Heard::Again);
            }
            Flight::Ours(kept)
        };
        loop {
            match kept.answer(shape).await {
                Ok(Some(answer)) => return known(answer, asks.is_some(), &listener, hear),
                Ok(None) => {}
                // Without an answer of Redis there is no cache, and a model is asked.
                Err(_) => return Flight::Alone,
            }
            let Ok(now_asks) = link.query::<Option<String>>(redis::cmd("GET").arg(&kept.flight)).await else {
                return Flight::Alone;
            };
            if let Some(before) = &asks
                && now_asks.as_ref() != Some(before)
            {
                match kept.end_of(before).await {
                    Some(Some(answer)) => return known(answer, true, &listener, hear),
                    Some(None) => {
                        kept.is_alone = true;
                        return ours(kept, &listener, hear);
                    }
                    // It kept its answer, or was lost: then another asks.
                    None => {}
                }
            }
            if now_asks.is_some() {
                asks = now_asks;
            } else {
                match kept.hold().await {
                    // Who asked before may have got its answer between the look and this.
                    Ok(true) => match kept.answer(shape).await {
                        Ok(Some(answer)) => {
                            kept.give_up().await;
                            return known(answer, asks.is_some(), &listener, hear);
                        }
                        _ => return ours(kept, &listener, hear),
                    },
                    Ok(false) => continue,
                    Err(_) => return Flight::Alone,
                }
            }
            tokio::time::sleep(LOOK).await;
            listener.listen(link, hear).await;
        }
    }

    /// What makes two calls the same: everything that is asked, and the weights of the model. While hosts have
    /// different ones, an answer may be of any of them, and counts no longer once one of them changes.
    fn cache_key(&self, request: &Request) -> String {
        let model = canonical(request.model());
        let catalogs = self.keeper().catalogs();
        let digests: std::collections::BTreeSet<&String> = catalogs
            .values()
            .filter_map(|catalog| catalog.models.get(&model))
            .collect();
        let asked = self.route(request).prompt_sha256;
        hash(&json!([model, digests, asked]))
    }
}

impl Kept {
    /// The answer, if it is there, and is one for who asks.
    async fn answer(&self, shape: Option<&Shape>) -> Result<Option<Box<Answer>>, crate::conn::Error> {
        let known: Option<Vec<u8>> = self.link.query(redis::cmd("GET").arg(&self.answer)).await?;
        let known: Option<Box<Answer>> = known.and_then(|known| serde_json::from_slice(&known).ok());
        Ok(known.filter(|answer| is_whole(shape, answer)))
    }

    /// How a call ended whose answer was not kept: with one for those who waited for it, or with none.
    async fn end_of(&self, token: &str) -> Option<Option<Box<Answer>>> {
        let mut get = redis::cmd("GET");
        get.arg(format!("{}{token}", self.ended));
        let end: Vec<u8> = self.link.query::<Option<Vec<u8>>>(&get).await.ok()??;
        Some(serde_json::from_slice(&end).ok())
    }

    /// Takes the right to ask, where nobody has it.
    async fn hold(&self) -> Result<bool, crate::conn::Error> {
        let mut hold = redis::cmd("SET");
        hold.arg(&self.flight)
            .arg(&self.token)
            .arg("NX")
            .arg("PX")
            .arg(milliseconds(HELD));
        Ok(self.link.query::<Option<String>>(&hold).await?.is_some())
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
        if self.is_alone {
            return asking.await;
        }
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

    /// Keeps the answer for those who wait and those who come. One that is not given again is still for those who wait;
    /// without one they ask, all at once.
    pub(super) async fn land(&self, shape: Option<&Shape>, answer: Option<&Answer>) {
        let mut pipe = redis::pipe();
        let bytes = answer.and_then(|answer| serde_json::to_vec(answer).ok());
        let bytes = bytes.filter(|bytes| bytes.len() <= self.largest);
        let mut set = redis::cmd("SET");
        match bytes {
            Some(bytes) if answer.is_some_and(|answer| is_whole(shape, answer)) => {
                set.arg(&self.answer).arg(bytes).arg("PX").arg(milliseconds(self.time));
                pipe.add_command(set);
            }
            bytes if !self.is_alone => {
                set.arg(format!("{}{}", self.ended, self.token))
                    .arg(bytes.unwrap_or_default())
                    .arg("PX")
                    .arg(milliseconds(ENDED));
                pipe.add_command(set);
            }
            _ => return,
        }
        if !self.is_alone {
            pipe.del(&self.flight).del(&self.said);
        }
        let _ = self.link.pipeline(&pipe).await;
    }
}

/// A known answer, as if it came now: what was not heard of it yet is.
fn known(answer: Box<Answer>, waited: bool, listener: &Listener, hear: Hear<'_>) -> Flight {
    listener.hear_rest(&answer, hear);
    Flight::Known(answer, if waited { "joined" } else { "cache" })
}

/// What is cut off, empty or of another form than was asked for is not given again.
fn is_whole(shape: Option<&Shape>, answer: &Answer) -> bool {
    let calls_tools = !answer.tool_calls.is_empty();
    match answer.text.trim() {
        "" => calls_tools && !answer.truncated,
        text => !answer.truncated && shape.is_none_or(|shape| shape.is_free() || shape.read(text).is_ok()),
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}
