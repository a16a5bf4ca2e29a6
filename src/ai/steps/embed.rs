//! `ollama_embed`: texts as vectors.

use serde_json::{Map, Value};

use super::model::ROUTING;
use super::{Field, Fields, Stop, Type, Wrong, needed, text, value};
use crate::ai::call::{Show, routing};
use crate::ai::embed::embed;
use crate::ai::site::Site;

pub(super) const TYPE: Type = Type {
    name: "ollama_embed",
    about: "makes vectors of texts, in batches",
    fields: FIELDS,
    check,
    is_local: false,
};

const FIELDS: &[Field] = &[
    needed(text("model", "name of the model")),
    value(
        "input",
        "a text or a list of texts; without it the result of the step before",
    ),
    value("dimensions", "how long the vectors are to be"),
    value("truncate", "true: let the server cut a text that is too long (false)"),
    value("options", "options of Ollama"),
    value("keep_alive", "how long the model stays loaded"),
    ROUTING,
];

fn check(fields: &Map<String, Value>, _: &[&str]) -> Wrong {
    match fields.get("input") {
        Some(Value::String(_) | Value::Array(_)) | None => Vec::new(),
        Some(_) => vec![("input", "must be a text or a list of texts".into())],
    }
}

pub(super) async fn run(mut fields: Fields, site: &Site<'_>) -> Result<Value, Stop> {
    let model = fields.need("model")?;
    let input = fields.take("input").unwrap_or_else(|| site.input.as_ref().clone());
    let key = site.key();
    let routing = routing(&fields.take("routing").unwrap_or_default()).map_err(Stop::wrong)?;
    let show = Show {
        step: &key,
        stream: true,
        template: Some(site.template),
        cache: None,
        routing: routing.as_ref(),
    };
    let vectors = embed(site.engine, model, input, fields.0, show, site.context).await?;
    Ok(serde_json::to_value(vectors).map_err(crate::task::Failure::from)?)
}
