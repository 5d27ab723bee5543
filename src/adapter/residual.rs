//! The residual base: a copy of the checkpoint with `W − s B A` in place of each adapted weight.

use super::contents::pretty;
use super::folder::{Names, OutputFolder, names_of};
use super::numbers::{check_shapes, decode, element_of, encode, first_nonfinite};
use super::replace::{BaseRecord, standing};
use super::{FileRecord, RECORD_FILE};
use crate::element::Element;
use crate::factors::Factors;
use crate::storage::{
    Access, Checkpoint, NewFile, Piece, Problem, Problems, Source, folder_of, is_same_file, names_in,
};
use faer::MatRef;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::{Path, PathBuf};

mod wide;

/// The usual index of shards. An old one beside new weights is removed.
const USUAL_INDEX: &str = "model.safetensors.index.json";
/// Number of bytes that are read at once.
const BLOCK: u64 = 1 << 20;
/// Number of bytes of a quantized weight that are read at once. Each block of some formats reads the codes of a whole matrix.
const QUANTIZED_BLOCK: u64 = 1 << 24;
/// Files beside the weights that repeat how they are quantized.
const QUANTIZATION_FILES: [&str; 3] = ["quantize_config.json", "quant_config.json", "hf_quant_config.json"];

/// An adapted weight.
#[derive(Clone, Debug)]
pub struct AdaptedWeight {
    /// Its place in the checkpoint: pieces with consecutive rows.
    pub pieces: Vec<Piece>,
    /// The factors for the weight as it is stored.
    pub factors: Factors,
}

/// The folder of a residual base, and the number format of its changed weights.
#[derive(Clone, Copy, Debug)]
pub struct Base<'a> {
    /// The folder.
    pub folder: &'a Path,
    /// The number format.
    pub format: BaseFormat,
}

/// The number format of the weights of a changed base.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub enum BaseFormat {
    /// That of the model. Quantized weights cannot be changed.
    #[default]
    Model,
    /// Changed weights in BF16 and F16 become F32, so that they are not rounded to these formats, and so do all quantized weights. The
    /// configuration then says float32, so that programs do not round them when they load the base.
    F32,
    /// All quantized weights become BF16.
    Bf16,
}

impl BaseFormat {
    /// True for the format of the model.
    pub fn is_model(&self) -> bool {
        *self == Self::Model
    }
}

/// A format in a file. The first versions had only one besides that of the model.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Wide(bool),
    Named(Named),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Named {
    Bf16,
}

impl From<Written> for BaseFormat {
    fn from(written: Written) -> Self {
        match written {
            Written::Wide(false) => Self::Model,
            Written::Wide(true) => Self::F32,
            Written::Named(Named::Bf16) => Self::Bf16,
        }
    }
}

impl From<BaseFormat> for Written {
    fn from(format: BaseFormat) -> Self {
        match format {
            BaseFormat::Model => Self::Wide(false),
            BaseFormat::F32 => Self::Wide(true),
            BaseFormat::Bf16 => Self::Named(Named::Bf16),
        }
    }
}

/// The parts of a checkpoint that change, after all checks that need no numbers.
pub(super) struct Residuals<'a> {
    checkpoint: &'a Checkpoint,
    of_files: BTreeMap<usize, Vec<Residual<'a>>>,
    format: BaseFormat,
}

impl<'a> Residuals<'a> {
    pub(super) fn new(
        base: Base<'_>,
        checkpoint: &'a Checkpoint,
        layers: &'a [AdaptedWeight],
        scale: f64,
        element: Element,
    ) -> Result<Self, Problems> {
        let of_files = residuals(checkpoint, layers, scale, element)?;
        refuse_model_folder(base.folder, checkpoint)?;
        if base.format == BaseFormat::Model {
            let tensors = layers.iter().flat_map(|layer| &layer.pieces).map(|piece| piece.tensor.as_str());
            refuse_quantized(checkpoint, tensors)?;
        }
        Ok(Self { checkpoint, of_files, format: base.format })
    }

    /// Writes the base, and its record with the hash of the tensors of its adapter. Returns the names of files and folders of the model
    /// that were not copied.
    pub(super) fn write(
        &self,
        output: &OutputFolder<'_>,
        adapter: Option<FileRecord>,
    ) -> Result<(Names, Vec<String>), Problems> {
        let Self { checkpoint, of_files, format } = self;
        let (mut copied, mut left_out) = companions(checkpoint)?;
        if !format.is_model() && checkpoint.quantized_names().next().is_some() {
            let (stale, kept) =
                copied.into_iter().partition(|name| QUANTIZATION_FILES.iter().any(|file| name == file));
            copied = kept;
            left_out.extend::<Vec<OsString>>(stale);
            left_out.sort();
        }
        let left_out = left_out.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        let mut old = BaseRecord::of(output.path())?.map_or_else(Vec::new, |record| record.old_files());
        let mut files = Vec::new();
        let mut weight_bytes = 0u64;
        for (number, (source, header)) in checkpoint.files().iter().enumerate() {
            let mut file = output.create(relative(source.path(), checkpoint))?;
            let adapted = of_files.get(&number).map_or(&[][..], Vec::as_slice);
            let written = match format {
                BaseFormat::Model => write_weights(checkpoint, source, adapted, &mut file).map(|()| 0)?,
                _ => {
                    wide::write_weights(checkpoint, (number, &header.metadata), adapted, *format, &mut file)?
                }
            };
            weight_bytes = weight_bytes.saturating_add(written);
            source.check_unchanged()?;
            files.push(file);
        }
        for name in &copied {
            let source = Source::open(&checkpoint.path().join(name), Access::Read)?;
            if !format.is_model()
                && let Some(text) = wide::companion(checkpoint, name, &source, weight_bytes, *format)?
            {
                files.push(output.write(name, pretty(&text).as_bytes())?);
                continue;
            }
            let mut file = output.create(name)?;
            copy(&source, 0, source.length(), &mut file)?;
            files.push(file);
        }
        let name = |file: &NewFile| file.path().file_name().map(|name| name.to_string_lossy().into_owned());
        let names = files.iter().filter_map(name).collect();
        // A mixture of old and new weights must never load.
        old.extend(
            names_of(&files, output.path()).into_iter().filter(|name| standing(&name.to_string_lossy()) > 0),
        );
        old.insert(0, USUAL_INDEX.into());
        let record = pretty(&serde_json::json!(BaseRecord::new(names, adapter)));
        files.push(output.write(RECORD_FILE, record.as_bytes())?);
        // The file that makes the folder loadable comes last.
        files.sort_by_key(|file| name(file).map_or(0, |name| standing(&name)));
        let new = names_of(&files, output.path());
        files.into_iter().try_for_each(NewFile::finish)?;
        Ok((Names { old, new }, left_out))
    }
}

/// Checks that the folder for a residual base is not the folder of the model.
///
/// # Errors
/// A usage problem if it is.
pub fn refuse_model_folder(folder: &Path, checkpoint: &Checkpoint) -> Result<(), Problem> {
    let parents = checkpoint.files().iter().map(|(source, _)| folder_of(source.path()));
    let mut folders = checkpoint.folder().into_iter().chain(parents);
    if folders.any(|model| is_same_file(model, folder)) {
        return Err(Problem::usage("the residual base would overwrite the weights of the model")
            .in_file(folder)
            .help("choose another folder for the residual base"));
    }
    Ok(())
}

/// Refuses a changed base with quantized weights among these tensors.
///
/// # Errors
/// A usage problem that names the first of them, with the ways that there are.
pub fn refuse_quantized<'a>(
    checkpoint: &Checkpoint,
    mut tensors: impl Iterator<Item = &'a str>,
) -> Result<(), Problem> {
    let Some((tensor, format)) = tensors.find_map(|tensor| Some((tensor, checkpoint.quantization(tensor)?)))
    else {
        return Ok(());
    };
    let what = format!(
        "the changed base cannot hold this weight: it is quantized ({format}), and a new quantization would round it again"
    );
    Err(Problem::usage(what).in_file(checkpoint.path()).in_tensor(tensor).help(
        "give --start mirrored or --residual anchor, which do not change the base, or --base-dtype bf16 for a base that is not quantized",
    ))
}

/// Adapted rows of a tensor.
struct Residual<'a> {
    name: &'a str,
    /// Index of the first number in the tensor, and how many.
    numbers: Range<u64>,
    /// The number format of the weight; F32 for a quantized one.
    element: Element,
    /// `s B`, row by row.
    b: Vec<f64>,
    /// `A`, row by row.
    a: Vec<f64>,
    rank: usize,
    inputs: usize,
}

/// The adapted rows in each file of the checkpoint, sorted by offset.
fn residuals<'a>(
    checkpoint: &'a Checkpoint,
    layers: &'a [AdaptedWeight],
    scale: f64,
    element: Element,
) -> Result<BTreeMap<usize, Vec<Residual<'a>>>, Problems> {
    let mut problems = Problems::default();
    let mut residuals: BTreeMap<usize, Vec<Residual>> = BTreeMap::new();
    for AdaptedWeight { pieces, factors } in layers {
        if let Err(problem) = check_shapes(factors).and_then(|()| check_size(checkpoint, pieces, factors)) {
            let name = pieces.first().map_or("", |piece| &piece.tensor);
            problems.push(problem.in_file(checkpoint.path()).in_tensor(name));
            continue;
        }
        let mut row = 0;
        for piece in pieces {
            let Some(stored) = problems.collect(checkpoint.require(&piece.tensor)) else { continue };
            let rows = piece.count.checked_div(factors.a.ncols() as u64).unwrap_or(0) as usize;
            let residual = Residual::new(checkpoint, piece, factors, row..row + rows, scale, element)
                .map_err(|problem| {
                    problem.in_file(checkpoint.source(stored).path()).in_tensor(&piece.tensor)
                });
            if let Some(residual) = problems.collect(residual) {
                residuals.entry(stored.file).or_default().push(residual);
            }
            row += rows;
        }
    }
    for of_file in residuals.values_mut() {
        let offset = |name: &str| checkpoint.get(name).map(|stored| stored.tensor.offset);
        of_file.sort_by_key(|residual| (offset(residual.name), residual.numbers.start));
    }
    problems.or_ok(residuals)
}

/// Checks that the pieces of a weight have as many numbers as the product of the factors.
fn check_size(checkpoint: &Checkpoint, pieces: &[Piece], Factors { a, b }: &Factors) -> Result<(), Problem> {
    let expected = [b.nrows(), a.ncols()].map(|length| length as u64);
    let stored = pieces.first().and_then(|piece| checkpoint.get(&piece.tensor));
    let numbers = pieces.iter().map(|piece| piece.count).fold(0, u64::saturating_add);
    match stored {
        Some(stored) if numbers != expected[0] * expected[1] => {
            Err(wrong_shape(&expected, &stored.tensor.shape))
        }
        _ => Ok(()),
    }
}

/// The problem of a weight whose shape does not fit its factors.
pub(super) fn wrong_shape(expected: &[u64], found: &[u64]) -> Problem {
    Problem::data(format!("the weight has shape {found:?}, but its factors need {expected:?}"))
}

impl<'a> Residual<'a> {
    /// The rows of the weight that are in a piece.
    fn new(
        checkpoint: &Checkpoint,
        piece: &'a Piece,
        factors: &Factors,
        rows: Range<usize>,
        scale: f64,
        stored_as: Element,
    ) -> Result<Self, Problem> {
        let Factors { a, b } = factors;
        let stored = checkpoint.get(&piece.tensor).map(|stored| &stored.tensor);
        let shape = stored.map_or(&[][..], |tensor| &tensor.shape);
        let expected = [rows.len() as u64, a.ncols() as u64];
        // The axes of a kernel count as input features.
        let fits = match shape {
            [first, rest @ ..] if checkpoint.whole(&piece.tensor).as_ref() == Some(piece) => {
                [*first, rest.iter().product()] == expected && !rest.is_empty()
            }
            _ => expected[0] * expected[1] == piece.count && rows.end <= b.nrows(),
        };
        checkpoint.check_quantized(&piece.tensor)?;
        if !fits || !checkpoint.has(piece) {
            return Err(wrong_shape(&expected, shape));
        }
        let element = element_of(stored.map_or("", |tensor| &tensor.dtype))?;
        let mut b_values = rounded(b.as_ref().subrows(rows.start, rows.len()), stored_as)?;
        b_values.iter_mut().for_each(|value| *value *= scale);
        let a_values = rounded(a.as_ref(), stored_as)?;
        Ok(Self {
            name: &piece.tensor,
            numbers: piece.first..piece.first + piece.count,
            element,
            b: b_values,
            a: a_values,
            rank: a.nrows(),
            inputs: a.ncols(),
        })
    }

    /// Consecutive rows of the weight, from row `first` on, with `s B A` subtracted, in a number format.
    ///
    /// Each number is computed by subtractions in the order of the rank, so that the result is the same on every machine.
    fn changed(
        &self,
        source: &Source,
        first: usize,
        bytes: &[u8],
        format: Element,
    ) -> Result<Vec<u8>, Problem> {
        let mut values = decode(bytes, self.element)?;
        self.check_finite(source, first, &values, "")?;
        for (row, weights) in values.chunks_mut(self.inputs).enumerate() {
            let b = &self.b[(first + row) * self.rank..][..self.rank];
            for (b, a) in b.iter().zip(self.a.chunks(self.inputs)) {
                for (weight, a) in weights.iter_mut().zip(a) {
                    *weight -= b * a;
                }
            }
        }
        let mut encoded = Vec::new();
        format.encode(values.iter().copied(), &mut encoded);
        format.decode_f64(&encoded, &mut values);
        self.check_finite(source, first, &values, " after subtracting the update")?;
        Ok(encoded)
    }

    /// Writes the changed numbers in a number format.
    fn write(&self, checkpoint: &Checkpoint, format: Element, file: &mut NewFile) -> Result<(), Problem> {
        /// Numbers that a thread changes at once.
        const TOGETHER: usize = 1 << 15;
        let source = checkpoint.source(checkpoint.require(self.name)?);
        let inputs = self.inputs as u64;
        let block = (block_of(checkpoint, self.name, self.element) / inputs).max(1) * inputs;
        let rows = (TOGETHER / self.inputs).max(1);
        let mut done = self.numbers.start;
        while done < self.numbers.end {
            let end = (done + block).min(self.numbers.end);
            let bytes = checkpoint.read_piece(&Piece::of(self.name, done..end))?;
            let first = ((done - self.numbers.start) / inputs) as usize;
            let parts = bytes.par_chunks(rows * self.inputs * self.element.size()).enumerate();
            let changed = parts.map(|(part, bytes)| self.changed(source, first + part * rows, bytes, format));
            // The first problem is that of the first row.
            for encoded in changed.collect::<Vec<_>>() {
                file.put(&encoded?)?;
            }
            done = end;
        }
        Ok(())
    }

    fn check_finite(&self, source: &Source, first: usize, values: &[f64], when: &str) -> Result<(), Problem> {
        let Some((row, column, value)) = first_nonfinite(values.iter().copied(), self.inputs) else {
            return Ok(());
        };
        let (row, element) = (first + row, self.element.name());
        Err(Problem::data(format!(
            "row {row}, column {column}: expected a finite {element} number{when}, found {value}"
        ))
        .in_file(source.path())
        .in_tensor(self.name))
    }
}

/// The values of a factor after rounding to the format of the adapter, row by row.
fn rounded(factor: MatRef<'_, f32>, element: Element) -> Result<Vec<f64>, Problem> {
    decode(&encode(factor, element), element)
}

/// Numbers that are read at once.
fn block_of(checkpoint: &Checkpoint, tensor: &str, element: Element) -> u64 {
    let bytes = if checkpoint.quantized(tensor).is_some() { QUANTIZED_BLOCK } else { BLOCK };
    bytes / element.size() as u64
}

/// Copies a file, and replaces the adapted weights, which are not quantized.
fn write_weights(
    checkpoint: &Checkpoint,
    source: &Source,
    adapted: &[Residual<'_>],
    file: &mut NewFile,
) -> Result<(), Problem> {
    let mut done = 0;
    for residual in adapted {
        let piece = Piece::of(residual.name, residual.numbers.clone());
        let Some(bytes) = checkpoint.bytes_of(&piece) else { continue };
        copy(source, done, bytes.start, file)?;
        residual.write(checkpoint, residual.element, file)?;
        done = bytes.end;
    }
    copy(source, done, source.length(), file)
}

fn copy(source: &Source, from: u64, to: u64, file: &mut NewFile) -> Result<(), Problem> {
    source.for_each_block(from..to, |bytes| file.put(&bytes))
}

/// The path of a file of the checkpoint, relative to its folder.
fn relative(path: &Path, checkpoint: &Checkpoint) -> PathBuf {
    let below = checkpoint.folder().and_then(|folder| path.strip_prefix(folder).ok().map(Path::to_owned));
    below.unwrap_or_else(|| path.file_name().unwrap_or(OsStr::new("model.safetensors")).into())
}

/// The sorted names in the folder of a checkpoint, without the weights: first the files that are copied, then what is left out.
fn companions(checkpoint: &Checkpoint) -> Result<(Vec<OsString>, Vec<OsString>), Problem> {
    let Some(folder) = checkpoint.folder() else { return Ok(Default::default()) };
    let weights: Vec<PathBuf> =
        checkpoint.files().iter().map(|(source, _)| relative(source.path(), checkpoint)).collect();
    let mut names = names_in(folder)?;
    // If the model is a residual base itself, its record is not copied.
    names.retain(|name| name != RECORD_FILE && !weights.iter().any(|weights| weights.as_os_str() == name));
    let is_copied = |name: &OsString| is_index(checkpoint, name) || !holds_weights(Path::new(name));
    Ok(names.into_iter().partition(|name| folder.join(name).is_file() && is_copied(name)))
}

/// True for an index of the weights that is copied: the usual one, or the one that was read.
fn is_index(checkpoint: &Checkpoint, name: &OsStr) -> bool {
    name == USUAL_INDEX || checkpoint.index() == Some(name)
}

/// True for files beside the checkpoint with weights in other formats, and for indexes.
fn holds_weights(name: &Path) -> bool {
    const FORMATS: [&str; 10] =
        ["bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "gguf", "safetensors", "ot"];
    let extension = name.extension().and_then(OsStr::to_str).unwrap_or_default();
    let index = name.to_str().is_some_and(|name| name.ends_with(".index.json"));
    index || FORMATS.iter().any(|format| extension.eq_ignore_ascii_case(format))
}

#[cfg(test)]
mod tests;
