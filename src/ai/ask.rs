//! A question to a model, followed until the answer holds: one that is empty, cut off or of another shape is never
//! passed on as if it were right. What does not fit its schema is repaired, a few times, by telling the model what is
//! wrong.

use serde_json::{Map, Value, json};

use super::Engine;
use super::call::{Show, call, caller};
use super::fault::{empty_answer, invalid_output, output_truncated};
use super::fleet::Caller;
use super::ollama::{Answer, Kind};
use super::schema::{Shape, ending, for_grammar};
use crate::task::{Context, Failure};

/// How often an answer that does not fit its format is asked for again, if nobody says otherwise.
pub(super) const REPAIRS: u32 = 2;

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// Which endpoint.
    pub kind: Kind,
    /// The model's name.
    pub model: String,
    /// Everything else of the request.
    pub fields: Map<String, Value>,
    /// How often an answer that does not fit its format may be asked for again.
    pub repairs: u32,
}

impl Question {
    /// A question with the usual number of repairs.
    pub(super) fn new(kind: Kind, model: String, fields: Map<String, Value>) -> Self {
        Self {
            kind,
            model,
            fields,
            repairs: REPAIRS,
        }
    }
}

/// Asks until the answer is right or no repair is left.
pub(super) async fn ask(
    engine: &Engine,
    mut question: Question,
    show: Show<'_>,
    context: &Context,
) -> Result<Answer, Failure> {
    let shape = Shape::of(question.fields.get("format")).map_err(Failure::value_error)?;
    // The server would cut a prompt that is too long and answer what is left of it (O-020).
    question.fields.retain(|_, value| !value.is_null());
    if let Some(format @ Value::Object(_)) = question.fields.get_mut("format") {
        *format = for_grammar(format);
    }
    question.fields.entry("truncate").or_insert(Value::Bool(false));
    let mut repairs = 0;
    let mut spent = None;
    let mut last: Option<String> = None;
    // The question as it was, once there is an answer to repair.
    let mut asked: Option<Map<String, Value>> = None;
    loop {
        let mut caller = caller(show, context);
        caller.shape = Some(&shape);
        // A task that is put off begins anew: the answer that is to be repaired would be lost, and paid for again.
        caller.may_be_put_off &= repairs == 0;
        let mut answer = one(engine, &question, show, &caller, context).await?;
        if let Some(spent) = spent {
            answer.usage += spent;
        }
        answer.repairs = repairs;
        spent = Some(answer.usage);
        let wrong = match check(&shape, &mut answer) {
            Ok(()) => return Ok(*answer),
            // More of the same would be cut off at the same place.
            Err(Unfit::Final(failure)) => return Err(failure),
            Err(Unfit::Shape(wrong)) => wrong,
        };
        if repairs >= question.repairs {
            let tries = if repairs > 0 {
                format!(" after {repairs} repairs")
            } else {
                String::new()
            };
            let text = format!(
                "the answer of {}{tries} {wrong}: {}",
                answer.model,
                ending(&answer.text)
            );
            return Err(invalid_output(text));
        }
        repairs += 1;
        engine.calls().repair(&question.model);
        let attempt = context.retries();
        context.stream(
            &json!({"type": "repair", "step": show.step, "repair": repairs, "wrong": wrong, "attempt": attempt}),
        );
        if last.as_deref() == Some(&wrong)
            && let Some(asked) = &asked
        {
            anew(&mut question.fields, asked);
        } else {
            asked.get_or_insert_with(|| question.fields.clone());
            tell(&mut question, &answer.text, &wrong);
        }
        last = Some(wrong);
    }
}

/// One answer: a recorded one where answers are played, otherwise a model's.
async fn one(
    engine: &Engine,
    question: &Question,
    show: Show<'_>,
    caller: &Caller<'_>,
    context: &Context,
) -> Result<Box<Answer>, Failure> {
    if let Some(recorded) = engine.recorded()
        && let Some(answer) = recorded.play(show.step, question)?
    {
        return Ok(Box::new(answer));
    }
    let (model, fields) = (question.model.clone(), question.fields.clone());
    let answer = call(engine, question.kind, model, fields, show, caller, context).await?;
    if let Some(recorded) = engine.recorded() {
        recorded.note(show.step, &answer);
    }
    Ok(answer)
}

/// Why an answer is none.
enum Unfit {
    /// Another question may help.
    Shape(String),
    /// It will not.
    Final(Failure),
}

fn check(shape: &Shape, answer: &mut Answer) -> Result<(), Unfit> {
    let says_nothing = answer.text.trim().is_empty() && answer.tool_calls.is_empty();
    if says_nothing && answer.truncated {
        let text = format!(
            "{} used all of its {} tokens and has said nothing yet; raise num_predict{}",
            answer.model,
            answer.usage.completion_tokens,
            if answer.thinking.is_some() {
                ", or let it think less"
            } else {
                ""
            }
        );
        return Err(Unfit::Final(output_truncated(text)));
    }
    // Its calls may be cut as well, and another one may have been about to follow.
    if answer.truncated && !answer.tool_calls.is_empty() {
        let text = format!(
            "the answer of {} ended after {} tokens, within its calls of tools; raise num_predict",
            answer.model, answer.usage.completion_tokens,
        );
        return Err(Unfit::Final(output_truncated(text)));
    }
    if shape.is_free() {
        if says_nothing {
            let reason = answer.done_reason.as_deref().unwrap_or("nothing");
            let text = format!("{} answered with an empty text (done_reason: {reason})", answer.model);
            return Err(Unfit::Final(empty_answer(text)));
        }
        return Ok(());
    }
    // Who calls a tool has not answered yet.
    if !answer.tool_calls.is_empty() && answer.text.trim().is_empty() {
        return Ok(());
    }
    match shape.read(&answer.text) {
        Ok(value) => {
            answer.json = Some(value);
            Ok(())
        }
        Err(_) if answer.truncated => Err(Unfit::Final(output_truncated(format!(
            "the answer of {} ended after {} tokens, before its JSON was complete; raise num_predict: {}",
            answer.model,
            answer.usage.completion_tokens,
            ending(&answer.text),
        )))),
        Err(wrong) => Err(Unfit::Shape(wrong.to_string())),
    }
}

/// A model whose answer is wrong in the same way again copies what it was shown: it is asked as at first, and given
/// more freedom, since the same question at temperature 0 has the same answer for ever.
fn anew(fields: &mut Map<String, Value>, asked: &Map<String, Value>) {
    let options = fields.remove("options");
    fields.clone_from(asked);
    fields.extend(options.map(|options| ("options".to_owned(), options)));
    loosen(fields);
}

fn loosen(fields: &mut Map<String, Value>) {
    if let Value::Object(options) = fields.entry("options").or_insert_with(|| json!({})) {
        let now = options.get("temperature").and_then(Value::as_f64).unwrap_or(0.0);
        options.insert("temperature".into(), (now + 0.5).min(1.0).into());
        // The same seed at the same temperature says the same again.
        if let Some(seed) = options.get("seed").and_then(Value::as_i64) {
            options.insert("seed".into(), seed.wrapping_add(1).into());
        }
    }
}

/// Puts the answer and what is wrong with it into the question.
fn tell(question: &mut Question, answer: &str, wrong: &str) {
    let order = format!("Your answer {wrong}. Answer again, with nothing but JSON that fits.");
    match question.kind {
        Kind::Chat => {
            if let Some(Value::Array(messages)) = question.fields.get_mut("messages") {
                messages.push(json!({"role": "assistant", "content": answer}));
                messages.push(json!({"role": "user", "content": order}));
            }
        }
        Kind::Generate => {
            if let Some(Value::String(prompt)) = question.fields.get_mut("prompt") {
                *prompt = format!("{prompt}\n\nYour last answer was:\n{answer}\n\n{order}\n");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_again_is_asked_anew_with_more_freedom() {
        let fields = json!({"prompt": "one", "options": {"seed": 1}})
            .as_object()
            .cloned()
            .unwrap_or_default();
        let asked = fields.clone();
        let mut question = Question::new(Kind::Generate, "m".into(), fields);
        tell(&mut question, "{}", "does not fit");
        let prompt = |question: &Question| question.fields["prompt"].as_str().unwrap_or_default().to_owned();
        assert!(prompt(&question).contains("Your answer does not fit"));
        for (seed, temperature) in [(2, 0.5), (3, 1.0), (4, 1.0)] {
            anew(&mut question.fields, &asked);
            assert_eq!(prompt(&question), "one");
            assert_eq!(
                question.fields["options"],
                json!({"seed": seed, "temperature": temperature})
            );
        }
    }
}
