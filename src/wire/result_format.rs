//! How results are written, and what is read of those that others wrote (`result_serializer`, `result_compression`,
//! `result_accept_content`): `celery.backends.base.Backend.encode` and `decode`. Behind it a result is JSON text.

use std::borrow::Cow;

use super::message::DecodeError;
use super::serializer::Accept;
use super::{Compression, Serializer, State, decompress, rendering};

/// Stands before a compressed result, followed by the mime type of the method and a zero byte. No serializer begins
/// with a zero byte.
const MAGIC: &[u8] = b"\0celery-compressed\0";
/// What Redis holds at most: what is read, once it is unpacked.
const LIMIT: usize = 512 << 20;
/// How deep a result may be nested: the handle of a header holds the line of each result, two levels a step. Python's
/// reader goes no deeper.
const LEVELS: usize = 1000;

/// How results are written and read.
#[derive(Clone, Debug)]
pub struct ResultFormat {
    serializer: Serializer,
    compression: Option<Compression>,
    accept: Accept,
    limit: usize,
}

impl Default for ResultFormat {
    fn default() -> Self {
        Self {
            serializer: Serializer::Json,
            compression: None,
            accept: Accept::default(),
            limit: LIMIT,
        }
    }
}

impl ResultFormat {
    /// From the names in Celery's settings. What `accept` does not hold is written all the same, and not read.
    ///
    /// # Errors
    /// A name of none, or of a serializer that results are not written in.
    pub fn new(serializer: Option<&str>, compression: Option<&str>, accept: Accept) -> Result<Self, String> {
        let serializer = match serializer.unwrap_or("json") {
            "json" => Serializer::Json,
            "msgpack" => Serializer::Msgpack,
            "yaml" => Serializer::Yaml,
            "pickle" => {
                return Err(
                    "result_serializer: a pickle can run any code in whoever reads it: it is never written; there are \
                     json, msgpack and yaml"
                        .into(),
                );
            }
            other => {
                return Err(format!(
                    "result_serializer: {other:?} is not one of json, msgpack and yaml"
                ));
            }
        };
        let compression = compression
            .filter(|name| !name.is_empty())
            .map(Compression::parse)
            .transpose()
            .map_err(|error| format!("result_compression: {error}"))?;
        Ok(Self {
            serializer,
            compression,
            accept,
            limit: LIMIT,
        })
    }

    /// Makes no more than so many bytes of what is packed, or is not JSON; without this 512 MiB.
    #[must_use]
    pub fn bounded(self, limit: usize) -> Self {
        Self { limit, ..self }
    }

    /// Whether what it writes hides the state of a task from a script.
    pub fn compresses(&self) -> bool {
        self.compression.is_some()
    }

    /// A JSON text as it is stored.
    ///
    /// # Errors
    /// The serializer has not all that JSON has.
    pub fn write<'a>(&self, json: &'a [u8]) -> Result<Cow<'a, [u8]>, String> {
        let plain: Cow<'a, [u8]> = match self.serializer {
            Serializer::Msgpack => Cow::Owned(rendering::msgpack(&String::from_utf8_lossy(json))?),
            Serializer::Yaml => Cow::Owned(rendering::yaml(&String::from_utf8_lossy(json))?.into_bytes()),
            Serializer::Json | Serializer::Auth => super::json::restored(json),
        };
        let Some(method) = self.compression else {
            return Ok(plain);
        };
        let packed = method.compress(&plain).map_err(|error| error.to_string())?;
        Ok([MAGIC, method.content_type().as_bytes(), b"\0", &packed]
            .concat()
            .into())
    }

    /// The JSON text of what is stored, compressed or not, whatever this writes itself.
    ///
    /// # Errors
    /// It is in no serializer that is accepted, or spoiled.
    pub fn read(&self, stored: Vec<u8>) -> Result<String, String> {
        let plain = match unpack(&stored, self.limit).map_err(|error| error.to_string())? {
            Some(plain) => plain,
            None => stored,
        };
        let reader = self.accept.reader(Some(self.serializer.content_type()));
        let reader = reader.map_err(|error| {
            let error = error.to_string();
            error.replace("accept_content", "result_accept_content")
        })?;
        reader
            .read_deep(plain, self.limit, LEVELS)
            .map_err(|error| error.to_string())
    }

    /// The state in a stored record.
    pub fn state(&self, stored: Vec<u8>) -> Option<State> {
        #[derive(serde::Deserialize)]
        struct Only {
            status: String,
        }
        let text = self.read(stored).ok()?;
        let only: Only = super::json::parse(&text).ok()?;
        Some(State::parse(&only.status))
    }
}

fn unpack(stored: &[u8], limit: usize) -> Result<Option<Vec<u8>>, DecodeError> {
    let Some(rest) = stored.strip_prefix(MAGIC) else {
        return Ok(None);
    };
    let end = rest.iter().position(|byte| *byte == 0);
    let (method, packed) = rest.split_at(end.unwrap_or(rest.len()));
    let method = String::from_utf8_lossy(method);
    decompress(&method, packed.get(1..).unwrap_or_default(), limit).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"status":"SUCCESS","result":[1,"é"],"task_id":"1"}"#;

    #[test]
    fn p_153_p_154_every_form_is_read_back_whoever_compressed_it() {
        let accept = || Accept::parse(&["json", "msgpack", "yaml"], None).unwrap();
        for serializer in ["json", "msgpack", "yaml"] {
            let plain = ResultFormat::new(Some(serializer), None, accept()).unwrap();
            for compression in ["gzip", "bzip2", "xz", "brotli", "zstd"] {
                let format = ResultFormat::new(Some(serializer), Some(compression), accept()).unwrap();
                let stored = format.write(RECORD.as_bytes()).unwrap();
                assert!(stored.starts_with(MAGIC));
                // A reader without compression of its own reads it.
                assert_eq!(plain.state(stored.to_vec()), Some(State::Success));
                assert_eq!(format.read(stored.to_vec()).unwrap(), RECORD);
            }
            let stored = plain.write(RECORD.as_bytes()).unwrap();
            assert_eq!(plain.read(stored.to_vec()).unwrap(), RECORD);
        }
    }

    #[test]
    fn p_154_what_is_not_accepted_is_not_read_and_pickle_is_refused_by_name() {
        let all = Accept::parse(&["json", "msgpack", "yaml"], None).unwrap();
        // What Celery writes of a long chain in a header; the parser of YAML goes less deep.
        for (serializer, levels) in [("json", 900), ("msgpack", 900), ("yaml", 250)] {
            let deep = "[".repeat(levels) + &"]".repeat(levels);
            let format = ResultFormat::new(Some(serializer), None, all.clone()).unwrap();
            let stored = format.write(deep.as_bytes()).unwrap().into_owned();
            assert_eq!(format.read(stored).unwrap(), deep);
        }
        let format = ResultFormat::new(Some("msgpack"), None, Accept::default()).unwrap();
        let stored = format.write(b"[1]").unwrap();
        let error = format.read(stored.to_vec()).unwrap_err();
        assert!(
            error.contains("type msgpack") && error.contains("result_accept_content is json"),
            "{error}"
        );
        let refused =
            |serializer, compression| ResultFormat::new(Some(serializer), compression, Accept::default()).unwrap_err();
        assert!(refused("pickle", None).contains("any code"));
        assert!(refused("auth", None).contains("json, msgpack and yaml"));
        assert!(refused("json", Some("rar")).contains("result_compression"));
        assert!(
            format
                .read(b"\0celery-compressed\0application/x-gzip".to_vec())
                .is_err()
        );
    }

    #[test]
    fn what_a_result_becomes_as_it_is_read_is_bounded() {
        let accept = || Accept::parse(&["json", "msgpack", "yaml"], None).unwrap();
        let long = format!("[{}1]", "1,".repeat(1000));
        for (serializer, compression) in [
            ("json", Some("gzip")),
            ("json", Some("zstd")),
            ("msgpack", None),
            ("msgpack", Some("xz")),
            ("yaml", None),
        ] {
            let format = ResultFormat::new(Some(serializer), compression, accept()).unwrap();
            let stored = format.write(long.as_bytes()).unwrap().into_owned();
            assert_eq!(format.read(stored.clone()).as_deref(), Ok(&*long));
            let error = format.bounded(1000).read(stored).unwrap_err();
            assert!(error.contains("1000"), "{serializer} {compression:?}: {error}");
        }
    }
}
