//! Finds the files of a checkpoint.

use super::super::json::UniqueKeys;
use super::super::visible::printable;
use super::super::{
    Access, Category, Problem, Problems, Source, is_missing, is_plain_name, names_in, quoted, read_json,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The files of a checkpoint, sorted by name, with the tensors that the index assigns to each.
pub(super) struct Listing {
    index: Option<PathBuf>,
    pub(super) files: BTreeMap<PathBuf, BTreeSet<String>>,
}

impl Listing {
    /// A checkpoint of one file.
    pub(super) fn file(path: &Path) -> Self {
        Self { index: None, files: BTreeMap::from([(path.into(), BTreeSet::new())]) }
    }

    /// The checkpoint in a folder. A broken link counts as a file here: opening it later gives the error.
    pub(super) fn of(folder: &Path) -> Result<Self, Problems> {
        if !is_missing(&folder.join(SINGLE)) {
            Ok(Self::file(&folder.join(SINGLE)))
        } else if !is_missing(&folder.join(INDEX)) {
            Self::from_index(folder)
        } else {
            Ok(Self::file(&only_file(folder)?))
        }
    }

    fn from_index(folder: &Path) -> Result<Self, Problems> {
        #[derive(serde::Deserialize)]
        #[serde(expecting = "an object with weight_map")]
        struct Index {
            weight_map: UniqueKeys<String>,
        }

        let path = folder.join(INDEX);
        let index = read_json(&Source::open(&path, Access::Read)?, "index of shards");
        let Index { weight_map } = index.map_err(|problem| problem.help("download the file again"))?;
        let mut problems = Problems::default();
        let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (tensor, shard) in weight_map.0 {
            shards.entry(shard).or_default().insert(tensor);
        }
        for shard in shards.keys().filter(|shard| !is_plain_name(shard)) {
            let what =
                format!("shards must be in the folder of the index, but it has the path {}", quoted(shard));
            problems.push(
                Problem::data(what)
                    .in_file(&path)
                    .help("move the shards beside the index, and use their file names in it"),
            );
        }
        if shards.is_empty() {
            problems.push(Problem::data("weight_map is empty").in_file(&path));
        }
        let files = shards.into_iter().map(|(shard, tensors)| (folder.join(shard), tensors)).collect();
        problems.or_ok(Self { index: Some(path), files })
    }

    /// Adds to the problem of a shard that could not be opened that it is listed in the index.
    pub(super) fn explain(&self, problem: Problem) -> Problem {
        match &self.index {
            Some(index) if problem.category() == Category::Io => problem.help(format!(
                "this shard is listed in {}: download the checkpoint again",
                printable(&index.display().to_string())
            )),
            _ => problem,
        }
    }
}

/// The only `.safetensors` file in a folder.
fn only_file(folder: &Path) -> Result<PathBuf, Problem> {
    let names: Vec<String> =
        names_in(folder)?.iter().map(|name| name.to_string_lossy().into_owned()).collect();
    let is_weights = |name: &&String| name.ends_with(".safetensors") && !name.starts_with('.');
    let found: Vec<&String> = names.iter().filter(is_weights).collect();
    let mut pickles = names.iter().filter(|name| name.starts_with("pytorch_model") && name.ends_with(".bin"));
    match found.as_slice() {
        [only] => Ok(folder.join(only)),
        [] if pickles.next().is_some() => {
            let what = "the folder has only pytorch_model.bin, a pickle that can run arbitrary code";
            Err(Problem::data(what).in_file(folder).help(
                "convert it to safetensors in Python: \
                 AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)",
            ))
        }
        [] => Err(Problem::data("the folder has no .safetensors file")
            .in_file(folder)
            .help("give the folder that contains the weights, or a .safetensors file")),
        several => {
            let names: Vec<_> = several.iter().map(|name| quoted(name)).collect();
            let names = names.join(", ");
            let what =
                format!("the folder has several .safetensors files but no {SINGLE} and no {INDEX}: {names}");
            Err(Problem::data(printable(&what))
                .in_file(folder)
                .help("give one of the files, or add the index"))
        }
    }
}
