//! What a file or folder holds, as one serialisable value. Reads headers and the factors of adapters, and other tensors
//! only when asked.

mod bars;
mod text;
mod values;

use super::args::InspectArgs;
use super::moments::Summary;
use super::terminal::Terminal;
use cntlora::activations::ActivationSet;
use cntlora::adapter::{CONFIG_FILE, PeftAdapter, SingleFile, TENSORS_FILE};
use cntlora::element::Element;
use cntlora::moments_file::MomentsFile;
use cntlora::plan::Plan;
use cntlora::report::Report;
use cntlora::storage::{Access, Checkpoint, Number, Problem, Problems, Source, npy, quoted, safetensors};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use values::{Place, Values};

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
    /// What its numbers are, if asked for and if they are of a format that is known.
    values: Option<Values>,
}

#[derive(Debug, Serialize)]
struct SiteEntry {
    name: String,
    width: usize,
    rows: u64,
    /// Whether tokens were counted, in place of rows.
    counts: bool,
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
    /// What its numbers are, if asked for.
    values: Option<Values>,
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
    /// Singular values of the product that the layer adds, its scale included.
    singular_values: Vec<f64>,
    /// Its Frobenius norm.
    norm: f64,
}

/// Inspects, and prints what was found.
pub fn run(args: &InspectArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let blocks = bars::blocks_shown(|name| std::env::var(name).ok());
    terminal.result(&inspect(&args.file, args.values)?, |inspection| text::render(inspection, blocks))?;
    Ok(())
}

fn inspect(path: &Path, values: bool) -> Result<Inspection, Problems> {
    if path.is_dir() {
        return folder(path);
    }
    // The tensors of an adapter say the more beside their configuration.
    if let (Some(name), Some(parent)) = (path.file_name(), path.parent())
        && name == TENSORS_FILE
        && parent.join(CONFIG_FILE).exists()
    {
        return adapter(parent);
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("npy") => npy_file(path, values).map_err(Into::into),
        Some("json") => json_file(path).map_err(Into::into),
        _ => safetensors_file(path, values),
    }
}

fn folder(path: &Path) -> Result<Inspection, Problems> {
    let holds = |name: &str| path.join(name).exists();
    let is_single_file = SingleFile::ALL.iter().any(|format| holds(format.file_name()));
    if holds(CONFIG_FILE) || holds(TENSORS_FILE) || is_single_file {
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
    let mut problems = Problems::default();
    let mut layers = Vec::new();
    for (module, layer) in adapter.layers() {
        let added = problems.collect(adapter.factors(layer).and_then(|factors| {
            factors.singular_values().map_err(|error| {
                Problem::data(format!("module {}: {error}", quoted(module))).in_file(adapter.source().path())
            })
        }));
        let singular_values: Vec<f64> =
            added.unwrap_or_default().iter().map(|value| value * layer.scale.abs()).collect();
        layers.push(AdapterLayer {
            module: module.clone(),
            outputs: layer.outputs,
            inputs: layer.inputs,
            rank: layer.rank,
            scale: layer.scale,
            dtype: layer.element.name(),
            norm: singular_values.iter().map(|value| value * value).sum::<f64>().sqrt(),
            singular_values,
        });
    }
    problems.or_ok(())?;
    Ok(Inspection::Adapter(AdapterFolder {
        path: path.into(),
        base: adapter.config().and_then(|config| config.base_model_name_or_path.clone()),
        bytes: adapter.source().length(),
        layers,
    }))
}

fn checkpoint(path: &Path) -> Result<Inspection, Problems> {
    let checkpoint = Checkpoint::open(path, Access::Auto)?;
    let model_type =
        checkpoint.config().and_then(|config| config.get("model_type")).and_then(|value| value.as_str());
    let stored = checkpoint.names().filter_map(|name| Some((name, &checkpoint.get(name)?.tensor)));
    let tensors: Vec<TensorEntry> = stored.map(|(name, tensor)| entry(name, tensor, None)).collect();
    Ok(Inspection::Checkpoint(CheckpointFiles {
        path: path.into(),
        model_type: model_type.map(str::to_owned),
        files: files(checkpoint.files().iter().map(|(source, _)| source)),
        parameters: tensors.iter().map(|tensor| numbers(&tensor.shape)).fold(0, u64::saturating_add),
        tensors,
    }))
}

fn safetensors_file(path: &Path, values: bool) -> Result<Inspection, Problems> {
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
    let mut tensors = Vec::new();
    for (name, tensor) in &header.tensors {
        let known = Element::from_name(&tensor.dtype).filter(|_| values);
        let place = known.map(|element| Place {
            element,
            big_endian: false,
            offset: tensor.offset,
            length: tensor.length,
        });
        let values = place.map(|place| Values::of(&source, &place)).transpose()?;
        tensors.push(entry(name, tensor, values));
    }
    Ok(Inspection::Safetensors(SafetensorsFile {
        path: path.into(),
        bytes: source.length(),
        tensors,
        metadata: header.metadata,
        sites,
    }))
}

fn npy_file(path: &Path, values: bool) -> Result<Inspection, Problem> {
    let source = Source::open(path, Access::Auto)?;
    let header = npy::Header::read(&source)?;
    let values = match header.number {
        Number::Float(element) if values => {
            let place = Place {
                element,
                big_endian: header.big_endian,
                offset: header.offset,
                // The header was checked against the length of the file.
                length: source.length().saturating_sub(header.offset),
            };
            Some(Values::of(&source, &place)?)
        }
        _ => None,
    };
    Ok(Inspection::Npy(NpyFile {
        path: path.into(),
        bytes: source.length(),
        dtype: header.number.name(),
        big_endian: header.big_endian,
        fortran_order: header.fortran_order,
        shape: header.shape,
        values,
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

fn entry(name: &str, tensor: &safetensors::Tensor, values: Option<Values>) -> TensorEntry {
    TensorEntry { name: name.into(), dtype: tensor.dtype.clone(), shape: tensor.shape.clone(), values }
}

fn sites(set: &ActivationSet) -> Vec<SiteEntry> {
    set.sites()
        .map(|site| SiteEntry {
            name: site.name.clone(),
            width: site.width,
            rows: site.rows(),
            counts: site.counts().is_some(),
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
        text::render(&inspect(path, true).unwrap(), true)
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
        assert!(file.contains("6 zeros"), "{file}");

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
        let problems = inspect(&path, false).unwrap_err();
        assert!(problems.to_string().contains("expected the JSON of a report or a plan"), "{problems}");
    }
}
