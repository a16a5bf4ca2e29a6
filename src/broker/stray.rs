//! Held messages that stand in no index, so that nobody would ever restore them: found, and given a place.

use redis::{Pipeline, Value};

use super::claim::unexpected;
use super::{Broker, Error};

/// Messages looked at in one go, by chance; only their tags are. Bounds how long one look occupies Redis, however many
/// are held.
const LOOKS: usize = 200;

/// What the last look found.
#[derive(Debug, Default)]
pub struct Strays {
    /// Tags that stood in no index. Those that stand in none at the next look either are nobody's who is just about to
    /// note them.
    suspects: Vec<Vec<u8>>,
}

/// What a look did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Strayed {
    /// So many have a place now: they come back when the visibility timeout is over.
    pub noted: u64,
    /// There are more of them.
    pub more: bool,
}

impl Broker {
    /// Looks at some of the held messages, and at those that were found without a place in the index the last time.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub async fn note_strays(&self, strays: &mut Strays) -> Result<Strayed, Error> {
        let mut call = self.scripts.stray.prepare_invoke();
        call.key(self.keys.name("unacked"))
            .key(self.keys.name("unacked_index"))
            .arg(LOOKS);
        for tag in &strays.suspects {
            call.arg(&tag[..]);
        }
        let mut pipe = Pipeline::with_capacity(1);
        pipe.invoke_script(&call);
        let found = match self.main.pipeline(&pipe).await?.pop() {
            Some(Value::Array(found)) => found,
            other => return Err(unexpected(other.as_ref())),
        };
        let mut found = found.into_iter();
        let (Some(Value::Int(noted)), Some(Value::Int(more))) = (found.next(), found.next()) else {
            return Err(unexpected(None));
        };
        let tags = found.filter_map(|tag| match tag {
            Value::BulkString(tag) => Some(tag),
            _ => None,
        });
        strays.suspects = tags.collect();
        Ok(Strayed {
            noted: noted.unsigned_abs(),
            more: more == 1 || !strays.suspects.is_empty(),
        })
    }
}
