//! What a request is refused for before a model is loaded for it.

use std::sync::Arc;

use super::request::Request;
use super::{App, not_found};
use crate::backend::{Input, Model};
use crate::error::Error;
use crate::frames::Kind;
use crate::names::Name;

impl App {
    /// The installed model that a request names.
    pub fn wanted(&self, request: &Request) -> Result<Arc<Model>, Error> {
        if !(0..=20).contains(&request.top_logprobs) {
            return Err(Error::bad_request("top_logprobs must be between 0 and 20"));
        }
        let written = request.model.as_str();
        match (written, request.kind) {
            ("", Kind::Generate) => return Err(not_found("")),
            ("", Kind::Chat) => return Err(Error::bad_request("model is required")),
            _ => {}
        }
        let name = Name::parse(written).ok_or_else(|| Error::bad_request("invalid model name"))?;
        if name.is_cloud() {
            self.stats.to_the_cloud();
            return Err(Error::new(403, "ollama cloud is disabled: remote model is unavailable"));
        }
        let model = self.model(&name).ok_or_else(|| not_found(written))?;
        if model.remote {
            self.stats.to_the_cloud();
            return Err(Error::new(403, "ollama cloud is disabled: remote model is unavailable"));
        }
        Ok(model)
    }
}

/// Whether the model can do what is asked of it, and the request does not contradict itself.
pub fn demands(request: &Request, model: &Model) -> Result<(), Error> {
    if let Input::Prompt {
        raw: true,
        system,
        context,
        ..
    } = &request.input
        && (system.is_some() || !context.is_empty() || !request.template.is_empty())
    {
        return Err(Error::bad_request(
            "raw mode does not support template, system, or context",
        ));
    }
    if !model.can("completion") {
        let verb = if request.kind == Kind::Chat { "chat" } else { "generate" };
        return Err(Error::bad_request(format!(
            "{:?} does not support {verb}",
            request.model
        )));
    }
    let wants_tools = matches!(&request.input, Input::Chat { tools, .. } if !tools.is_empty());
    // These two name the model in full and without quotes, thinking as written and in quotes.
    for (wanted, capability) in [(wants_tools, "tools"), (!request.suffix.is_empty(), "insert")] {
        if wanted && !model.can(capability) {
            return Err(Error::bad_request(format!(
                "{} does not support {capability}",
                model.name.full()
            )));
        }
    }
    if request.think == Some(true) && !model.can("thinking") {
        return Err(Error::bad_request(format!(
            "{:?} does not support thinking",
            request.model
        )));
    }
    Ok(())
}

/// What is found out only when the model is loaded.
pub fn after_load(request: &Request, model: &Model) -> Result<(), Error> {
    if request.template.matches("{{").count() != request.template.matches("}}").count() {
        return Err(Error::new(500, "template: :1: unclosed action"));
    }
    if !request.images.is_empty() && !model.can("vision") {
        return Err(Error::bad_request(
            r#"{"error":{"code":400,"message":"Multimodal data provided, but model does not support multimodal requests.","type":"invalid_request_error"}}"#,
        ));
    }
    Ok(())
}
