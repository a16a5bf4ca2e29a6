//! The files of signed messages: whose signatures are believed, and what signs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::table::Given;
use crate::wire;

/// Whose signatures are believed, and what signs: the files that the settings name.
///
/// # Errors
/// A file cannot be read, or is not what it should be.
pub(super) fn security(given: &Given) -> Result<Option<Arc<wire::Security>>, String> {
    let read = |setting: &str, path: &Path| {
        std::fs::read_to_string(path).map_err(|error| format!("{setting}: cannot read {}: {error}", path.display()))
    };
    let Some(store) = &given.security_cert_store else {
        return match given.security_key.is_some() || given.security_certificate.is_some() {
            true => Err("security_cert_store is not set: it says whose signatures are believed".into()),
            false => Ok(None),
        };
    };
    let mut security = wire::Security::new(given.security_digest.as_deref().unwrap_or("sha256"))
        .map_err(|error| format!("security_digest: {error}"))?;
    for path in certificates(store).map_err(|error| format!("security_cert_store: {store}: {error}"))? {
        security
            .trust(&read("security_cert_store", &path)?)
            .map_err(|error| format!("security_cert_store: {}: {error}", path.display()))?;
    }
    match (&given.security_key, &given.security_certificate) {
        (Some(key), Some(certificate)) => security
            .sign_with(
                &read("security_key", key)?,
                given.security_key_password.as_deref(),
                &read("security_certificate", certificate)?,
            )
            .map_err(|error| format!("security_key: {}: {error}", key.display()))?,
        (None, None) => {}
        _ => return Err("security_key and security_certificate go together: one of them is not set".into()),
    }
    Ok(Some(Arc::new(security)))
}

/// The files of a certificate store, as Celery finds them: a folder means everything in it.
fn certificates(store: &str) -> std::io::Result<Vec<PathBuf>> {
    let path = Path::new(store);
    let (folder, pattern) = if path.is_dir() {
        (path, "*")
    } else {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.contains('*') {
            return Ok(vec![path.to_owned()]);
        }
        (path.parent().unwrap_or(Path::new(".")), name)
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    })? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_file() && !name.starts_with('.') && fits(name, pattern) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a name fits a pattern in which `*` stands for anything.
pub(super) fn fits(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((start, rest)) => name
            .strip_prefix(start)
            .is_some_and(|name| (0..=name.len()).any(|at| name.is_char_boundary(at) && fits(&name[at..], rest))),
    }
}
