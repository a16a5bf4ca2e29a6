//! Texts as vectors (`POST /api/embed`, or `/v1/embeddings`).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::check;
use super::client::Ollama;
use super::fault::{Class, Fault};
use super::server::{Server, Speaks};

/// What is to be embedded: checked, since a wrong text would fail its whole batch (O-083).
#[derive(Clone, Debug)]
pub struct Embedding {
    /// The model's name, as it was written.
    pub model: String,
    /// The texts.
    pub inputs: Vec<String>,
    /// `options`, `dimensions`, `truncate`, `keep_alive`, as given.
    pub fields: Map<String, Value>,
}

/// Vectors of one batch.
#[derive(Clone, Debug, Default)]
pub struct Embedded {
    /// One for each text, in order.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Seconds until the model was there.
    pub load_s: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Native {
    embeddings: Vec<Vec<f32>>,
    prompt_eval_count: u64,
    load_duration: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Openai {
    data: Vec<Vector>,
    usage: Tokens,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Vector {
    index: usize,
    embedding: Vec<f32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Tokens {
    prompt_tokens: u64,
}

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    input: &'a [String],
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
}

impl Embedding {
    /// From the fields of Ollama's API; `null` means not given.
    ///
    /// # Errors
    /// A text for people: which field is wrong and what it should be.
    pub fn new(model: String, input: Value, mut fields: Map<String, Value>, allow_cloud: bool) -> Result<Self, String> {
        check::model(&model, allow_cloud)?;
        fields.retain(|_, value| !value.is_null());
        check::common(&mut fields)?;
        if fields
            .get("dimensions")
            .is_some_and(|count| count.as_u64().is_none_or(|count| count == 0))
        {
            return Err("dimensions: must be a positive integer".into());
        }
        let inputs = match input {
            Value::String(text) => vec![text],
            Value::Array(texts) => {
                let text = |(at, text): (usize, Value)| match text {
                    Value::String(text) => Ok(text),
                    other => Err(format!("input[{at}]: must be a text, not {other}")),
                };
                texts.into_iter().enumerate().map(text).collect::<Result<_, _>>()?
            }
            _ => return Err("input: must be a text or a list of texts".into()),
        };
        if let Some(at) = inputs.iter().position(String::is_empty) {
            return Err(format!("input[{at}]: is empty"));
        }
        if inputs.is_empty() {
            return Err("input: is empty".into());
        }
        Ok(Self { model, inputs, fields })
    }
}

impl Ollama {
    /// Vectors of some of the texts. A model may take one text after the other, so `limit` is to grow with them
    /// (O-084).
    ///
    /// # Errors
    /// What went wrong; among others an answer with another number of vectors than texts (O-081).
    pub async fn embed(
        &self,
        server: &Server,
        embedding: &Embedding,
        inputs: &[String],
        limit: Duration,
    ) -> Result<Embedded, Fault> {
        let wanted = embedding.fields.get("dimensions");
        // The only field that both know.
        let shared: Map<String, Value> = wanted
            .map(|wanted| ("dimensions".to_owned(), wanted.clone()))
            .into_iter()
            .collect();
        let (path, fields) = match server.speaks {
            Speaks::Ollama => ("api/embed", &embedding.fields),
            Speaks::Openai => ("v1/embeddings", &shared),
        };
        let body = Body {
            model: &embedding.model,
            input: inputs,
            fields,
        };
        let answer = self
            .http
            .post(server, path, &body, limit, self.limits.answer_bytes.max(64 << 20));
        let value = Self::json(server, answer.await?)?;
        let wrong = |text: String| Fault::new(Class::Broken, &server.url, text);
        let no_answer = |error: serde_json::Error| wrong(format!("the answer holds no vectors: {error}"));
        let embedded = match server.speaks {
            Speaks::Ollama => {
                let answer: Native = serde_json::from_value(value).map_err(no_answer)?;
                Embedded {
                    vectors: answer.embeddings,
                    prompt_tokens: answer.prompt_eval_count,
                    load_s: Duration::from_nanos(answer.load_duration).as_secs_f64(),
                }
            }
            Speaks::Openai => {
                let mut answer: Openai = serde_json::from_value(value).map_err(no_answer)?;
                answer.data.sort_by_key(|vector| vector.index);
                Embedded {
                    vectors: answer.data.into_iter().map(|vector| vector.embedding).collect(),
                    prompt_tokens: answer.usage.prompt_tokens,
                    load_s: 0.0,
                }
            }
        };
        if embedded.vectors.len() != inputs.len() {
            let text = format!("{} vectors came for {} texts", embedded.vectors.len(), inputs.len());
            return Err(wrong(text));
        }
        // O-082.
        let dimension = embedded.vectors.first().map_or(0, Vec::len);
        if dimension == 0 || embedded.vectors.iter().any(|vector| vector.len() != dimension) {
            return Err(wrong("the vectors differ in length, or are empty".into()));
        }
        // Servers leave vectors as they are where the model cannot make them shorter, or they do not know the field.
        if let Some(wanted) = wanted.and_then(Value::as_u64)
            && wanted != dimension as u64
        {
            let text = format!(
                "the vectors have {dimension} numbers and not {wanted}, which dimensions asks for; leave it out, or ask \
                 a model that can"
            );
            return Err(Fault::new(Class::Refused, &server.url, text));
        }
        Ok(embedded)
    }
}
