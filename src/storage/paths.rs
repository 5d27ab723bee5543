//! Rules for paths.

use super::Problem;
use super::source::Identity;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path};

/// The folder of a file. It is `.` for a bare file name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
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

    #[test]
    fn names_that_leave_the_folder_are_not_plain() {
        for name in ["", ".", "..", "../x", "/x", "sub/x", "./x", "x/", "..\\x", "C:x", "a\0b"] {
            assert!(!is_plain_name(name), "{name:?}");
        }
        assert!(is_plain_name("model-00001-of-00002.safetensors") && is_plain_name("..x"));
        assert_eq!([Path::new("x"), Path::new("a/x")].map(folder_of), [Path::new("."), Path::new("a")]);
    }
}
