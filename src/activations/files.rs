//! From paths to opened files, in reading order.

use super::headers::npy_name;
use crate::storage::{Access, Problem, Problems, Source, quoted};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};

/// Opens the files that `paths` and the folders among them name. Returns those that could be opened, in reading order.
pub(super) fn open(paths: &[PathBuf], access: Access, problems: &mut Problems) -> Vec<Source> {
    if paths.is_empty() {
        problems.push(
            Problem::usage("expected at least one file or folder with activations, found none")
                .help("give files or folders after --activations"),
        );
    }
    let mut files: Vec<_> =
        paths.iter().filter_map(|path| problems.collect(files_of(path))).flatten().collect();
    files.sort_by_cached_key(|path| reading_order(path));

    let mut sources: Vec<Source> = Vec::with_capacity(files.len());
    let mut opened = BTreeMap::new();
    for path in &files {
        let Some(source) = problems.collect(Source::open(path, access)) else { continue };
        match source.identity().map(|identity| opened.entry(identity.file)) {
            Some(Entry::Occupied(first)) => {
                let first: &PathBuf = first.get();
                let what =
                    format!("the same file is given twice: also as {}", quoted(&first.to_string_lossy()));
                problems.push(Problem::usage(what).in_file(path).help("leave one of the two out"));
            }
            Some(Entry::Vacant(entry)) => {
                entry.insert(path.clone());
                sources.push(source);
            }
            None => sources.push(source),
        }
    }
    sources
}

/// The file itself, or the activation files in a folder.
fn files_of(path: &Path) -> Result<Vec<PathBuf>, Problem> {
    if !path.is_dir() {
        // What does not exist is reported when it is opened.
        return if is_activations(path) || !path.exists() {
            Ok(vec![path.into()])
        } else {
            Err(Problem::usage("expected a folder, a .safetensors file or a .npy file")
                .in_file(path)
                .help("save the activations with safetensors' save_file or numpy's save"))
        };
    }
    let failed = |error| Problem::io("cannot list the folder", &error).in_file(path);
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if is_activations(&file) {
            files.push(file);
        }
    }
    if files.is_empty() {
        return Err(Problem::usage("expected .safetensors or .npy files in the folder, found none")
            .in_file(path)
            .help("give the folder that holds the files themselves: folders in it are not searched"));
    }
    Ok(files)
}

fn is_activations(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors" || extension == "npy")
}

/// Order of paths, except that parts of a `.npy` site are in order of number.
fn reading_order(path: &Path) -> (PathBuf, Option<PartNumber>, PathBuf) {
    match npy_name(path) {
        Some((module, part)) => (path.with_file_name(module), part.map(part_number), path.into()),
        None => (path.into(), None, path.into()),
    }
}

/// A decimal number of any length, in order of value: how many digits, and which.
type PartNumber = (usize, String);

fn part_number(digits: &str) -> PartNumber {
    let digits = digits.trim_start_matches('0');
    (digits.len(), digits.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    quickcheck! {
        /// Part 10 comes after part 9, whatever zeros stand in front.
        fn parts_are_in_order_of_number(a: u64, b: u64, zeros: u8) -> bool {
            let name = |part: u64, zeros: usize| PathBuf::from(format!("q.{}{part}.npy", "0".repeat(zeros)));
            let (left, right) = (reading_order(&name(a, usize::from(zeros))), reading_order(&name(b, 0)));
            a == b || left.cmp(&right) == a.cmp(&b)
        }
    }

    #[test]
    fn other_files_are_in_order_of_path() {
        let mut paths = ["b/q.npy", "a/z.safetensors", "a/q.10.npy", "a/q.2.npy", "a/q.npy"].map(Path::new);
        paths.sort_by_cached_key(|path| reading_order(path));
        let expected = ["a/q.npy", "a/q.2.npy", "a/q.10.npy", "a/z.safetensors", "b/q.npy"].map(Path::new);
        assert_eq!(paths, expected);
    }
}
