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

    /// Reads the folders; what is broken, or cannot be read, is taken from `old`.
    fn read(folders: &Folders, old: &Self) -> (Self, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut shelf = Self::default();
        shelf.read_templates(folders, old, &mut problems);
        shelf.read_bindings(folders, old, &mut problems);
        (shelf, problems)
    }

    fn read_templates(&mut self, folders: &Folders, old: &Self, problems: &mut Vec<Problem>) {
        let folder = &folders.templates;
        let Some(paths) = list(folder, "template", !old.templates.is_empty(), problems) else {
            self.templates = old.templates.clone();
            self.labels = old.labels.clone();
            return;
        };
        for path in paths {
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
            if let Some(other) = self.templates.get(&key) {
                let text = format!("the template {:?} is in {} already", key.0, other.path().display());
                let hint = Some("give one of them another version".to_owned());
                problems.push(Problem::line(&path, 1, None, text).hint(hint));
            } else {
                self.templates.insert(key, template);
            }
        }
        self.labels = Labels::load(folder.path()).unwrap_or_else(|found| {
            problems.extend(found);
            old.labels.clone()
        });
        problems.extend(self.labels.check(folder.path(), |name| {
            let all = self.templates.range((name.to_owned(), 0)..=(name.to_owned(), u64::MAX));
            all.map(|((_, version), _)| *version).collect()
        }));
    }

    fn read_bindings(&mut self, folders: &Folders, old: &Self, problems: &mut Vec<Problem>) {
        let Some(paths) = list(&folders.tasks, "task", !old.bindings.is_empty(), problems) else {
            self.bindings = old.bindings.clone();
            return;
        };
        for path in paths {
            let read = Binding::load(&path, |name| self.template(name).cloned()).map(Arc::new);
            let binding = read.or_else(|found| {
                problems.extend(found);
                old.bindings
                    .values()
                    .find(|binding| binding.path() == path)
                    .cloned()
                    .ok_or(())
            });
            let Ok(binding) = binding else { continue };
            if let Some(other) = self.bindings.get(binding.name()) {
                let text = format!("the task {:?} is in {} already", binding.name(), other.path().display());
                problems.push(Problem::file(&path, text));
            } else {
                self.bindings.insert(binding.name().to_owned(), binding);
            }
        }
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
    /// The files that it was read from; `None` while something could not be read.
    files: Option<Vec<File>>,
    /// What the log says is wrong with them.
    told: Vec<Problem>,
}

/// Path, length and time of a file.
type File = (PathBuf, u64, Option<SystemTime>);

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
                files: Some(files),
                told: Vec::new(),
            }),
        })
    }

    /// The shelf as it is now. Files that changed are read again, and all of them until each could be read; one that is
    /// broken stays as it was, and the log says what is wrong.
    pub(super) fn shelf(&self) -> Arc<Shelf> {
        let mut seen = self.seen();
        let now = clock::instant();
        if now.saturating_duration_since(seen.looked) < PAUSE {
            return seen.shelf.clone();
        }
        seen.looked = now;
        let files = stamp(&self.folders);
        if seen.files.as_ref() == Some(&files) {
            return seen.shelf.clone();
        }
        let (shelf, problems) = Shelf::read(&self.folders, &seen.shelf);
        let is_whole = !problems.iter().any(Problem::is_unread);
        // Once, however often it is looked at.
        if is_whole || problems != seen.told {
            for problem in &problems {
                warn!("{problem} (the version from before stays in use)");
            }
            info!(
                "templates were read again: {} in order, {}",
                shelf.templates.len(),
                crate::text::count(problems.len(), "problem")
            );
        }
        seen.files = is_whole.then_some(files);
        seen.told = problems;
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
            // Of what a link stands for: in a ConfigMap each file is one, and only that changes.
            if let Ok(about) = std::fs::metadata(entry.path())
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

/// The YAML files of a folder. What cannot be told of one is no sign that it is gone.
fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if !is_one(&path) {
            continue;
        }
        match std::fs::metadata(&path) {
            Ok(about) if about.is_file() => files.push(path),
            Ok(_) => {}
            // Removed since, or a link to nothing.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(files)
}

/// The YAML files of a folder, by name; `None` if they cannot be told, or if the whole folder is gone that had some: it
/// may be on its way to another place, or another one on its way here.
fn list(folder: &Folder, what: &str, had_some: bool, problems: &mut Vec<Problem>) -> Option<Vec<PathBuf>> {
    match files(folder.path()) {
        Ok(mut files) => {
            files.sort();
            Some(files)
        }
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound && matches!(folder, Folder::Default(_)) && !had_some =>
        {
            Some(Vec::new())
        }
        Err(error) => {
            let text = format!("cannot read the {what} folder: {error}");
            problems.push(Problem::unread(folder.path(), text));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads the folders once more; templates in order, labels, tasks, and how many problems.
    fn read(folders: &Folders, shelf: &mut Shelf) -> (usize, usize, usize, usize) {
        let (now, problems) = Shelf::read(folders, shelf);
        *shelf = now;
        assert!(problems.iter().all(Problem::is_unread), "{problems:?}");
        let labels = shelf.labels.of_template("a").count();
        (shelf.templates.len(), labels, shelf.bindings.len(), problems.len())
    }

    /// A ConfigMap in a pod: each file is a link through `..data`, which is set to another folder.
    #[test]
    fn files_that_are_links_are_read_again_when_what_they_stand_for_changes() {
        use std::os::unix::fs::symlink;
        let root = std::env::temp_dir().join(format!("orchestra-library-{}", uuid::Uuid::new_v4()));
        let templates = root.join("templates");
        for (version, text) in [("..1", "x"), ("..2", "xy")] {
            std::fs::create_dir_all(templates.join(version)).unwrap();
            let text = format!("steps:\n- {{type: render, text: {text}}}\n");
            std::fs::write(templates.join(version).join("a.yaml"), text).unwrap();
        }
        symlink("..1", templates.join("..data")).unwrap();
        symlink("..data/a.yaml", templates.join("a.yaml")).unwrap();
        let folders = Folders {
            templates: Folder::Named(templates.clone()),
            tasks: Folder::Default(root.join("tasks")),
            texts: TextLimits::default(),
        };
        let before = stamp(&folders);
        assert_eq!((before.len(), read(&folders, &mut Shelf::default())), (1, (1, 0, 0, 0)));
        symlink("..2", templates.join("..data_tmp")).unwrap();
        std::fs::rename(templates.join("..data_tmp"), templates.join("..data")).unwrap();
        assert_ne!(stamp(&folders), before);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_file_of_which_nothing_can_be_told_is_not_gone() {
        let root = std::env::temp_dir().join(format!("orchestra-library-{}", uuid::Uuid::new_v4()));
        let templates = root.join("templates");
        std::fs::create_dir_all(&templates).unwrap();
        std::fs::write(templates.join("a.yaml"), "steps:\n- {type: render, text: x}\n").unwrap();
        std::fs::write(templates.join("labels.yaml"), "a:\n  prod: 1\n").unwrap();
        let folders = Folders {
            templates: Folder::Named(templates.clone()),
            tasks: Folder::Default(root.join("tasks")),
            texts: TextLimits::default(),
        };
        let mut shelf = Shelf::default();
        assert_eq!(read(&folders, &mut shelf), (1, 1, 0, 0));
        // A link that leads to itself cannot be followed, whoever tries, as root as well.
        std::fs::rename(templates.join("a.yaml"), root.join("a")).unwrap();
        std::os::unix::fs::symlink("a.yaml", templates.join("a.yaml")).unwrap();
        assert_eq!(read(&folders, &mut shelf), (1, 1, 0, 1));
        std::fs::remove_file(templates.join("a.yaml")).unwrap();
        std::fs::rename(root.join("a"), templates.join("a.yaml")).unwrap();
        std::fs::remove_file(templates.join("labels.yaml")).unwrap();
        std::os::unix::fs::symlink("labels.yaml", templates.join("labels.yaml")).unwrap();
        assert_eq!(read(&folders, &mut shelf), (1, 1, 0, 1));
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_cannot_be_read_stays_and_what_is_gone_goes() {
        let root = std::env::temp_dir().join(format!("orchestra-library-{}", uuid::Uuid::new_v4()));
        let (templates, tasks, away) = (root.join("templates"), root.join("tasks"), root.join("away"));
        let write = |path: PathBuf, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(templates.join("a.yaml"), "steps:\n- {type: render, text: x}\n");
        write(templates.join("b.yaml"), "steps:\n- {type: render, text: x}\n");
        write(templates.join("labels.yaml"), "a:\n  prod: 1\n");
        write(tasks.join("t.yaml"), "name: texts.t\ntemplate: a@prod\n");
        for folder in [Folder::Default, Folder::Named] {
            let folders = Folders {
                templates: folder(templates.clone()),
                tasks: folder(tasks.clone()),
                texts: TextLimits::default(),
            };
            let mut shelf = Shelf::default();
            assert_eq!(read(&folders, &mut shelf), (2, 1, 1, 0));
            // Gone as a whole, as in the middle of a swap; and no folder.
            for is_file in [false, true] {
                std::fs::rename(&templates, &away).unwrap();
                if is_file {
                    std::fs::write(&templates, "").unwrap();
                }
                assert_eq!(read(&folders, &mut shelf), (2, 1, 1, 1), "{folder:?} {is_file}");
                if is_file {
                    std::fs::remove_file(&templates).unwrap();
                }
                std::fs::rename(&away, &templates).unwrap();
            }
            std::fs::rename(&tasks, &away).unwrap();
            assert_eq!(read(&folders, &mut shelf), (2, 1, 1, 1));
            std::fs::rename(&away, &tasks).unwrap();
            // A file of a folder that is there is gone when it is gone.
            std::fs::rename(templates.join("b.yaml"), root.join("b")).unwrap();
            assert_eq!(read(&folders, &mut shelf), (1, 1, 1, 0));
            std::fs::rename(root.join("b"), templates.join("b.yaml")).unwrap();
        }
        // One that was never there is none, where nobody named it.
        let folders = |folder: fn(PathBuf) -> Folder| Folders {
            templates: folder(away.clone()),
            tasks: folder(away.clone()),
            texts: TextLimits::default(),
        };
        assert_eq!(read(&folders(Folder::Default), &mut Shelf::default()), (0, 0, 0, 0));
        assert_eq!(read(&folders(Folder::Named), &mut Shelf::default()), (0, 0, 0, 2));
        std::fs::remove_dir_all(root).unwrap();
    }
}
