//! The local cache of the Hugging Face hub: models by name, offline.

use super::{Problem, is_missing, names_in, quoted};
use std::borrow::Cow;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// The longest file that names a commit, in bytes.
const LONGEST_REFERENCE: u64 = 256;

/// The folder of a model that the path names: the path itself if something exists there, or else the snapshot of the model with this
/// name, such as `org/name`, in the cache of the hub.
///
/// # Errors
/// An I/O problem if nothing exists at a path that could be the name of a model, and the cache does not have it either.
pub(crate) fn model_folder(path: &Path) -> Result<Cow<'_, Path>, Problem> {
    find(path, &|name| env::var_os(name))
}

fn find<'a>(path: &'a Path, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Cow<'a, Path>, Problem> {
    let Some(name) = hub_name(path).filter(|_| is_missing(path)) else { return Ok(Cow::Borrowed(path)) };
    let cache = cache(variable);
    let snapshot = cache
        .as_ref()
        .and_then(|cache| snapshot(&cache.join(format!("models--{}", name.replace('/', "--")))));
    if let Some(snapshot) = snapshot {
        tracing::info!(model = %quoted(&name), folder = %quoted(&snapshot.to_string_lossy()), "found in the cache of the hub");
        return Ok(Cow::Owned(snapshot));
    }
    // The name of a model without an organization looks like any other path.
    if !name.contains('/') {
        return Ok(Cow::Borrowed(path));
    }
    let what =
        "nothing exists at this path, and the local cache of the Hugging Face hub has no model of this name";
    Err(Problem::environment(what).in_file(path).help(format!(
        "check the path, or download the model first: hf download {}. This program uses no network",
        super::visible(&name)
    )))
}

/// The name of a model, if a path can be one: one or two parts of letters, digits, dots, hyphens and underscores. The name of a file
/// with tensors is none.
fn hub_name(path: &Path) -> Option<String> {
    let mut parts = Vec::new();
    for component in path.components() {
        let Component::Normal(part) = component else { return None };
        let part = part.to_str()?;
        let is_plain = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !is_plain || part.starts_with('.') || part.contains("--") {
            return None;
        }
        parts.push(part);
    }
    let ends = ["safetensors", "npy", "npz", "json", "bin", "pt", "pth", "ckpt", "gguf"];
    let is_file = path.extension().is_some_and(|extension| ends.iter().any(|end| extension == *end));
    (!is_file && (1..=2).contains(&parts.len())).then(|| parts.join("/"))
}

/// The folder of the cache, by the variables of the hub's own library.
fn cache(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    folder("HF_HUB_CACHE")
        .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(folder("HF_HOME")?.join("hub")))
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(folder("HOME")?.join(".cache/huggingface/hub")))
}

/// The folder of the commit that `main` names, or the only one.
fn snapshot(model: &Path) -> Option<PathBuf> {
    let snapshots = model.join("snapshots");
    let main = model.join("refs/main");
    if fs::metadata(&main).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= LONGEST_REFERENCE) {
        let commit = fs::read_to_string(&main).ok()?;
        let commit = commit.trim();
        let folder = snapshots.join(commit);
        return (super::is_plain_name(commit) && folder.is_dir()).then_some(folder);
    }
    match &names_in(&snapshots).ok()?[..] {
        [only] => Some(snapshots.join(only)).filter(|folder| folder.is_dir()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Category, snapshot as shown};
    use super::*;
    use expect_test::expect;

    /// A cache with a model of two commits, and one without a reference.
    fn cache_folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for path in [
            "models--org--name/snapshots/aaa",
            "models--org--name/snapshots/bbb",
            "models--gpt2/snapshots/ccc",
        ] {
            fs::create_dir_all(folder.path().join("hub").join(path)).unwrap();
        }
        let refs = folder.path().join("hub/models--org--name/refs");
        fs::create_dir(&refs).unwrap();
        fs::write(refs.join("main"), "bbb").unwrap();
        folder
    }

    #[test]
    fn models_are_found_by_name() {
        let folder = cache_folder();
        let at = |variable: &'static str, path: &str| {
            let path = folder.path().join(path);
            let variables = move |name: &str| (name == variable).then(|| path.clone().into_os_string());
            find(Path::new("org/name"), &variables).map(Cow::into_owned)
        };
        let expected = folder.path().join("hub/models--org--name/snapshots/bbb");
        assert_eq!(at("HF_HUB_CACHE", "hub").unwrap(), expected);
        assert_eq!(at("HF_HOME", "").unwrap(), expected);
        fs::create_dir(folder.path().join("huggingface")).unwrap();
        assert!(at("XDG_CACHE_HOME", "").is_err());
        let variables = |name: &str| (name == "HF_HOME").then(|| folder.path().as_os_str().to_owned());
        let only = folder.path().join("hub/models--gpt2/snapshots/ccc");
        assert_eq!(find(Path::new("gpt2"), &variables).unwrap(), only);
        // The reference leads outside of the cache, or nowhere.
        for commit in ["../../x", "ddd", ""] {
            fs::write(folder.path().join("hub/models--org--name/refs/main"), commit).unwrap();
            assert_eq!(at("HF_HOME", "").unwrap_err().category(), Category::Io, "{commit}");
        }
    }

    #[test]
    fn other_paths_stay_as_they_are() {
        let none = |_: &str| None;
        for path in
            ["/org/name", "../name", "a/b/c", "src", "org/x.safetensors", "no-such-name", "a b", "org/na:me"]
        {
            assert_eq!(find(Path::new(path), &none).unwrap(), Path::new(path), "{path}");
        }
        expect![[r#"
            org/name: nothing exists at this path, and the local cache of the Hugging Face hub has no model of this name; help: check the path, or download the model first: hf download org/name. This program uses no network
        "#]].assert_eq(&shown(find(Path::new("org/name"), &none).unwrap_err()));
    }
}
