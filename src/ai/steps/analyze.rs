//! `ollama_analyze`: a question about inputs that are long or many. What fits into the model's window is asked at once;
//! otherwise each piece is asked (map) and the answers are put together (reduce), as often as needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::{Stream, StreamExt, stream};
use serde_json::{Map, Value, json};

use super::model::{Models, ROUTING};
use super::split::{BYTES_PER_TOKEN, learn, split, tokens};
use super::{Field, Fields, Stop, Type, Wrong, text, value};
use crate::ai::fault::words;
use crate::ai::ollama::Kind;
use crate::ai::site::Site;
use crate::clock;

/// The window of a model that nobody gave one, as Ollama has it.
const WINDOW: u64 = 4096;
/// Tokens of an answer if nobody says.
const ANSWER: u64 = 512;
/// Tokens that the model's own template and our words between take.
const MARGIN: usize = 96;
/// Pieces at once if nobody says.
const PARALLEL: u64 = 4;
/// Most pieces.
const MOST: usize = 5000;
/// How often a piece that is too long after all is halved.
const HALVINGS: u32 = 6;
/// Most levels of putting together.
const LEVELS: usize = 12;
/// What is asked if nobody says.
const PROMPT: &str = "Summarize the text. Keep names and numbers as they are.";

pub(super) const TYPE: Type = Type {
    name: "ollama_analyze",
    about: "asks about inputs that are long or many: piece by piece, and puts the answers together",
    fields: FIELDS,
    check,
    is_local: false,
};

const FIELDS: &[Field] = &[
    text("model", "name of the model"),
    value("models", "models that are tried in order"),
    text("prompt", "what to do with each piece, and with the whole if it fits"),
    value(
        "input",
        "a text, a list of texts, or files; without it the result of the step before",
    ),
    text("reduce", "what to do with the answers for the pieces"),
    text("system", "how the model should behave"),
    value("window", "tokens of the model's window; sent as options.num_ctx (4096)"),
    value("overlap", "tokens that two pieces have in common (0)"),
    value("at_once", "pieces at once (4)"),
    value("max_tokens", "most tokens of one answer (512)"),
    value("format", "json, or the JSON Schema of the last answer"),
    value("options", "options of Ollama"),
    value("keep_alive", "how long the model stays loaded"),
    value("think", "true, false, low, medium or high"),
    value(
        "cache",
        "true, or seconds: how long answers are given again to the same question",
    ),
    ROUTING,
    value(
        "repairs",
        "how often an answer that does not fit its format is asked for again (2)",
    ),
];

fn check(fields: &Map<String, Value>, names: &[&str]) -> Wrong {
    let mut wrong = Vec::new();
    if !names.contains(&"model") && !names.contains(&"models") {
        wrong.push(("type", "a step of type ollama_analyze needs model or models".into()));
    }
    let number = |name: &str| fields.get(name).and_then(Value::as_u64);
    if let (Some(window), Some(answer)) = (number("window"), number("max_tokens"))
        && window < answer + 256
    {
        wrong.push((
            "window",
            format!("a window of {window} tokens has no room beside an answer of {answer}"),
        ));
    }
    wrong
}

/// What all calls of the step share.
struct Work<'a> {
    site: &'a Site<'a>,
    fields: Map<String, Value>,
    format: Option<Value>,
    prompt: String,
    reduce: String,
    /// Tokens for a piece beside the prompt and the answer.
    room: usize,
    overlap: usize,
    parallel: usize,
    /// How many answers were cut off.
    cut: AtomicUsize,
}

/// One answer: its text, and what it took.
#[derive(Clone)]
struct Said {
    text: String,
    whole: Value,
}

pub(super) async fn run(mut fields: Fields, site: &Site<'_>) -> Result<Value, Stop> {
    let input = fields.take("input").map_or_else(|| site.input.clone(), Arc::new);
    let mut texts = texts(&input);
    texts.retain(|text| !text.trim().is_empty());
    if texts.is_empty() {
        return Err(Stop::wrong(format!(
            "step {:?} has nothing to analyze: input is empty",
            site.step.id
        )));
    }
    let prompt = fields
        .text("prompt")
        .filter(|prompt| !prompt.trim().is_empty())
        .unwrap_or_else(|| PROMPT.into());
    let reduce = fields.text("reduce").unwrap_or_else(|| {
        format!(
            "These are answers for the parts of one text, in order. Put them together to one answer to this: {prompt}"
        )
    });
    let window = fields.whole("window")?;
    let answer = fields.whole("max_tokens")?.unwrap_or(ANSWER);
    let overlap = usize::try_from(fields.whole("overlap")?.unwrap_or(0)).unwrap_or(0);
    let parallel = usize::try_from(fields.whole("at_once")?.unwrap_or(PARALLEL))
        .unwrap_or(1)
        .clamp(1, 64);
    let format = fields.take("format");
    let options = fields.0.entry("options").or_insert_with(|| json!({}));
    let Value::Object(options) = options else {
        return Err(Stop::wrong("options: must be an object"));
    };
    let window = window
        .or_else(|| options.get("num_ctx").and_then(Value::as_u64))
        .unwrap_or(WINDOW);
    options.insert("num_ctx".into(), window.into());
    options.insert("num_predict".into(), answer.into());
    let system = fields.0.get("system").and_then(Value::as_str).unwrap_or_default();
    let longest = if prompt.len() > reduce.len() { &prompt } else { &reduce };
    let taken = tokens(longest, BYTES_PER_TOKEN) + tokens(system, BYTES_PER_TOKEN) + MARGIN;
    let room = usize::try_from(window.saturating_sub(answer))
        .unwrap_or(usize::MAX)
        .saturating_sub(taken);
    if room < 64 {
        let text =
            format!("window: {window} tokens have no room for a text beside the prompt and an answer of {answer}");
        return Err(Stop::wrong(text));
    }
    let work = Work {
        site,
        fields: fields.0,
        format,
        prompt,
        reduce,
        room,
        overlap: overlap.min(room / 2),
        parallel,
        cut: AtomicUsize::new(0),
    };
    work.run(&texts).await
}

impl Work<'_> {
    async fn run(&self, texts: &[String]) -> Result<Value, Stop> {
        let whole = texts.join("\n\n");
        if tokens(&whole, BYTES_PER_TOKEN) <= self.room {
            let said = self.ask("whole", &self.prompt, &whole, true).await?;
            return Ok(self.result(said, 1, 1, 0));
        }
        let (said, pieces) = self.map(texts).await?;
        if let ([one], 1) = (&said[..], pieces) {
            return Ok(self.result(one.clone(), 1, 1, 0));
        }
        let mut calls = said.len();
        let mut said: Vec<Said> = said;
        let mut level = 0;
        loop {
            let groups = self.groups(&said);
            let last = groups.len() == 1;
            level += 1;
            if level > LEVELS || (!last && groups.len() >= said.len()) {
                let text =
                    "the answers for the pieces are too long to be put together; lower max_tokens or raise window";
                return Err(Stop::failed("ContextOverflow", text));
            }
            calls += groups.len();
            let asked = stream::iter(groups.into_iter().enumerate()).map(|(at, text)| async move {
                self.ask(&format!("reduce{level}.{at}"), &self.reduce, &text, last)
                    .await
            });
            said = all(asked.buffered(self.parallel)).await?;
            if let (true, Some(one)) = (last, said.first()) {
                return Ok(self.result(one.clone(), pieces, calls, level));
            }
        }
    }

    /// The answers for all pieces in order, and how many pieces there were. The first piece teaches how long a token
    /// is.
    async fn map(&self, texts: &[String]) -> Result<(Vec<Said>, usize), Stop> {
        let cut = |texts: &[String], ratio: f64| -> Vec<String> {
            texts
                .iter()
                .flat_map(|text| split(text, self.room, self.overlap, ratio))
                .collect()
        };
        let first = cut(texts, BYTES_PER_TOKEN).into_iter().next().unwrap_or_default();
        let said = self.piece("map0".into(), first.clone(), 0).await?;
        let counted = said
            .first()
            .and_then(|said| said.whole.pointer("/usage/prompt_tokens")?.as_u64());
        let bytes = first.len() + self.prompt.len();
        let ratio = counted
            .and_then(|counted| learn(bytes, counted))
            .unwrap_or(BYTES_PER_TOKEN);
        // What comes after the first piece, in pieces of the right size.
        let mut rest: Vec<String> = texts.to_vec();
        if let Some(text) = rest.first_mut() {
            let after = text.find(&first).map_or(0, |at| at + first.len());
            *text = text[after..].to_owned();
        }
        let pieces = cut(&rest, ratio);
        let count = pieces.len() + 1;
        if count > MOST {
            let text = format!("the input makes {count} pieces, more than {MOST}; raise window");
            return Err(Stop::failed("ContextOverflow", text));
        }
        let asked = stream::iter(pieces.into_iter().enumerate())
            .map(|(at, text)| self.piece(format!("map{}", at + 1), text, 0))
            .buffered(self.parallel);
        let more: Vec<Vec<Said>> = all(asked).await?;
        Ok((said.into_iter().chain(more.into_iter().flatten()).collect(), count))
    }

    /// The answer for a piece; for two halves of it if the model finds it too long.
    async fn piece(&self, part: String, text: String, depth: u32) -> Result<Vec<Said>, Stop> {
        match self.ask(&part, &self.prompt, &text, false).await {
            Ok(said) => Ok(vec![said]),
            Err(Stop::Failed(failure)) if depth < HALVINGS && is_too_long(&words(&failure)) => {
                let halves = split(&text, tokens(&text, BYTES_PER_TOKEN).div_ceil(2), 0, BYTES_PER_TOKEN);
                let mut said = Vec::new();
                for (at, half) in halves.into_iter().enumerate() {
                    said.extend(Box::pin(self.piece(format!("{part}.{at}"), half, depth + 1)).await?);
                }
                Ok(said)
            }
            Err(stop) => Err(stop),
        }
    }

    async fn ask(&self, part: &str, order: &str, text: &str, last: bool) -> Result<Said, Stop> {
        let asked = async {
            let mut models = Models::take(Kind::Generate, Fields(self.fields.clone()))?;
            let fields = models.fields();
            fields.insert("prompt".into(), format!("{order}\n\n{text}").into());
            if let (true, Some(format)) = (last, &self.format) {
                fields.insert("format".into(), format.clone());
            }
            let (answer, given_up) = models.ask(self.site).await?;
            super::model::result(answer, given_up)
        };
        let whole = self.site.once(part, asked).await?;
        if whole.get("truncated").and_then(Value::as_bool) == Some(true) {
            self.cut.fetch_add(1, Ordering::Relaxed);
        }
        let text = whole
            .get("text")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .trim()
            .to_owned();
        Ok(Said { text, whole })
    }

    /// Answers that go together into the window, in order.
    fn groups(&self, said: &[Said]) -> Vec<String> {
        let mut groups: Vec<String> = Vec::new();
        for one in said {
            match groups.last_mut() {
                Some(group) if tokens(group, BYTES_PER_TOKEN) + tokens(&one.text, BYTES_PER_TOKEN) < self.room => {
                    group.push_str("\n\n");
                    group.push_str(&one.text);
                }
                _ => groups.push(one.text.clone()),
            }
        }
        groups
    }

    fn result(&self, said: Said, pieces: usize, calls: usize, levels: usize) -> Value {
        let mut whole = said.whole;
        if let Value::Object(answer) = &mut whole {
            // What was put together of answers that were cut off is no whole answer either.
            let cut = self.cut.load(Ordering::Relaxed);
            answer.insert("truncated".into(), (cut > 0).into());
            answer.insert("cut".into(), cut.into());
            answer.insert("pieces".into(), pieces.into());
            answer.insert("calls".into(), calls.into());
            answer.insert("levels".into(), levels.into());
        }
        whole
    }
}

/// What all give. Those that run are not given up because another has to wait: what they give is kept.
async fn all<T>(asked: impl Stream<Item = Result<T, Stop>>) -> Result<Vec<T>, Stop> {
    let mut asked = std::pin::pin!(asked);
    let (mut all, mut later) = (Vec::new(), None);
    while let Some(one) = asked.next().await {
        match one {
            Ok(one) => all.push(one),
            Err(Stop::Later(until)) => later = Some(later.map_or(until, |other: clock::Instant| other.min(until))),
            Err(stop) => return Err(stop),
        }
    }
    later.map_or(Ok(all), |until| Err(Stop::Later(until)))
}

fn is_too_long(text: &str) -> bool {
    text.contains("exceed") && text.contains("context") || text.contains("input length")
}

/// The texts of an input: one, several, files, or an answer of a model.
fn texts(input: &Value) -> Vec<String> {
    match input {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        Value::Object(object) => {
            let text = |name: &str| object.get(name).and_then(Value::as_str);
            match (text("path"), text("content"), text("text")) {
                (Some(path), Some(content), _) => vec![format!("File {path}:\n{content}")],
                (_, Some(content), _) => vec![content.to_owned()],
                (_, _, Some(text)) => vec![text.to_owned()],
                _ => vec![serde_json::to_string_pretty(input).unwrap_or_default()],
            }
        }
        Value::Null => Vec::new(),
        other => vec![other.to_string()],
    }
}
