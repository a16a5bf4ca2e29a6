//! From a request to the tokens that the engine gets: the template, and the window.

use super::link::Link;
use crate::backend::{Input, Job, Message};
use crate::error::Error;

/// Tokens kept at the front when a prompt is cut, unless the request says otherwise.
pub const NUM_KEEP: i64 = 4;

/// A prompt in tokens.
#[derive(Debug, PartialEq)]
pub struct Prompt {
    pub tokens: Vec<u64>,
    /// All of it, even where `tokens` had to be cut: what the `context` of the answer begins with.
    pub uncut: Vec<u64>,
}

/// Renders the prompt and makes it fit.
pub async fn prepare(link: &Link, job: &Job) -> Result<Prompt, Error> {
    let tokens = match &job.input {
        Input::Chat { messages, .. } => conversation(link, job, messages).await?,
        Input::Prompt { context, .. } => {
            let mut tokens = context.clone();
            tokens.extend(link.tokenize(&render(link, &job.input).await?).await?);
            tokens
        }
    };
    fit(tokens, job)
}

/// The prompt as text. A prompt alone goes through the chat template too, as Ollama's own template for it does.
pub async fn render(link: &Link, input: &Input) -> Result<String, Error> {
    let message = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    match input {
        Input::Prompt { prompt, raw: true, .. } => Ok(prompt.clone()),
        Input::Prompt { prompt, system, .. } => {
            let system = system.iter().map(|system| message("system", system));
            link.apply_template(&system.chain([message("user", prompt)]).collect::<Vec<_>>())
                .await
        }
        Input::Chat { messages, .. } => link.apply_template(messages).await,
    }
}

/// Drops the oldest messages until the rest fits; system messages and the last one stay.
async fn conversation(link: &Link, job: &Job, messages: &[Message]) -> Result<Vec<u64>, Error> {
    let mut messages = messages.to_vec();
    loop {
        let tokens = link.tokenize(&link.apply_template(&messages).await?).await?;
        if !job.truncate || !is_too_long(&tokens, job) {
            return Ok(tokens);
        }
        let earlier = messages.len().saturating_sub(1);
        match messages[..earlier].iter().position(|message| message.role != "system") {
            Some(oldest) => drop(messages.remove(oldest)),
            None => return Ok(tokens),
        }
    }
}

/// Cuts a prompt that is too long in the middle, where that is allowed; with `truncate` off the engine refuses it.
fn fit(uncut: Vec<u64>, job: &Job) -> Result<Prompt, Error> {
    if !job.truncate || !is_too_long(&uncut, job) {
        return Ok(Prompt {
            tokens: uncut.clone(),
            uncut,
        });
    }
    if !job.settings.shift {
        return Err(Error::bad_request(
            "the prompt is longer than the context length currently available to the model; shorten the prompt, \
             adjust the context length in settings, or use a model with a longer context length",
        ));
    }
    let window = usize::try_from(job.settings.num_ctx).unwrap_or(0);
    let keep = usize::try_from(job.options.num_keep.unwrap_or(NUM_KEEP))
        .unwrap_or(0)
        .min(window);
    // Half of what is not kept is left free for the answer.
    let tail = (window - keep) / 2;
    let tokens = [&uncut[..keep], &uncut[uncut.len() - tail..]].concat();
    Ok(Prompt { tokens, uncut })
}

fn is_too_long(tokens: &[u64], job: &Job) -> bool {
    i64::try_from(tokens.len()).is_ok_and(|length| length >= job.settings.num_ctx)
}
