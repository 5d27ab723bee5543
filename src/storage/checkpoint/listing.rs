//! Finds the files of a checkpoint.

use super::super::json::UniqueKeys;
use super::super::visible::printable;
use super::super::{
    Access, Category, Problem, Problems, Source, folder_of, is_missing, is_plain_name, is_sidecar, names_in,
    quoted, read_json, unread_format,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

pub(super) const SINGLE: &str = "model.safetensors";
#[cfg(test)]
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The names of weights, in the order in which they are searched: of transformers, of diffusers, and of Mistral's own files. The index of
/// their shards has the ending [`INDEX_END`].
const NAMES: [&str; 3] = [SINGLE, "diffusion_pytorch_model.safetensors", "consolidated.safetensors"];

const INDEX_END: &str = ".index.json";

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
        match named_in(folder) {
            Some(name) if name.ends_with(INDEX_END) => Self::from_index(folder.join(name)),
            Some(name) => Ok(Self::file(&folder.join(name))),
            None => Self::with_other_names(folder),
        }
    }

    /// The name of the index, if there is one.
    pub(super) fn index_name(&self) -> Option<&OsStr> {
        self.index.as_ref()?.file_name()
    }

    fn from_index(path: PathBuf) -> Result<Self, Problems> {
        #[derive(serde::Deserialize)]
        #[serde(expecting = "an object with weight_map")]
        struct Index {
            weight_map: UniqueKeys<String>,
        }

        let folder = folder_of(&path);
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

/// The name of the weights or the index in a folder with a usual name.
pub(super) fn named_in(folder: &Path) -> Option<String> {
    let names = NAMES.into_iter().flat_map(|name| [name.to_owned(), format!("{name}{INDEX_END}")]);
    names.into_iter().find(|name| !is_missing(&folder.join(name)))
}

impl Listing {
    /// The checkpoint in a folder without usual names: the only index, all shards with numbers, or the only `.safetensors` file. A file
    /// counts as a variant, and not as another one, if the file of the same name without the variant (`x.fp16.safetensors`) exists.
    fn with_other_names(folder: &Path) -> Result<Self, Problems> {
        let names = names_in(folder)?;
        let visible =
            names.iter().filter(|name| !is_sidecar(name) && !name.as_encoded_bytes().starts_with(b"."));
        let names: Vec<String> = visible.map(|name| name.to_string_lossy().into_owned()).collect();
        let with_end =
            |end: &str| -> Vec<&String> { names.iter().filter(|name| name.ends_with(end)).collect() };
        // Indexes of variants are called `x.safetensors.index.fp16.json` or `x.fp16.safetensors.index.json`.
        let indexes: Vec<&String> = names
            .iter()
            .filter(|name| name.contains(".safetensors.index.") && name.ends_with(".json"))
            .collect();
        if let [only] = indexes[..] {
            return Self::from_index(folder.join(only));
        }
        let all = with_end(".safetensors");
        let found: Vec<&String> = all.iter().copied().filter(|name| !is_variant(name, &names)).collect();
        match found[..] {
            [only] if shard(only).is_none() => Ok(Self::file(&folder.join(only))),
            [] => Err(no_weights(folder, &names).into()),
            ref several => {
                if let Some(shards) = complete_shards(several).map_err(|problem| problem.in_file(folder))? {
                    let files = shards.into_iter().map(|name| (folder.join(name), BTreeSet::new())).collect();
                    return Ok(Self { index: None, files });
                }
                let names: Vec<_> = several.iter().map(|name| quoted(name)).collect();
                let what = format!(
                    "the folder has several .safetensors files, and none with a usual name such as {SINGLE}, nor an index: {}",
                    names.join(", ")
                );
                Err(Problem::data(printable(&what))
                    .in_file(folder)
                    .help("give one of the files, or add the index")
                    .into())
            }
        }
    }
}

/// True if the name is that of another file with a variant, such as `fp16` or `non_ema`, before the ending.
fn is_variant(name: &str, names: &[String]) -> bool {
    let Some((stem, variant)) = name.strip_suffix(".safetensors").and_then(|stem| stem.rsplit_once('.'))
    else {
        return false;
    };
    !variant.is_empty() && names.iter().any(|other| other.strip_suffix(".safetensors") == Some(stem))
}

/// The stem, the number and the count of a shard: `model-00001-of-00002.safetensors`.
fn shard(name: &str) -> Option<(&str, u64, u64)> {
    let (rest, count) = name.strip_suffix(".safetensors")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    Some((stem, number.parse().ok()?, count.parse().ok()?))
}

/// The shards of one model without an index. `None` if the names are not those of shards of one model.
///
/// # Errors
/// A data problem if a shard is missing.
fn complete_shards<'a>(names: &[&'a String]) -> Result<Option<Vec<&'a str>>, Problem> {
    let mut numbers = BTreeMap::new();
    let mut model = None;
    for name in names {
        let Some((stem, number, count)) = shard(name) else { return Ok(None) };
        if *model.get_or_insert((stem, count)) != (stem, count) {
            return Ok(None);
        }
        numbers.insert(number, name.as_str());
    }
    let Some((stem, count)) = model else { return Ok(None) };
    let missing = (1..=count).find(|number| !numbers.contains_key(number));
    match missing.filter(|_| count > 0) {
        Some(number) => {
            Err(Problem::data(format!("shard {number} of the {count} shards of {} is missing", quoted(stem)))
                .help("download the checkpoint again"))
        }
        None => Ok(Some(numbers.into_values().collect())),
    }
}

/// The problem of a folder without safetensors files.
fn no_weights(folder: &Path, names: &[String]) -> Problem {
    let mut pickles = names.iter().filter(|name| name.starts_with("pytorch_model") && name.ends_with(".bin"));
    if pickles.next().is_some() {
        let what = "the folder has only pytorch_model.bin, a pickle that can run arbitrary code";
        return Problem::data(what).in_file(folder).help(
            "convert it to safetensors in Python: \
             AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER, safe_serialization=True)",
        );
    }
    if names.iter().any(|name| name == "model_index.json") {
        let is_model = |name: &&String| folder.join(name).is_dir() && named_in(&folder.join(name)).is_some();
        let models: Vec<String> = names.iter().filter(is_model).map(|name| quoted(name)).collect();
        let problem =
            Problem::data("the folder is a pipeline of diffusers, and not one model").in_file(folder);
        return match models.is_empty() {
            true => problem.help("give the folder of one of its models"),
            false => problem.help(format!("give the folder of one of its models: {}", models.join(", "))),
        };
    }
    let unread = names.iter().find_map(|name| unread_format(&folder.join(name)));
    unread.unwrap_or_else(|| {
        Problem::data("the folder has no .safetensors file")
            .in_file(folder)
            .help("give the folder that contains the weights, or a .safetensors file")
    })
}
