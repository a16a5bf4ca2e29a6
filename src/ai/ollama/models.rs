//! What can be asked of a server apart from answers: what it has, what is in its memory; to load, to unload, to pull.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::Ollama;
use super::fault::{Class, Fault};
use super::frame::Lines;
use super::server::{Server, Speaks};

/// Largest list of models that is read.
const LIST: usize = 4 << 20;
/// Longest line of a pull.
const LINE: usize = 64 << 10;

/// A model that a server has.
#[derive(Clone, Debug, Deserialize)]
pub struct Installed {
    /// Its name there.
    #[serde(alias = "id")]
    pub name: String,
    /// Bytes.
    #[serde(default)]
    pub size: u64,
    /// Of which weights.
    #[serde(default)]
    pub digest: Option<String>,
    /// Where it really runs, for a model of the cloud under a harmless name (O-025).
    #[serde(default)]
    pub remote_host: Option<String>,
}

/// A model in memory.
#[derive(Clone, Debug, Deserialize)]
pub struct Loaded {
    /// Its name there.
    pub name: String,
    /// Bytes in video memory.
    #[serde(default)]
    pub size_vram: u64,
    /// Its window.
    #[serde(default)]
    pub context_length: Option<u64>,
    /// When it goes if nobody comes.
    #[serde(default)]
    pub expires_at: Option<String>,
}

/// How a pull goes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// What is being done.
    pub status: String,
    /// Bytes of the part, and those that are there (O-088: both may be missing).
    pub total: u64,
    /// See `total`.
    pub completed: u64,
    error: Option<Value>,
}

impl Ollama {
    /// The version of a server (`GET /api/version`, O-006); of the other kind, whether it answers.
    ///
    /// # Errors
    /// It did not answer.
    pub async fn version(&self, server: &Server) -> Result<String, Fault> {
        if server.speaks == Speaks::Openai {
            let models = self.installed(server).await?;
            return Ok(format!("OpenAI-compatible, {} models", models.len()));
        }
        let answer = self.http.get(server, "api/version", self.limits.connect, LINE).await?;
        let value = Self::json(server, answer)?;
        match value.get("version").and_then(Value::as_str) {
            Some(version) => Ok(version.to_owned()),
            None => Err(Fault::new(
                Class::Refused,
                &server.url,
                "it says no version: is it an Ollama?",
            )),
        }
    }

    /// The models a server has (`GET /api/tags`, O-085).
    ///
    /// # Errors
    /// It did not say.
    pub async fn installed(&self, server: &Server) -> Result<Vec<Installed>, Fault> {
        let (path, list) = match server.speaks {
            Speaks::Ollama => ("api/tags", "models"),
            Speaks::Openai => ("v1/models", "data"),
        };
        self.list(server, path, list).await
    }

    /// The models in a server's memory (`GET /api/ps`). Servers of the other kind do not say; what they have, they have
    /// in memory.
    ///
    /// # Errors
    /// It did not say.
    pub async fn loaded(&self, server: &Server) -> Result<Vec<Loaded>, Fault> {
        match server.speaks {
            Speaks::Ollama => self.list(server, "api/ps", "models").await,
            Speaks::Openai => {
                let installed = self.installed(server).await?;
                let loaded = installed.into_iter().map(|model| Loaded {
                    name: model.name,
                    size_vram: 0,
                    context_length: None,
                    expires_at: None,
                });
                Ok(loaded.collect())
            }
        }
    }

    async fn list<T: serde::de::DeserializeOwned>(
        &self,
        server: &Server,
        path: &str,
        list: &str,
    ) -> Result<Vec<T>, Fault> {
        let answer = self.http.get(server, path, self.limits.connect, LIST).await?;
        let mut value = Self::json(server, answer)?;
        match value.get_mut(list).map(Value::take) {
            Some(Value::Array(entries)) => Ok(readable(entries)),
            Some(Value::Null) => Ok(Vec::new()),
            _ => Err(Fault::new(
                Class::Broken,
                &server.url,
                format!("/{path} says no {list}"),
            )),
        }
    }

    /// Loads a model, or with `keep_alive` 0 unloads it, without asking it anything (O-060).
    ///
    /// # Errors
    /// It could not be loaded.
    pub async fn load(&self, server: &Server, body: &Value, limit: Duration) -> Result<(), Fault> {
        if server.speaks == Speaks::Openai {
            return Ok(());
        }
        let answer = self.http.post(server, "api/generate", body, limit, LINE).await?;
        Self::json(server, answer).map(drop)
    }

    /// Throws a model out of memory as soon as nobody uses it.
    ///
    /// # Errors
    /// It did not hear.
    pub async fn unload(&self, server: &Server, model: &str) -> Result<(), Fault> {
        let body = json!({"model": model, "keep_alive": 0});
        self.load(server, &body, self.limits.first_token).await
    }

    /// Removes a model from a server's disk (`DELETE /api/delete`, O-090).
    ///
    /// # Errors
    /// It did not.
    pub async fn delete(&self, server: &Server, model: &str) -> Result<(), Fault> {
        let body = json!({"model": model});
        let limit = self.limits.first_token;
        Self::changes(server)?;
        let answer = self.http.delete(server, "api/delete", &body, limit, LINE).await?;
        Self::changed(server, &answer)
    }

    /// Gives a model of a server one more name (`POST /api/copy`, O-090).
    ///
    /// # Errors
    /// It did not.
    pub async fn copy(&self, server: &Server, model: &str, name: &str) -> Result<(), Fault> {
        let body = json!({"source": model, "destination": name});
        let limit = self.limits.first_token;
        Self::changes(server)?;
        let answer = self.http.post(server, "api/copy", &body, limit, LINE).await?;
        Self::changed(server, &answer)
    }

    /// Whether a server lets anyone change its models.
    fn changes(server: &Server) -> Result<(), Fault> {
        if server.speaks == Speaks::Openai {
            let text = "an OpenAI-compatible server lets nobody change its models";
            return Err(Fault::new(Class::Refused, &server.url, text));
        }
        Ok(())
    }

    /// The answer to a change is a status alone: its body is empty.
    fn changed(server: &Server, (status, body): &(u16, Vec<u8>)) -> Result<(), Fault> {
        match status {
            200 => Ok(()),
            status => Err(Fault::from_status(&server.url, *status, body)),
        }
    }

    /// What a model can do (`POST /api/show`), such as `vision`; `None` where the server does not say, as older ones
    /// and gateways do not (O-080).
    pub(crate) async fn capabilities(&self, server: &Server, model: &str) -> Option<Vec<String>> {
        let said = self.show(server, model).await.ok()?;
        let list = said.get("capabilities")?.as_array()?;
        let names = list.iter().filter_map(|name| name.as_str().map(str::to_owned));
        Some(names.collect())
    }

    /// What a server says of a model (`POST /api/show`), such as its capabilities and its window.
    ///
    /// # Errors
    /// It did not say.
    pub async fn show(&self, server: &Server, model: &str) -> Result<Value, Fault> {
        let body = json!({"model": model});
        let answer = self
            .http
            .post(server, "api/show", &body, self.limits.connect, LIST)
            .await?;
        Self::json(server, answer)
    }

    /// Lets a server fetch a model; `tell` hears how it goes. It is there when this ends well (O-087), and goes on from
    /// where it was if it is asked again (O-089).
    ///
    /// # Errors
    /// It could not be fetched.
    pub async fn pull(
        &self,
        server: &Server,
        model: &str,
        tell: &mut (dyn FnMut(&Progress) + Send),
    ) -> Result<(), Fault> {
        if server.speaks == Speaks::Openai {
            return Err(Fault::new(
                Class::Refused,
                &server.url,
                "an OpenAI-compatible server pulls nothing",
            ));
        }
        let body = json!({"model": model, "stream": true});
        let mut body = self
            .http
            .open(server, "api/pull", &body, self.limits.first_token)
            .await?;
        let mut lines = Lines::new(LINE);
        while let Some(chunk) = body.next_within(self.limits.stall).await? {
            lines.push(&chunk);
            loop {
                let line = lines.next_line();
                let too_long = |_| Fault::new(Class::Broken, &server.url, "a line of the pull is too long");
                let Some(line) = line.map_err(too_long)? else { break };
                let Ok(progress) = serde_json::from_slice::<Progress>(&line) else {
                    continue;
                };
                if let Some(error) = &progress.error {
                    let fault = Fault::mid_stream(&server.url, error);
                    return Err(Fault::new(
                        Class::Refused,
                        &server.url,
                        format!("the pull of {model}: {}", fault.text),
                    ));
                }
                if progress.status == "success" {
                    return Ok(());
                }
                tell(&progress);
            }
        }
        Err(Fault::new(
            Class::Broken,
            &server.url,
            format!("the pull of {model} ended before it was done"),
        ))
    }
}

/// The entries that can be read: what one lacks does not hide the others.
fn readable<T: serde::de::DeserializeOwned>(entries: Vec<Value>) -> Vec<T> {
    let read = entries.into_iter().map(serde_json::from_value);
    read.filter_map(Result::ok).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_with_gaps_are_read() {
        let entries = json!([
            {"name": "m:latest", "size": 5, "digest": "d", "details": {"families": null}, "new": [1]},
            {"size": 5},
            {"id": "of-another-kind"},
            7,
        ]);
        let Value::Array(entries) = entries else {
            panic!("a list")
        };
        let names: Vec<String> = readable::<Installed>(entries)
            .into_iter()
            .map(|model| model.name)
            .collect();
        assert_eq!(names, ["m:latest", "of-another-kind"]);
        let progress: Progress = serde_json::from_str(r#"{"status":"pulling 0123"}"#).unwrap();
        assert_eq!((progress.completed, progress.total), (0, 0));
    }
}
