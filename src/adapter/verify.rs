//! The check that re-reads what was written.

use super::read::tensors_file;
use super::record::Record;
use super::{CONFIG_FILE, Config, FileRecord, PeftAdapter, PeftLayer, RECORD_FILE, SingleFile, Targets};
use crate::dense;
use crate::element::Element;
use crate::factors::{Factors, LayerShape, Start};
use crate::method::Form;
use crate::storage::{Access, Checkpoint, Piece, Problem, Problems, Source, is_missing, quoted};
use faer::{Mat, MatRef, Par};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What was checked of an adapter that holds, and its figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verification {
    /// Every check, in order.
    pub checks: Vec<Check>,
    /// Number of layers.
    pub layers: u64,
    /// Numbers in the factors.
    pub parameters: u64,
    /// Length of `adapter_model.safetensors`.
    pub bytes: u64,
    /// Smallest rank.
    pub min_rank: usize,
    /// Largest rank.
    pub max_rank: usize,
    /// The scale `s`, if all layers have the same.
    pub scale: Option<f64>,
    /// Largest `|s B A| / |W|` of a layer whose `W` is not zero, in Frobenius norms, if a base was given.
    pub largest_relative_update: Option<f64>,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// What holds, in words.
    pub what: String,
    /// How it came out.
    pub outcome: Outcome,
}

/// How a check came out. A check that failed makes an error of the whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It holds.
    Passed,
    /// It was not made, for this reason.
    NotMade(String),
}

/// Re-reads a PEFT folder and checks it, against the record of its making if there is one, and against a base if one
/// is given.
///
/// The weight of a module is looked up in `base` where `weights` says that it is, or else the record, or else under
/// `MODULE.weight`.
///
/// # Errors
/// All checks that fail, together.
pub fn verify(
    folder: &Path,
    base: Option<&Checkpoint>,
    weights: &BTreeMap<String, Vec<Piece>>,
) -> Result<Verification, Problems> {
    let mut problems = Problems::default();
    let adapter = PeftAdapter::open_sound_layers(folder, &mut problems);
    let record = problems.collect(Record::read(&folder.join(RECORD_FILE))).flatten();
    if let Some(record) = &record {
        problems.collect(check_hash(folder, record));
    }
    let Some(adapter) = adapter else { return Err(problems) };
    match adapter.config() {
        Some(config) => check_targets(&adapter, config, &folder.join(CONFIG_FILE), &mut problems),
        None => check_not_empty(&adapter, &mut problems),
    }
    let start = record.as_ref().and_then(Record::start);
    // Where the factors hold the scale, they are no longer those that the method made. Opposite rows stay opposite.
    let holds_scale = adapter.single_file() == Some(SingleFile::Diffusers);
    let form = |layer: &PeftLayer| {
        let form = record.as_ref().and_then(|record| record.form(&layer.shape));
        form.filter(|form| !holds_scale || *form == Form::Mirrored)
    };
    let has_config = adapter.config().is_some();
    let weights = Weights { base, given: weights, record: record.as_ref(), has_config };
    let mut largest_relative_update = base.map(|_| 0.0);
    for (module, layer) in adapter.layers() {
        if let Some(relative) =
            problems.collect(check_layer(&adapter, module, layer, form(layer), &weights)).flatten()
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
        ),
        layers: adapter.layers().len() as u64,
        parameters: layers().map(|layer| (layer.rank * (layer.inputs + layer.outputs)) as u64).sum(),
        bytes: adapter.source().length(),
        min_rank: ranks().min().unwrap_or(0),
        max_rank: ranks().max().unwrap_or(0),
        scale: common_scale(layers().map(|layer| layer.scale)),
        largest_relative_update,
        notes: notes(start, record.as_ref().is_some_and(Record::is_anchored), adapter.config()),
    })
}

fn checks(
    recorded: bool,
    forms: &BTreeSet<Form>,
    holds_scale: bool,
    with_config: bool,
    with_base: bool,
) -> Vec<Check> {
    const BALANCED: &str = "the factors are balanced: BᵀB = A Aᵀ";
    let no_record = format!("there is no {RECORD_FILE}");
    let no_start = match (recorded, holds_scale) {
        (true, true) => "the factors hold the scale".to_owned(),
        (true, false) => format!("{RECORD_FILE} names no start"),
        (false, _) => no_record.clone(),
    };
    let no_config = || (!with_config).then(|| "an adapter of one file has no configuration".to_owned());
    let in_words = |form: &Form| match form {
        Form::Balanced => BALANCED,
        Form::OrthonormalUp => "the columns of B are orthonormal",
        Form::OrthonormalDown => "B is zero, and the rows of A are orthonormal",
        Form::ZeroUp => "B is zero",
        Form::ZeroDown => "A of embeddings is zero",
        Form::ZeroProduct => "the product B A is zero",
        Form::Mirrored => {
            "the product B A is exactly zero: rows of A are opposite in pairs, and columns of B equal"
        }
    };
    let factors = match forms.is_empty() {
        true => BALANCED.to_owned(),
        false => forms.iter().map(in_words).collect::<Vec<_>>().join("; "),
    };
    [
        ("the files are complete, and the configuration is one of LoRA", no_config()),
        ("target_modules names exactly the modules that have tensors", no_config()),
        ("every pair of factors has the shape and the rank that the configuration gives it", None),
        ("every value is finite", None),
        ("the tensors are those that were written", (!recorded).then_some(no_record)),
        (&factors, forms.is_empty().then_some(no_start)),
        (
            "every adapted weight is in the base, with a shape that fits",
            (!with_base).then(|| "no base was given".into()),
        ),
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
            "this adapter and its anchor belong together: the model computes what it did before with both of them, and the \
             anchor must stay frozen"
                .into(),
        ];
    }
    let base =
        config.and_then(|config| config.base_model_name_or_path.as_deref()).unwrap_or("its record names it");
    vec![format!(
        "this adapter needs the residual base that was written with it ({}); on the original weights it would add the \
         update twice",
        quoted(base)
    )]
}

/// The scale of all layers, if it is the same but for rounding.
fn common_scale(mut scales: impl Iterator<Item = f64>) -> Option<f64> {
    let first = scales.next()?;
    scales.all(|scale| (scale - first).abs() <= 1e-12 * first.abs()).then_some(first)
}

fn check_hash(folder: &Path, record: &Record) -> Result<(), Problem> {
    let name = tensors_file(folder);
    let Some(expected) = record.files.get(name) else {
        let problem = Problem::data(format!("expected the hash of {name}, found none"));
        return Err(problem.in_file(&folder.join(RECORD_FILE)));
    };
    let path = folder.join(name);
    if is_missing(&path) {
        // That complaint is made where the tensors are opened.
        return Ok(());
    }
    let found = FileRecord::of(&Source::open(&path, Access::Auto)?)?;
    if found == *expected {
        return Ok(());
    }
    let expected_hash = quoted(&expected.sha256);
    Err(Problem::data(format!(
        "expected {} bytes with the SHA-256 {expected_hash}, as {RECORD_FILE} says, found {} bytes with {}",
        expected.bytes,
        found.bytes,
        quoted(&found.sha256)
    ))
    .in_file(&path)
    .help("it was changed after it was written: write the adapter again"))
}

fn check_targets(adapter: &PeftAdapter, config: &Config, config_path: &Path, problems: &mut Problems) {
    let complain = |what: String| Problem::data(what).in_file(config_path);
    let Some(targets) = &config.target_modules else {
        problems.push(complain("expected target_modules, found none".into()));
        return;
    };
    let modules = adapter.modules();
    let of_kind = |kind: bool| {
        modules.iter().filter(move |(_, is_parameter)| **is_parameter == kind).map(|(module, _)| *module)
    };
    for module in of_kind(false).filter(|module| !targets.contain(module)) {
        problems.push(complain(format!(
            "expected target_modules to name every module that has tensors, found that {} is not named",
            quoted(module)
        )));
    }
    let mut check_used = |key: &str, names: &BTreeSet<String>, is_parameter: bool| {
        let unused = names.iter().filter(|name| {
            let one = Targets::Names([(*name).clone()].into());
            !of_kind(is_parameter).any(|module| one.contain(module))
        });
        for name in unused {
            problems.push(complain(format!(
                "expected tensors for every name in {key}, found none for {}",
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
    check_not_empty(adapter, problems);
}

fn check_not_empty(adapter: &PeftAdapter, problems: &mut Problems) {
    if adapter.layers().is_empty() {
        let problem = Problem::data("expected factors of at least one module, found none");
        problems.push(problem.in_file(adapter.source().path()));
    }
}

/// Where the weights of the modules are.
struct Weights<'a> {
    base: Option<&'a Checkpoint>,
    given: &'a BTreeMap<String, Vec<Piece>>,
    record: Option<&'a Record>,
    has_config: bool,
}

impl Weights<'_> {
    /// `|W|` of a module, in the Frobenius norm, if there is a base.
    fn norm(&self, module: &str, layer: &PeftLayer) -> Result<Option<f64>, Problem> {
        let Some(base) = self.base else { return Ok(None) };
        let pieces = self.pieces(base, module);
        let first = pieces.first().map_or_else(|| format!("{module}.weight"), |piece| piece.tensor.clone());
        let complain = |what: String| Problem::data(what).in_file(base.path()).in_tensor(&first);
        let Some(stored) = base.get(&first) else {
            return Err(complain(format!(
                "expected the weight of module {}, found no such tensor",
                quoted(module)
            ))
            .help("give the base that the adapter was made for"));
        };
        let of_shape = |shape: &LayerShape| shape.of_weight(layer.outputs as u64, layer.inputs as u64);
        let expected = of_shape(&layer.shape);
        let found = &stored.tensor.shape;
        let whole = matches!(&pieces[..], [one] if base.whole(&first).as_ref() == Some(one));
        let fits = match whole && layer.shape.blocks().is_none() {
            // A model with both kinds of layers has linear ones among those that the configuration calls transposed, and an
            // adapter of one file does not say which are.
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
            return Err(complain(format!(
                "expected shape {expected:?}, as its factors have it, found {found:?}"
            )));
        }
        let mut sum = 0.0;
        for piece in &pieces {
            sum += self.sum_of_squares(base, piece)?;
        }
        if !sum.is_finite() {
            return Err(complain(
                "expected finite values of moderate size, found a norm that is not finite".into(),
            ));
        }
        Ok(Some(f64::sqrt(sum)))
    }

    /// Where the weight of a module is. Nowhere, if nothing has its name.
    fn pieces(&self, base: &Checkpoint, module: &str) -> Vec<Piece> {
        if let Some(given) = self.given.get(module) {
            return given.clone();
        }
        let recorded = self.record.map_or(&[][..], |record| &record.layers);
        let recorded = recorded.iter().find(|layer| layer.module == module);
        match recorded.map(|layer| (&layer.weight, &layer.tensor)) {
            Some((Some(pieces), _)) => pieces.clone(),
            Some((None, tensor)) => vec![base.whole(tensor).unwrap_or_else(|| Piece::of(tensor, 0..0))],
            None => base.whole(&format!("{module}.weight")).into_iter().collect(),
        }
    }

    fn sum_of_squares(&self, base: &Checkpoint, piece: &Piece) -> Result<f64, Problem> {
        let dtype = base.get(&piece.tensor).map_or("", |stored| &stored.tensor.dtype);
        let element = Element::from_name(dtype).ok_or_else(|| {
            Problem::data(format!("expected F32, F16, BF16 or F64, found {}", quoted(dtype)))
                .in_file(base.path())
                .in_tensor(&piece.tensor)
        })?;
        let bytes = base.read_piece(piece)?;
        let mut values = vec![0.0; bytes.len() / element.size()];
        element.decode_f64(&bytes, &mut values);
        Ok(values.iter().map(|value| value * value).sum())
    }
}

/// Checks the values of a layer. Returns `|s B A| / |W|` if there is a base and its `W` is not zero.
fn check_layer(
    adapter: &PeftAdapter,
    module: &str,
    layer: &PeftLayer,
    form: Option<Form>,
    weights: &Weights<'_>,
) -> Result<Option<f64>, Problems> {
    let mut problems = Problems::default();
    let complain = |what: String| {
        Problem::data(format!("module {}: {what}", quoted(module))).in_file(adapter.source().path())
    };
    let factors = adapter.factors(layer)?;
    for (name, factor) in [("A", factors.a.as_ref()), ("B", factors.b.as_ref())] {
        if let Some((row, column)) = first_nonfinite(factor) {
            problems.push(complain(format!(
                "expected finite values, found {} in row {row}, column {column} of {name}",
                factor[(row, column)]
            )));
        }
    }
    let norm = problems.collect(weights.norm(module, layer)).flatten();
    if !problems.0.is_empty() {
        return Err(problems);
    }
    let grams = Grams::of(&factors);
    match form {
        Some(Form::Mirrored) if !factors.is_mirrored() => problems.push(complain(
            "rows 2k and 2k + 1 of A must be exactly opposite, and these columns of B equal".into(),
        )),
        Some(Form::Mirrored) | None => {}
        Some(form) => {
            problems.collect(grams.check(form, layer.element).map_err(complain));
        }
    }
    let relative = |norm| layer.scale.abs() * grams.product_norm() / norm;
    problems.or_ok(norm.filter(|&norm| norm > 0.0).map(relative))
}

fn first_nonfinite(factor: MatRef<'_, f32>) -> Option<(usize, usize)> {
    let places = (0..factor.nrows()).flat_map(|i| (0..factor.ncols()).map(move |j| (i, j)));
    places.into_iter().find(|&place| !factor[place].is_finite())
}

/// `A Aᵀ` and `BᵀB`, which tell all that is asked here, and are small.
struct Grams {
    a: Mat<f64>,
    b: Mat<f64>,
}

impl Grams {
    fn of(factors: &Factors) -> Self {
        let wide = |factor: MatRef<'_, f32>| {
            Mat::from_fn(factor.nrows(), factor.ncols(), |i, j| f64::from(factor[(i, j)]))
        };
        let product = |left: MatRef<'_, f64>, right: MatRef<'_, f64>| {
            let mut product = Mat::zeros(left.nrows(), right.ncols());
            dense::product_into(product.as_mut(), left, right, Par::Seq);
            product
        };
        let (a, b) = (wide(factors.a.as_ref()), wide(factors.b.as_ref()));
        Self { a: product(a.as_ref(), a.transpose()), b: product(b.transpose(), b.as_ref()) }
    }

    /// `|B A|` in the Frobenius norm: its square is `tr(BᵀB · A Aᵀ)`.
    fn product_norm(&self) -> f64 {
        let rank = self.a.nrows();
        let places = (0..rank).flat_map(|i| (0..rank).map(move |j| (i, j)));
        places.map(|place| self.a[place] * self.b[place]).sum::<f64>().max(0.0).sqrt()
    }

    /// Checks what the factors promise.
    fn check(&self, form: Form, element: Element) -> Result<(), String> {
        let rank = self.a.nrows();
        let tolerance = 1e-3 + rounding(element, rank);
        let identity = Mat::<f64>::identity(rank, rank);
        let (expected, found, norm) = match form {
            Form::Balanced => {
                // A unit without a singular value has a zero column in B, and an orthonormal row in A.
                let (empty, used) = (0..rank).partition(|unit| self.b[(*unit, *unit)] == 0.0);
                let part = |gram: &Mat<f64>, units: &Vec<usize>| {
                    Mat::from_fn(units.len(), units.len(), |i, j| gram[(units[i], units[j])])
                };
                let empty_rows = part(&self.a, &empty);
                let off = (empty_rows - Mat::<f64>::identity(empty.len(), empty.len())).norm_l2();
                if off > tolerance * empty.len() as f64 {
                    return Err(format!(
                        "rows of A beside zero columns of B must be orthonormal, but differ from that by {off:.1e}"
                    ));
                }
                let (a, b) = (part(&self.a, &used), part(&self.b, &used));
                ("balanced factors, BᵀB = A Aᵀ", (&a - &b).norm_l2(), a.norm_l2())
            }
            Form::OrthonormalUp => {
                ("orthonormal columns of B", (&self.b - &identity).norm_l2(), identity.norm_l2())
            }
            Form::OrthonormalDown | Form::ZeroUp if self.b.norm_l2() != 0.0 => {
                return Err(format!("expected B = 0, found |BᵀB| = {:e}", self.b.norm_l2()));
            }
            Form::ZeroDown if self.a.norm_l2() != 0.0 => {
                return Err(format!("expected A = 0, found |A Aᵀ| = {:e}", self.a.norm_l2()));
            }
            Form::OrthonormalDown => {
                ("orthonormal rows of A", (&self.a - &identity).norm_l2(), identity.norm_l2())
            }
            Form::ZeroUp | Form::ZeroDown | Form::Mirrored => return Ok(()),
            Form::ZeroProduct => {
                // |B A| ≤ |B| |A|, and |B|² = tr BᵀB.
                let trace = |gram: &Mat<f64>| gram.diagonal().column_vector().iter().sum::<f64>();
                ("B A = 0", self.product_norm(), (trace(&self.a) * trace(&self.b)).sqrt())
            }
        };
        if found <= tolerance * norm {
            return Ok(());
        }
        Err(format!(
            "expected {expected}, to {tolerance:.0e}; found a relative difference of {:.1e}",
            found / norm
        ))
    }
}

/// By how much rounding the factors to the format of the file can unbalance them: with the unit roundoff `u`, either
/// Gram changes by `2 u |A|²` at most, and `|A|² ≤ √r |A Aᵀ|`.
fn rounding(element: Element, rank: usize) -> f64 {
    let unit = match element {
        Element::F64 => f64::EPSILON / 2.0,
        Element::F32 => 2f64.powi(-24),
        Element::F16 => 2f64.powi(-11),
        Element::Bf16 => 2f64.powi(-8),
    };
    4.0 * unit * (rank as f64).sqrt()
}

#[cfg(test)]
mod tests;
