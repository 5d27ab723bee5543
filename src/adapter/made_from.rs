//! Fingerprints of the weights that an adapter was made from, and their comparison with a base.
//!
//! A fingerprint depends on the numbers alone: not on the name of their tensor, nor on the file, nor on the number format as long as it
//! holds the same numbers. So a base can be divided into other shards, have other names, or be stored in a wider format.

use super::record::{Record, RecordedLayer};
use super::{PeftAdapter, PeftLayer, numbers};
use crate::factors::LayerName;
use crate::storage::{Checkpoint, Hashing, Piece, Problem, product, quoted};
use std::collections::BTreeMap;

/// Number of runs of numbers in a fingerprint, and their length. Weights of up to 16384 numbers are hashed whole.
const RUNS: u64 = 16;
const RUN: u64 = 1 << 10;

/// A fingerprint of consecutive numbers of a tensor, from their count and 16 runs of 1024 numbers that are spread evenly over them:
/// half of their SHA-256 in hexadecimal digits. Reads about 64 KiB.
///
/// Weights that differ everywhere, as after any training, have different fingerprints. A change of a few numbers can stay unseen.
///
/// # Errors
/// A data problem if there is no such tensor, the piece exceeds it, or its numbers are not floating-point numbers; problems of reading.
pub fn weight_fingerprint(checkpoint: &Checkpoint, piece: &Piece) -> Result<String, Problem> {
    let stored = checkpoint.require(&piece.tensor)?;
    let element = numbers::element_of(&stored.tensor.dtype)
        .map_err(|problem| problem.in_file(checkpoint.source(stored).path()).in_tensor(&piece.tensor))?;
    let mut hashing = Hashing::default();
    hashing.update(&piece.count.to_le_bytes());
    let mut add = |first: u64, count: u64| -> Result<(), Problem> {
        let run = Piece { tensor: piece.tensor.clone(), first: piece.first.saturating_add(first), count };
        let bytes = checkpoint.read_piece(&run)?;
        numbers::decode(&bytes, element)?.iter().for_each(|number| hashing.update(&number.to_le_bytes()));
        Ok(())
    };
    if piece.count <= RUNS * RUN {
        add(0, piece.count)?;
    } else {
        let last = u128::from(piece.count - RUN);
        for run in 0..RUNS {
            // In range: at most the first number of the last run.
            add((last * u128::from(run) / u128::from(RUNS - 1)) as u64, RUN)?;
        }
    }
    let mut digits = hashing.finish();
    digits.truncate(digits.len() / 2);
    Ok(digits)
}

/// The places of the recorded weights in a base, and the layers whose weights are others.
#[derive(Default)]
pub(super) struct Comparison {
    /// By the names of layers as text.
    pub(super) places: BTreeMap<String, Vec<Piece>>,
    differing: Vec<(String, String)>,
    compared: usize,
}

impl Comparison {
    /// Compares the weights of a base with the fingerprints in a record. `given` has places of weights that are known.
    pub(super) fn new(
        base: &Checkpoint,
        record: &Record,
        adapter: &PeftAdapter,
        given: &BTreeMap<LayerName, Vec<Piece>>,
    ) -> Result<Self, Problem> {
        let mut known = Known { base, by_place: BTreeMap::new() };
        let mut comparison = Self::default();
        // The first entry of a layer counts.
        let recorded: BTreeMap<&str, &RecordedLayer> =
            record.layers.iter().rev().map(|layer| (layer.module.as_str(), layer)).collect();
        for (name, layer) in adapter.layers() {
            let text = name.to_string();
            let Some(recorded) = recorded.get(text.as_str()).filter(|one| !one.fingerprints.is_empty())
            else {
                continue;
            };
            let expected = match given.get(name) {
                Some(given) => given.clone(),
                None => recorded_pieces(recorded, layer),
            };
            if expected.len() != recorded.fingerprints.len() {
                continue;
            }
            let places: Option<Vec<Option<Piece>>> = expected
                .iter()
                .zip(&recorded.fingerprints)
                .map(|(piece, fingerprint)| known.place(piece, fingerprint))
                .collect::<Result<_, _>>()?;
            // A weight that is missing is reported where its norm is computed.
            let Some(places) = places else { continue };
            comparison.compared += 1;
            match places.into_iter().collect::<Option<Vec<Piece>>>() {
                Some(places) => drop(comparison.places.insert(text, places)),
                None => comparison.differing.push((text, recorded.tensor.clone())),
            }
        }
        Ok(comparison)
    }

    /// True if the record has the fingerprint of no layer of the adapter.
    pub(super) fn is_empty(&self) -> bool {
        self.compared == 0
    }

    /// Refuses a base with other weights.
    ///
    /// # Errors
    /// A data problem that names the first of them.
    pub(super) fn check(&self, base: &Checkpoint, record: &Record, help: &str) -> Result<(), Problem> {
        let Some((module, tensor)) = self.differing.first() else { return Ok(()) };
        let (some, all) = (self.differing.len(), self.compared);
        let others = match all {
            1 => String::new(),
            _ => format!(": {some} of {all} adapted weights differ"),
        };
        let problem = Problem::data(format!(
            "module {}: the base has another weight than the one that the adapter was made from{others}",
            quoted(module)
        ));
        let model = record.model.as_deref().map(|model| format!("give {} as the base", quoted(model)));
        let model = model.unwrap_or_else(|| "give the base that the adapter was made from".into());
        Err(problem.in_file(base.path()).in_tensor(tensor).help(format!("{model}{help}")))
    }
}

/// The recorded place of the weight of a layer.
fn recorded_pieces(recorded: &RecordedLayer, layer: &PeftLayer) -> Vec<Piece> {
    let numbers = (layer.outputs as u64).saturating_mul(layer.inputs as u64);
    recorded.weight.clone().unwrap_or_else(|| vec![Piece::of(&recorded.tensor, 0..numbers)])
}

/// The fingerprints of a base that were computed.
struct Known<'a> {
    base: &'a Checkpoint,
    /// For the numbers at a place in tensors, such as all numbers of tensors with as many: the tensors by fingerprint.
    by_place: BTreeMap<(u64, u64), BTreeMap<String, String>>,
}

impl Known<'_> {
    /// The place of a piece with this fingerprint: the tensor of its name, or if there is none, a tensor of another name. `Some(None)` if
    /// the tensor of its name has another fingerprint, and `None` if there is no tensor.
    fn place(&mut self, piece: &Piece, fingerprint: &str) -> Result<Option<Option<Piece>>, Problem> {
        if let Some(stored) = self.base.get(&piece.tensor) {
            // A tensor of another size or kind is reported where its norm is computed.
            let is_usable = numbers::element_of(&stored.tensor.dtype).is_ok();
            if !is_usable || !self.base.has(piece) {
                return Ok(None);
            }
            let is_same = weight_fingerprint(self.base, piece)? == *fingerprint;
            return Ok(Some(is_same.then(|| piece.clone())));
        }
        let place = (piece.first, piece.count);
        if !self.by_place.contains_key(&place) {
            let found = self.all(place)?;
            self.by_place.insert(place, found);
        }
        let tensor = self.by_place.get(&place).and_then(|found| found.get(fingerprint));
        Ok(tensor.map(|tensor| Some(Piece { tensor: tensor.clone(), ..piece.clone() })))
    }

    /// The fingerprints of all tensors at a place.
    fn all(&self, (first, count): (u64, u64)) -> Result<BTreeMap<String, String>, Problem> {
        let mut found = BTreeMap::new();
        for name in self.base.names() {
            let Some(stored) = self.base.get(name) else { continue };
            let numbers = product(&stored.tensor.shape);
            // A recorded piece that begins at the first number can be a whole tensor, or a part of one.
            let end = first.checked_add(count);
            let is_candidate = numbers.zip(end).is_some_and(|(numbers, end)| end <= numbers)
                && numbers::element_of(&stored.tensor.dtype).is_ok();
            if is_candidate {
                let piece = Piece { tensor: name.into(), first, count };
                found.insert(weight_fingerprint(self.base, &piece)?, name.into());
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests;
