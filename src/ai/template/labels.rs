//! `labels.yaml` beside the templates: names for versions, which can be moved from one to another.
//!
//! ```yaml
//! summarize:
//!   prod: 3
//!   next: {version: 3, canary: 4, percent: 10}
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::yaml::{Data, Mark, Yaml, parse, read, text_of};
use super::{Fields, Problem, Problems};

/// The file, in the folder of the templates.
pub const LABELS: &str = "labels.yaml";

/// Labels of templates.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    /// By template and label.
    found: BTreeMap<(String, String), Label>,
}

/// What a label stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Label {
    /// The version.
    pub version: u64,
    /// Another version, and how many of a hundred tasks are run with it.
    pub canary: Option<(u64, f64)>,
    /// Line of the file.
    line: usize,
}

impl Label {
    /// A label of its own.
    pub fn new(version: u64, canary: Option<(u64, f64)>) -> Self {
        Self {
            version,
            canary,
            line: 0,
        }
    }

    /// The version of a task: the same each time it is asked for, and when the share grows those stay that were in it.
    pub(crate) fn choose(&self, name: &str, task: &str) -> u64 {
        let Some((canary, percent)) = self.canary else {
            return self.version;
        };
        let mut hash = Sha256::new();
        hash.update(name);
        hash.update([0]);
        hash.update(task);
        let bytes: [u8; 32] = hash.finalize().into();
        let place = bytes[..6]
            .iter()
            .fold(0_u64, |place, byte| place << 8 | u64::from(*byte));
        // 48 bits are whole in a float.
        if place as f64 / (1_u64 << 48) as f64 * 100.0 < percent {
            canary
        } else {
            self.version
        }
    }

    /// All versions that it may stand for.
    pub(crate) fn versions(&self) -> impl Iterator<Item = u64> {
        [Some(self.version), self.canary.map(|(version, _)| version)]
            .into_iter()
            .flatten()
    }

    /// As it is written in the file.
    fn written(&self) -> String {
        match self.canary {
            None => self.version.to_string(),
            Some((canary, percent)) => {
                format!("{{version: {}, canary: {canary}, percent: {percent}}}", self.version)
            }
        }
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.version)?;
        match self.canary {
            None => Ok(()),
            Some((canary, percent)) => write!(f, ", {percent} % of tasks {canary}"),
        }
    }
}

impl Labels {
    /// Reads the file of a folder, if there is one.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(folder: &Path) -> Result<Self, Vec<Problem>> {
        let path = folder.join(LABELS);
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(Self::default()),
            Err(error) => return Err(vec![Problem::unread(&path, format!("cannot be read: {error}"))]),
        }
        let mut problems = Problems::of(&path);
        // Without labels there is nothing in it, or what somebody wrote about them.
        if text_of(&path).is_ok_and(|text| is_blank(&text)) {
            return Ok(Self::default());
        }
        let whole = read(&mut problems);
        let labels = whole.map(|whole| Self::of(&whole, &mut problems)).unwrap_or_default();
        match problems.is_empty() {
            true => Ok(labels),
            false => Err(problems.into_vec()),
        }
    }

    fn of(whole: &Yaml, problems: &mut Problems) -> Self {
        let mut labels = Self::default();
        let Some(templates) = whole.as_map() else {
            problems.add(whole.at, "labels must be a mapping of templates");
            return labels;
        };
        for (template, own) in templates {
            let Some(own) = own.as_map() else {
                let text = format!(
                    "the labels of {:?} must be a mapping, not {}",
                    template.name,
                    own.what()
                );
                problems.add(own.at, text);
                continue;
            };
            for (label, value) in own {
                if !is_label(&label.name) {
                    let text = format!(
                        "{:?} cannot be a label: letters, digits, - and _, not a number",
                        label.name
                    );
                    problems.add(label.at, text);
                } else if let Some(read) = read_label(&label.name, label.at, value, problems) {
                    labels.found.insert((template.name.clone(), label.name.clone()), read);
                }
            }
        }
        labels
    }

    /// What `name@label` stands for.
    pub(crate) fn get(&self, name: &str) -> Option<(&str, &Label)> {
        let (template, label) = name.rsplit_once('@')?;
        let known = self.found.get_key_value(&(template.to_owned(), label.to_owned()));
        known.map(|((template, _), label)| (template.as_str(), label))
    }

    /// The labels of a template.
    pub fn of_template<'a>(&'a self, template: &'a str) -> impl Iterator<Item = (&'a str, &'a Label)> {
        let own = self.found.iter().filter(move |((name, _), _)| name == template);
        own.map(|((_, label), stands)| (label.as_str(), stands))
    }

    /// Labels of versions that there are not.
    pub(crate) fn check(&self, folder: &Path, versions: impl Fn(&str) -> Vec<u64>) -> Vec<Problem> {
        let mut problems = Vec::new();
        for ((template, label), stands) in &self.found {
            let known = versions(template);
            let Some(lacking) = stands.versions().find(|version| !known.contains(version)) else {
                continue;
            };
            let text = if known.is_empty() {
                format!("label {template}@{label}: there is no template {template:?}")
            } else {
                let known: Vec<String> = known.iter().map(u64::to_string).collect();
                let known = known.join(", ");
                format!("label {template}@{label}: there is no version {lacking} of {template:?}; there are {known}")
            };
            problems.push(Problem::line(&folder.join(LABELS), stands.line, None, text));
        }
        problems
    }

    /// The text of a file in which a label stands for something else, or for nothing; all other lines stay as they are.
    ///
    /// # Errors
    /// A text for people: the file cannot be read, or the label is written over several lines.
    pub fn moved(folder: &Path, name: &str, to: Option<&Label>) -> Result<String, String> {
        let path = folder.join(LABELS);
        let text = match path.try_exists() {
            Ok(false) => String::new(),
            _ => text_of(&path).map_err(|problem| problem.to_string())?,
        };
        let (template, label) = name
            .rsplit_once('@')
            .filter(|(template, label)| !template.is_empty() && is_label(label))
            .ok_or_else(|| format!("{name:?} is no label of a template: write NAME@LABEL"))?;
        let mut problems = Problems::of(&path);
        let whole = match is_blank(&text) {
            true => None,
            false => parse(&text, &mut problems),
        };
        if !problems.is_empty() {
            return Err(problems
                .into_vec()
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("\n"));
        }
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let templates = whole.as_ref().and_then(Yaml::as_map).unwrap_or_default();
        let own = templates.iter().find(|(key, _)| key.name == template);
        let of_template = own.and_then(|(_, own)| own.as_map()).unwrap_or_default();
        let line = to.map(|to| format!("{label}: {}", to.written()));
        match (of_template.iter().find(|(key, _)| key.name == label), own) {
            (Some((key, value)), Some((template, _))) => {
                let at = key.at.line - 1;
                let alone = value.at.line == key.at.line && key.at.line != template.at.line;
                let begin = lines.get(at).map(|text| text.trim_start().starts_with(label));
                if !alone || begin != Some(true) || matches!(&value.data, Data::List(_)) {
                    return Err(format!(
                        "{}:{}: write {label} into a line of its own first",
                        path.display(),
                        key.at.line
                    ));
                }
                let indent: String = lines[at].chars().take_while(|char| char.is_whitespace()).collect();
                match line {
                    Some(line) => lines[at] = format!("{indent}{line}"),
                    None => drop(lines.remove(at)),
                }
                if of_template.len() == 1 && to.is_none() {
                    lines.remove(template.at.line - 1);
                }
            }
            (_, _) if to.is_none() => return Err(format!("there is no label {name}")),
            (None, Some((template, value))) => {
                if of_template.is_empty() || value.at.line == template.at.line {
                    let place = format!("{}:{}", path.display(), template.at.line);
                    return Err(format!(
                        "{place}: write the labels of {:?} into lines of their own first",
                        template.name
                    ));
                }
                let indent = " ".repeat(value.at.column.saturating_sub(1).max(2));
                lines.insert(template.at.line, format!("{indent}{}", line.unwrap_or_default()));
            }
            _ => lines.extend([format!("{template}:"), format!("  {}", line.unwrap_or_default())]),
        }
        let mut text = lines.join("\n");
        text.push('\n');
        Ok(text)
    }
}

/// Whether a file has nothing but comments.
fn is_blank(text: &str) -> bool {
    text.lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
}

/// Names of labels: a number would be a version.
fn is_label(name: &str) -> bool {
    let fits = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
    !name.is_empty() && name.len() <= 100 && name.chars().all(fits) && name.parse::<u64>().is_err()
}

fn read_label(name: &str, at: Mark, value: &Yaml, problems: &mut Problems) -> Option<Label> {
    let line = at.line;
    if let Data::Scalar(number) = &value.data
        && let Some(version) = number.as_u64().filter(|version| *version > 0)
    {
        return Some(Label {
            version,
            canary: None,
            line,
        });
    }
    if value.as_map().is_none() {
        let hint = Some("write a version, or {version: 3, canary: 4, percent: 10}".to_owned());
        problems.add_with(
            value.at,
            format!("label {name:?} must be a version, not {}", value.what()),
            hint,
        );
        return None;
    }
    let mut fields = Fields::of(format!("the label {name:?}"), value, problems)?;
    fields.need("version", problems);
    let version = fields.whole("version", 1, problems);
    let canary = fields.whole("canary", 1, problems);
    let place = fields.place("percent");
    let percent = fields.take("percent").map(|percent| percent.to_value().as_f64());
    fields.finish(problems);
    let canary = match (canary, percent) {
        (None, None) => None,
        (Some(canary), Some(Some(percent))) if percent > 0.0 && percent < 100.0 => Some((canary, percent)),
        (Some(_), Some(_)) => {
            problems.add(place, "percent must be more than 0 and less than 100");
            return None;
        }
        _ => {
            problems.add(place, format!("the label {name:?} needs both canary and percent"));
            return None;
        }
    };
    Some(Label {
        version: version?,
        canary,
        line,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_of_tasks_and_grows_without_moving_those_in_it() {
        let share = |percent: f64| -> Vec<usize> {
            let label = Label::new(3, Some((4, percent)));
            (0..4000)
                .filter(|at| label.choose("s@next", &format!("task-{at}")) == 4)
                .collect()
        };
        let (few, many) = (share(10.0), share(50.0));
        assert!((320..480).contains(&few.len()), "{}", few.len());
        assert!((1850..2150).contains(&many.len()), "{}", many.len());
        assert!(few.iter().all(|task| many.contains(task)));
        assert_eq!(Label::new(3, None).choose("s@next", "x"), 3);
    }

    #[test]
    fn a_label_is_moved_and_the_rest_of_the_file_stays() {
        let folder = std::env::temp_dir().join(format!("orchestra-labels-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut file = String::new();
        let mut step = |name: &str, to: Option<Label>| {
            file = Labels::moved(&folder, name, to.as_ref()).unwrap();
            std::fs::write(folder.join(LABELS), &file).unwrap();
            Labels::load(&folder).unwrap();
            file.clone()
        };
        assert_eq!(step("a@prod", Some(Label::new(2, None))), "a:\n  prod: 2\n");
        std::fs::write(folder.join(LABELS), "# ours\na:\n  prod: 2 \n\n# theirs\nb: {x: 1}\n").unwrap();
        assert_eq!(
            step("a@prod", Some(Label::new(2, Some((3, 2.5))))),
            "# ours\na:\n  prod: {version: 2, canary: 3, percent: 2.5}\n\n# theirs\nb: {x: 1}\n"
        );
        assert!(step("a@next", Some(Label::new(3, None))).starts_with("# ours\na:\n  next: 3\n  prod: {version"));
        assert!(step("c@prod", Some(Label::new(1, None))).ends_with("b: {x: 1}\nc:\n  prod: 1\n"));
        assert!(!step("c@prod", None).contains("c:"));
        for (name, wrong) in [
            ("b@x", "into a line of its own first"),
            ("b@y", "into lines of their own first"),
            ("a@3", "is no label of a template"),
            ("a", "is no label of a template"),
        ] {
            let error = Labels::moved(&folder, name, Some(&Label::new(1, None))).unwrap_err();
            assert!(error.contains(wrong), "{name}: {error}");
        }
        assert!(
            Labels::moved(&folder, "d@prod", None)
                .unwrap_err()
                .contains("there is no label")
        );
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
