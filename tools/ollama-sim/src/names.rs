//! Model names: `[host/][namespace/]model[:tag]`.

use std::fmt;

const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";

/// A model name with its defaults filled in; equal to another without regard to case.
#[derive(Debug, Clone)]
pub struct Name {
    host: String,
    namespace: String,
    model: String,
    tag: String,
}

impl Name {
    /// Parses a name; `None` when it is missing or a part of it is not allowed.
    pub fn parse(text: &str) -> Option<Self> {
        let (path, tag) = match text.rsplit_once(':') {
            // A colon before the last slash belongs to the host's port.
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (text, TAG),
        };
        let mut parts = path.rsplitn(3, '/');
        let model = parts.next()?;
        let namespace = parts.next().unwrap_or(NAMESPACE);
        let host = parts.next().unwrap_or(HOST);
        let valid = is_part(model, 80, "._-")
            && is_part(tag, 80, "._-")
            && is_part(namespace, 80, "_-")
            && is_part(host, 350, "._-:");
        valid.then(|| Self {
            host: host.to_owned(),
            namespace: namespace.to_owned(),
            model: model.to_owned(),
            tag: tag.to_owned(),
        })
    }

    /// The canonical name in full: `registry.ollama.ai/library/m:latest`.
    pub fn full(&self) -> String {
        format!("{}/{}/{}:{}", self.host, self.namespace, self.model, self.tag)
    }

    /// What equal names have in common, whatever their case.
    pub fn key(&self) -> String {
        self.full().to_lowercase()
    }

    /// A name whose requests the real server forwards to its cloud.
    pub fn is_cloud(&self) -> bool {
        let tag = self.tag.to_lowercase();
        tag == "cloud" || tag.ends_with("-cloud")
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.full().eq_ignore_ascii_case(&other.full())
    }
}

/// The shortest canonical form, always with a tag.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host != HOST {
            write!(f, "{}/", self.host)?;
        }
        if self.host != HOST || self.namespace != NAMESPACE {
            write!(f, "{}/", self.namespace)?;
        }
        write!(f, "{}:{}", self.model, self.tag)
    }
}

fn is_part(part: &str, longest: usize, punctuation: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || punctuation.contains(c);
    let first = |c: char| c.is_ascii_alphanumeric() || c == '_';
    part.len() <= longest && part.starts_with(first) && part.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text).expect("a valid name")
    }

    #[test]
    fn a_name_without_a_tag_is_latest_and_case_does_not_matter() {
        assert_eq!(name("m"), name("M:latest"));
        assert_eq!(name("m"), name("registry.ollama.ai/library/m"));
        assert_ne!(name("m"), name("m:135m"));
    }

    #[test]
    fn the_short_form_always_has_a_tag() {
        assert_eq!(name("m").to_string(), "m:latest");
        assert_eq!(name("library/m:1").to_string(), "m:1");
        assert_eq!(name("me/m").to_string(), "me/m:latest");
        assert_eq!(name("host:80/me/m").to_string(), "host:80/me/m:latest");
        assert_eq!(name("m").full(), "registry.ollama.ai/library/m:latest");
    }

    #[test]
    fn parts_that_are_not_allowed_make_no_name() {
        for bad in [
            "",
            "a b",
            "m:",
            ":t",
            "-m",
            "a.b/m",
            "a/b/c/d",
            "m:a b",
            &"m".repeat(81),
        ] {
            assert!(Name::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn cloud_names_are_known_by_their_tag() {
        assert!(name("m:cloud").is_cloud());
        assert!(name("gpt-oss:120b-cloud").is_cloud());
        assert!(!name("cloud").is_cloud());
    }
}
