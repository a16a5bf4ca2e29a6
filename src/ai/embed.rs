//! `orchestra.embed`: texts as vectors.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Engine;
use super::call::{Show, announce_attempt, caller, not_answered, routing, tell};
use super::ollama::{Embedding, Route, Usage};
use super::tasks::POLICY;
use super::template::Template;
use crate::task::{Context, Failure, Options, Task};

/// `orchestra.embed`: texts as vectors (`POST /api/embed`), in batches, on whichever hosts have room.
#[derive(Debug, Deserialize)]
pub struct Embed {
    model: String,
    input: Value,
    #[serde(default)]
    options: Value,
    #[serde(default)]
    dimensions: Value,
    #[serde(default)]
    truncate: Value,
    #[serde(default)]
    keep_alive: Value,
    #[serde(default)]
    routing: Value,
}

/// Vectors, in the order of the texts.
#[derive(Debug, Serialize)]
pub struct Vectors {
    /// One for each text.
    pub embeddings: Vec<Vec<f32>>,
    /// The model, as the request named it.
    pub model: String,
    /// The server that answered last.
    pub host: String,
    /// Tokens.
    pub usage: Usage,
    /// Which way the call went, and why.
    pub route: Route,
}

/// Asks for the vectors of texts. What is wrong with the request is a `ValueError`.
pub(super) async fn embed(
    engine: &Engine,
    model: String,
    input: Value,
    mut fields: Map<String, Value>,
    show: Show<'_>,
    context: &Context,
) -> Result<Vectors, Failure> {
    let fleet = engine.fleet();
    // A text that is too long would be cut without a word.
    if fields.get("truncate").is_none_or(Value::is_null) {
        fields.insert("truncate".into(), false.into());
    }
    let embedding = Embedding::new(model.clone(), input, fields, fleet.allow_cloud()).map_err(Failure::value_error)?;
    if engine.batcher().takes(&embedding) {
        let one = engine.batcher().embed(fleet, embedding, show, context).await;
        let one = match one {
            Ok(one) => one,
            Err(trouble) => return Err(not_answered(trouble, &model, show, context).await),
        };
        context.add_tokens(one.tokens);
        let route = Route {
            template: show.template.map(Template::title),
            ..one.route
        };
        return Ok(Vectors {
            embeddings: vec![one.vector],
            model,
            host: one.host,
            usage: Usage {
                prompt_tokens: one.tokens,
                completion_tokens: 0,
                total_tokens: one.tokens,
            },
            route,
        });
    }
    let mut hear = |heard| tell(&heard, show, context);
    let asked = fleet.embed(embedding, &caller(show, context), &mut hear).await;
    let (embedded, host, mut route) = match asked {
        Ok(asked) => asked,
        Err(trouble) => return Err(not_answered(trouble, &model, show, context).await),
    };
    context.add_tokens(embedded.prompt_tokens);
    route.template = show.template.map(Template::title);
    Ok(Vectors {
        embeddings: embedded.vectors,
        model,
        host,
        usage: Usage {
            prompt_tokens: embedded.prompt_tokens,
            completion_tokens: 0,
            total_tokens: embedded.prompt_tokens,
        },
        route,
    })
}

impl Task for Embed {
    const NAME: &'static str = "orchestra.embed";
    const OPTIONS: Options = POLICY;
    const DESCRIPTION: Option<&'static str> = Some("makes vectors of texts");
    type Env = Arc<Engine>;
    type Output = Vectors;

    async fn run(self, engine: Arc<Engine>, context: Context) -> Result<Vectors, Failure> {
        announce_attempt(&context);
        let routing = routing(&self.routing).map_err(Failure::value_error)?;
        let show = Show {
            step: "answer",
            stream: true,
            template: None,
            cache: None,
            routing: routing.as_ref(),
        };
        let fields = [
            ("options", self.options),
            ("dimensions", self.dimensions),
            ("truncate", self.truncate),
            ("keep_alive", self.keep_alive),
        ];
        let fields = fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        embed(&engine, self.model, self.input, fields, show, &context).await
    }
}
