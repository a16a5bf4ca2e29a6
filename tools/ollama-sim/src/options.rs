//! The request's `options`: which names there are, which types they take, and what is kept of them.
//!
//! Unknown names are ignored and `null` means "not given"; a wrong type is a status 500 with the real text.

use serde_json::{Map, Value};

use crate::error::Error;

/// The options that a back end acts on. `None`: not given, the back end's default holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    pub num_ctx: Option<i64>,
    pub num_thread: Option<i64>,
    pub num_batch: Option<i64>,
    pub num_gpu: Option<i64>,
    pub num_keep: Option<i64>,
    pub num_predict: Option<i64>,
    pub seed: Option<i64>,
    pub top_k: Option<i64>,
    pub repeat_last_n: Option<i64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub min_p: Option<f64>,
    pub typical_p: Option<f64>,
    pub repeat_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub stop: Option<Vec<String>>,
}

impl Options {
    /// Reads and checks the object of a request.
    pub fn parse(given: &Map<String, Value>) -> Result<Self, Error> {
        let mut options = Self::default();
        for (name, value) in given.iter().filter(|(_, value)| !value.is_null()) {
            options.set(name, value)?;
        }
        Ok(options)
    }

    fn set(&mut self, name: &str, value: &Value) -> Result<(), Error> {
        let integer = || as_integer(value).ok_or_else(|| wrong(name, "integer")).map(Some);
        let float = || value.as_f64().ok_or_else(|| wrong(name, "float32")).map(Some);
        match name {
            "num_ctx" => self.num_ctx = integer()?,
            "num_thread" => self.num_thread = integer()?,
            "num_batch" => self.num_batch = integer()?,
            "num_gpu" => self.num_gpu = integer()?,
            "num_keep" => self.num_keep = integer()?,
            "num_predict" => self.num_predict = integer()?,
            "seed" => self.seed = integer()?,
            "top_k" => self.top_k = integer()?,
            "repeat_last_n" => self.repeat_last_n = integer()?,
            "temperature" => self.temperature = float()?,
            "top_p" => self.top_p = float()?,
            "min_p" => self.min_p = float()?,
            "typical_p" => self.typical_p = float()?,
            "repeat_penalty" => self.repeat_penalty = float()?,
            "presence_penalty" => self.presence_penalty = float()?,
            "frequency_penalty" => self.frequency_penalty = float()?,
            "stop" => self.stop = Some(strings(name, value)?),
            // Checked as the real server checks them, and of no use to either back end.
            "main_gpu" | "draft_num_predict" => drop(integer()?),
            "use_mmap" if !value.is_boolean() => return Err(wrong(name, "boolean")),
            _ => {}
        }
        Ok(())
    }

    /// The most tokens an answer may have: `num_predict`, bounded to ten windows of `num_ctx`.
    pub fn budget(&self, num_ctx: i64) -> u64 {
        let most = num_ctx.max(1).saturating_mul(10);
        let budget = match self.num_predict {
            // On the generate path 0 is not "nothing": it falls back to no limit.
            Some(given) if given > 0 => given.min(most),
            _ => most,
        };
        budget.unsigned_abs()
    }
}

fn wrong(name: &str, kind: &str) -> Error {
    Error::new(500, format!("option {name:?} must be of type {kind}"))
}

/// Numbers with decimals are cut to the integer.
fn as_integer(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_f64().map(|number| number as i64))
}

fn strings(name: &str, value: &Value) -> Result<Vec<String>, Error> {
    let items = value.as_array().ok_or_else(|| wrong(name, "array"))?;
    items
        .iter()
        .map(|item| item.as_str().map(str::to_owned))
        .collect::<Option<_>>()
        .ok_or_else(|| wrong(name, "an array of strings"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: Value) -> Result<Options, Error> {
        Options::parse(value.as_object().expect("an object"))
    }

    #[test]
    fn wrong_types_are_500_with_the_real_texts() {
        for (value, text) in [
            (
                json!({"temperature": "hot"}),
                "option \"temperature\" must be of type float32",
            ),
            (
                json!({"num_predict": "3"}),
                "option \"num_predict\" must be of type integer",
            ),
            (json!({"use_mmap": 1}), "option \"use_mmap\" must be of type boolean"),
            (json!({"stop": "x"}), "option \"stop\" must be of type array"),
            (
                json!({"stop": [1]}),
                "option \"stop\" must be of type an array of strings",
            ),
        ] {
            let error = parse(value).expect_err(text);
            assert_eq!((error.status, error.text.as_str()), (500, text));
        }
    }

    #[test]
    fn unknown_names_and_nulls_are_ignored_and_decimals_are_cut() {
        let options = parse(json!({"mirostat": "x", "seed": null, "num_predict": 2.9, "top_p": 1}));
        let expected = Options {
            num_predict: Some(2),
            top_p: Some(1.0),
            ..Options::default()
        };
        assert_eq!(options.ok(), Some(expected));
    }

    #[test]
    fn the_budget_is_bounded_to_ten_windows() {
        let budget = |num_predict| {
            Options {
                num_predict,
                ..Options::default()
            }
            .budget(100)
        };
        assert_eq!(
            [Some(7), Some(-1), Some(0), None, Some(5000)].map(budget),
            [7, 1000, 1000, 1000, 1000]
        );
    }
}
