//! The residual base: the checkpoint again, with `W − s B A` in place of each adapted weight.

use super::folder::{OutputFolder, write_all};
use super::replace::{BaseRecord, remove_all, standing};
use super::{RECORD_FILE, check_shapes, encode};
use crate::element::Element;
use crate::factors::Factors;
use crate::storage::{Access, AtomicFile, Checkpoint, Piece, Problem, Problems, Source, StagedFile, quoted};
use faer::MatRef;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const INDEX_FILE: &str = "model.safetensors.index.json";
/// Bytes that are read at once.
const BLOCK: u64 = 1 << 20;

/// A weight that is adapted.
#[derive(Clone, Debug)]
pub struct AdaptedWeight {
    /// Where it is in the checkpoint: pieces whose rows follow one another.
    pub pieces: Vec<Piece>,
    /// Factors of the weight as it is stored.
    pub factors: Factors,
}

/// Writes the checkpoint again with `W − s B A` in place of each adapted weight.
///
/// `element` is the number format of the adapter's file: the factors are rounded to it first, so that what PEFT adds is
/// what was taken away. The difference is computed in f64 and rounded to the format of the weight. Every other byte of
/// the weights stays as it is, sharded as it was; the index is copied. Of a model folder, other regular files are copied
/// too, but not subfolders and not weights in other formats, which would be the old ones. Returns the names of those, in
/// order.
///
/// Memory: one block of a weight, and the factors. The folder is created if its parent exists. Files of the same names
/// in it are replaced; an old index goes, and all files that the record `cntlora.json` of an earlier base names. Other
/// files stay.
///
/// # Errors
/// Data: a tensor that is not in the checkpoint, is not a matrix of floating-point numbers, does not fit its factors, or
/// holds a value that is not finite or would not be. Usage: the model's own folder. I/O: what reading and writing meet.
/// All files are complete before the first is put in place. Old weights go before new ones come, and the index comes
/// last: what loads is never a mixture.
pub fn write_residual_base(
    folder: &Path,
    checkpoint: &Checkpoint,
    layers: &[AdaptedWeight],
    scale: f64,
    element: Element,
) -> Result<Vec<String>, Problems> {
    Ok(stage_residual_base(folder, checkpoint, layers, scale, element)?.commit()?)
}

/// A residual base that is written to the disk, but not yet in place. Dropping it leaves no trace.
pub struct StagedBase<'a> {
    /// In the order in which they are put in place: what makes the folder load comes last.
    files: Vec<StagedFile>,
    /// The files of an earlier base that have to go before.
    old: Vec<String>,
    /// The record of all that may be ours while files are replaced, so that the next run finds it if this one is killed.
    during: StagedFile,
    /// The record for afterwards.
    record: StagedFile,
    // After the files, so that a folder that was made for them is empty when it goes.
    output: OutputFolder<'a>,
    left_out: Vec<String>,
}

/// As [`write_residual_base`] up to the point where old files change.
///
/// # Errors
/// As [`write_residual_base`]; also, data: the record of an earlier base that names files elsewhere.
pub fn stage_residual_base<'a>(
    folder: &'a Path,
    checkpoint: &Checkpoint,
    layers: &[AdaptedWeight],
    scale: f64,
    element: Element,
) -> Result<StagedBase<'a>, Problems> {
    let residuals = residuals(checkpoint, layers, scale, element)?;
    refuse_model_folder(folder, checkpoint)?;
    let Companions { copied, left_out } = companions(checkpoint)?;

    let output = OutputFolder::open(folder)?;
    let mut written = Vec::new();
    for (number, (source, _)) in checkpoint.files().iter().enumerate() {
        let mut file = output.create(relative(source.path(), checkpoint))?;
        let adapted = residuals.get(&number).map_or(&[][..], Vec::as_slice);
        write_weights(source, adapted, &mut file)?;
        source.check_unchanged()?;
        written.push(file);
    }
    for path in &copied {
        let source = Source::open(path, Access::Read)?;
        let mut file = output.create(relative(path, checkpoint))?;
        copy(&source, 0, source.length(), &mut file)?;
        written.push(file);
    }
    let name = |file: &AtomicFile| file.path().file_name().map(|name| name.to_string_lossy().into_owned());
    let names: Vec<String> = written.iter().filter_map(name).collect();
    let mut old = BaseRecord::of(folder)?.map_or_else(Vec::new, |record| record.files);
    // Of the old files that have a successor only those go at once that would make a mixture load.
    old.extend(names.iter().filter(|name| standing(name) > 0).cloned());
    old.push(INDEX_FILE.into());
    old.retain(|old| standing(old) > 0 || !names.contains(old));
    let mut ours = [old.as_slice(), &names].concat();
    ours.sort();
    ours.dedup();
    written.sort_by_key(|file| name(file).map_or(0, |name| standing(&name)));
    Ok(StagedBase {
        files: written.into_iter().map(AtomicFile::stage).collect::<Result<_, _>>()?,
        old,
        during: stage_record(&output, ours)?,
        record: stage_record(&output, names)?,
        output,
        left_out,
    })
}

impl<'a> StagedBase<'a> {
    /// Where it will be.
    pub fn folder(&self) -> &'a Path {
        self.output.path()
    }

    /// Puts all files in place of those of an earlier base. Returns what was left out of it.
    ///
    /// # Errors
    /// I/O: what replacing meets. The folder then holds no model that loads, or the old one, or the new one.
    pub fn commit(self) -> Result<Vec<String>, Problem> {
        // What is not committed goes in the other order: the folder last.
        let Self { left_out, output, record, during, old, mut files } = self;
        during.commit()?;
        remove_all(&output, &old)?;
        // What makes the folder load comes after the record that is right for it.
        let last = files.pop();
        files.into_iter().try_for_each(StagedFile::commit)?;
        record.commit()?;
        last.map_or(Ok(()), StagedFile::commit)?;
        Ok(left_out)
    }
}

fn stage_record(output: &OutputFolder<'_>, files: Vec<String>) -> Result<StagedFile, Problem> {
    let mut file = output.create(RECORD_FILE)?;
    let record = serde_json::json!(BaseRecord::new(files));
    write_all(&mut file, format!("{record:#}\n").as_bytes())?;
    file.stage()
}

/// Refuses the folder that holds the model as the output folder of its residual base.
///
/// # Errors
/// A usage problem if it is.
pub fn refuse_model_folder(folder: &Path, checkpoint: &Checkpoint) -> Result<(), Problem> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let Some(found) = identity(folder) else { return Ok(()) };
    let parents =
        checkpoint.files().iter().map(|(source, _)| source.path().parent().unwrap_or(Path::new("")));
    let parents = parents.map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
    if checkpoint.folder().as_deref().into_iter().chain(parents).any(|model| identity(model) == Some(found)) {
        return Err(Problem::usage(
            "expected another folder than the model's own, whose weights would be lost",
        )
        .in_file(folder)
        .help("choose another folder for the residual base"));
    }
    Ok(())
}

/// Adapted rows of a tensor.
struct Residual<'a> {
    name: &'a str,
    /// Where they are in the file.
    bytes: Range<u64>,
    element: Element,
    /// `s B`, by rows.
    b: Vec<f64>,
    /// `A`, by rows.
    a: Vec<f64>,
    rank: usize,
    inputs: usize,
}

/// The adapted rows in each file of the checkpoint, in order of offset.
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
            let Some(stored) = checkpoint.get(&piece.tensor) else {
                let problem = Problem::data("expected it in the checkpoint, found no tensor of this name");
                problems.push(problem.in_file(checkpoint.path()).in_tensor(&piece.tensor));
                continue;
            };
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

/// Refuses pieces that have more or fewer numbers together than the product of the factors.
fn check_size(checkpoint: &Checkpoint, pieces: &[Piece], Factors { a, b }: &Factors) -> Result<(), Problem> {
    let expected = [b.nrows(), a.ncols()];
    let stored = pieces.first().and_then(|piece| checkpoint.get(&piece.tensor));
    let numbers = pieces.iter().map(|piece| piece.count).fold(0, u64::saturating_add);
    match stored {
        Some(stored) if numbers != expected[0] as u64 * expected[1] as u64 => Err(Problem::data(format!(
            "expected shape {expected:?}, as its factors have it, found {:?}",
            stored.tensor.shape
        ))),
        _ => Ok(()),
    }
}

impl<'a> Residual<'a> {
    /// The rows that a piece holds of the weight.
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
        // A kernel is part of the input features.
        let fits = match shape {
            [first, rest @ ..] if checkpoint.whole(&piece.tensor).as_ref() == Some(piece) => {
                [*first, rest.iter().product()] == expected && !rest.is_empty()
            }
            _ => expected[0] * expected[1] == piece.count && rows.end <= b.nrows(),
        };
        let bytes = checkpoint.bytes_of(piece).filter(|_| fits).ok_or_else(|| {
            Problem::data(format!("expected shape {expected:?}, as its factors have it, found {shape:?}"))
        })?;
        let dtype = stored.map_or("", |tensor| &tensor.dtype);
        let element = Element::from_name(dtype).ok_or_else(|| {
            Problem::data(format!("expected F32, F16, BF16 or F64, found {}", quoted(dtype)))
        })?;
        let mut b_values = rounded(b.as_ref().subrows(rows.start, rows.len()), stored_as);
        b_values.iter_mut().for_each(|value| *value *= scale);
        let a_values = rounded(a.as_ref(), stored_as);
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

    /// Takes `s B A` away from rows of the weight, the first of which is `first`.
    ///
    /// Each element is one chain of subtractions in order of rank, so that the result is the same everywhere.
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

    fn write(&self, source: &Source, file: &mut AtomicFile) -> Result<(), Problem> {
        let row_bytes = self.inputs as u64 * self.element.size() as u64;
        let block = (BLOCK / row_bytes).max(1) * row_bytes;
        let mut encoded = Vec::new();
        let mut done = 0;
        let all = self.bytes.end - self.bytes.start;
        while done < all {
            let length = block.min(all - done);
            let bytes = source.read_vec(self.bytes.start + done, length)?;
            let mut values = vec![0.0; bytes.len() / self.element.size()];
            let first = (done / row_bytes) as usize;
            self.element.decode_f64(&bytes, &mut values);
            self.check_finite(source, first, &values, "")?;
            self.subtract(first, &mut values);
            encoded.clear();
            self.element.encode(values.iter().copied(), &mut encoded);
            self.element.decode_f64(&encoded, &mut values);
            self.check_finite(source, first, &values, " once the update is taken away")?;
            write_all(file, &encoded)?;
            done += length;
        }
        Ok(())
    }

    fn check_finite(&self, source: &Source, first: usize, values: &[f64], when: &str) -> Result<(), Problem> {
        let Some(index) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
        let (row, column) = (first + index / self.inputs, index % self.inputs);
        Err(Problem::data(format!(
            "row {row}, column {column}: expected a finite {} number{when}, found {}",
            self.element.name(),
            values[index]
        ))
        .in_file(source.path())
        .in_tensor(self.name))
    }
}

/// The values of a factor as a reader of the adapter will see them, by rows.
fn rounded(factor: MatRef<'_, f32>, element: Element) -> Vec<f64> {
    let bytes = encode(factor, element);
    let mut rounded = vec![0.0; bytes.len() / element.size()];
    element.decode_f64(&bytes, &mut rounded);
    rounded
}

/// Copies a file, with other bytes for the adapted weights.
fn write_weights(source: &Source, adapted: &[Residual<'_>], file: &mut AtomicFile) -> Result<(), Problem> {
    let mut done = 0;
    for residual in adapted {
        copy(source, done, residual.bytes.start, file)?;
        residual.write(source, file)?;
        done = residual.bytes.end;
    }
    copy(source, done, source.length(), file)
}

fn copy(source: &Source, mut from: u64, to: u64, file: &mut AtomicFile) -> Result<(), Problem> {
    while from < to {
        let length = BLOCK.min(to - from);
        write_all(file, &source.read_vec(from, length)?)?;
        from += length;
    }
    Ok(())
}

/// Where a file of the checkpoint is, seen from its folder.
fn relative(path: &Path, checkpoint: &Checkpoint) -> PathBuf {
    let below = checkpoint.folder().and_then(|folder| path.strip_prefix(folder).ok().map(Path::to_owned));
    below.unwrap_or_else(|| path.file_name().unwrap_or(OsStr::new("model.safetensors")).into())
}

/// What else is in the folder of a checkpoint.
#[derive(Default)]
struct Companions {
    copied: Vec<PathBuf>,
    left_out: Vec<String>,
}

fn companions(checkpoint: &Checkpoint) -> Result<Companions, Problem> {
    let mut companions = Companions::default();
    let Some(folder) = checkpoint.folder() else { return Ok(companions) };
    let failed = |error: io::Error| Problem::io("cannot look into this folder", &error).in_file(&folder);
    let weights: Vec<PathBuf> =
        checkpoint.files().iter().map(|(source, _)| relative(source.path(), checkpoint)).collect();
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let path = folder.join(&name);
        // The record of a model that is a residual base itself is not that of this one.
        if name == RECORD_FILE || weights.iter().any(|weights| weights.as_os_str() == name) {
            continue;
        }
        if path.is_file() && !holds_weights(Path::new(&name)) {
            companions.copied.push(path);
        } else {
            companions.left_out.push(name.to_string_lossy().into_owned());
        }
    }
    companions.copied.sort();
    companions.left_out.sort();
    Ok(companions)
}

/// Whether a file beside the checkpoint holds weights that would be the old ones, or is the index of such files.
fn holds_weights(name: &Path) -> bool {
    const FORMATS: [&str; 10] =
        ["bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "gguf", "safetensors", "ot"];
    let extension = name.extension().and_then(OsStr::to_str).unwrap_or_default();
    let index = name.to_str().is_some_and(|name| name.ends_with(".index.json") && name != INDEX_FILE);
    index || FORMATS.iter().any(|format| extension.eq_ignore_ascii_case(format))
}

#[cfg(test)]
mod tests;
