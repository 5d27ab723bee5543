//! Rules for paths.

use super::Problem;
use super::source::Identity;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// The folder of a file. It is `.` for a bare file name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// The absolute path without links, also of a file or folder that does not exist yet.
pub(crate) fn real(path: &Path) -> PathBuf {
    match fs::canonicalize(path) {
        Ok(real) => return real,
        // A link to a missing folder. A circle of links is another error.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Ok(target) = fs::read_link(path) {
                return real(&folder_of(path).join(target));
            }
        }
        Err(_) => {}
    }
    match path.file_name() {
        Some(name) => real(folder_of(path)).join(name),
        None => std::path::absolute(path).unwrap_or_else(|_| path.into()),
    }
}

/// The sorted names of the files and folders in a folder.
///
/// # Errors
/// An I/O problem if the folder cannot be listed.
pub(crate) fn names_in(folder: &Path) -> Result<Vec<OsString>, Problem> {
    let names =
        fs::read_dir(folder).and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    let mut names: Vec<OsString> =
        names.map_err(|error| Problem::io("cannot list the folder", &error).in_file(folder))?;
    names.sort();
    Ok(names)
}

/// True if both paths lead to one file or folder. Opens neither, because opening a pipe would wait for a writer.
pub(crate) fn is_same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|metadata| Identity::of(&metadata).file).ok();
    identity(a).is_some_and(|a| Some(a) == identity(b))
}

/// True if nothing exists at a path. A file that cannot be opened is not missing.
pub(crate) fn is_missing(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// True if a name from a file stays in its folder on every operating system: a single component.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
        && !name.contains(['\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn real_paths_follow_links_also_of_missing_folders() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir(root.join("a")).unwrap();
        symlink("a", root.join("link")).unwrap();
        symlink("a/missing", root.join("dangling")).unwrap();
        for (path, expected) in [
            ("a", "a"),
            ("a/.", "a"),
            ("a/../link", "a"),
            ("link/new/base", "a/new/base"),
            ("dangling", "a/missing"),
            ("dangling/base", "a/missing/base"),
        ] {
            assert_eq!(real(&folder.path().join(path)), root.join(expected), "{path}");
        }
        assert_eq!(real(Path::new("new")), std::env::current_dir().unwrap().join("new"));
        // A link to itself cannot be followed.
        symlink("circle", root.join("circle")).unwrap();
        assert_eq!(real(&root.join("circle/x")), root.join("circle/x"));
    }

    #[test]
    fn names_that_leave_the_folder_are_not_plain() {
        for name in ["", ".", "..", "../x", "/x", "sub/x", "./x", "x/", "..\\x", "C:x", "a\0b"] {
            assert!(!is_plain_name(name), "{name:?}");
        }
        assert!(is_plain_name("model-00001-of-00002.safetensors") && is_plain_name("..x"));
        assert_eq!([Path::new("x"), Path::new("a/x")].map(folder_of), [Path::new("."), Path::new("a")]);
    }
}
