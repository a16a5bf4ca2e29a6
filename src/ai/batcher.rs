//! Single texts that tasks want as vectors at about the same time go to the model together: one request for many of
//! them, and each task gets its own vector, or its own failure.
//!
//! A batch is a future that all its tasks share: it goes on as long as one of them wants it, and who is revoked takes
//! only its own text out. When a model refuses a batch, its halves are asked apart, so that one wrong text fails alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use super::call::{Show, caller, tell};
use super::fleet::{Caller, Fleet, Heard, Strategy, Trouble};
use super::ollama::{Class, Embedding, Route};
use super::options::Batches;
use crate::task::Context;
use crate::wire::Headers;

/// The vector of one text.
#[derive(Clone, Debug)]
pub(super) struct One {
    pub vector: Vec<f32>,
    pub host: String,
    /// Its share of the tokens of its batch, by length: models tell them of all texts together.
    pub tokens: u64,
    pub route: Route,
}

/// Texts that may go together: what is asked is the same but for them, and so is who asks, as far as the accounts tell
/// them apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Sort {
    model: String,
    fields: String,
    task: String,
    template: Option<String>,
    tenant: Option<String>,
    priority: u8,
    routing: Option<String>,
    /// By which limits and ways may go: those of the producer.
    headers: String,
}

/// Who asks for a batch: the one that came first, whom the others are like.
struct First {
    context: Context,
    routing: Option<Strategy>,
}

type Answers = Arc<Vec<Option<Result<One, Trouble>>>>;
type Running = BoxFuture<'static, Answers>;

/// A batch that takes texts.
#[derive(Debug)]
struct Open {
    batch: Arc<Batch>,
    /// Gone when none of its tasks is left.
    running: WeakShared<Running>,
}

#[derive(Debug, Default)]
struct Batch {
    members: Mutex<Members>,
    full: Notify,
}

#[derive(Debug, Default)]
struct Members {
    /// In order; without those that left.
    texts: Vec<Option<Member>>,
    bytes: usize,
    /// It is on its way.
    closed: bool,
}

#[derive(Debug)]
struct Member {
    text: String,
    context: Context,
    step: String,
    stream: bool,
}

/// A task's place in a batch; dropped it takes its text out.
struct Seat {
    batch: Arc<Batch>,
    at: usize,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(text) = self.batch.members().texts.get_mut(self.at) {
            *text = None;
        }
    }
}

/// Puts texts together.
#[derive(Debug)]
pub(super) struct Batcher {
    open: Mutex<HashMap<Sort, Open>>,
    bounds: Batches,
}

impl Batcher {
    pub(super) fn new(bounds: Batches) -> Self {
        Self {
            open: Mutex::default(),
            bounds,
        }
    }

    /// Whether a text goes together with others at all.
    pub(super) fn takes(&self, embedding: &Embedding) -> bool {
        self.bounds.texts > 1 && matches!(&embedding.inputs[..], [text] if text.len() <= self.bounds.bytes)
    }

    /// The vector of the one text that there is.
    pub(super) async fn embed(
        &self,
        fleet: &Fleet,
        mut embedding: Embedding,
        show: Show<'_>,
        context: &Context,
    ) -> Result<One, Trouble> {
        let member = Member {
            text: embedding.inputs.pop().unwrap_or_default(),
            context: context.clone(),
            step: show.step.to_owned(),
            stream: show.stream,
        };
        let (seat, running) = self.join(fleet, embedding, &caller(show, context), member);
        let answers = running.await;
        let answer = answers.get(seat.at).cloned().flatten();
        // A batch asks for every text whose task waits for it.
        answer.unwrap_or_else(|| Err(Trouble::Value("the text was taken out of its batch".into())))
    }

    fn join(
        &self,
        fleet: &Fleet,
        embedding: Embedding,
        caller: &Caller<'_>,
        member: Member,
    ) -> (Seat, Shared<Running>) {
        let sort = Sort::new(&embedding, caller);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = open.get(&sort)
            && let Some(running) = known.running.upgrade()
            && let Some(at) = known.batch.add(&member, &self.bounds)
        {
            let batch = known.batch.clone();
            batch.members().texts[at] = Some(member);
            return (Seat { batch, at }, running);
        }
        open.retain(|_, open| open.running.upgrade().is_some());
        let batch = Arc::new(Batch::default());
        let context = member.context.clone();
        let at = batch.add(&member, &self.bounds).unwrap_or_default();
        batch.members().texts[at] = Some(member);
        let wait = self.bounds.wait;
        let (fleet, of, asked) = (fleet.clone(), batch.clone(), sort.clone());
        let first = First {
            context,
            routing: caller.routing.cloned(),
        };
        let run = async move {
            tokio::select! {
                () = of.full.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            of.ask(&fleet, &asked, &first, embedding.fields).await
        };
        let running = run.boxed().shared();
        if let Some(weak) = running.downgrade() {
            let opened = Open {
                batch: batch.clone(),
                running: weak,
            };
            open.insert(sort, opened);
        }
        (Seat { batch, at }, running)
    }
}

impl Sort {
    fn new(embedding: &Embedding, caller: &Caller<'_>) -> Self {
        let mut fields = Value::Object(embedding.fields.clone());
        fields.sort_all_objects();
        Self {
            model: embedding.model.clone(),
            fields: fields.to_string(),
            task: caller.task.to_owned(),
            template: caller.template.map(str::to_owned),
            tenant: caller.tenant.map(str::to_owned),
            priority: caller.priority,
            routing: caller.routing.cloned().map(String::from),
            headers: caller.headers.map(own_headers).unwrap_or_default(),
        }
    }

    fn caller<'a>(&'a self, first: &'a First) -> Caller<'a> {
        Caller {
            task: &self.task,
            template: self.template.as_deref(),
            tenant: self.tenant.as_deref(),
            priority: self.priority,
            cache: None,
            routing: first.routing.as_ref(),
            id: first.context.id(),
            headers: first
                .context
                .details()
                .message
                .as_deref()
                .map(|message| &message.headers),
            // Those that were put off would come back in other batches, and each batch has a turn of its own: it waits
            // where it is, for as long as one of its tasks does.
            may_be_put_off: false,
            shape: None,
        }
    }
}

impl Batch {
    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a text, if there is room; the first always has.
    fn add(&self, member: &Member, bounds: &Batches) -> Option<usize> {
        let mut members = self.members();
        let bytes = members.bytes + member.text.len();
        if members.closed || (!members.texts.is_empty() && bytes > bounds.bytes) {
            members.closed = true;
            self.full.notify_one();
            return None;
        }
        members.bytes = bytes;
        members.texts.push(None);
        if members.texts.len() >= bounds.texts {
            members.closed = true;
            self.full.notify_one();
        }
        Some(members.texts.len() - 1)
    }

    /// Asks for all that are still wanted.
    async fn ask(&self, fleet: &Fleet, sort: &Sort, first: &First, fields: Map<String, Value>) -> Answers {
        let (texts, places) = {
            let mut members = self.members();
            members.closed = true;
            let wanted = members.texts.iter().enumerate();
            let wanted = wanted.filter_map(|(at, member)| Some((at, member.as_ref()?.text.clone())));
            let texts: Vec<(usize, String)> = wanted.collect();
            (texts, members.texts.len())
        };
        let mut answers = vec![None; places];
        let mut parts = vec![&texts[..]];
        while let Some(part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let embedding = Embedding {
                model: sort.model.clone(),
                inputs: part.iter().map(|(_, text)| text.clone()).collect(),
                fields: fields.clone(),
            };
            let mut hear = |heard| self.tell(&heard);
            match fleet.embed(embedding, &sort.caller(first), &mut hear).await {
                Ok((embedded, host, route)) => {
                    let lengths: Vec<usize> = part.iter().map(|(_, text)| text.len()).collect();
                    let shares = shares(embedded.prompt_tokens, &lengths);
                    for (((at, _), vector), tokens) in part.iter().zip(embedded.vectors).zip(shares) {
                        answers[*at] = Some(Ok(One {
                            vector,
                            host: host.clone(),
                            tokens,
                            route: Route {
                                together: (part.len() > 1).then_some(part.len()),
                                ..route.clone()
                            },
                        }));
                    }
                }
                Err(trouble) if part.len() > 1 && may_be_one(&trouble) => {
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.extend([second, first]);
                }
                Err(trouble) => {
                    for (at, _) in part {
                        answers[*at] = Some(Err(trouble.clone()));
                    }
                }
            }
        }
        Arc::new(answers)
    }

    fn tell(&self, heard: &Heard) {
        for member in self.members().texts.iter().flatten() {
            let show = Show {
                step: &member.step,
                stream: member.stream,
                template: None,
                cache: None,
                routing: None,
            };
            tell(heard, show, &member.context);
        }
    }
}

/// Headers and stamps that a producer set, but for those that are another for each message.
fn own_headers(headers: &Headers) -> String {
    let each = ["traceparent", "tracestate", "baggage"];
    let mut own = headers.extra.clone();
    own.retain(|name, _| !each.contains(&name.as_str()) && !name.starts_with("idempotency_"));
    own.sort_keys();
    let stamps = headers.stamps.clone().unwrap_or_default();
    json!([own, stamps]).to_string()
}

/// Whether one text of several may be what is wrong.
fn may_be_one(trouble: &Trouble) -> bool {
    matches!(trouble, Trouble::Fault(fault) if matches!(fault.class, Class::Refused | Class::Broken))
}

/// A number of tokens by the lengths of texts; together they are that number.
fn shares(tokens: u64, lengths: &[usize]) -> Vec<u64> {
    let whole: u128 = lengths.iter().map(|length| *length as u128).sum::<u128>().max(1);
    let mut before = (0_u128, 0_u64);
    let share = |length: &usize| {
        let until = before.0 + *length as u128;
        let given = u64::try_from(u128::from(tokens) * until / whole).unwrap_or(tokens);
        let share = given - before.1;
        before = (until, given);
        share
    };
    lengths.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_by_length_and_together_the_whole() {
        assert_eq!(shares(10, &[1, 1, 2]), [2, 3, 5]);
        assert_eq!(shares(3, &[5, 5]), [1, 2]);
        assert_eq!(shares(7, &[4]), [7]);
        let lengths: Vec<usize> = (1..50).collect();
        assert_eq!(shares(1001, &lengths).iter().sum::<u64>(), 1001);
    }
}
