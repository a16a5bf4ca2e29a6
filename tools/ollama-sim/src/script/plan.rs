//! What a scripted model says to one request: its frames, and how they end.

use serde_json::{Value, json};

use super::behaviour::Behaviour;
use super::sample::sample;
use crate::backend::{Format, Frame, Input, Job};
use crate::error::Error;

/// Words of the texts that nobody needs to read.
const WORDS: &str = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut \
                     labore et dolore magna aliqua enim ad minim veniam quis nostrud exercitation ullamco laboris";

/// Longer than any line that a client has to accept (8 MB).
const HUGE: usize = 9 << 20;

pub type Frames = Box<dyn Iterator<Item = Frame> + Send>;

pub struct Plan {
    pub frames: Frames,
    pub ending: Ending,
}

#[derive(Debug)]
pub enum Ending {
    Done,
    Unfinished,
    Cut,
    Error(Error),
    /// A line that is not JSON, and no more.
    Garbage,
    /// Nothing more, and no end.
    Silence,
}

impl Plan {
    pub fn new(behaviour: Behaviour, job: &Job) -> Self {
        let three = || texts(lorem().take(3));
        let (frames, ending): (Frames, _) = match behaviour {
            Behaviour::Echo => (natural(job, words(spoken(job))), Ending::Done),
            Behaviour::Slow => (natural(job, lorem().take(300)), Ending::Done),
            Behaviour::Endless => (texts(lorem()), Ending::Done),
            Behaviour::Json => (texts(pieces(document(&job.format))), Ending::Done),
            Behaviour::BadJson => (texts(words("{\"answer\": not quite JSON".to_owned())), Ending::Done),
            Behaviour::Misfit => (texts(words("[\"lorem ipsum\"]".to_owned())), Ending::Done),
            Behaviour::Thinking => (thinking(job), Ending::Done),
            Behaviour::Tools => (tools(job), Ending::Done),
            Behaviour::Vision => (natural(job, words(seen(job))), Ending::Done),
            Behaviour::Hang => (Box::new(std::iter::empty()), Ending::Silence),
            Behaviour::Stall => (three(), Ending::Silence),
            Behaviour::NoDone => (three(), Ending::Unfinished),
            Behaviour::CutMidstream => (three(), Ending::Cut),
            Behaviour::ErrorMidstream => (three(), Ending::Error(Error::broken_off())),
            Behaviour::BadFrame => (three(), Ending::Garbage),
            Behaviour::HugeLine => (texts(std::iter::once("x".repeat(HUGE))), Ending::Done),
            _ => (natural(job, lorem().take(100)), Ending::Done),
        };
        Self { frames, ending }
    }
}

/// The text itself, or a document where the request asks for one.
fn natural(job: &Job, text: impl Iterator<Item = String> + Send + 'static) -> Frames {
    match job.format {
        Format::Free => texts(text),
        _ => texts(pieces(document(&job.format))),
    }
}

fn thinking(job: &Job) -> Frames {
    let thoughts = lorem().take(if job.think { 5 } else { 0 });
    let thoughts = thoughts.map(|thinking| Frame {
        thinking,
        ..Frame::default()
    });
    Box::new(thoughts.chain(natural(job, words(spoken(job)))))
}

/// Calls the first tool that is offered; with a tool's answer as the last message, says what it was.
fn tools(job: &Job) -> Frames {
    let Input::Chat { messages, tools } = &job.input else {
        return natural(job, lorem().take(100));
    };
    let answered = messages.last().is_some_and(|message| message.role == "tool");
    match tools.first().filter(|_| !answered) {
        Some(tool) => {
            let function = &tool["function"];
            let arguments = Some(&function["parameters"])
                .filter(|schema| schema.is_object())
                .map(sample);
            let call = json!([{
                "id": "call_sim00001",
                "function": {
                    "index": 0,
                    "name": function["name"],
                    "arguments": arguments.unwrap_or_else(|| json!({})),
                },
            }]);
            Box::new(std::iter::once(Frame {
                tool_calls: Some(call),
                ..Frame::default()
            }))
        }
        None => natural(job, words(spoken(job))),
    }
}

fn document(format: &Format) -> String {
    let document = match format {
        Format::Schema(schema) => sample(schema),
        _ => json!({ "answer": "lorem ipsum" }),
    };
    Value::to_string(&document)
}

/// How many pictures there are and how large, and the text.
fn seen(job: &Job) -> String {
    let sizes: Vec<String> = job.images.iter().map(usize::to_string).collect();
    format!("{} pictures ({} bytes): {}", sizes.len(), sizes.join(", "), spoken(job))
}

/// The text that was last said to the model.
fn spoken(job: &Job) -> String {
    match &job.input {
        Input::Prompt { prompt, .. } => prompt.clone(),
        Input::Chat { messages, .. } => messages.last().map(|last| last.content.clone()).unwrap_or_default(),
    }
}

fn texts(texts: impl Iterator<Item = String> + Send + 'static) -> Frames {
    Box::new(texts.map(|text| Frame {
        text,
        ..Frame::default()
    }))
}

/// Words without end: the first bare, the others with the blank before them, as tokens have it.
fn lorem() -> impl Iterator<Item = String> + Send {
    let blank = |(at, word): (usize, &str)| if at == 0 { word.to_owned() } else { format!(" {word}") };
    WORDS.split_whitespace().cycle().enumerate().map(blank)
}

/// The words of a text with the blanks before them; together they are the text.
fn words(text: String) -> impl Iterator<Item = String> + Send {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = &text[at..];
        let start = rest.find(|c: char| !c.is_whitespace()).unwrap_or(rest.len());
        let length = rest[start..]
            .find(char::is_whitespace)
            .map_or(rest.len(), |end| start + end);
        at += length;
        Some(rest[..length].to_owned()).filter(|word| !word.is_empty())
    })
}

/// Pieces of four characters.
fn pieces(text: String) -> impl Iterator<Item = String> + Send {
    let characters: Vec<char> = text.chars().collect();
    let pieces: Vec<String> = characters.chunks(4).map(|piece| piece.iter().collect()).collect();
    pieces.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_text_again() {
        for text in ["one two", "  one\n two ", "one", "", "日本 語"] {
            assert_eq!(words(text.to_owned()).collect::<String>(), text);
        }
        assert_eq!(
            words("one two  three".to_owned()).collect::<Vec<_>>(),
            ["one", " two", "  three"]
        );
    }
}
