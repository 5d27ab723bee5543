//! Inputs like those of real models, and harder ones: drawn at random, and simplified one property at a time when a test fails.

use crate::oracle::Matrix;
use cntlora_numerics::constraint::{Coupling, Norm};
use quickcheck::{Arbitrary, Gen};

/// Reproducible random numbers (SplitMix64; normal numbers by Box and Muller).
#[derive(Clone)]
pub struct Stream(u64);

impl Stream {
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x5851_f42d_4c95_7f2d)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In (0, 1).
    pub fn uniform(&mut self) -> f64 {
        ((self.next() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    pub fn normal(&mut self) -> f64 {
        let (radius, angle) = ((-2.0 * self.uniform().ln()).sqrt(), std::f64::consts::TAU * self.uniform());
        radius * angle.cos()
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Numbers of a file, row after row.
#[derive(Clone, Debug)]
pub struct Table {
    pub rows: usize,
    pub width: usize,
    pub values: Vec<f32>,
}

impl Table {
    pub fn of(matrix: &Matrix) -> Self {
        let values = matrix.data.iter().map(|value| *value as f32).collect();
        Self { rows: matrix.rows, width: matrix.columns, values }
    }

    /// The same numbers, exactly.
    pub fn matrix(&self) -> Matrix {
        let data = self.values.iter().map(|value| f64::from(*value)).collect();
        Matrix { rows: self.rows, columns: self.width, data }
    }
}

/// The activations of a site. Channels are taken in this order: outliers, constant, zero, repeated, ordinary.
#[derive(Clone, Debug)]
pub struct Activations {
    pub rows: usize,
    pub width: usize,
    /// Mean of a channel, in its standard deviations.
    pub offset: f64,
    /// True if only one channel has the offset.
    pub offset_of_one: bool,
    /// All numbers are multiplied by ten to this power.
    pub exponent: i32,
    /// Channels a thousand times as large as the others.
    pub outliers: usize,
    pub constant: usize,
    pub zero: usize,
    /// Channels that repeat the last one.
    pub repeated: usize,
    /// Direction k has a standard deviation of (k + 1) to minus this power.
    pub decay: i32,
}

impl Activations {
    pub fn plain(rows: usize, width: usize) -> Self {
        Self {
            rows,
            width,
            offset: 0.0,
            offset_of_one: false,
            exponent: 0,
            outliers: 0,
            constant: 0,
            zero: 0,
            repeated: 0,
            decay: 0,
        }
    }

    pub fn draw(&self, seed: u64) -> Table {
        let mut stream = Stream::new(seed);
        let width = self.width;
        let strengths: Vec<f64> = (0..width).map(|k| ((k + 1) as f64).powi(-self.decay)).collect();
        // Ordinary channels are mixed, so that they are correlated.
        let mixing = Matrix::from_fn(width, width, |i, j| {
            strengths[i] * (stream.normal() / (width as f64).sqrt() + if i == j { 1.0 } else { 0.0 })
        });
        let latent = Matrix::from_fn(self.rows, width, |_, _| stream.normal());
        let mut rows = latent.times(&mixing);
        let scale = 10f64.powi(self.exponent);
        let means: Vec<f64> =
            (0..width).map(|_| self.offset * (0.5 + stream.uniform()) * stream.normal().signum()).collect();
        let [outliers, constant, zero, repeated] =
            [self.outliers, self.constant, self.zero, self.repeated].map(|count| count.min(width));
        for i in 0..self.rows {
            for (j, mean) in means.iter().enumerate() {
                let size = if j < outliers { 1000.0 } else { 1.0 };
                let deviation = norm_of_column(&mixing, j);
                let offset = if self.offset_of_one && j != width / 2 { 0.0 } else { mean * deviation };
                rows[(i, j)] = match j {
                    _ if j < outliers => size * (rows[(i, j)] + offset),
                    _ if j < outliers + constant => 0.7 + j as f64,
                    _ if j < outliers + constant + zero => 0.0,
                    _ => rows[(i, j)] + offset,
                } * scale;
            }
            for j in width - repeated.min(width - 1) - 1..width - 1 {
                rows[(i, j)] = rows[(i, width - 1)];
            }
        }
        Table::of(&rows)
    }
}

fn norm_of_column(matrix: &Matrix, j: usize) -> f64 {
    crate::oracle::norm(&matrix.column(j))
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weight {
    Dense,
    Zero,
    Ones,
    RankOne,
    /// Integers, of rank two.
    Integers,
    Blocks,
    Permutation,
    /// Singular values from 1 down to ten to minus this power.
    Condition(i32),
    /// All but two outputs are zero.
    FewOutputs,
}

impl Weight {
    pub const STRUCTURED: [Self; 11] = [
        Self::Zero,
        Self::Ones,
        Self::RankOne,
        Self::Integers,
        Self::Blocks,
        Self::Permutation,
        Self::Condition(2),
        Self::Condition(4),
        Self::Condition(6),
        Self::Condition(8),
        Self::FewOutputs,
    ];

    pub fn draw(self, outputs: usize, width: usize, seed: u64) -> Table {
        let mut stream = Stream::new(seed ^ 0x77);
        let dense = Matrix::from_fn(outputs, width, |_, _| 0.1 * stream.normal());
        let integers = |stream: &mut Stream, count| -> Vec<f64> {
            (0..count).map(|_| stream.below(7) as f64 - 3.0).collect()
        };
        Table::of(&match self {
            Self::Dense => dense,
            Self::Zero => Matrix::zeros(outputs, width),
            Self::Ones => Matrix::from_fn(outputs, width, |_, _| 1.0),
            Self::RankOne => Matrix::outer(&dense.column(0), dense.row(0)),
            Self::Integers => {
                let mut pair =
                    || Matrix::outer(&integers(&mut stream, outputs), &integers(&mut stream, width));
                pair().plus(&pair(), 1.0)
            }
            Self::Blocks => Matrix::from_fn(outputs, width, |i, j| {
                if i * 3 / outputs == j * 3 / width { dense[(i, j)] } else { 0.0 }
            }),
            Self::Permutation => {
                let side = outputs.max(width);
                let step =
                    (1..side).rev().find(|step| greatest_common_divisor(*step, side) == 1).unwrap_or(1);
                let target = |i: usize| (i * step + 1) % side;
                Matrix::from_fn(outputs, width, |i, j| if target(i) == j { 1.0 } else { 0.0 })
            }
            Self::Condition(exponent) => {
                let size = outputs.min(width);
                let mut orthonormal =
                    |rows| crate::oracle::qr(&Matrix::from_fn(rows, size, |_, _| stream.normal())).0;
                let (u, v) = (orthonormal(outputs), orthonormal(width));
                let share = |k: usize| k as f64 / (size - 1).max(1) as f64;
                let scaled = Matrix::from_fn(outputs, size, |i, k| {
                    u[(i, k)] * 10f64.powf(-f64::from(exponent) * share(k))
                });
                scaled.times(&v.transposed())
            }
            Self::FewOutputs => {
                Matrix::from_fn(outputs, width, |i, j| if i < 2 { dense[(i, j)] } else { 0.0 })
            }
        })
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// One layer, its recording, and the options.
#[derive(Clone, Debug)]
pub struct Case {
    pub seed: u64,
    pub target: Activations,
    pub source: Option<Activations>,
    /// Distance between the rows of a pair, relative to the rows.
    pub distance: f64,
    pub outputs: usize,
    pub weight: Weight,
    pub coupling: Coupling,
    pub norm: Norm,
    pub preserve: f64,
    pub ridge: f64,
    pub rank: usize,
    pub scale: f64,
}

/// The properties of a family of inputs, in addition to those of ordinary inputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Family {
    Ordinary,
    Offsets,
    Outliers,
    DeadChannels,
    Scales,
    FewRows,
    Weights,
    Pairs,
    Everything,
}

impl Case {
    pub fn draw(family: Family, g: &mut Gen) -> Self {
        let everything = family == Family::Everything;
        // A random case has each property with probability one half.
        let has = |wanted: Family, g: &mut Gen| family == wanted || everything && pick(g, &[true, false]);
        let width = 2 + below(g, 19);
        let outputs = 1 + below(g, 20);
        let mut target = Activations::plain(2 * width + below(g, 2 * width + 1), width);
        target.offset = pick(g, &[0.0, 1e-3, 0.3, 1.0]);
        target.decay = pick(g, &[0, 0, 1]);
        let mut ridge = pick(g, &[1e-2, 1e-2, 1e-1, 1.0]);
        if has(Family::Offsets, g) {
            target.offset = pick(g, &[3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 1e4]);
            target.offset_of_one = pick(g, &[false, true]);
        }
        if has(Family::Outliers, g) {
            target.outliers = 1 + below(g, 3);
        }
        if has(Family::DeadChannels, g) {
            target.constant = below(g, 3);
            target.zero = below(g, 4);
            target.repeated = below(g, 3);
        }
        if has(Family::Scales, g) {
            target.exponent = below(g, 36) as i32 - 18;
        }
        if has(Family::FewRows, g) {
            target.rows = 1 + below(g, target.width + target.width / 2);
            ridge = pick(g, &[1e-6, 1e-5, 1e-4, 1e-3, 1e-2]);
        }
        let weight = if has(Family::Weights, g) { pick(g, &Weight::STRUCTURED) } else { Weight::Dense };
        let close = has(Family::Pairs, g);
        let couplings = [Coupling::Paired, Coupling::Transport, Coupling::Uncorrelated];
        let coupling = pick(g, if family == Family::Pairs { &couplings[..1] } else { &couplings });
        let with_source = coupling == Coupling::Paired || pick(g, &[true, false]);
        let source = with_source.then(|| {
            let rows = if coupling == Coupling::Paired { target.rows } else { 3 * width };
            Activations {
                offset: pick(g, &[0.0, 0.5, 2.0]),
                exponent: target.exponent,
                ..Activations::plain(rows, width)
            }
        });
        Self {
            seed: below(g, 1 << 30) as u64,
            target,
            source,
            distance: if close { pick(g, &[1e-1, 1e-2, 1e-3, 1e-4]) } else { 1.0 },
            outputs,
            weight,
            coupling,
            norm: pick(g, &[Norm::Activations, Norm::Activations, Norm::Weights]),
            preserve: pick(g, &[0.0, 0.0, 0.5]),
            ridge,
            rank: 1 + below(g, outputs.min(width)),
            scale: pick(g, &[1.0, 2.0, 0.5]),
        }
    }

    /// Fine-tuning and, if there are any, pre-training rows.
    pub fn rows(&self) -> (Table, Option<Table>) {
        let target = self.target.draw(self.seed);
        let source = self.source.as_ref().map(|source| {
            let drawn = source.draw(self.seed ^ 0xabc);
            if self.coupling != Coupling::Paired {
                return drawn;
            }
            // Of the size of the row that it is paired with.
            let values = target.values.iter().zip(&drawn.values).map(|(x, z)| {
                let step = self.distance * f64::from(*z);
                (f64::from(*x) * (1.0 + 0.1 * self.distance) + step) as f32
            });
            Table { values: values.collect(), ..target }
        });
        (target, source)
    }

    pub fn weight(&self) -> Table {
        self.weight.draw(self.outputs, self.target.width, self.seed)
    }

    /// Cases that are each simpler in one property.
    pub fn simpler(&self) -> Box<dyn Iterator<Item = Self>> {
        let mut simpler = Vec::new();
        let mut with = |change: &dyn Fn(&mut Self)| {
            let mut case = self.clone();
            change(&mut case);
            case.rank = case.rank.min(case.outputs).min(case.target.width);
            if let Some(source) = &mut case.source {
                source.width = case.target.width;
                source.exponent = case.target.exponent;
                if case.coupling == Coupling::Paired {
                    source.rows = case.target.rows;
                }
            }
            if format!("{case:?}") != format!("{self:?}") {
                simpler.push(case);
            }
        };
        with(&|case| case.target.exponent = 0);
        with(&|case| case.target.offset = 0.0);
        with(&|case| case.target.offset /= 10.0);
        with(&|case| case.target.outliers = 0);
        with(&|case| case.target.outliers = case.target.outliers.min(1));
        with(&|case| case.target.constant = 0);
        with(&|case| case.target.zero = 0);
        with(&|case| case.target.repeated = 0);
        with(&|case| case.target.decay = 0);
        with(&|case| case.target.offset_of_one = false);
        with(&|case| case.weight = Weight::Dense);
        with(&|case| case.norm = Norm::Weights);
        with(&|case| case.preserve = 0.0);
        with(&|case| case.ridge = 1e-2);
        with(&|case| case.scale = 1.0);
        with(&|case| case.rank = 1);
        with(&|case| case.distance = 1.0);
        with(&|case| case.outputs = (case.outputs / 2).max(1));
        with(&|case| case.target.width = (case.target.width / 2).max(2));
        with(&|case| case.target.width = (case.target.width - 1).max(2));
        with(&|case| case.target.rows = case.target.rows.max(4 * case.target.width));
        if self.coupling != Coupling::Paired {
            with(&|case| case.source = None);
            with(&|case| case.coupling = Coupling::Uncorrelated);
        }
        Box::new(simpler.into_iter())
    }
}

pub fn below(g: &mut Gen, bound: usize) -> usize {
    (u64::arbitrary(g) % bound as u64) as usize
}

pub fn pick<T: Copy>(g: &mut Gen, of: &[T]) -> T {
    of[below(g, of.len())]
}

/// Inputs of one family, as the type of an argument of a property.
macro_rules! family {
    ($name:ident) => {
        #[derive(Clone, Debug)]
        pub struct $name(pub Case);

        impl quickcheck::Arbitrary for $name {
            fn arbitrary(g: &mut Gen) -> Self {
                Self(Case::draw(Family::$name, g))
            }
            fn shrink(&self) -> Box<dyn Iterator<Item = Self>> {
                Box::new(self.0.simpler().map(Self))
            }
        }
    };
}

family!(Ordinary);
family!(Offsets);
family!(Outliers);
family!(DeadChannels);
family!(Scales);
family!(FewRows);
family!(Weights);
family!(Pairs);
family!(Everything);
