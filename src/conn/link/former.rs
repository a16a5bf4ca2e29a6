//! Connections that were given up, and that the server still has: what is on its way on them would be done after its
//! repetition.
//!
//! A network that drops packets delivers them when it is well again, up to ten seconds after whoever sent them has
//! closed his end and asked again on another connection. So the first that a new connection says is that the server
//! shall end those before it, by number and address: a number alone may be another's, on a server that was started
//! again.

use redis::aio::{ConnectionLike as _, MultiplexedConnection};
use redis::{Pipeline, RedisResult, Value};

use crate::conn::error::{code, is_transient_code};

/// So many are known: the one that stands, and those that it followed while they waited for answers.
const MOST: usize = 4;

/// What a server knows a connection by (`CLIENT INFO`).
#[derive(Debug, PartialEq, Eq)]
struct Known {
    id: String,
    /// Where it comes from, as the server sees it.
    addr: String,
}

/// The connections of a link, the newest last.
#[derive(Debug, Default)]
pub(super) struct Former(Vec<Known>);

impl Former {
    /// Asks the server to end them, and what it knows this one by. Whoever may not ask has what is on its way done late.
    pub(super) fn ask(&self) -> Pipeline {
        let mut pipe = Pipeline::new();
        for known in &self.0 {
            pipe.cmd("CLIENT").arg("KILL");
            pipe.arg("ID").arg(&known.id).arg("ADDR").arg(&known.addr);
        }
        pipe.cmd("CLIENT").arg("INFO");
        pipe
    }

    /// Only this one is left.
    pub(super) fn ended(&mut self, answer: Answer) {
        self.0.clear();
        self.followed(answer);
    }

    /// This one stands now, and the one before waits for answers still.
    pub(super) fn followed(&mut self, Answer(known): Answer) {
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.extend(known);
    }
}

/// What a new connection is known by, where the server says it.
#[derive(Debug)]
pub(super) struct Answer(Option<Known>);

impl Answer {
    /// Asks on a connection that nobody else has yet.
    pub(super) async fn of(connection: &mut MultiplexedConnection, question: &Pipeline) -> RedisResult<Self> {
        let mut answers = connection.req_packed_commands(question, 0, question.len()).await?;
        for answer in &answers {
            if let Value::ServerError(error) = answer
                && is_transient_code(code(error))
            {
                return Err(error.clone().into());
            }
        }
        Ok(Self(answers.pop().and_then(read)))
    }
}

/// Of `id=3 addr=127.0.0.1:40000 … `. A Unix socket has no port, keeps nothing back, and is the same for everybody.
fn read(info: Value) -> Option<Known> {
    let text = match info {
        Value::BulkString(text) => String::from_utf8(text).ok()?,
        Value::VerbatimString { text, .. } => text,
        _ => return None,
    };
    let field = |name: &str| {
        let value = text.split_ascii_whitespace().find_map(|field| field.strip_prefix(name));
        value.map(str::to_owned)
    };
    let (id, addr) = (field("id=")?, field("addr=")?);
    (!addr.ends_with(":0")).then_some(Known { id, addr })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(info: &str) -> Answer {
        Answer(read(Value::BulkString(info.into())))
    }

    #[test]
    fn a_connection_is_known_by_number_and_address() {
        let Answer(known) = answer("id=3 addr=127.0.0.1:40000 laddr=127.0.0.1:6379 fd=8 name= age=0\n");
        let (id, addr) = ("3".to_owned(), "127.0.0.1:40000".to_owned());
        assert_eq!(known, Some(Known { id, addr }));
        for info in ["id=3 addr=/run/redis.sock:0 fd=8", "id=3 fd=8", ""] {
            assert!(answer(info).0.is_none(), "{info}");
        }
        assert_eq!(read(Value::Nil), None);
    }

    #[test]
    fn those_before_are_ended_with_the_first_that_stands() {
        let mut former = Former::default();
        assert_eq!(former.ask().len(), 1);
        former.ended(answer("id=1 addr=a:1"));
        for n in 2..9 {
            former.followed(answer(&format!("id={n} addr=a:{n}")));
        }
        assert_eq!(former.ask().len(), 1 + MOST);
        former.ended(answer("id=9 addr=a:9"));
        assert_eq!(former.ask().len(), 2);
    }
}
