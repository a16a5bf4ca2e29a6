//! How a model is loaded: the same for all calls, so that none makes a host load it again (O-020).

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::strategy::Strategy;

/// Options that belong to the loaded model and not to a call: another value is another load.
const OF_LOADS: &[&str] = &[
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "num_thread",
    "draft_num_predict",
];

/// What the settings say of a model; a table in `ai_models`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// The window of every call, in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<u64>,
    /// More options that belong to the loaded model.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub options: Map<String, Value>,
    /// How long it stays in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<Value>,
    /// Whether the window slides when it is full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<bool>,
    /// Calls at once, on all hosts together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_parallel: Option<usize>,
    /// How hosts are chosen for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing: Option<Strategy>,
}

impl Profile {
    /// Gives a request what every request of this model has.
    ///
    /// # Errors
    /// A text for people: the request needs a larger window.
    pub fn apply(&self, model: &str, body: &mut Map<String, Value>) -> Result<(), String> {
        let mut options = match body.remove("options") {
            Some(Value::Object(options)) => options,
            _ => Map::new(),
        };
        let wanted = options.get("num_ctx").and_then(Value::as_u64);
        if let (Some(wanted), Some(has)) = (wanted, self.num_ctx)
            && wanted > has
        {
            return Err(format!(
                "options.num_ctx: {model} runs with {has} here; a call with {wanted} would make every host load it again \
                 (ai_models)"
            ));
        }
        if self.num_ctx.is_some() || !self.options.is_empty() {
            options.retain(|name, _| !OF_LOADS.contains(&name.as_str()));
            options.extend(self.options.clone());
        }
        if let Some(has) = self.num_ctx {
            options.insert("num_ctx".into(), has.into());
        }
        if !options.is_empty() {
            body.insert("options".into(), options.into());
        }
        if let Some(keep) = &self.keep_alive {
            body.insert("keep_alive".into(), keep.clone());
        }
        if let Some(shift) = self.shift {
            body.insert("shift".into(), shift.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn o_020_every_call_of_a_model_loads_it_alike() {
        let profile: Profile = serde_json::from_value(json!({"num_ctx": 8192, "keep_alive": "30m"})).unwrap();
        let mut body = json!({"options": {"num_ctx": 2048, "num_thread": 3, "seed": 1}, "keep_alive": 0});
        profile.apply("m", body.as_object_mut().unwrap()).unwrap();
        assert_eq!(
            body,
            json!({"options": {"seed": 1, "num_ctx": 8192}, "keep_alive": "30m"})
        );
        let mut large = json!({"options": {"num_ctx": 16384}});
        let error = profile.apply("m", large.as_object_mut().unwrap()).unwrap_err();
        assert!(error.starts_with("options.num_ctx: m runs with 8192 here"), "{error}");
        let mut untouched = json!({"options": {"num_ctx": 4}});
        Profile::default()
            .apply("m", untouched.as_object_mut().unwrap())
            .unwrap();
        assert_eq!(untouched, json!({"options": {"num_ctx": 4}}));
    }
}
