//! The command inspect: describes a file or folder, as one serialisable value. It reads headers and the factors of adapters, and other
//! tensors only with `--values`.

mod bars;
mod text;
mod values;

use super::args::InspectArgs;
use super::limits;
use super::moments::Summary;
use super::terminal::Terminal;
use crate::activations::ActivationSet;
use crate::adapter::{CONFIG_FILE, PeftAdapter, SingleFile, TENSORS_FILE, is_single_file_adapter};
use crate::element::Element;
use crate::factors::LayerName;
use crate::moments_file::MomentsFile;
use crate::plan::Plan;
use crate::report::Report;
use crate::storage::{
    Access, Category, Checkpoint, Number, Problem, Problems, Source, model_folder, npy, quoted, read_json,
    safetensors, unread_format,
};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use values::{Place, Values};

/// A file or folder, and its content.
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
    /// The activation sites in its metadata, if there are any.
    sites: Option<Vec<SiteEntry>>,
}

#[derive(Debug, Serialize)]
struct TensorEntry {
    name: String,
    /// The number format, or that of a quantized weight in words.
    dtype: String,
    shape: Vec<u64>,
    /// Figures of its numbers, with `--values`, if their format is known.
    values: Option<Values>,
}

#[derive(Debug, Serialize)]
struct SiteEntry {
    name: String,
    width: usize,
    rows: u64,
    /// True if tokens were counted, not rows.
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
    /// Figures of its numbers, with `--values`.
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
    /// Wrappers in the names, and tensors that are not factors.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct AdapterLayer {
    #[serde(flatten)]
    name: LayerName,
    outputs: usize,
    inputs: usize,
    rank: usize,
    scale: f64,
    dtype: &'static str,
    /// Singular values of the product of the factors, including the scale.
    singular_values: Vec<f64>,
    /// Frobenius norm of the product.
    norm: f64,
}

/// Inspects a file or folder, and prints its description.
pub(crate) fn run(args: &InspectArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let blocks = bars::blocks_shown(|name| std::env::var(name).ok());
    terminal.result(&inspect(&args.file, args.values)?, |inspection| text::render(inspection, blocks))?;
    Ok(())
}

fn inspect(path: &Path, values: bool) -> Result<Inspection, Problems> {
    let path = &*model_folder(path)?;
    if path.is_file()
        && let Some(problem) = unread_format(path)
    {
        return Err(problem.into());
    }
    if path.is_dir() {
        return folder(path);
    }
    // The tensors of an adapter are described together with its configuration.
    if let (Some(name), Some(parent)) = (path.file_name(), path.parent())
        && name == TENSORS_FILE
        && parent.join(CONFIG_FILE).exists()
    {
        return adapter(parent);
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("npy") => npy_file(path, values).map_err(Into::into),
        Some("json") => json_file(path).map_err(Into::into),
        _ if !values && is_single_file_adapter(path) => adapter(path),
        _ => safetensors_file(path, values),
    }
}

fn folder(path: &Path) -> Result<Inspection, Problems> {
    let holds = |name: &str| path.join(name).exists();
    let is_single_file = SingleFile::ALL.iter().any(|format| holds(format.file_name()));
    if holds(CONFIG_FILE) || holds(TENSORS_FILE) || is_single_file {
        adapter(path)
    } else if holds("config.json") || Checkpoint::is_named_in(path) {
        checkpoint(path)
    } else if is_single_file_adapter(path) {
        adapter(path)
    } else {
        let set = ActivationSet::open(&[path.into()], Access::Auto)?;
        Ok(Inspection::Activations(Activations { files: files(set.files()), sites: sites(&set) }))
    }
}

fn adapter(path: &Path) -> Result<Inspection, Problems> {
    let adapter = PeftAdapter::open(path)?;
    limits::refuse_below(0)?;
    let mut problems = Problems::default();
    let mut layers = Vec::new();
    for (name, layer) in adapter.layers() {
        let added = problems.collect(adapter.factors(layer).and_then(|factors| {
            factors.singular_values().map_err(|error| {
                Problem::data(format!("module {}: {error}", quoted(&name.to_string())))
                    .in_file(adapter.source().path())
            })
        }));
        let singular_values: Vec<f64> =
            added.unwrap_or_default().iter().map(|value| value * layer.scale.abs()).collect();
        layers.push(AdapterLayer {
            name: name.clone(),
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
        notes: adapter.notes(),
    }))
}

fn checkpoint(path: &Path) -> Result<Inspection, Problems> {
    let checkpoint = Checkpoint::open(path, Access::Auto)?;
    let model_type =
        checkpoint.config().and_then(|config| config.get("model_type")).and_then(|value| value.as_str());
    let stored = checkpoint.names().filter_map(|name| Some((name, &checkpoint.get(name)?.tensor)));
    let tensors = stored.map(|(name, tensor)| {
        let mut entry = entry(name, tensor, None);
        // Its numbers are F32, and nobody stored them so.
        if let Some(format) = checkpoint.quantization(name) {
            entry.dtype = format.into();
        }
        entry
    });
    let tensors: Vec<TensorEntry> = tensors.collect();
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
    let report = match read_json(&source, "report") {
        Err(problem) if problem.category() == Category::Data => problem,
        report => return report.map(Inspection::Report),
    };
    read_json(&source, "plan").map(Inspection::Plan).map_err(|plan| {
        Problem::data(format!("neither a report nor a plan: {}; {}", report.message(), plan.message()))
            .in_file(path)
            .help("if the file describes a model or an adapter, inspect its folder")
    })
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
    use expect_test::expect;
    use std::fs::{self, File};

    fn write(path: &Path, metadata: &[(&str, &str)], name: &str, shape: [u64; 2]) {
        let metadata = metadata.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let bytes = vec![0; 4 * numbers(&shape) as usize];
        let tensors = BTreeMap::from([(name.into(), ("F32".into(), shape.into(), bytes))]);
        safetensors::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
    }

    /// The description of a file or folder, with figures of its numbers.
    fn described(folder: &tempfile::TempDir, name: &str) -> String {
        let text = text::render(&inspect(&folder.path().join(name), true).unwrap(), true);
        text.replace(folder.path().to_str().unwrap(), "FOLDER")
    }

    #[test]
    fn files_and_folders_are_described() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("model")).unwrap();
        fs::write(at("model/config.json"), r#"{"model_type":"bert"}"#).unwrap();
        write(&at("model/model.safetensors"), &[], "q.weight", [3, 2]);
        fs::create_dir(at("activations")).unwrap();
        let metadata = r#"{"format":"activations","version":1,"sites":{"in":["q","k"]}}"#;
        write(&at("activations/a.safetensors"), &[("cntlora", metadata)], "in", [5, 2]);
        let texts = ["model", "model/model.safetensors", "activations", "activations/a.safetensors"]
            .map(|name| described(&folder, name));
        expect![[r#"
            FOLDER/model: checkpoint of a bert model, 1 file of 96 B, 6 parameters, 1 tensor (1 F32)

            tensor    format  shape
            q.weight  F32       3×2

            ----
            FOLDER/model/model.safetensors: safetensors file, 96 B, 1 tensor (1 F32)

            tensor    format  shape
            q.weight  F32       3×2
            q.weight: norm 0, largest 0, 6 zeros

            ----
            activations in 1 file of 216 B

            1 activation site
            in: 5 rows of 2 numbers, read by k, q

            ----
            FOLDER/activations/a.safetensors: safetensors file, 216 B, 1 tensor (1 F32)

            tensor  format  shape
            in      F32       5×2
            in: norm 0, largest 0, 10 zeros

            1 activation site
            in: 5 rows of 2 numbers, read by k, q
        "#]]
        .assert_eq(&texts.join("\n----\n"));
    }

    /// Widths in formats have a limit of 65 535 characters.
    #[test]
    fn tensors_with_many_axes_are_described() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = BTreeMap::from([("t".into(), ("F32".into(), vec![1; 33_000], vec![0; 4]))]);
        let mut file = File::create(folder.path().join("x.safetensors")).unwrap();
        safetensors::write(&mut file, &BTreeMap::new(), &tensors).unwrap();
        expect![[r#"
            FOLDER/x.safetensors: safetensors file, 66.1 kB, 1 tensor (1 F32)

            tensor  format                           shape
            t       F32     1×1×1×1×1×1×1×1×… (33000 axes)
            t: norm 0, largest 0, 1 zero
        "#]]
        .assert_eq(&described(&folder, "x.safetensors"));
        let long = "n".repeat(70_000);
        let tensors = BTreeMap::from([(long, ("F32".into(), vec![1], vec![0; 4]))]);
        let mut file = File::create(folder.path().join("y.safetensors")).unwrap();
        safetensors::write(&mut file, &BTreeMap::new(), &tensors).unwrap();
        assert!(described(&folder, "y.safetensors").len() < 5000);
    }

    #[test]
    fn other_json_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.json");
        fs::write(&path, "{}").unwrap();
        let problem = json_file(&path).unwrap_err();
        let text = format!("{problem}; help: {}", problem.next_step().unwrap());
        expect!["FOLDER/other.json: neither a report nor a plan: invalid report: missing field `schema_version` at line 1 column 2; invalid plan: missing field `model` at line 1 column 2; help: if the file describes a model or an adapter, inspect its folder"].assert_eq(&text.replace(folder.path().to_str().unwrap(), "FOLDER"));
    }
}
