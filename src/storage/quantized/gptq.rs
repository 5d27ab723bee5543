//! GPTQ with 2, 3, 4 and 8 bits.
//!
//! `X.qweight`, I32 `[words, outputs]`: the fields of an output follow one another down its column, lowest bits first; fields of 3 bits lie
//! across the ends of words. `X.scales` is `[groups, outputs]`, `X.qzeros` has the zero points along the outputs, and `X.g_idx` the group
//! of each input. `W[k, n] = scale · (field − zero)`. In the format "gptq" the stored zero points are too small by 1, in "gptq_v2" they are
//! not.
//!
//! Sources: `qlinear_cuda_old.py` of AutoGPTQ 0.7, `qlinear/__init__.py` of GPTQModel 7.7.

use super::super::{Problem, quoted};
use super::bits::{field, field_down, mask, words};
use super::parts::{Files, Part};
use super::recognize::Stored;
use super::weight::{Decoder, Quantized};
use std::ops::Range;

const WIDTHS: [u32; 4] = [2, 3, 4, 8];

/// The weight of a module with fields along the inputs.
///
/// # Errors
/// A data problem for missing tensors, and for shapes, number formats and conventions that are not known.
pub(super) fn weight(
    stored: &Stored<'_>,
    module: &str,
    codes: Part,
    scales: Part,
    zeros: Part,
) -> Result<Quantized, Problem> {
    let (files, config) = (stored.files, stored.config);
    let offset = match (config.method.as_deref(), config.checkpoint_format.as_deref()) {
        (Some("gptq"), None | Some("gptq")) => 1,
        (Some("gptq"), Some("gptq_v2")) => 0,
        (Some("gptq"), Some(other)) => {
            return Err(codes.problem(
                files,
                format!("the GPTQ format {} is not read, only \"gptq\" and \"gptq_v2\"", quoted(other)),
            ));
        }
        _ => {
            let problem = codes.problem(files, "the convention of its zero points is not known: no quantization_config for GPTQ in config.json");
            return Err(problem.help("put the config.json of the checkpoint beside the weights"));
        }
    };
    let (&[length, outputs], &[groups, _]) = (codes.shape(), scales.shape()) else {
        return Err(codes.wrong_shape(files, "[words, outputs]"));
    };
    let g_idx = stored.part(&format!("{module}.g_idx"));
    if let Some(g_idx) = &g_idx {
        g_idx.require_dtype(files, "I32")?;
    }
    let inputs_of = |bits: u32| match &g_idx {
        Some(g_idx) => g_idx.count(),
        None => length.saturating_mul(32) / u64::from(bits),
    };
    let fits = |bits: &u32| {
        let inputs = inputs_of(*bits);
        words(inputs, *bits) == length && zeros.shape() == [groups, words(outputs, *bits)] && inputs > 0
    };
    let mut candidates: Vec<u32> = WIDTHS.into_iter().filter(fits).collect();
    if candidates.len() > 1 {
        candidates.retain(|bits| config.bits == Some(u64::from(*bits)));
    }
    let &[bits] = candidates.as_slice() else {
        let what = format!(
            "expected the shapes of GPTQ with 2, 3, 4 or 8 bits, found qweight {:?}, qzeros {:?}, scales {:?}{}",
            codes.shape(),
            zeros.shape(),
            scales.shape(),
            g_idx.as_ref().map_or(String::new(), |g_idx| format!(", g_idx {:?}", g_idx.shape()))
        );
        return Err(codes.problem(files, what));
    };
    let inputs = inputs_of(bits);
    zeros.require_dtype(files, "I32")?;
    let group_of = Groups::new(stored, (g_idx.as_ref(), &scales), inputs, groups)?;
    let parts = [Some(codes.clone()), Some(scales.clone()), Some(zeros.clone()), g_idx];
    Ok(Quantized {
        format: format!("GPTQ, {bits} bits"),
        matrix: [inputs, outputs],
        count: 1,
        transposed: true,
        stacked: false,
        parts: parts.into_iter().flatten().collect(),
        decoder: Box::new(Gptq { codes, scales, zeros, bits, offset, outputs, group_of }),
    })
}

/// The groups of inputs.
#[derive(Debug)]
pub(super) enum Groups {
    /// Consecutive inputs, of this number.
    Even(u64),
    /// The group of each input, if groups are not consecutive inputs.
    Listed(Vec<usize>),
}

impl Groups {
    /// The groups of a weight with this number of inputs and groups.
    ///
    /// # Errors
    /// A data problem if they do not fit.
    pub(super) fn new(
        stored: &Stored<'_>,
        (g_idx, scales): (Option<&Part>, &Part),
        inputs: u64,
        groups: u64,
    ) -> Result<Self, Problem> {
        let files = stored.files;
        if let Some(g_idx) = g_idx {
            let listed = g_idx.indices(files, groups)?;
            let size = inputs.div_ceil(groups.max(1));
            let is_even = listed.iter().zip(0..).all(|(group, input)| *group as u64 == input / size);
            return Ok(if is_even { Self::Even(size) } else { Self::Listed(listed) });
        }
        let told = stored.config.group_size.filter(|size| inputs.div_ceil(*size) == groups);
        let even = (groups > 0 && inputs.is_multiple_of(groups)).then(|| inputs / groups);
        match told.or(even) {
            Some(size) => Ok(Self::Even(size)),
            None => Err(scales.wrong_shape(
                files,
                &format!("[groups, outputs], with groups of equal size of {inputs} inputs"),
            )),
        }
    }

    /// The groups of a range of inputs, with those between them.
    pub(super) fn of_range(&self, inputs: &Range<u64>) -> Range<u64> {
        let groups = || inputs.clone().map(|input| self.of(input) as u64);
        groups().min().unwrap_or(0)..groups().max().map_or(0, |last| last + 1)
    }

    /// The group of an input.
    pub(super) fn of(&self, input: u64) -> usize {
        match self {
            Self::Even(size) => (input / size) as usize,
            Self::Listed(groups) => groups[input as usize],
        }
    }
}

/// Reads the scales of a range of groups, with one for each output.
pub(super) fn scales_of(
    files: Files<'_>,
    scales: &Part,
    groups: &Range<u64>,
    outputs: u64,
) -> Result<Vec<f32>, Problem> {
    scales.scales(files, scales.scale_code(files)?, groups.start * outputs..groups.end * outputs)
}

#[derive(Debug)]
struct Gptq {
    codes: Part,
    scales: Part,
    zeros: Part,
    bits: u32,
    /// The number that is added to a stored zero point.
    offset: u8,
    outputs: u64,
    group_of: Groups,
}

impl Gptq {
    /// The zero points of these outputs, from those of a group.
    fn zeros_of(&self, group: &[u8], columns: &Range<u64>) -> Vec<f32> {
        let zero = |column: u64| {
            field(group, column as usize, self.bits).wrapping_add(self.offset) & mask(self.bits)
        };
        columns.clone().map(|column| f32::from(zero(column))).collect()
    }
}

impl Decoder for Gptq {
    fn decode(
        &self,
        files: Files<'_>,
        rows: Range<u64>,
        columns: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), Problem> {
        let bits = u64::from(self.bits);
        let first = rows.start * bits / 32;
        let words_read =
            self.codes.rows(files, &(first..(rows.end * bits).div_ceil(32)), self.outputs * 4)?;
        // Fields are counted from the first bit of the words that were read, which need not be the first one of a field.
        let skipped = first * 32;
        let groups = self.group_of.of_range(&rows);
        let zero_bytes = words(self.outputs, self.bits) * 4;
        let zeros = self.zeros.rows(files, &groups, zero_bytes)?;
        let scales = scales_of(files, &self.scales, &groups, self.outputs)?;
        let width = (columns.end - columns.start) as usize;
        // The zero points of the group that was used last.
        let mut known: Option<(usize, Vec<f32>)> = None;
        for (row, line) in rows.zip(out.chunks_mut(width)) {
            let group = self.group_of.of(row) - groups.start as usize;
            let scales = &scales[group * self.outputs as usize..];
            let (_, zeros) = match known.take().filter(|(known, _)| *known == group) {
                Some(same) => known.insert(same),
                None => known.insert((group, self.zeros_of(&zeros[group * zero_bytes as usize..], &columns))),
            };
            for ((column, value), zero) in (columns.start as usize..).zip(line).zip(zeros) {
                let at = (row * bits - skipped) as usize;
                let number = field_down(&words_read, self.outputs as usize, column, at, self.bits);
                *value = scales[column] * (f32::from(number) - *zero);
            }
        }
        Ok(())
    }
}
