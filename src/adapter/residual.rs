//! The residual base: a copy of the checkpoint with `W − s B A` in place of each adapted weight.

use super::contents::pretty;
use super::folder::OutputFolder;
use super::numbers::{check_shapes, decode, element_of, encode, first_nonfinite};
use super::replace::{BaseRecord, standing};
use super::staged::{Names, names_of};
use super::{FileRecord, RECORD_FILE, Staged};
use crate::element::Element;
use crate::factors::Factors;
use crate::storage::{
    Access, Checkpoint, NewFile, Piece, Problem, Problems, Source, folder_of, is_same_file, names_in,
};
use faer::MatRef;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::ops::Range;
use std::path::{Path, PathBuf};

mod wide;

/// The usual index of shards. An old one beside new weights is removed.
const USUAL_INDEX: &str = "model.safetensors.index.json";
/// Number of bytes that are read at once.
const BLOCK: u64 = 1 << 20;

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
    /// True if changed weights in BF16 and F16 become F32, so that they are not rounded to these formats. The configuration then says
    /// float32, so that programs do not round them when they load the base.
    pub wide: bool,
}

/// Writes a copy of the checkpoint with `W − s B A` in place of each adapted weight, in the number format of the weight.
///
/// `element` is the number format of the adapter: the factors are first rounded to it, so that PEFT adds exactly what was subtracted.
/// The difference is computed in f64 and rounded to the format of the weight. All other bytes of the weights, the division into
/// shards and the index are copied. Other regular files of a model folder are copied too, except weights in other formats, which
/// would be the old ones. Returns the sorted names of files and folders that were not copied.
///
/// Memory: one block of a weight, and the factors. The folder is created if its parent exists. In it, files of the same names are
/// replaced; an old index, and the files in the record `cntlora.json` of an earlier base, are removed. Other files stay.
///
/// The folder is replaced as a whole: at every moment, it holds the old base or the new one.
///
/// # Errors
/// - Data: a tensor that is missing, is not a matrix of floating-point numbers, does not fit its factors, or has a number that is not
///   finite before or after the subtraction.
/// - Usage: the folder of the model itself.
/// - I/O: problems of reading and writing.
pub fn write_residual_base(
    folder: &Path,
    checkpoint: &Checkpoint,
    layers: &[AdaptedWeight],
    scale: f64,
    element: Element,
) -> Result<Vec<String>, Problems> {
    let mut staged = Staged::create(&[folder])?;
    let base = Base { folder, wide: false };
    let left_out = staged.base(base, checkpoint, layers, (scale, element), None)?;
    staged.commit()?;
    Ok(left_out)
}

/// The parts of a checkpoint that change, after all checks that need no numbers.
pub(super) struct Residuals<'a> {
    checkpoint: &'a Checkpoint,
    of_files: BTreeMap<usize, Vec<Residual<'a>>>,
    wide: bool,
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
        Ok(Self { checkpoint, of_files, wide: base.wide })
    }

    /// Writes the base, and its record with the hash of the tensors of its adapter. Returns the names of files and folders of the model
    /// that were not copied.
    pub(super) fn write(
        &self,
        output: &OutputFolder<'_>,
        adapter: Option<FileRecord>,
    ) -> Result<(Names, Vec<String>), Problems> {
        let Self { checkpoint, of_files, wide } = self;
        let (copied, left_out) = companions(checkpoint)?;
        let left_out = left_out.iter().map(|name| name.to_string_lossy().into_owned()).collect();
        let mut old = BaseRecord::of(output.path())?.map_or_else(Vec::new, |record| record.old_files());
        let mut files = Vec::new();
        let mut weight_bytes = 0u64;
        for (number, (source, header)) in checkpoint.files().iter().enumerate() {
            let mut file = output.create(relative(source.path(), checkpoint))?;
            let adapted = of_files.get(&number).map_or(&[][..], Vec::as_slice);
            let written = match wide {
                true => wide::write_weights(source, header, adapted, &mut file)?,
                false => write_weights(source, adapted, &mut file).map(|()| 0)?,
            };
            weight_bytes = weight_bytes.saturating_add(written);
            source.check_unchanged()?;
            files.push(file);
        }
        for name in &copied {
            let source = Source::open(&checkpoint.path().join(name), Access::Read)?;
            if let Some(text) =
                wide.then(|| wide::companion(name, &source, weight_bytes)).transpose()?.flatten()
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

/// Adapted rows of a tensor.
struct Residual<'a> {
    name: &'a str,
    /// The byte range in the file.
    bytes: Range<u64>,
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
        of_file.sort_by_key(|residual| residual.bytes.start);
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
        let bytes =
            checkpoint.bytes_of(piece).filter(|_| fits).ok_or_else(|| wrong_shape(&expected, shape))?;
        let element = element_of(stored.map_or("", |tensor| &tensor.dtype))?;
        let mut b_values = rounded(b.as_ref().subrows(rows.start, rows.len()), stored_as)?;
        b_values.iter_mut().for_each(|value| *value *= scale);
        let a_values = rounded(a.as_ref(), stored_as)?;
        Ok(Self {
            name: &piece.tensor,
            bytes,
            element,
            b: b_values,
            a: a_values,
            rank: a.nrows(),
            inputs: a.ncols(),
        })
    }

    /// Subtracts `s B A` from consecutive rows of the weight, from row `first` on.
    ///
    /// Each number is computed by subtractions in the order of the rank, so that the result is the same on every machine.
    fn subtract(&self, first: usize, weights: &mut [f64]) {
        weights.par_chunks_mut(self.inputs).enumerate().for_each(|(row, weights)| {
            let b = &self.b[(first + row) * self.rank..][..self.rank];
            for (b, a) in b.iter().zip(self.a.chunks(self.inputs)) {
                for (weight, a) in weights.iter_mut().zip(a) {
                    *weight -= b * a;
                }
            }
        });
    }

    /// Writes the changed numbers in a number format.
    fn write(&self, source: &Source, format: Element, file: &mut NewFile) -> Result<(), Problem> {
        let row_bytes = self.inputs as u64 * self.element.size() as u64;
        let block = (BLOCK / row_bytes).max(1) * row_bytes;
        let mut encoded = Vec::new();
        let mut done = 0;
        let all = self.bytes.end - self.bytes.start;
        while done < all {
            let length = block.min(all - done);
            let bytes = source.read_vec(self.bytes.start + done, length)?;
            let mut values = decode(&bytes, self.element)?;
            let first = (done / row_bytes) as usize;
            self.check_finite(source, first, &values, "")?;
            self.subtract(first, &mut values);
            encoded.clear();
            format.encode(values.iter().copied(), &mut encoded);
            format.decode_f64(&encoded, &mut values);
            self.check_finite(source, first, &values, " after subtracting the update")?;
            file.put(&encoded)?;
            done += length;
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

/// Copies a file, and replaces the adapted weights.
fn write_weights(source: &Source, adapted: &[Residual<'_>], file: &mut NewFile) -> Result<(), Problem> {
    let mut done = 0;
    for residual in adapted {
        copy(source, done, residual.bytes.start, file)?;
        residual.write(source, residual.element, file)?;
        done = residual.bytes.end;
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
    let is_index = |name: &OsStr| name == USUAL_INDEX || checkpoint.index() == Some(name);
    let is_copied = |name: &OsString| is_index(name) || !holds_weights(Path::new(name));
    Ok(names.into_iter().partition(|name| folder.join(name).is_file() && is_copied(name)))
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
