//! Opening a checkpoint, and reading its tensors.

use super::super::json::read_value;
use super::super::quantized::{self, Quantized};
use super::super::visible::printable;
use super::super::{
    Access, Problem, Problems, Source, is_missing, model_folder, safetensors, unread_format, visible,
};
use super::listing::{Listing, named_in};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The place of a tensor in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Index into [`Checkpoint::files`].
    pub file: usize,
    /// The entry in the header of that file. For a quantized weight: shape and format of its numbers, F32, and the place of its codes.
    pub tensor: safetensors::Tensor,
}

/// An opened checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    folder: Option<PathBuf>,
    index: Option<OsString>,
    files: Vec<(Source, safetensors::Header)>,
    tensors: BTreeMap<String, StoredTensor>,
    /// The quantized weights, and the problems with those whose tensors do not fit together.
    quantized: BTreeMap<String, Result<Quantized, Problem>>,
    config: Option<serde_json::Value>,
    in_memory: bool,
}

pub(super) const CONFIG: &str = "config.json";

impl Checkpoint {
    /// Opens a `.safetensors` file, or a folder with the weights or the index of transformers, diffusers or Mistral, or with a single
    /// `.safetensors` file or the shards of one model under other names. The name of a model, such as `org/name`, stands for its folder in
    /// the local cache of the hub. All headers are checked; no tensor is read, except for the states and shapes of quantized weights.
    ///
    /// A quantized weight has the name of the plain one and numbers in F32, which are computed when they are read. The tensors that it
    /// consists of have no names here.
    ///
    /// If a folder has `model.safetensors` and its index, the file is read, as in transformers. Shards must be files in the folder, or
    /// links as in the cache of the hub. Variants such as `fp16` are read only if there is no plain file.
    ///
    /// # Errors
    /// The problems of all files, together.
    pub fn open(path: &Path, access: Access) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let path = &*model_folder(path)?;
        let is_folder = path.is_dir();
        if path.is_file()
            && let Some(problem) = unread_format(path)
        {
            return Err(problem.into());
        }
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
            problems.0.extend(missing(promised, &listing, &source, &header));
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
        let index = listing.index_name().map(ToOwned::to_owned);
        problems.or_ok(())?;
        let (path, quantized) = (path.into(), BTreeMap::new());
        let mut checkpoint =
            Self { path, folder, index, files, tensors, quantized, config, in_memory: false };
        checkpoint.find_quantized();
        Ok(checkpoint)
    }

    /// Puts each quantized weight in the place of the tensors that it consists of.
    fn find_quantized(&mut self) {
        let config = quantized::Config::of(self.config.as_ref());
        let found = quantized::recognize(&self.files, &self.tensors, &config);
        let mut weights = Vec::new();
        for (name, (codes, weight)) in found.weights {
            let Some(mut stored) = self.tensors.get(&codes).cloned() else { continue };
            if let Ok(weight) = &weight {
                stored.tensor.dtype = "F32".into();
                stored.tensor.shape = weight.shape();
            }
            weights.push((name.clone(), stored));
            self.quantized.insert(name, weight);
        }
        self.tensors.retain(|name, _| !found.taken.contains(name));
        self.tensors.extend(weights);
    }

    /// The weights of a model in memory, in the form of a safetensors file. All matrices are stored as `[outputs, inputs]`, whatever
    /// layout the files of the model have. `config` is the text of its `config.json`.
    ///
    /// # Errors
    /// A data problem for a header or a configuration that cannot be read.
    pub fn in_memory(source: Source, config: Option<&str>) -> Result<Self, Problem> {
        let path = source.path().to_owned();
        let header = safetensors::Header::read(&source)?;
        let stored = |(name, tensor): (&String, &safetensors::Tensor)| {
            (name.clone(), StoredTensor { file: 0, tensor: tensor.clone() })
        };
        let tensors = header.tensors.iter().map(stored).collect();
        let config = config.map(|text| {
            let source = Source::from_bytes(CONFIG, text.as_bytes().to_vec());
            read_value(&source, "model configuration")
        });
        let (config, files) = (config.transpose()?, vec![(source, header)]);
        let quantized = BTreeMap::new();
        Ok(Self { path, folder: None, index: None, files, tensors, quantized, config, in_memory: true })
    }

    /// True if a folder has weights or an index with a usual name.
    pub fn is_named_in(folder: &Path) -> bool {
        named_in(folder).is_some()
    }

    /// The name of the index of shards in the folder, if it was read.
    pub fn index(&self) -> Option<&OsStr> {
        self.index.as_deref()
    }

    /// True if these are the weights of a model in memory, whose matrices are stored as `[outputs, inputs]`.
    pub fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// The path that it was opened with.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, sorted by name, with their headers.
    pub fn files(&self) -> &[(Source, safetensors::Header)] {
        &self.files
    }

    /// The format of a quantized weight in words, such as `NF4`. `None` for other tensors.
    pub fn quantization(&self, name: &str) -> Option<&str> {
        self.quantized(name).map(Quantized::format)
    }

    /// A quantized weight.
    pub(crate) fn quantized(&self, name: &str) -> Option<&Quantized> {
        self.quantized.get(name)?.as_ref().ok()
    }

    /// Refuses a quantized weight whose tensors do not fit together.
    ///
    /// # Errors
    /// A data problem with the first reason.
    pub(crate) fn check_quantized(&self, name: &str) -> Result<(), Problem> {
        match self.quantized.get(name) {
            Some(Err(problem)) => Err(problem.clone()),
            _ => Ok(()),
        }
    }

    /// The names of the quantized weights, sorted.
    pub(crate) fn quantized_names(&self) -> impl Iterator<Item = &str> {
        self.quantized.keys().map(String::as_str)
    }

    /// The method of quantization that the configuration names, if its checkpoints are not read.
    pub(crate) fn unread_quantization(&self) -> Option<String> {
        quantized::Config::of(self.config.as_ref().filter(|_| !self.in_memory))
            .unread_method()
            .map(str::to_owned)
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The place of a tensor.
    pub fn get(&self, name: &str) -> Option<&StoredTensor> {
        self.tensors.get(name)
    }

    /// The file of a tensor.
    ///
    /// # Panics
    /// If `stored` belongs to another checkpoint with more files.
    pub fn source(&self, stored: &StoredTensor) -> &Source {
        &self.files[stored.file].0
    }

    /// The place of a tensor.
    ///
    /// # Errors
    /// A data problem if there is no tensor of this name.
    pub(crate) fn require(&self, name: &str) -> Result<&StoredTensor, Problem> {
        let missing =
            || Problem::data("the checkpoint has no such tensor").in_file(&self.path).in_tensor(name);
        self.get(name).ok_or_else(missing)
    }

    /// All bytes of a tensor, as stored in the file. For a quantized weight, those of its numbers in F32.
    ///
    /// # Errors
    /// A data problem if there is no tensor of this name, and problems of reading.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, Problem> {
        let stored = self.require(name)?;
        if let Some(piece) = self.whole(name).filter(|_| self.quantized.contains_key(name)) {
            return self.read_piece(&piece);
        }
        let bytes = self.source(stored).read_vec(stored.tensor.offset, stored.tensor.length);
        bytes.map_err(|problem| problem.in_tensor(name))
    }

    /// The content of `config.json` beside the weights, if there is one.
    pub fn config(&self) -> Option<&serde_json::Value> {
        self.config.as_ref()
    }

    /// The folder of the files, if the checkpoint was opened as a folder.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
}

/// One problem for all tensors of a shard that are in the index but not in the shard.
fn missing(
    promised: &BTreeSet<String>,
    listing: &Listing,
    source: &Source,
    header: &safetensors::Header,
) -> Option<Problem> {
    let mut missing = promised.iter().filter(|name| !header.tensors.contains_key(*name));
    let first = missing.next()?;
    let more = match missing.count() {
        0 => String::new(),
        more => format!("; {more} more are missing too"),
    };
    let index = visible(&listing.index_name().unwrap_or_default().to_string_lossy());
    Some(
        Problem::data(format!("{index} lists the tensor, but this file does not contain it{more}"))
            .in_file(source.path())
            .in_tensor(first)
            .help("shards and index have different versions: download the checkpoint again"),
    )
}

fn stored_twice(name: &str, source: &Source, other: &Source) -> Problem {
    let other = printable(&other.path().display().to_string());
    Problem::data(format!("the tensor is also in {other}"))
        .in_file(source.path())
        .in_tensor(name)
        .help("shards have different versions: download the checkpoint again")
}

fn read_config(path: &Path) -> Result<Option<serde_json::Value>, Problem> {
    if is_missing(path) {
        return Ok(None);
    }
    let config = read_value(&Source::open(path, Access::Read)?, "model configuration");
    config.map(Some).map_err(|problem| problem.help("download the file again"))
}
