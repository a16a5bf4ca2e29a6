//! The scripted back end: no model, no Python; what happens is decided by the model's name.

mod behaviour;
mod plan;
mod sample;

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::time::sleep;

use self::behaviour::{ALL, Behaviour};
use self::plan::{Ending, Plan};
use crate::backend::{Backend, BoxFuture, Emitter, End, Frame, Input, Job, Model, Settings, Timing};
use crate::cli::Args;
use crate::error::Error;
use crate::names::Name;

/// Enough for hyper to write the frames before a cut, which would throw them away.
const BEFORE_CUT: Duration = Duration::from_millis(20);

pub struct Script {
    models: Mutex<Vec<Arc<Model>>>,
    /// What each model does: one behaviour, or one for each request in turn, the last from then on.
    behaviours: Mutex<HashMap<String, Vec<Behaviour>>>,
    /// Requests of models that do one thing after the other.
    turns: Mutex<HashMap<String, usize>>,
    sizes: HashMap<String, u64>,
    pullable: Mutex<Vec<Name>>,
    token_delay: Duration,
    load_delay: Duration,
    /// Prompts that were failed once by a behaviour that does so.
    failed_once: Arc<Mutex<HashSet<u64>>>,
}

impl Script {
    /// All behaviours under their names, and the models of `--model NAME[=BEHAVIOUR]`.
    pub fn new(args: &Args) -> Result<Self, String> {
        let script = Self {
            models: Mutex::default(),
            behaviours: Mutex::default(),
            turns: Mutex::default(),
            sizes: args
                .model_sizes
                .iter()
                .map(|given| size(given))
                .collect::<Result<_, _>>()?,
            pullable: Mutex::default(),
            token_delay: args.token_delay,
            load_delay: args.load_delay,
            failed_once: Arc::default(),
        };
        for (name, behaviour) in ALL {
            let name = script.know(name, vec![behaviour])?;
            if behaviour != Behaviour::Missing {
                script.install(name);
            }
        }
        for given in &args.models {
            let (name, behaviour) = given.split_once('=').unwrap_or((given, "lorem"));
            let name = script.know(name, parse(behaviour)?)?;
            script.install(name);
        }
        for name in crate::wire::NAMES.iter().filter(|_| args.wire.is_some()) {
            let name = script.know(name, vec![Behaviour::Lorem])?;
            script.install(name);
        }
        for given in &args.pullable {
            let (name, behaviour) = given.split_once('=').unwrap_or((given, "lorem"));
            let name = script.know(name, parse(behaviour)?)?;
            lock(&script.pullable).push(name);
        }
        Ok(script)
    }

    fn know(&self, name: &str, behaviours: Vec<Behaviour>) -> Result<Name, String> {
        let name = Name::parse(name).ok_or_else(|| format!("invalid model name {name:?}"))?;
        lock(&self.behaviours).insert(name.key(), behaviours);
        Ok(name)
    }

    fn install(&self, name: Name) -> u64 {
        let behaviour = self.behaviour_of(&name);
        let size = self.sizes.get(&name.key()).copied().unwrap_or(1_000_000);
        lock(&self.models).push(Arc::new(model(name, behaviour, size)));
        size
    }

    fn behaviour(&self, model: &Model) -> Behaviour {
        self.behaviour_of(&model.name)
    }

    fn behaviour_of(&self, name: &Name) -> Behaviour {
        let behaviours = lock(&self.behaviours);
        let first = behaviours.get(&name.key()).and_then(|all| all.first());
        first.copied().unwrap_or(Behaviour::Lorem)
    }

    /// What the model does with the next request.
    fn next_behaviour(&self, model: &Model) -> Behaviour {
        let key = model.name.key();
        let behaviours = lock(&self.behaviours);
        let all = behaviours.get(&key).map_or(&[Behaviour::Lorem][..], Vec::as_slice);
        let [.., last] = all else { return Behaviour::Lorem };
        let mut turns = lock(&self.turns);
        let turn = turns.entry(key).or_default();
        *turn += 1;
        all.get(*turn - 1).copied().unwrap_or(*last)
    }
}

impl Backend for Script {
    fn models(&self) -> Vec<Arc<Model>> {
        lock(&self.models).clone()
    }

    fn pull(&self, name: &Name) -> Option<u64> {
        if let Some(model) = lock(&self.models).iter().find(|model| model.name == *name) {
            return Some(model.size);
        }
        let found = {
            let mut pullable = lock(&self.pullable);
            let at = pullable.iter().position(|known| known == name)?;
            pullable.swap_remove(at)
        };
        Some(self.install(found))
    }

    fn delete(&self, name: &Name) -> bool {
        let mut models = lock(&self.models);
        let before = models.len();
        models.retain(|model| model.name != *name);
        models.len() < before
    }

    fn copy(&self, model: &Model, name: Name) {
        let mut behaviours = lock(&self.behaviours);
        let own = behaviours.get(&model.name.key()).cloned().unwrap_or_default();
        behaviours.insert(name.key(), own);
        drop(behaviours);
        let mut models = lock(&self.models);
        models.retain(|known| known.name != name);
        models.push(Arc::new(Model { name, ..model.clone() }));
    }

    fn embed(&self, model: Arc<Model>, texts: Vec<String>) -> BoxFuture<Result<Vec<Vec<f32>>, Error>> {
        let behaviour = self.next_behaviour(&model);
        let delay = self.token_delay;
        Box::pin(async move {
            if !model.can("embedding") {
                return Err(Error::no_embeddings());
            }
            if let Some(error) = behaviour.early_error() {
                return Err(error);
            }
            let mut vectors = Vec::new();
            for text in &texts {
                pause(delay).await;
                vectors.push(vector(text));
            }
            match behaviour {
                Behaviour::EmbedShort => drop(vectors.pop()),
                Behaviour::EmbedUneven => vectors.iter_mut().take(1).for_each(|first| first.truncate(3)),
                _ => {}
            }
            Ok(vectors)
        })
    }

    fn load(&self, model: Arc<Model>, _settings: Settings) -> BoxFuture<Result<(), Error>> {
        let behaviour = self.behaviour(&model);
        let delay = behaviour.load_delay().unwrap_or(self.load_delay);
        Box::pin(async move {
            if let Some(error) = behaviour.load_error() {
                return Err(error);
            }
            pause(delay).await;
            Ok(())
        })
    }

    fn unload(&self, _model: &Model) {}

    fn is_alive(&self, _model: &Model) -> bool {
        true
    }

    fn answer(&self, job: Job, out: Emitter) -> BoxFuture<Result<End, Error>> {
        let behaviour = self.next_behaviour(&job.model);
        let delay = behaviour.delay().unwrap_or(self.token_delay);
        let failed_once = Arc::clone(&self.failed_once);
        Box::pin(async move {
            let behaviour = match behaviour.tries() {
                Some([first, _]) if is_first_try(&failed_once, &job.input) => first,
                Some([_, second]) => second,
                None => behaviour,
            };
            if let Some(error) = behaviour.early_error() {
                return Err(error);
            }
            play(Plan::new(behaviour, &job), &job, delay, &out).await
        })
    }

    fn render(&self, job: Job) -> BoxFuture<Result<String, Error>> {
        Box::pin(async move { Ok(job.input.chatml()) })
    }
}

/// Sends the frames, as many as the request's budget allows, and ends as planned.
async fn play(plan: Plan, job: &Job, delay: Duration, out: &Emitter) -> Result<End, Error> {
    let started = Instant::now();
    let mut first = None;
    let mut tokens = 0;
    let mut frames = plan.frames.peekable();
    let budget = job.options.budget(job.settings.num_ctx);
    while tokens < budget
        && let Some(frame) = frames.next()
    {
        pause(delay).await;
        first.get_or_insert_with(Instant::now);
        tokens += 1;
        out.frame(with_logprobs(frame, job)).await;
    }
    let reason = if frames.peek().is_some() { "length" } else { "stop" };
    match plan.ending {
        Ending::Done => {
            let prompt_tokens = job.input.words();
            let context = if job.wants_context {
                (1..=prompt_tokens + tokens).collect()
            } else {
                Vec::new()
            };
            let timing = timing(started, first, prompt_tokens, tokens);
            Ok(End::Done {
                reason,
                timing,
                context,
            })
        }
        Ending::Unfinished => Ok(End::Unfinished),
        Ending::Cut => {
            sleep(BEFORE_CUT).await;
            Ok(End::Cut)
        }
        Ending::Error(error) => Err(error),
        Ending::Garbage => {
            out.wire("{\"model\": this is no JSON\n").await;
            Ok(End::Unfinished)
        }
        Ending::Silence => std::future::pending().await,
    }
}

/// Adds log probabilities where they are wanted: always the same, and without alternatives.
fn with_logprobs(mut frame: Frame, job: &Job) -> Frame {
    if job.logprobs.is_some() {
        let entry = json!({ "token": frame.text, "logprob": -0.5, "bytes": frame.text.as_bytes() });
        frame.logprobs = Some(json!([entry]));
    }
    frame
}

/// The first token is timed with the prompt, so a single one takes a microsecond.
fn timing(started: Instant, first: Option<Instant>, prompt_tokens: u64, tokens: u64) -> Timing {
    let first = first.unwrap_or_else(Instant::now);
    let least = Duration::from_micros(1);
    let eval = if tokens > 1 { first.elapsed().max(least) } else { least };
    Timing {
        prompt_tokens,
        prompt: first.duration_since(started).max(least),
        tokens,
        eval,
    }
}

async fn pause(delay: Duration) {
    if !delay.is_zero() {
        sleep(delay).await;
    }
}

/// True at every other request with the same prompt, beginning with the first. A chat is known by its first message
/// that is not a system one: a client may add to it before it tries again.
fn is_first_try(failed_once: &Mutex<HashSet<u64>>, input: &Input) -> bool {
    let mut hasher = DefaultHasher::new();
    match input {
        Input::Prompt { prompt, .. } => prompt.hash(&mut hasher),
        Input::Chat { messages, .. } => {
            let first = messages.iter().find(|message| message.role != "system");
            first.map(|message| &message.content).hash(&mut hasher);
        }
    }
    let prompt = hasher.finish();
    let mut failed = failed_once.lock().unwrap_or_else(PoisonError::into_inner);
    let is_retry = failed.remove(&prompt);
    if !is_retry {
        failed.insert(prompt);
    }
    !is_retry
}

/// A vector of length one that depends on the text alone.
fn vector(text: &str) -> Vec<f32> {
    let value = |at: u64| {
        let mut hasher = DefaultHasher::new();
        (at, text).hash(&mut hasher);
        // Sixteen bits are exact in a float.
        f32::from((hasher.finish() & 0xffff) as u16) / 65_536.0 - 0.5
    };
    let values: Vec<f32> = (0..8).map(value).collect();
    let length = values
        .iter()
        .map(|value| value * value)
        .sum::<f32>()
        .sqrt()
        .max(f32::MIN_POSITIVE);
    values.iter().map(|value| value / length).collect()
}

fn parse(behaviours: &str) -> Result<Vec<Behaviour>, String> {
    let one = |name| Behaviour::parse(name).ok_or_else(|| format!("no behaviour {name:?}"));
    behaviours.split(',').map(one).collect()
}

fn size(given: &str) -> Result<(String, u64), String> {
    let wrong = || format!("--model-size {given:?}: write NAME=BYTES");
    let (name, bytes) = given.split_once('=').ok_or_else(wrong)?;
    let name = Name::parse(name).ok_or_else(wrong)?;
    Ok((name.key(), bytes.parse().map_err(|_| wrong())?))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn model(name: Name, behaviour: Behaviour, size: u64) -> Model {
    Model {
        digest: Model::stand_in_digest(&name, 0),
        name,
        size,
        family: "script",
        parameter_size: "0",
        quantization: "none",
        license: "",
        context_length: 8192,
        capabilities: behaviour.capabilities(),
        remote: behaviour == Behaviour::Remote,
        modified_at: jiff::Timestamp::UNIX_EPOCH,
    }
}

impl Input {
    /// The prompt in a common chat format.
    fn chatml(&self) -> String {
        let turn = |role: &str, content: &str| format!("<|im_start|>{role}\n{content}<|im_end|>\n");
        let turns: String = match self {
            Self::Prompt { prompt, raw: true, .. } => return prompt.clone(),
            Self::Prompt { prompt, system, .. } => {
                let system = system.iter().map(|system| turn("system", system)).collect::<String>();
                system + &turn("user", prompt)
            }
            Self::Chat { messages, .. } => messages.iter().map(|m| turn(&m.role, &m.content)).collect(),
        };
        turns + "<|im_start|>assistant\n"
    }

    /// What counts as the prompt's tokens here.
    fn words(&self) -> u64 {
        let count = |text: &str| text.split_whitespace().count() as u64;
        let words = match self {
            Self::Prompt { prompt, system, .. } => count(prompt) + system.as_deref().map_or(0, count),
            Self::Chat { messages, .. } => messages.iter().map(|message| count(&message.content)).sum(),
        };
        words.max(1)
    }
}
