//! Opens files and folders, in reading order.

use super::headers::npy_name;
use crate::storage::{Access, Problem, Problems, Source, is_sidecar, names_in, quoted, unread_format};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};

/// Opens the files in `paths` and in its folders. Returns the files that could be opened, in reading order.
pub(super) fn open(paths: &[PathBuf], access: Access, problems: &mut Problems) -> Vec<Source> {
    if paths.is_empty() {
        problems.push(
            Problem::usage("no files or folders with activations were given")
                .help("give files or folders with --activations"),
        );
    }
    let mut files: Vec<_> =
        paths.iter().filter_map(|path| problems.collect(files_of(path))).flatten().collect();
    files.sort_by_cached_key(|path| reading_order(path));

    let mut sources: Vec<Source> = Vec::with_capacity(files.len());
    let mut opened = BTreeMap::new();
    for path in &files {
        let Some(source) = problems.collect(Source::open_one_of(files.len(), path, access)) else { continue };
        match source.identity().map(|identity| opened.entry(identity.file)) {
            Some(Entry::Occupied(first)) => {
                let first: &PathBuf = first.get();
                let what =
                    format!("the same file is given twice, also as {}", quoted(&first.to_string_lossy()));
                problems.push(Problem::usage(what).in_file(path).help("remove one of the two"));
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
        // A missing file is reported when it is opened.
        return if is_activations(path) || !path.exists() {
            Ok(vec![path.into()])
        } else if let Some(problem) = unread_format(path) {
            Err(problem)
        } else {
            Err(Problem::usage("not a folder, a .safetensors file or a .npy file")
                .in_file(path)
                .help("save the activations with safetensors' save_file or numpy's save"))
        };
    }
    let names = names_in(path)?.into_iter().filter(|name| !is_sidecar(name));
    let all: Vec<PathBuf> = names.map(|name| path.join(name)).collect();
    let files: Vec<PathBuf> = all.iter().filter(|file| is_activations(file)).cloned().collect();
    if files.is_empty() {
        if let Some(problem) = all.iter().find_map(|file| unread_format(file)) {
            return Err(problem);
        }
        return Err(Problem::usage("the folder contains no .safetensors or .npy files")
            .in_file(path)
            .help("give the folder that directly contains the files: folders inside it are not searched"));
    }
    Ok(files)
}

fn is_activations(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "safetensors" || extension == "npy")
}

/// The sort key of a path. The parts of a `.npy` site are sorted by number.
fn reading_order(path: &Path) -> (PathBuf, Option<PartNumber>, PathBuf) {
    match npy_name(path) {
        Some((module, part)) => (path.with_file_name(module), part.map(part_number), path.into()),
        None => (path.into(), None, path.into()),
    }
}

/// A decimal number of any length that sorts by value: the number of digits, and the digits.
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
        /// Part 10 comes after part 9, also with leading zeros.
        fn parts_are_sorted_by_number(a: u64, b: u64, zeros: u8) -> bool {
            let name = |part: u64, zeros: usize| PathBuf::from(format!("q.{}{part}.npy", "0".repeat(zeros)));
            let (left, right) = (reading_order(&name(a, usize::from(zeros))), reading_order(&name(b, 0)));
            a == b || left.cmp(&right) == a.cmp(&b)
        }
    }

    #[test]
    fn other_files_are_sorted_by_path() {
        let mut paths = ["b/q.npy", "a/z.safetensors", "a/q.10.npy", "a/q.2.npy", "a/q.npy"].map(Path::new);
        paths.sort_by_cached_key(|path| reading_order(path));
        let expected = ["a/q.npy", "a/q.2.npy", "a/q.10.npy", "a/z.safetensors", "b/q.npy"].map(Path::new);
        assert_eq!(paths, expected);
    }
}
