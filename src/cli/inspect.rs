//! What a file or folder holds, as one serialisable value. Reads headers, never whole tensors.

mod text;

use super::args::InspectArgs;
use super::moments::Summary;
use super::terminal::Terminal;
use cntlora::activations::ActivationSet;
use cntlora::adapter::{CONFIG_FILE, PeftAdapter, TENSORS_FILE};
use cntlora::moments_file::MomentsFile;
use cntlora::plan::Plan;
use cntlora::report::Report;
use cntlora::storage::{Access, Checkpoint, Problem, Problems, Source, npy, safetensors};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files of JSON that are larger are not ours.
const LARGEST_JSON: u64 = 1 << 28;

/// What something is, and what it holds.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
enum Inspection {
    Safetensors(SafetensorsFile),
    Npy(NpyFile),
    Checkpoint(CheckpointFiles),
    Activations(Activations),
    Moments(Summary),
    Adapter(AdapterFolder),
    Report(Box<Report>),
    Plan(Box<Plan>),
}

#[derive(Debug, Serialize)]
struct SafetensorsFile {
    path: PathBuf,
    bytes: u64,
    metadata: BTreeMap<String, String>,
    tensors: Vec<TensorEntry>,
    /// What its metadata says of activation sites, if it does.
    sites: Option<Vec<SiteEntry>>,
}

#[derive(Debug, Serialize)]
struct TensorEntry {
    name: String,
    dtype: String,
    shape: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct SiteEntry {
    name: String,
    width: usize,
    rows: u64,
    modules: Vec<String>,
}

#[derive(Debug, Serialize)]
struct NpyFile {
    path: PathBuf,
    bytes: u64,
    dtype: &'static str,
    big_endian: bool,
    fortran_order: bool,
    shape: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct CheckpointFiles {
    path: PathBuf,
    /// `model_type` of its configuration.
    model_type: Option<String>,
    files: Vec<FileEntry>,
    parameters: u64,
    tensors: Vec<TensorEntry>,
}

#[derive(Debug, Serialize)]
struct FileEntry {
    path: PathBuf,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct Activations {
    files: Vec<FileEntry>,
    sites: Vec<SiteEntry>,
}

#[derive(Debug, Serialize)]
struct AdapterFolder {
    path: PathBuf,
    base: Option<String>,
    bytes: u64,
    layers: Vec<AdapterLayer>,
}

#[derive(Debug, Serialize)]
struct AdapterLayer {
    module: String,
    outputs: usize,
    inputs: usize,
    rank: usize,
    scale: f64,
    dtype: &'static str,
}

/// Inspects, and prints what was found.
pub fn run(args: &InspectArgs, terminal: &Terminal) -> anyhow::Result<()> {
    terminal.result(&inspect(&args.file)?, text::render)?;
    Ok(())
}

fn inspect(path: &Path) -> Result<Inspection, Problems> {
    if path.is_dir() {
        return folder(path);
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("npy") => npy_file(path).map_err(Into::into),
        Some("json") => json_file(path).map_err(Into::into),
        _ => safetensors_file(path),
    }
}

fn folder(path: &Path) -> Result<Inspection, Problems> {
    let holds = |name: &str| path.join(name).exists();
    if holds(CONFIG_FILE) || holds(TENSORS_FILE) {
        adapter(path)
    } else if ["config.json", "model.safetensors", "model.safetensors.index.json"].into_iter().any(holds) {
        checkpoint(path)
    } else {
        let set = ActivationSet::open(&[path.into()], Access::Auto)?;
        Ok(Inspection::Activations(Activations { files: files(set.files()), sites: sites(&set) }))
    }
}

fn adapter(path: &Path) -> Result<Inspection, Problems> {
    let adapter = PeftAdapter::open(path)?;
    let layers = adapter.layers().iter().map(|(module, layer)| AdapterLayer {
        module: module.clone(),
        outputs: layer.outputs,
        inputs: layer.inputs,
        rank: layer.rank,
        scale: layer.scale,
        dtype: layer.element.name(),
    });
    Ok(Inspection::Adapter(AdapterFolder {
        path: path.into(),
        base: adapter.config().base_model_name_or_path.clone(),
        bytes: adapter.source().length(),
        layers: layers.collect(),
    }))
}

fn checkpoint(path: &Path) -> Result<Inspection, Problems> {
    let checkpoint = Checkpoint::open(path, Access::Auto)?;
    let model_type =
        checkpoint.config().and_then(|config| config.get("model_type")).and_then(|value| value.as_str());
    let stored = checkpoint.names().filter_map(|name| Some((name, &checkpoint.get(name)?.tensor)));
    let tensors: Vec<TensorEntry> = stored.map(|(name, tensor)| entry(name, tensor)).collect();
    Ok(Inspection::Checkpoint(CheckpointFiles {
        path: path.into(),
        model_type: model_type.map(str::to_owned),
        files: files(checkpoint.files().iter().map(|(source, _)| source)),
        parameters: tensors.iter().map(|tensor| numbers(&tensor.shape)).fold(0, u64::saturating_add),
        tensors,
    }))
}

fn safetensors_file(path: &Path) -> Result<Inspection, Problems> {
    let source = Source::open(path, Access::Auto)?;
    let header = safetensors::Header::read(&source)?;
    if MomentsFile::claims(&header) {
        let file = MomentsFile::from_source(source)?;
        return Ok(Inspection::Moments(Summary::of(path, file.content())));
    }
    let sites = match header.metadata.contains_key("cntlora") {
        true => Some(sites(&ActivationSet::open(&[path.into()], Access::Auto)?)),
        false => None,
    };
    Ok(Inspection::Safetensors(SafetensorsFile {
        path: path.into(),
        bytes: source.length(),
        tensors: header.tensors.iter().map(|(name, tensor)| entry(name, tensor)).collect(),
        metadata: header.metadata,
        sites,
    }))
}

fn npy_file(path: &Path) -> Result<Inspection, Problem> {
    let source = Source::open(path, Access::Auto)?;
    let header = npy::Header::read(&source)?;
    Ok(Inspection::Npy(NpyFile {
        path: path.into(),
        bytes: source.length(),
        dtype: header.element.name(),
        big_endian: header.big_endian,
        fortran_order: header.fortran_order,
        shape: header.shape,
    }))
}

fn json_file(path: &Path) -> Result<Inspection, Problem> {
    let source = Source::open(path, Access::Auto)?;
    if source.length() > LARGEST_JSON {
        return Err(not_ours(path, &format!("{} bytes", source.length())));
    }
    let bytes = source.read_vec(0, source.length())?;
    let report = match serde_json::from_slice(&bytes) {
        Ok(report) => return Ok(Inspection::Report(report)),
        Err(error) => error,
    };
    match serde_json::from_slice(&bytes) {
        Ok(plan) => Ok(Inspection::Plan(plan)),
        Err(plan) => Err(not_ours(path, &format!("no report ({report}) and no plan ({plan})"))),
    }
}

fn not_ours(path: &Path, found: &str) -> Problem {
    Problem::data(format!("expected the JSON of a report or a plan, found {found}"))
        .in_file(path)
        .help("inspect the folder that the file belongs to, if it describes a model or an adapter")
}

fn entry(name: &str, tensor: &safetensors::Tensor) -> TensorEntry {
    TensorEntry { name: name.into(), dtype: tensor.dtype.clone(), shape: tensor.shape.clone() }
}

fn sites(set: &ActivationSet) -> Vec<SiteEntry> {
    set.sites()
        .map(|site| SiteEntry {
            name: site.name.clone(),
            width: site.width,
            rows: site.rows(),
            modules: site.modules.clone(),
        })
        .collect()
}

fn files<'a>(sources: impl IntoIterator<Item = &'a Source>) -> Vec<FileEntry> {
    sources
        .into_iter()
        .map(|source| FileEntry { path: source.path().into(), bytes: source.length() })
        .collect()
}

fn numbers(shape: &[u64]) -> u64 {
    shape.iter().fold(1, |product, length| product.saturating_mul(*length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    fn write(path: &Path, metadata: &[(&str, &str)], name: &str, shape: [u64; 2]) {
        let metadata = metadata.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let bytes = vec![0; 4 * numbers(&shape) as usize];
        let tensors = BTreeMap::from([(name.into(), ("F32".into(), shape.into(), bytes))]);
        safetensors::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
    }

    fn words(path: &Path) -> String {
        text::render(&inspect(path).unwrap())
    }

    /// Files and folders are told apart by what they hold.
    #[test]
    fn kinds_are_recognized() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);

        fs::create_dir(at("model")).unwrap();
        fs::write(at("model/config.json"), r#"{"model_type":"bert"}"#).unwrap();
        write(&at("model/model.safetensors"), &[], "q.weight", [3, 2]);
        let model = words(&at("model"));
        assert!(
            model.contains("checkpoint") && model.contains("bert") && model.contains("6 parameters"),
            "{model}"
        );

        let file = words(&at("model/model.safetensors"));
        assert!(file.contains("safetensors") && file.contains("q.weight") && file.contains("3×2"), "{file}");

        fs::create_dir(at("activations")).unwrap();
        let metadata = r#"{"format":"activations","version":1,"sites":{"in":["q","k"]}}"#;
        write(&at("activations/a.safetensors"), &[("cntlora", metadata)], "in", [5, 2]);
        let activations = words(&at("activations"));
        assert!(
            activations.contains("1 activation site") && activations.contains("read by k, q"),
            "{activations}"
        );
        let shard = words(&at("activations/a.safetensors"));
        assert!(shard.contains("1 activation site") && shard.contains("5×2"), "{shard}");
    }

    /// What is not understood is refused, with what was looked for.
    #[test]
    fn other_json_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.json");
        fs::write(&path, "[]").unwrap();
        let problems = inspect(&path).unwrap_err();
        assert!(problems.to_string().contains("expected the JSON of a report or a plan"), "{problems}");
    }
}
