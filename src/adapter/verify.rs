//! Reads a written adapter again and checks it.

use self::grams::Grams;
use super::further;
use super::location::Location;
use super::made_from::Comparison;
use super::numbers::{by_rows, decode, element_of, first_nonfinite, in_module};
use super::record::{Record, RecordedLayer};
use super::replace::BaseRecord;
use super::residual::wrong_shape;
use super::uniform::without_padding;
use super::{Config, FileRecord, PeftAdapter, PeftLayer, RECORD_FILE, SingleFile, Targets};
use crate::element::Element;
use crate::factors::{LayerName, LayerShape, Start};
use crate::method::Form;
use crate::storage::expressions::ends_of;
use crate::storage::{
    Access, Checkpoint, Piece, Problem, Problems, Source, folder_of, is_missing, quoted, visible,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The checks that an adapter passed, and its figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verification {
    /// Every check, in order.
    pub checks: Vec<Check>,
    /// Number of layers.
    pub layers: u64,
    /// Numbers in the factors.
    pub parameters: u64,
    /// Length of the file with the tensors, in bytes.
    pub bytes: u64,
    /// Smallest rank.
    pub min_rank: usize,
    /// Largest rank.
    pub max_rank: usize,
    /// The scale `s`, if all layers have the same one.
    pub scale: Option<f64>,
    /// The largest `|s B A| / |W|` of all layers with `W ≠ 0`, in Frobenius norms; `None` without a base.
    pub largest_relative_update: Option<f64>,
    /// Notes for the user.
    pub notes: Vec<String>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// The property that was checked.
    pub what: String,
    /// The result.
    pub outcome: Outcome,
}

/// The result of a check. There is no variant for failed checks, because they are errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The property holds.
    Passed,
    /// The check was skipped, for this reason.
    NotMade(String),
}

/// Reads the adapter in a folder and checks it: against its record, if there is one, and against a base, if one is given.
///
/// `weights` gives the places of weights in `base`. Places that are missing there are taken from the record, or else the weight of a
/// module is the tensor `MODULE.weight`.
///
/// # Errors
/// All checks that fail, together.
pub fn verify(
    folder: &Path,
    base: Option<&Checkpoint>,
    weights: &BTreeMap<LayerName, Vec<Piece>>,
) -> Result<Verification, Problems> {
    let mut problems = Problems::default();
    let adapter = PeftAdapter::open_sound_layers(folder, &mut problems);
    // Without a location, opening the adapter reported the problem.
    let Ok(location) = Location::of(folder) else { return Err(problems) };
    let record = problems.collect(Record::read(&location.folder().join(RECORD_FILE))).flatten();
    // A folder can hold several files, and a record of another one.
    let record =
        record.filter(|record| !location.has_any_name || record.files.contains_key(location.file_name()));
    if let Some(record) = &record {
        problems.collect(check_hash(&location, record));
    }
    let is_own_base = match (&record, base) {
        (Some(record), Some(base)) => problems.collect(is_own_base(&location, record, base)),
        _ => None,
    };
    let Some(adapter) = adapter else { return Err(problems) };
    let comparison = match (&record, base, is_own_base) {
        // The weights of a changed base are not those that the adapter was made from.
        (Some(record), Some(base), Some(false)) => {
            problems.collect(compare(base, record, &adapter, weights)).unwrap_or_default()
        }
        _ => Comparison::default(),
    };
    let not_compared = match (&record, base) {
        (_, None) => Some("no base was given".to_owned()),
        (None, _) => Some(format!("there is no {RECORD_FILE}")),
        _ if is_own_base == Some(true) || !comparison.is_empty() => None,
        _ => Some(format!("{RECORD_FILE} has no fingerprints of the weights")),
    };
    check_names(&adapter, folder, &mut problems);
    if let (Some(config), Some(path)) = (adapter.config(), &location.config) {
        check_targets(&adapter, config, path, &mut problems);
    }
    for tensor in adapter.further() {
        problems.collect(further::check_finite(tensor, adapter.source()));
    }
    problems.collect(check_scales(&adapter));
    let start = record.as_ref().and_then(Record::start);
    // In diffusers' format, the scale is multiplied into the factors, so most properties are lost. Opposite rows stay opposite.
    let holds_scale = adapter.single_file() == Some(SingleFile::Diffusers);
    let form = |layer: &PeftLayer| {
        let form = record.as_ref().and_then(|record| record.form(&layer.shape));
        form.filter(|form| !holds_scale || *form == Form::Mirrored)
    };
    let has_config = adapter.config().is_some();
    // The first entry of a layer counts.
    let recorded = record.iter().flat_map(|record| &record.layers).rev();
    let recorded = recorded.map(|layer| (layer.module.as_str(), layer)).collect();
    let is_padded = record.as_ref().is_some_and(|record| record.uniform_rank.is_some());
    let weights =
        Weights { base, given: weights, found: &comparison.places, recorded, has_config, is_padded };
    let mut largest_relative_update = base.map(|_| 0.0);
    for (name, layer) in adapter.layers() {
        if let Some(relative) =
            problems.collect(check_layer(&adapter, name, layer, form(layer), &weights)).flatten()
        {
            largest_relative_update = largest_relative_update.map(|largest: f64| largest.max(relative));
        }
    }
    problems.or_ok(())?;

    let layers = || adapter.layers().values();
    let ranks = || layers().map(|layer| layer.rank);
    Ok(Verification {
        checks: checks(
            record.is_some(),
            &layers().filter_map(form).collect(),
            holds_scale,
            adapter.config().is_some(),
            base.is_some(),
            not_compared,
        ),
        layers: adapter.layers().len() as u64,
        parameters: layers().map(|layer| (layer.rank * (layer.inputs + layer.outputs)) as u64).sum(),
        bytes: adapter.source().length(),
        min_rank: ranks().min().unwrap_or(0),
        max_rank: ranks().max().unwrap_or(0),
        scale: adapter.common_scale(1e-12),
        largest_relative_update,
        notes: notes(start, record.as_ref().is_some_and(Record::is_anchored), adapter.config())
            .into_iter()
            .chain(base.and_then(|base| quantized_note(base, &weights, &adapter)))
            .chain(adapter.notes())
            .collect(),
    })
}

/// The note about quantized weights among the adapted ones: their number and formats.
fn quantized_note(base: &Checkpoint, weights: &Weights<'_>, adapter: &PeftAdapter) -> Option<String> {
    let pieces = adapter.layers().keys().map(|name| weights.pieces(base, name));
    let formats: Vec<String> =
        pieces.filter_map(|pieces| Some(base.quantization(&pieces.first()?.tensor)?.to_owned())).collect();
    let all: BTreeSet<&str> = formats.iter().map(String::as_str).collect();
    let all: Vec<&str> = all.into_iter().collect();
    let weights = match formats.len() {
        0 => return None,
        1 => "1 adapted weight of the base is".to_owned(),
        many => format!("{many} adapted weights of the base are"),
    };
    Some(format!("{weights} quantized ({})", all.join("; ")))
}

fn checks(
    recorded: bool,
    forms: &BTreeSet<Form>,
    holds_scale: bool,
    with_config: bool,
    with_base: bool,
    not_compared: Option<String>,
) -> Vec<Check> {
    const BALANCED: &str = "the factors are balanced: BᵀB = A Aᵀ";
    let no_record = format!("there is no {RECORD_FILE}");
    let no_start = match (recorded, holds_scale) {
        (true, true) => "the scale is multiplied into the factors".to_owned(),
        (true, false) => format!("{RECORD_FILE} has no start"),
        (false, _) => no_record.clone(),
    };
    let no_config =
        || (!with_config).then(|| "only adapters in the format of PEFT have this configuration".to_owned());
    let text = |form: &Form| match form {
        Form::Balanced => BALANCED,
        Form::OrthonormalUp => "the columns of B are orthonormal",
        Form::Orthonormal => "the columns of B and the rows of A are orthonormal",
        Form::OrthonormalUpZeroDown => "A is zero, and the columns of B are orthonormal",
        Form::OrthonormalDown => "B is zero, and the rows of A are orthonormal",
        Form::ZeroUp => "B is zero",
        Form::ZeroDown => "A of embeddings is zero",
        Form::ZeroProduct => "the product B A is zero",
        Form::Mirrored => {
            "the product B A is exactly zero: pairs of rows of A are opposite, and the columns of B are equal"
        }
    };
    let factors = match forms.is_empty() {
        true => BALANCED.to_owned(),
        false => forms.iter().map(text).collect::<Vec<_>>().join("; "),
    };
    [
        ("the files are complete, and the configuration is for LoRA", no_config()),
        ("target_modules matches exactly the modules with tensors", no_config()),
        ("all factors have the shapes and ranks of the configuration", None),
        ("all values are finite", None),
        ("the checksum of the tensors matches the record", (!recorded).then_some(no_record)),
        (&factors, forms.is_empty().then_some(no_start)),
        (
            "all adapted weights are in the base, with the right shapes",
            (!with_base).then(|| "no base was given".into()),
        ),
        ("the base is the one that the adapter was made from, or was written with it", not_compared),
    ]
    .map(|(what, reason)| Check {
        what: what.into(),
        outcome: reason.map_or(Outcome::Passed, Outcome::NotMade),
    })
    .into()
}

fn notes(start: Option<Start>, is_anchored: bool, config: Option<&Config>) -> Vec<String> {
    if start != Some(Start::Residual) {
        return Vec::new();
    }
    if is_anchored {
        return vec![
            "load this adapter together with its anchor, and keep the anchor frozen: at the start, both together do not \
             change the model"
                .into(),
        ];
    }
    let base =
        config.and_then(|config| config.base_model_name_or_path.as_deref()).unwrap_or("see its record");
    vec![format!(
        "load this adapter on the residual base that was written with it ({}); on the original weights, the update would \
         be added twice",
        quoted(base)
    )]
}

fn check_hash(location: &Location, record: &Record) -> Result<(), Problem> {
    let name = location.file_name();
    let Some(expected) = record.files.get(name) else {
        let problem = Problem::data(format!("the record has no checksum of {}", visible(name)));
        return Err(problem.in_file(&location.folder().join(RECORD_FILE)));
    };
    let path = &location.tensors;
    if is_missing(path) {
        // Opening the adapter reports this problem.
        return Ok(());
    }
    let found = FileRecord::of(&Source::open(path, Access::Auto)?)?;
    if found == *expected {
        return Ok(());
    }
    Err(Problem::data(format!(
        "checksum mismatch: the file has {} bytes and SHA-256 {}, but {RECORD_FILE} says {} bytes and {}",
        found.bytes,
        found.sha256,
        expected.bytes,
        visible(&expected.sha256)
    ))
    .in_file(path)
    .help("the file was changed or damaged: write the adapter again"))
}

/// Returns whether the base was written together with this adapter. Base and adapter in different folders are replaced one directly after
/// the other, so a process that is killed in between leaves a new base beside an old adapter.
///
/// # Errors
/// A data problem if both records say that the base was written together with another adapter.
fn is_own_base(location: &Location, record: &Record, base: &Checkpoint) -> Result<bool, Problem> {
    if !record.changes_base() {
        return Ok(false);
    }
    let base_folder = base.folder().unwrap_or(folder_of(base.path()));
    let Some(written_with) = BaseRecord::of(base_folder)?.and_then(|record| record.adapter) else {
        return Ok(false);
    };
    if record.files.get(location.file_name()) == Some(&written_with) {
        return Ok(true);
    }
    let what = "this base was written together with another adapter, according to both records";
    Err(Problem::data(what)
        .in_file(&base_folder.join(RECORD_FILE))
        .help("give the base of this adapter, or write both again"))
}

/// Compares the weights of the base with those that the adapter was made from.
fn compare(
    base: &Checkpoint,
    record: &Record,
    adapter: &PeftAdapter,
    given: &BTreeMap<LayerName, Vec<Piece>>,
) -> Result<Comparison, Problem> {
    let comparison = Comparison::new(base, record, adapter, given)?;
    let changed = format!(", or the changed base that was written with it, with its {RECORD_FILE}");
    comparison.check(base, record, if record.changes_base() { &changed } else { "" })?;
    Ok(comparison)
}

/// Refuses names with the parts of wrappers. PEFT finds no module under such a name, and initializes its factors at random.
fn check_names(adapter: &PeftAdapter, path: &Path, problems: &mut Problems) {
    let Some((count, before, after)) = adapter.wrapped().found() else { return };
    let names =
        if count == 1 { "1 tensor name has".to_owned() } else { format!("{count} tensor names have") };
    let [before, after] = [before, after].map(quoted);
    let what = format!(
        "{names} parts of a wrapper, so that PEFT and diffusers do not find the modules and start from random factors: {before} must be {after}"
    );
    let path = quoted(&path.display().to_string());
    problems.push(
        Problem::data(what)
            .in_file(adapter.source().path())
            .help(format!("write the adapter with the right names: cntlora convert {path} --out NEW")),
    );
}

fn check_targets(adapter: &PeftAdapter, config: &Config, config_path: &Path, problems: &mut Problems) {
    let complain = |what: String| Problem::data(what).in_file(config_path);
    let Some(targets) = &config.target_modules else {
        problems.push(complain("target_modules is missing".into()));
        return;
    };
    let modules = adapter.modules();
    let of_kind = |kind: bool| {
        modules.iter().filter(move |(_, is_parameter)| **is_parameter == kind).map(|(module, _)| *module)
    };
    let is_target = |module: &str| targets.contain(module) || targets.contain(adapter.stored_name(module));
    for module in of_kind(false).filter(|module| !is_target(module)) {
        problems.push(complain(format!(
            "target_modules does not match module {}, which has tensors",
            quoted(module)
        )));
    }
    let mut check_used = |key: &str, names: &BTreeSet<String>, is_parameter: bool| {
        let ends = of_kind(is_parameter).flat_map(|module| [module, adapter.stored_name(module)]);
        let ends = ends.flat_map(ends_of);
        let used: BTreeSet<&str> = ends.filter(|end| names.contains(*end)).collect();
        for name in names.iter().filter(|name| !used.contains(name.as_str())) {
            problems.push(complain(format!(
                "{key} has the name {}, but there are no tensors for it",
                quoted(name)
            )));
        }
    };
    if let Targets::Names(names) = targets {
        check_used("target_modules", names, false);
    }
    if let Some(names) = &config.target_parameters {
        check_used("target_parameters", names, true);
    }
}

/// Refuses scales with which layers have no effect, or with which they overflow. Programs multiply with them in single precision.
fn check_scales(adapter: &PeftAdapter) -> Result<(), Problem> {
    let lost = || {
        let layers = adapter.layers().iter();
        layers.filter_map(|(name, layer)| Some((name, layer, Element::F32.loses(layer.scale)?)))
    };
    let Some((name, layer, word)) = lost().next() else { return Ok(()) };
    let scale = layer.scale;
    let reason = match scale {
        0.0 => "is 0, so that the layer has no effect".to_owned(),
        _ if scale.is_finite() => {
            format!("is {scale:e}, which is {word} in single precision")
        }
        _ => format!("is {scale}"),
    };
    let more = match (lost().count(), adapter.layers().len()) {
        (1, 1) => String::new(),
        (some, all) => format!(" ({some} of {all} layers have such a scale)"),
    };
    let problem = in_module(name, format!("the scale, lora_alpha divided by the rank, {reason}{more}"));
    Err(problem.in_file(adapter.source().path()).help("correct lora_alpha"))
}

/// The places of the weights of layers.
struct Weights<'a> {
    base: Option<&'a Checkpoint>,
    given: &'a BTreeMap<LayerName, Vec<Piece>>,
    /// Places that were found by the fingerprints of the weights.
    found: &'a BTreeMap<String, Vec<Piece>>,
    /// The layers of the record, by name.
    recorded: BTreeMap<&'a str, &'a RecordedLayer>,
    has_config: bool,
    /// True if units of zeros were added to the factors.
    is_padded: bool,
}

impl Weights<'_> {
    /// The Frobenius norm `|W|` of the weight of a layer; `None` without a base.
    fn norm(&self, name: &LayerName, layer: &PeftLayer) -> Result<Option<f64>, Problem> {
        let Some(base) = self.base else { return Ok(None) };
        let pieces = self.pieces(base, name);
        let first = pieces.first().map_or_else(|| format!("{name}.weight"), |piece| piece.tensor.clone());
        let complain = |what: String| Problem::data(what).in_file(base.path()).in_tensor(&first);
        let Some(stored) = base.get(&first) else {
            return Err(complain(format!(
                "the base does not contain the weight of module {}",
                quoted(&name.to_string())
            ))
            .help("give the base that the adapter was made for"));
        };
        base.check_quantized(&first)?;
        let of_shape = |shape: &LayerShape| shape.of_weight(layer.outputs as u64, layer.inputs as u64);
        let expected = of_shape(&layer.shape);
        let found = &stored.tensor.shape;
        let whole = matches!(&pieces[..], [one] if base.whole(&first).as_ref() == Some(one));
        let fits = match whole && layer.shape.blocks().is_none() {
            // With fan_in_fan_out, a model can still have linear layers. A single-file adapter does not say which layers are
            // transposed.
            true => {
                let may_be = |shape: &LayerShape| match layer.shape {
                    LayerShape::Transposed => *shape == LayerShape::Linear,
                    LayerShape::Linear => *shape == LayerShape::Transposed && !self.has_config,
                    _ => false,
                };
                let other =
                    [LayerShape::Linear, LayerShape::Transposed].into_iter().find(|shape| may_be(shape));
                *found == expected || other.is_some_and(|other| *found == of_shape(&other))
            }
            false => {
                let numbers = pieces.iter().map(|piece| piece.count).fold(0, u64::saturating_add);
                numbers == expected.iter().copied().fold(1, u64::saturating_mul)
            }
        };
        if !fits {
            return Err(wrong_shape(&expected, found).in_file(base.path()).in_tensor(&first));
        }
        let mut sum = 0.0;
        for piece in &pieces {
            sum += self.sum_of_squares(base, piece)?;
        }
        if !sum.is_finite() {
            return Err(complain("the weight has NaN, infinite or extremely large values".into()));
        }
        Ok(Some(f64::sqrt(sum)))
    }

    /// The place of the weight of a layer. Empty if it is not found.
    fn pieces(&self, base: &Checkpoint, name: &LayerName) -> Vec<Piece> {
        if let Some(given) = self.given.get(name) {
            return given.clone();
        }
        let text = name.to_string();
        if let Some(found) = self.found.get(&text) {
            return found.clone();
        }
        match self.recorded.get(text.as_str()).map(|layer| (&layer.weight, &layer.tensor)) {
            Some((Some(pieces), _)) => pieces.clone(),
            Some((None, tensor)) => vec![base.whole(tensor).unwrap_or_else(|| Piece::of(tensor, 0..0))],
            None => base.whole(&format!("{text}.weight")).into_iter().collect(),
        }
    }

    fn sum_of_squares(&self, base: &Checkpoint, piece: &Piece) -> Result<f64, Problem> {
        let dtype = base.get(&piece.tensor).map_or("", |stored| &stored.tensor.dtype);
        let element = element_of(dtype).map_err(|p| p.in_file(base.path()).in_tensor(&piece.tensor))?;
        let values = decode(&base.read_piece(piece)?, element)?;
        Ok(values.iter().map(|value| value * value).sum())
    }
}

/// Checks the values of a layer. Returns `|s B A| / |W|` if there is a base and `W` is not zero.
fn check_layer(
    adapter: &PeftAdapter,
    name: &LayerName,
    layer: &PeftLayer,
    form: Option<Form>,
    weights: &Weights<'_>,
) -> Result<Option<f64>, Problems> {
    let mut problems = Problems::default();
    let complain = |what: String| in_module(name, what).in_file(adapter.source().path());
    let factors = adapter.factors(layer)?;
    for (side, factor) in [("A", factors.a.as_ref()), ("B", factors.b.as_ref())] {
        if let Some((row, column, value)) = first_nonfinite(by_rows(factor), factor.ncols()) {
            problems.push(complain(format!("{side} has the value {value} in row {row}, column {column}")));
        }
    }
    let norm = problems.collect(weights.norm(name, layer)).flatten();
    if !problems.0.is_empty() {
        return Err(problems);
    }
    let grams = Grams::of(&factors);
    let own = weights.is_padded.then(|| without_padding(&factors));
    let factors = own.unwrap_or(factors);
    let form = form.filter(|_| factors.a.nrows() > 0);
    match form {
        Some(Form::Mirrored) if !factors.is_mirrored() => problems.push(complain(
            "rows 2k and 2k + 1 of A must be exactly opposite, and columns 2k and 2k + 1 of B must be equal"
                .into(),
        )),
        Some(Form::Mirrored) | None => {}
        Some(form) => {
            problems.collect(Grams::of(&factors).check(form, layer.element).map_err(complain));
        }
    }
    let relative = |norm| layer.scale.abs() * grams.product_norm() / norm;
    problems.or_ok(norm.filter(|&norm| norm > 0.0).map(relative))
}

mod grams;
#[cfg(test)]
mod tests;
