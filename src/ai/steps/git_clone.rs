//! `git_clone`: a repository in the run's own folder. It goes with the run, so it is cloned again when a later delivery
//! still needs it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::http_request::parse;
use super::{Field, Fields, Stop, Type, needed, nothing_to_check, text};
use crate::ai::permits::Permits;
use crate::ai::program::{self, Program};
use crate::ai::site::{Site, blocking, without_passwords};

/// The folder in the workspace.
const FOLDER: &str = "repository";

pub(super) const TYPE: Type = Type {
    name: "git_clone",
    about: "clones a repository of a server of ai_http_hosts, or of a folder of ai_read_paths, with an allowed git",
    fields: FIELDS,
    check: nothing_to_check,
    is_local: true,
};

const FIELDS: &[Field] = &[
    needed(text("repo", "https://…, or the path of a repository here")),
    text("branch", "a branch or tag; without it the main one"),
];

/// The folder of what was cloned in this run.
pub(super) fn clone_of(site: &Site<'_>) -> Option<PathBuf> {
    let folder = site.workspace.existing()?.join(FOLDER);
    folder.is_dir().then_some(folder)
}

pub(super) async fn run(mut fields: Fields, site: &Site<'_>) -> Result<Value, Stop> {
    let refused = |text: String| Stop::failed("GitError", text);
    let permits = site.engine.permits();
    let git = permits.program("git").map_err(refused)?;
    let repo = fields.need("repo")?;
    let here = if repo.contains("://") {
        let url = parse(&repo).map_err(|_| refused(format!("repo: {repo:?} must be https://… or a path")))?;
        let port = url.port_or_known_default().unwrap_or(0);
        permits
            .host(url.host_str().unwrap_or_default(), port)
            .map_err(refused)?;
        None
    } else {
        let (permits, repo) = (permits.clone(), repo.clone());
        let found = blocking(move || repository(&permits, &repo)).await?;
        Some(found.map_err(refused)?)
    };
    let branch = fields.text("branch").filter(|branch| !branch.is_empty());
    if branch.as_ref().is_some_and(|branch| branch.starts_with('-')) || repo.starts_with('-') {
        return Err(refused("a branch or repository must not begin with -".into()));
    }
    let folder = site
        .workspace
        .folder()
        .map_err(|error| refused(format!("no folder for the run: {error}")))?;
    let target = folder.join(FOLDER);
    let _ = std::fs::remove_dir_all(&target);
    let mut arguments: Vec<String> = ["-c", "core.symlinks=false", "-c", "http.followRedirects=false", "clone"]
        .map(str::to_owned)
        .into();
    arguments.extend(["--depth", "1", "--single-branch", "--no-tags", "--quiet"].map(str::to_owned));
    if here.is_some() {
        arguments.push("--no-hardlinks".into());
    }
    if let Some(branch) = &branch {
        arguments.extend(["--branch".to_owned(), branch.clone()]);
    }
    let (from, protocols) = match here {
        Some(path) => (format!("file://{}", path.display()), "file"),
        None => (repo.clone(), "http:https"),
    };
    arguments.extend(["--".to_owned(), from, FOLDER.to_owned()]);
    // Nobody's settings but those above: no hooks, filters, helpers or other transports that somebody has set up, and
    // nothing that an earlier step has left at home.
    let environment = [
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_NO_LAZY_FETCH", "1"),
        ("GIT_ALLOW_PROTOCOL", protocols),
    ];
    let environment = environment
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let program = |arguments| Program {
        path: git.clone(),
        arguments,
        folder: folder.to_owned(),
        home: folder.to_owned(),
        environment: Vec::clone(&environment),
    };
    let ended = program::run(program(arguments), permits.limits)
        .await
        .map_err(refused)?;
    if ended.code != Some(0) {
        return Err(refused(format!("{repo}: {}", ended.stderr.trim())));
    }
    // From outside, and told which repository: nothing of what was checked out is looked at.
    let words = vec![format!("--git-dir={FOLDER}/.git"), "rev-parse".into(), "HEAD".into()];
    let commit = program::run(program(words), permits.limits).await.map_err(refused)?;
    let repo = without_passwords(repo);
    Ok(json!({"path": target.display().to_string(), "repo": repo, "branch": branch, "commit": commit.stdout.trim()}))
}

/// Where a repository here is: the path that was allowed is the one that is cloned. What it may hold is what may be read
/// here.
fn repository(permits: &Permits, repo: &str) -> Result<PathBuf, String> {
    let folder = permits.folder(Path::new(repo), None)?;
    // In git's own order.
    let within = folder.join(".git");
    let folder = if within.symlink_metadata().is_ok() {
        permits.folder(&within, None)?
    } else {
        folder
    };
    permits.open(&folder.join("HEAD"), None)?;
    Ok(folder)
}
