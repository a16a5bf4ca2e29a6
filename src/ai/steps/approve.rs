//! `approve`: a person decides. The run is put down until then, for days if need be, and holds nothing.

use serde_json::{Map, Value, json};

use super::task::seconds;
use super::{Field, Fields, Stop, Type, Wrong, needed, text, value};
use crate::ai::site::Site;

pub(super) const TYPE: Type = Type {
    name: "approve",
    about: "waits until a person decides (orchestra approve), for days if need be, without holding a place to run",
    fields: FIELDS,
    check,
    is_local: false,
};

const FIELDS: &[Field] = &[
    needed(text("message", "what is to be decided, for people")),
    value("show", "what they should see beside it"),
    value("form", "JSON Schema of what they may answer beside yes or no"),
    text(
        "rejected",
        "fail (the default) or continue: what follows when they say no",
    ),
    value(
        "limit",
        "seconds after which the step fails with a TimeoutError; without it, it waits 30 days",
    ),
];

fn check(fields: &Map<String, Value>, _: &[&str]) -> Wrong {
    let mut wrong = Vec::new();
    if let Some(rejected) = fields.get("rejected").and_then(Value::as_str)
        && !["fail", "continue"].contains(&rejected)
    {
        wrong.push(("rejected", "must be fail or continue".into()));
    }
    if let Some(form) = fields.get("form")
        && let Err(error) = jsonschema::validator_for(form)
    {
        wrong.push(("form", format!("form is no JSON Schema: {error}")));
    }
    wrong
}

pub(super) async fn run(mut fields: Fields, site: &Site<'_>) -> Result<Value, Stop> {
    let message = fields.need("message")?;
    let goes_on = fields.text("rejected").as_deref() == Some("continue");
    let limit = seconds(&mut fields, "limit")?;
    let name = site.awaited("");
    let question = json!({
        "step": site.key(), "name": name, "template": site.template.name(), "message": message,
        "show": fields.take("show"), "form": fields.take("form"),
    });
    let begin = async {
        site.kept.note(&format!("q:{}", site.key()), question.clone()).await;
        site.context.stream(
            &json!({"type": "approve", "step": site.key(), "message": message, "attempt": site.context.retries()}),
        );
        Ok(())
    };
    let decision = site.wait(&name, limit, begin).await?;
    let approved = decision.get("approved").and_then(Value::as_bool).unwrap_or(false);
    if !approved && !goes_on {
        let text = |name: &str| decision.get(name).and_then(Value::as_str).map(str::to_owned);
        let by = text("by").map(|by| format!(" by {by}")).unwrap_or_default();
        let why = text("comment").map(|why| format!(": {why}")).unwrap_or_default();
        return Err(Stop::failed(
            "Rejected",
            format!("step {:?} was rejected{by}{why}", site.step.id),
        ));
    }
    Ok(decision)
}
