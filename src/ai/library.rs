//! What stands in the folders: templates by name and version, and task files. A worker looks again while it runs; what
//! is broken then stays as it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tracing::{info, warn};

use super::options::{Folder, TextLimits};
use super::task_file::Binding;
use super::template::{LABELS, Label, Labels, Problem, Template};
use crate::clock;

/// How often the folders are looked at, at most.
const PAUSE: Duration = Duration::from_secs(1);

/// Templates and task files as they were read.
#[derive(Clone, Debug, Default)]
pub(super) struct Shelf {
    templates: BTreeMap<(String, u64), Arc<Template>>,
    bindings: BTreeMap<String, Arc<Binding>>,
    labels: Labels,
}

impl Shelf {
    /// All templates, by name and version.
    pub(super) fn templates(&self) -> impl Iterator<Item = &Arc<Template>> {
        self.templates.values()
    }

    /// All task files, by the names of their tasks.
    pub(super) fn bindings(&self) -> impl Iterator<Item = &Arc<Binding>> {
        self.bindings.values()
    }

    /// The task file of a task.
    pub(super) fn binding(&self, task: &str) -> Option<&Arc<Binding>> {
        self.bindings.get(task)
    }

    /// Names of versions that can be moved.
    pub(super) fn labels(&self) -> &Labels {
        &self.labels
    }

    /// What `name@label` stands for.
    pub(super) fn label(&self, name: &str) -> Option<(&str, &Label)> {
        self.labels.get(name)
    }

    /// One version of a template.
    pub(super) fn version(&self, name: &str, version: u64) -> Option<&Arc<Template>> {
        self.templates.get(&(name.to_owned(), version))
    }

    /// A template: `name@2`, `name@label` for what most of its tasks are run with, or `name` for its newest version.
    pub(super) fn template(&self, name: &str) -> Option<&Arc<Template>> {
        if let Some((template, label)) = self.labels.get(name) {
            return self.version(template, label.version);
        }
        match name.rsplit_once('@') {
            Some((name, version)) => self.version(name, version.parse().ok()?),
            None => {
                let versions = self.templates.range((name.to_owned(), 0)..=(name.to_owned(), u64::MAX));
                versions.last().map(|(_, template)| template)
            }
        }
    }

    /// Reads the folders; what is broken is taken from `old`.
    fn read(folders: &Folders, old: &Self) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut shelf = Self::default();
        for path in list(&folders.templates, "template", &mut problems) {
            let read = Template::load_within(&path, folders.texts).map(Arc::new);
            let template = read.or_else(|found| {
                problems.extend(found);
                old.templates
                    .values()
                    .find(|template| template.path() == path)
                    .cloned()
                    .ok_or(())
            });
            let Ok(template) = template else { continue };
            let key = (template.name().to_owned(), template.version());
            if let Some(other) = shelf.templates.get(&key) {
                let text = format!("the template {:?} is in {} already", key.0, other.path().display());
                let hint = Some("give one of them another version".to_owned());
                problems.push(Problem::line(&path, 1, None, text).hint(hint));
            } else {
                shelf.templates.insert(key, template);
            }
        }
        shelf.labels = Labels::load(folders.templates.path()).unwrap_or_else(|found| {
            problems.extend(found);
            old.labels.clone()
        });
        problems.extend(shelf.labels.check(folders.templates.path(), |name| {
            let all = shelf
                .templates
                .range((name.to_owned(), 0)..=(name.to_owned(), u64::MAX));
            all.map(|((_, version), _)| *version).collect()
        }));
        for path in list(&folders.tasks, "task", &mut problems) {
            let read = Binding::load(&path, |name| shelf.template(name).cloned()).map(Arc::new);
            let binding = read.or_else(|found| {
                problems.extend(found);
                old.bindings
                    .values()
                    .find(|binding| binding.path() == path)
                    .cloned()
                    .ok_or(())
            });
            let Ok(binding) = binding else { continue };
            if let Some(other) = shelf.bindings.get(binding.name()) {
                let text = format!("the task {:?} is in {} already", binding.name(), other.path().display());
                problems.push(Problem::file(&path, text));
            } else {
                shelf.bindings.insert(binding.name().to_owned(), binding);
            }
        }
        (shelf, problems)
    }
}

#[derive(Clone, Debug)]
struct Folders {
    templates: Folder,
    tasks: Folder,
    texts: TextLimits,
}

/// The shelf, and when it was last looked at.
#[derive(Debug)]
pub(super) struct Library {
    folders: Folders,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    shelf: Arc<Shelf>,
    looked: clock::Instant,
    files: Vec<(PathBuf, u64, Option<SystemTime>)>,
}

impl Library {
    /// Reads the folders.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub(super) fn open(templates: &Folder, tasks: &Folder, texts: TextLimits) -> Result<Self, Vec<Problem>> {
        let folders = Folders {
            templates: templates.clone(),
            tasks: tasks.clone(),
            texts,
        };
        let files = stamp(&folders);
        let (shelf, problems) = Shelf::read(&folders, &Shelf::default());
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Self {
            folders,
            seen: Mutex::new(Seen {
                shelf: Arc::new(shelf),
                looked: clock::instant(),
                files,
            }),
        })
    }

    /// The shelf as it is now. Files that changed are read again; one that is broken stays as it was, and the log says
    /// what is wrong.
    pub(super) fn shelf(&self) -> Arc<Shelf> {
        let mut seen = self.seen();
        let now = clock::instant();
        if now.saturating_duration_since(seen.looked) < PAUSE {
            return seen.shelf.clone();
        }
        seen.looked = now;
        let files = stamp(&self.folders);
        if files == seen.files {
            return seen.shelf.clone();
        }
        seen.files = files;
        let (shelf, problems) = Shelf::read(&self.folders, &seen.shelf);
        for problem in &problems {
            warn!("{problem} (the version from before stays in use)");
        }
        info!(
            "templates were read again: {} in order, {}",
            shelf.templates.len(),
            crate::text::count(problems.len(), "problem")
        );
        seen.shelf = Arc::new(shelf);
        seen.shelf.clone()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // A panic in between leaves a shelf that is whole.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What changes when a file does.
fn stamp(folders: &Folders) -> Vec<(PathBuf, u64, Option<SystemTime>)> {
    let parts = folders.templates.path().join("prompts");
    let mut found = Vec::new();
    for folder in [folders.templates.path(), &parts, folders.tasks.path()] {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if let Ok(about) = entry.metadata()
                && about.is_file()
            {
                found.push((entry.path(), about.len(), about.modified().ok()));
            }
        }
    }
    found.sort();
    found
}

/// Whether a file is a template or task file; cases of tests stand beside them.
pub(super) fn is_one(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let yaml = name.strip_suffix(".yaml").or_else(|| name.strip_suffix(".yml"));
    yaml.is_some_and(|stem| !stem.ends_with(".test") && !stem.starts_with('.')) && name != LABELS
}

/// The YAML files of a folder, by name.
fn list(folder: &Folder, what: &str, problems: &mut Vec<Problem>) -> Vec<PathBuf> {
    match std::fs::read_dir(folder.path()) {
        Ok(entries) => {
            let paths = entries.flatten().map(|entry| entry.path());
            let mut files: Vec<PathBuf> = paths.filter(|path| is_one(path) && path.is_file()).collect();
            files.sort();
            files
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && matches!(folder, Folder::Default(_)) => {
            Vec::new()
        }
        Err(error) => {
            let text = format!("cannot read the {what} folder: {error}");
            problems.push(Problem::file(folder.path(), text));
            Vec::new()
        }
    }
}
