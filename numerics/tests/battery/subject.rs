//! The calls of the crate's functions by the battery.

use crate::inputs::{Case, Table};
use crate::oracle::Matrix;
use crate::truth::{Product, Terms};
use cntlora_numerics::constraint::{ChannelScale, Evidence};
use cntlora_numerics::error::Result;
use cntlora_numerics::factors::{Start, Strength};
use cntlora_numerics::initializer::{self, Initializer};
use cntlora_numerics::method::{Draft, Method, Options};
use cntlora_numerics::moments::{Moments, PairedMoments, Sides};
use cntlora_numerics::rank::{self, Layer, Limits, Policy};
use cntlora_numerics::simd::{BLOCK_ROWS, Rows, Values, Workspace};
use faer::Mat;

/// The start whose factors are mirrored.
pub const MIRRORED: Option<Start> = Some(Start::Mirrored);

/// Units of rank that one component of an update takes.
pub fn units_per_component(start: Start) -> usize {
    if Some(start) == MIRRORED { 2 } else { 1 }
}

/// Options without a trust region.
pub fn options(method: Method, start: Start, rank: usize) -> Options {
    Options {
        method,
        start,
        strength: Strength::Fixed(1.0),
        ranks: Policy::Fixed(rank),
        limits: Limits { min: 0, max: rank, multiple: 1 },
        channel_scale: ChannelScale::Mean,
        ..Options::default()
    }
}

/// The options of a case, with its own rank.
pub fn options_of(case: &Case, method: Method, start: Start, rank: usize) -> Options {
    Options {
        coupling: case.coupling,
        preserve: case.preserve,
        ridge: case.ridge,
        norm: case.norm,
        scale: case.scale,
        ..options(method, start, rank)
    }
}

pub fn terms(options: &Options) -> Terms {
    let Options { coupling, norm, preserve, ridge, .. } = *options;
    Terms { coupling, norm, preserve, ridge }
}

/// A site.
pub struct Site {
    target: Moments,
    source: Option<Moments>,
    change: Option<Mat<f64>>,
}

fn blocks<'a>(values: &'a [f32], width: usize) -> impl Iterator<Item = Rows<'a>> {
    values.chunks(BLOCK_ROWS * width).map(move |block| Rows {
        values: Values::F32(block),
        rows: block.len() / width,
        width,
        stride: width,
    })
}

fn moments(rows: &Table) -> Result<Moments> {
    let mut moments = Moments::new(rows.width);
    let mut workspace = Workspace::default();
    for block in blocks(&rows.values, rows.width) {
        moments.add(block, &mut workspace, 1)?;
    }
    Ok(moments)
}

impl Site {
    /// The site for some options. Tests use one recording with several.
    fn with(&self, options: &Options) -> Result<initializer::Site> {
        let (target, source) = (&self.target, self.source.as_ref());
        let change = self.change.as_ref().map(Mat::as_ref);
        Initializer::new(options.clone())?.site(Evidence { target, source, change })
    }

    /// Rows of `source` are paired with those of `target` if the coupling is.
    pub fn new(target: &Table, source: Option<&Table>, options: &Options) -> Result<Self> {
        let paired = options.coupling == cntlora_numerics::constraint::Coupling::Paired;
        if let (true, Some(source)) = (paired, source) {
            let sides: Vec<f32> = source
                .values
                .chunks(target.width)
                .zip(target.values.chunks(target.width))
                .flat_map(|(z, x)| z.iter().zip(x).map(|(z, x)| z - x).chain(x.iter().copied()))
                .collect();
            let mut pairs = PairedMoments::new(target.width);
            let mut workspace = Workspace::default();
            for block in blocks(&sides, 2 * target.width) {
                pairs.add(block, &mut workspace, 1)?;
            }
            let Sides { source, target, change } = pairs.split()?;
            let site = Self { target, source: Some(source), change: Some(change) };
            return site.with(options).map(|_| site);
        }
        let source = source.map(moments).transpose()?;
        let site = Self { target: moments(target)?, source, change: None };
        site.with(options).map(|_| site)
    }

    /// Decomposes a weight of this site.
    pub fn layer(&self, weight: &Table, options: &Options) -> Result<Decomposed> {
        let weight = Mat::from_fn(weight.rows, weight.width, |i, j| weight.values[i * weight.width + j]);
        Ok(Decomposed { draft: self.with(options)?.layer("layer", weight.as_ref())?.into_draft() })
    }
}

/// A layer before its rank is known.
pub struct Decomposed {
    draft: Draft,
}

impl Decomposed {
    pub fn spectrum(&self) -> &[f64] {
        self.draft.spectrum()
    }

    pub fn energy(&self) -> f64 {
        self.draft.energy()
    }

    pub fn effective_rank(&self) -> Option<f64> {
        self.draft.as_layer(Start::Residual).effective_rank
    }

    pub fn residual(&self) -> f64 {
        self.draft.residual()
    }

    pub fn factors(&self, rank: usize, options: &Options) -> Result<Answer> {
        let made = self.draft.initialize(rank, options)?;
        let double = |m: &Mat<f32>| Matrix::from_fn(m.nrows(), m.ncols(), |i, j| f64::from(m[(i, j)]));
        Ok(Answer {
            up: double(&made.factors.b),
            down: double(&made.factors.a),
            strength: made.strength,
            shift: made.shift,
            scale: options.scale,
        })
    }
}

/// The factors of a layer.
pub struct Answer {
    pub up: Matrix,
    pub down: Matrix,
    pub strength: f64,
    pub shift: f64,
    scale: f64,
}

impl Answer {
    /// The product that the adapter adds, as factors.
    pub fn added(&self) -> Product {
        Product { up: self.up.scaled(self.scale), down: self.down.clone() }
    }

    /// `Δ_r` from the factors, before scale and strength.
    pub fn update(&self) -> Product {
        Product { up: self.up.scaled(self.scale / self.strength), down: self.down.clone() }
    }
}

/// From rows to the factors of one layer of the options' fixed rank.
pub fn answer(target: &Table, source: Option<&Table>, weight: &Table, options: &Options) -> Result<Answer> {
    let layer = Site::new(target, source, options)?.layer(weight, options)?;
    let ranks = ranks(&[&layer], options)?;
    layer.factors(ranks[0], options)
}

pub fn ranks(layers: &[&Decomposed], options: &Options) -> Result<Vec<usize>> {
    let layers: Vec<Layer<'_>> = layers.iter().map(|layer| layer.draft.as_layer(options.start)).collect();
    rank::allocate(options.ranks, options.limits, &layers)
}

/// Numbers in one of the formats that rows come in, and as f32.
pub enum Format {
    F64,
    F32,
    F16,
    Bf16,
}

/// Rows rounded to a format, and the mean and covariance that the crate computes of them.
pub fn measured(rows: &Table, format: &Format) -> Result<(Table, Vec<f64>, Matrix)> {
    let width = rows.width;
    let halves: Vec<half::f16> = rows.values.iter().map(|value| half::f16::from_f32(*value)).collect();
    let brains: Vec<half::bf16> = rows.values.iter().map(|value| half::bf16::from_f32(*value)).collect();
    let doubles: Vec<f64> = rows.values.iter().map(|value| f64::from(*value)).collect();
    let mut moments = Moments::new(width);
    let mut workspace = Workspace::default();
    let mut first = 0;
    while first < rows.rows {
        let count = BLOCK_ROWS.min(rows.rows - first);
        let range = first * width..(first + count) * width;
        let values = match format {
            Format::F64 => Values::F64(&doubles[range]),
            Format::F32 => Values::F32(&rows.values[range]),
            Format::F16 => Values::F16(&halves[range]),
            Format::Bf16 => Values::Bf16(&brains[range]),
        };
        moments.add(Rows { values, rows: count, width, stride: width }, &mut workspace, 1)?;
        first += count;
    }
    let values = match format {
        Format::F64 | Format::F32 => rows.values.clone(),
        Format::F16 => halves.iter().map(|value| value.to_f32()).collect(),
        Format::Bf16 => brains.iter().map(|value| value.to_f32()).collect(),
    };
    let mean: Vec<f64> = moments.mean()?.iter().copied().collect();
    let found = moments.covariance()?;
    let covariance = Matrix::from_fn(width, width, |i, j| found[(i, j)]);
    Ok((Table { values, ..*rows }, mean, covariance))
}
