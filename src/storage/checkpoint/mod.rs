//! A Hugging Face checkpoint: one file, or a folder with shards and their index. Tensors are read lazily.
//!
//! Pipelines of several models (the folders of diffusers) are no checkpoint: each of their components is one.

mod piece;

use super::json::UniqueKeys;
use super::problem::printable;
use super::{Access, Problem, Problems, Source, quoted, safetensors};
pub use piece::Piece;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Where a tensor is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Index into [`Checkpoint::files`].
    pub file: usize,
    /// Its entry in the header of that file.
    pub tensor: safetensors::Tensor,
}

/// An opened checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    folder: Option<PathBuf>,
    files: Vec<(Source, safetensors::Header)>,
    tensors: BTreeMap<String, StoredTensor>,
    config: Option<serde_json::Value>,
}

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";

/// The longest index or configuration, in bytes. Those of the largest models have a few megabytes.
const LONGEST_JSON: u64 = 100_000_000;

impl Checkpoint {
    /// Opens a `.safetensors` file, or a folder with `model.safetensors` or `model.safetensors.index.json`
    /// (also a folder whose single `.safetensors` file has another name). All headers are checked, no tensor
    /// is read.
    ///
    /// A folder that has both is read as transformers reads it: `model.safetensors` alone. Shards are files
    /// of the folder itself, or links there, as in the cache of the hub.
    ///
    /// # Errors
    /// All that is wrong with any file of the checkpoint, together.
    pub fn open(path: &Path, access: Access) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let is_folder = path.is_dir();
        let folder = if is_folder { path } else { path.parent().unwrap_or(Path::new("")) };
        let index = if is_folder { problems.collect(Listing::of(path)) } else { Some(Listing::file(path)) };
        let config = problems.collect(read_config(&folder.join(CONFIG))).flatten();
        let Some(listing) = index else { return Err(problems) };

        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        for (file, promised) in &listing.files {
            let opened = Source::open(file, access).and_then(|source| {
                let header = safetensors::Header::read(&source)?;
                Ok((source, header))
            });
            let Some((source, header)) = problems.collect(opened.map_err(|problem| listing.explain(problem)))
            else {
                continue;
            };
            problems.0.extend(missing(promised, &source, &header));
            for (name, tensor) in &header.tensors {
                let stored = StoredTensor { file: files.len(), tensor: tensor.clone() };
                let before: Option<StoredTensor> = tensors.insert(name.clone(), stored);
                if let Some((other, _)) = before.and_then(|before| files.get(before.file)) {
                    problems.push(stored_twice(name, &source, other));
                }
            }
            files.push((source, header));
        }
        let folder = is_folder.then(|| path.to_owned());
        problems.or_ok(Self { path: path.into(), folder, files, tensors, config })
    }

    /// The path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, in order of name, and their headers.
    pub fn files(&self) -> &[(Source, safetensors::Header)] {
        &self.files
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Where a tensor is stored.
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// The source that holds a tensor.
    ///
    /// # Panics
    /// If `stored` is of another checkpoint with more files.
    pub fn source(&self, stored: &StoredTensor) -> &Source {
        &self.files[stored.file].0
    }

    /// All bytes of a tensor, as they stand in the file.
    ///
    /// # Errors
    /// An unknown name, and failures of reading.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Problem> {
        let stored = self.get(name).ok_or_else(|| {
            Problem::data("the checkpoint has no tensor of this name").in_file(&self.path).in_tensor(name)
        })?;
        let bytes = self.source(stored).read_vec(stored.tensor.offset, stored.tensor.length);
        bytes.map_err(|problem| problem.in_tensor(name))
    }

    /// `config.json` beside the weights, parsed, if there is one. Used for `model_type`, `_name_or_path`.
    pub fn config(&self) -> Option<&serde_json::Value> {
        self.config.as_ref()
    }

    /// The folder that holds the files, when the checkpoint is a folder.
    pub fn folder(&self) -> Option<PathBuf> {
        self.folder.clone()
    }
}

/// Which files make up the checkpoint, in order, and the tensors that the index promises of each.
struct Listing {
    index: Option<PathBuf>,
    files: BTreeMap<PathBuf, BTreeSet<String>>,
}

impl Listing {
    fn file(path: &Path) -> Self {
        Self { index: None, files: BTreeMap::from([(path.into(), BTreeSet::new())]) }
    }

    fn of(folder: &Path) -> Result<Self, Problems> {
        // A broken link is there too: opening it then says what is wrong with it.
        let is_there = |name: &str| folder.join(name).symlink_metadata().is_ok();
        if is_there(SINGLE) {
            Ok(Self::file(&folder.join(SINGLE)))
        } else if is_there(INDEX) {
            Self::from_index(folder)
        } else {
            Ok(Self::file(&only_file(folder)?))
        }
    }

    fn from_index(folder: &Path) -> Result<Self, Problems> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: UniqueKeys<String>,
        }

        let path = folder.join(INDEX);
        let Index { weight_map } = serde_json::from_slice(&read_json(&path)?)
            .map_err(|error| not_json(&path, "an index of shards, an object with weight_map", &error))?;
        let mut problems = Problems::default();
        let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (tensor, shard) in weight_map.0 {
            shards.entry(shard).or_default().insert(tensor);
        }
        for shard in shards.keys().filter(|shard| !is_plain_name(shard)) {
            let what = format!("expected shards within its own folder, found the path {}", quoted(shard));
            problems.push(
                Problem::data(what)
                    .in_file(&path)
                    .help("put the shards beside the index, and their names into it"),
            );
        }
        if shards.is_empty() {
            problems.push(Problem::data("its weight_map names no tensor").in_file(&path));
        }
        let files = shards.into_iter().map(|(shard, tensors)| (folder.join(shard), tensors)).collect();
        problems.or_ok(Self { index: Some(path), files })
    }

    /// Says of a shard that could not be opened where its name comes from.
    fn explain(&self, problem: Problem) -> Problem {
        match &self.index {
            Some(index) if problem.category() == super::Category::Io => problem.help(format!(
                "{} names this shard: download the checkpoint again",
                printable(&index.display().to_string())
            )),
            _ => problem,
        }
    }
}

/// One complaint of a shard that holds less than the index promises, however many tensors are missing.
fn missing(promised: &BTreeSet<String>, source: &Source, header: &safetensors::Header) -> Option<Problem> {
    let mut missing = promised.iter().filter(|name| !header.tensors.contains_key(*name));
    let first = missing.next()?;
    let more = match missing.count() {
        0 => String::new(),
        more => format!(", nor {more} more"),
    };
    Some(
        Problem::data(format!("{INDEX} says that it is in this file, but it is not{more}"))
            .in_file(source.path())
            .in_tensor(first)
            .help("shards and index are of different versions: download the checkpoint again"),
    )
}

fn stored_twice(name: &str, source: &Source, other: &Source) -> Problem {
    let other = printable(&other.path().display().to_string());
    Problem::data(format!("expected each tensor in one file, found it also in {other}"))
        .in_file(source.path())
        .in_tensor(name)
        .help("shards of different versions seem to be mixed: download the checkpoint again")
}

/// The only `.safetensors` file of a folder, or what to do about none or several.
fn only_file(folder: &Path) -> Result<PathBuf, Problem> {
    let failed = |error: std::io::Error| Problem::io("cannot list the folder", &error).in_file(folder);
    let mut found = Vec::new();
    let mut has_pickle = false;
    for entry in fs::read_dir(folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let text = name.to_string_lossy();
        has_pickle |= text.starts_with("pytorch_model") && text.ends_with(".bin");
        if text.ends_with(".safetensors") && !text.starts_with('.') {
            found.push(name);
        }
    }
    found.sort();
    match found.as_slice() {
        [only] => Ok(folder.join(only)),
        [] if has_pickle => {
            let what = "expected safetensors, found only pytorch_model.bin, a pickle that could run any code";
            Err(Problem::data(what).in_file(folder).help(
                "convert it in Python: \
                 AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)",
            ))
        }
        [] => Err(Problem::data(format!("expected {SINGLE} or {INDEX}, found no .safetensors file"))
            .in_file(folder)
            .help("give the folder that holds the weights, or a .safetensors file")),
        several => {
            let names: Vec<_> = several.iter().map(|name| quoted(&name.to_string_lossy())).collect();
            let names = names.join(", ");
            let what = format!("expected {SINGLE}, {INDEX} or one .safetensors file, found {names}");
            Err(Problem::data(printable(&what)).in_file(folder).help("give the one file, or add the index"))
        }
    }
}

/// Whether a name stays in its folder: one component, by the rules of any system.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
        && !name.contains(['\\', ':', '\0'])
}

fn read_config(path: &Path) -> Result<Option<serde_json::Value>, Problem> {
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let value = serde_json::from_slice(&read_json(path)?).map_err(|error| not_json(path, "JSON", &error))?;
    Ok(Some(value))
}

fn read_json(path: &Path) -> Result<Vec<u8>, Problem> {
    let source = Source::open(path, Access::Read)?;
    let length = source.length();
    if length > LONGEST_JSON {
        let what = format!("the file has {length} bytes, but the limit is {LONGEST_JSON}");
        return Err(Problem::data(what).in_file(path));
    }
    source.read_vec(0, length)
}

fn not_json(path: &Path, expected: &str, error: &serde_json::Error) -> Problem {
    Problem::data(format!("expected {expected}, found: {}", printable(&error.to_string())))
        .in_file(path)
        .help("download the file again")
}

#[cfg(test)]
mod tests;
