//! Means and covariances of rows in every format, across blocks, against sums over centred rows in f64.

use crate::inputs::{Activations, below, pick};
use crate::subject::{Format, measured};
use crate::truth::{Sample, UNIT};
use quickcheck::{Arbitrary, Gen};

#[derive(Clone, Debug)]
struct Recording {
    seed: u64,
    activations: Activations,
    format: u8,
}

impl Arbitrary for Recording {
    fn arbitrary(g: &mut Gen) -> Self {
        let width = 1 + below(g, 40);
        let rows = pick(g, &[1, 2, 7, 100, 640, 641, 1500]);
        let mut activations = Activations::plain(rows, width);
        activations.offset = pick(g, &[0.0, 1e-3, 1.0, 10.0, 100.0, 1e3, 1e4]);
        activations.offset_of_one = pick(g, &[false, true]);
        activations.outliers = below(g, 2);
        activations.constant = below(g, 3);
        activations.zero = below(g, 3);
        activations.repeated = below(g, 3);
        let format = below(g, 4) as u8;
        // Half precision has a smaller range.
        let span = if format == 2 { 1 } else { 33 };
        activations.exponent = below(g, span) as i32 - span as i32 / 2;
        if format == 2 {
            activations.outliers = 0;
            activations.offset = activations.offset.min(1e3);
        }
        Self { seed: below(g, 1 << 30) as u64, activations, format }
    }

    fn shrink(&self) -> Box<dyn Iterator<Item = Self>> {
        let changes: [fn(&mut Activations); 8] = [
            |a| a.exponent = 0,
            |a| a.offset = if a.offset > 1.0 { a.offset / 10.0 } else { 0.0 },
            |a| a.outliers = 0,
            |a| (a.constant, a.zero, a.repeated) = (0, 0, 0),
            |a| a.width = (a.width / 2).max(1),
            |a| a.rows = (a.rows / 2).max(1),
            |a| a.offset_of_one = false,
            |a| a.width = (a.width - 1).max(1),
        ];
        let this = self.clone();
        Box::new(changes.into_iter().filter_map(move |change| {
            let mut simpler = this.clone();
            change(&mut simpler.activations);
            (format!("{simpler:?}") != format!("{this:?}")).then_some(simpler)
        }))
    }
}

battery! {
    /// For all means, each entry of the covariance has an error of at most 64 u of the product of two standard deviations: eight times
    /// that of the 640 independent roundings of an f32 chain (see `truth`). If nothing varies, only the rounding of raw sums in f64
    /// remains.
    fn covariances_of_any_rows(case: Recording) -> bool {
        let rows = case.activations.draw(case.seed);
        let format = [Format::F64, Format::F32, Format::F16, Format::Bf16];
        let (rows, mean, covariance) = measured(&rows, &format[usize::from(case.format)]).unwrap();
        let wanted = Sample::of(&rows.matrix());
        let deviations = wanted.deviations();
        let width = rows.width;
        // Far from zero, short formats have few different numbers, and all their products are rounded in the same way.
        let is_short = matches!(format[usize::from(case.format)], Format::F16 | Format::Bf16);
        let allowed = if is_short { 256.0 } else { 64.0 } * UNIT;
        // Columns whose sum of squares overflows f32 are right or not finite, and every user of the moments refuses the latter.
        let square = |j: usize| {
            let column = (0..rows.rows).map(|i| f64::from(rows.values[i * width + j]).powi(2));
            column.sum::<f64>()
        };
        let inside: Vec<usize> = (0..width)
            .filter(|&j| square(j) < f64::from(f32::MAX) / 2.0 || covariance[(j, j)].is_finite())
            .collect();
        inside.iter().all(|&i| {
            // The rounding of a raw sum in f64, which is the format of files, relative to the mean; also that of a column that is
            // constant apart from the rounding of its pilot, a sum of 640 numbers in f32, whose products are rounded again.
            let square = f64::EPSILON * 8.0 + allowed * 16.0 * UNIT;
            let mean_is_right = (mean[i] - wanted.mean[i]).abs()
                <= allowed * deviations[i] + square * wanted.mean[i].abs();
            let entries = inside.iter().take_while(|&&j| j <= i).all(|&j| {
                let error = (covariance[(i, j)] - wanted.covariance[(i, j)]).abs();
                let raw = (wanted.mean[i].abs() + deviations[i]) * (wanted.mean[j].abs() + deviations[j]);
                // Products of numbers near 1e-16 lose digits at the lower end of f32.
                let least = f64::from(f32::MIN_POSITIVE) * UNIT;
                let holds = error <= allowed * deviations[i] * deviations[j] + square * raw + least;
                if !holds {
                    println!("entry ({i}, {j}) is {error:e} off, deviations {:e}, {:e}", deviations[i], deviations[j]);
                }
                holds
            });
            if !mean_is_right {
                println!("mean {i} is {:e} and not {:e}, deviation {:e}", mean[i], wanted.mean[i], deviations[i]);
            }
            mean_is_right && entries
        })
    }
}
