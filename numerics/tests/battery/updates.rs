//! The update of cntlora, for every coupling, norm and start: singular values, product, balance and shift.

use crate::inputs::{
    Case, DeadChannels, Everything, FewRows, Offsets, Ordinary, Outliers, Pairs, Scales, Weights,
};
use crate::oracle::{self, Matrix, qr, svd};
use crate::subject::{self, Answer, MIRRORED, Site, units_per_component};
use crate::truth::{EMPTY, Facts, Product, Tolerance, Truth, shift_on_rows};
use cntlora_numerics::constraint::Coupling;
use cntlora_numerics::error::Error;
use cntlora_numerics::factors::{Start, Strength};
use cntlora_numerics::method::Method;

pub type Verdict = Result<(), String>;

pub fn require(holds: bool, complaint: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(complaint()) }
}

/// The expected result of a recording.
#[derive(Debug, PartialEq)]
pub enum Fate {
    Right,
    /// It is refused: it gives nothing to initialize from.
    Refused,
    /// Squares of the numbers are near the limits of f32: the result is right, or it is refused.
    Either,
}

/// Squares near the limit of f32.
const LARGE: f64 = 1e36;

pub fn fate(facts: &Facts) -> Fate {
    let squares = |i: usize| facts.target.mean[i].powi(2) + facts.target.covariance[(i, i)];
    let source_squares = facts.source.as_ref().map_or(0.0, |source| source.second_moment().largest());
    let width = facts.target.mean.len();
    let largest = (0..width).map(squares).fold(source_squares, f64::max);
    if facts.target.variance() == 0.0 {
        Fate::Refused
    } else if largest > LARGE || facts.target.variance() / (width as f64) < 1e-36 {
        Fate::Either
    } else {
        Fate::Right
    }
}

/// Returns whether an error says that there is nothing to initialize from.
pub fn says_nothing_varies(error: &Error) -> bool {
    let text = error.to_string();
    text.contains("equal") || text.contains("zero")
}

/// Returns whether an error says that numbers are too large or too small.
pub fn says_out_of_range(error: &Error) -> bool {
    let text = error.to_string();
    text.contains("not finite") || text.contains("too small for f32") || text.contains("too large for f32")
}

fn check(case: &Case) -> Verdict {
    let (target, source) = case.rows();
    let facts = Facts::of(&target, source.as_ref(), case.coupling == Coupling::Paired);
    let weight = case.weight();
    let options = subject::options_of(case, Method::Cntlora, Start::Update, case.rank);
    let fate = fate(&facts);
    let site = match (Site::new(&target, source.as_ref(), &options), &fate) {
        (Ok(site), Fate::Right | Fate::Either) => site,
        (Ok(_), Fate::Refused) => return Err("rows that are all equal were accepted".into()),
        (Err(error), Fate::Refused) => {
            let is_large = facts.target.second_moment().largest() > LARGE;
            let says_why = says_nothing_varies(&error) || is_large && says_out_of_range(&error);
            return require(says_why, || format!("the refusal does not say why: {error}"));
        }
        (Err(error), Fate::Either) => {
            return require(says_out_of_range(&error), || format!("the refusal does not say why: {error}"));
        }
        (Err(error), Fate::Right) => return Err(format!("refused: {error}")),
    };
    let layer = site.layer(&weight, &options).map_err(|error| format!("refused: {error}"))?;
    let weight = weight.matrix();
    let (truth, tolerance) = Truth::of_update(&facts, &weight, &subject::terms(&options));
    let wanted = svd(&truth.image).s;
    check_spectrum(layer.spectrum(), layer.energy(), &wanted, &tolerance)?;

    for start in [Start::Update, Start::Residual, Start::Zero].into_iter().chain(MIRRORED) {
        let units = units_per_component(start);
        let options = subject::options_of(case, Method::Cntlora, start, case.rank * units);
        let layer = site.layer(&case.weight(), &options).map_err(|error| format!("refused: {error}"))?;
        let made = layer.factors(case.rank * units, &options).map_err(|error| format!("refused: {error}"))?;
        require(made.up.is_finite() && made.down.is_finite(), || "factors that are not finite".into())?;
        let named = |complaint: String| format!("start {}: {complaint}", start.name());
        match start {
            Start::Zero => check_rows(&made, &truth, &wanted, &tolerance),
            _ if Some(start) == MIRRORED => check_mirrored(&made, &truth, &wanted, &tolerance, case.scale),
            _ => check_balanced(&made, &truth, &wanted, &tolerance),
        }
        .map_err(named)?;
    }
    let uncertain = tolerance.image / wanted[0].max(f64::MIN_POSITIVE);
    check_shift(case, &site, &weight, &target.matrix(), SHIFT + uncertain)
}

pub fn check_spectrum(found: &[f64], energy: f64, wanted: &[f64], tolerance: &Tolerance) -> Verdict {
    for (i, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        require((found - wanted).abs() <= tolerance.image, || {
            format!("singular value {i} is {found:e} and not {wanted:e}, {:e} allowed", tolerance.image)
        })?;
    }
    let whole = oracle::norm(wanted).powi(2);
    let allowed = tolerance.image * (2.0 * whole.sqrt() + tolerance.image);
    require((energy - whole).abs() <= allowed, || {
        format!("the energy is {energy:e} and not {whole:e}, {allowed:e} allowed")
    })
}

/// `BᵀB = A Aᵀ`, diagonal, each entry to f32; the largest entry of each row of `A` positive; and the product.
pub fn check_balanced(made: &Answer, truth: &Truth, wanted: &[f64], tolerance: &Tolerance) -> Verdict {
    check_balance(&made.up, &made.down)?;
    truth.complaint(wanted, &made.update(), tolerance).map_or(Ok(()), Err)
}

/// Orthonormality of f32 decompositions to within `√d` roundings of either side, for the sides in this battery.
const ORTHONORMAL: f64 = 1e-5;

pub fn check_balance(up: &Matrix, down: &Matrix) -> Verdict {
    let left = up.transposed().times(up);
    let right = down.times(&down.transposed());
    let largest = (0..left.rows).map(|i| left[(i, i)]).fold(0.0, f64::max);
    for i in 0..right.rows {
        for j in 0..=i {
            let allowed = ORTHONORMAL * (left[(i, i)] * left[(j, j)]).sqrt();
            let wanted = if i == j { left[(i, i)] } else { 0.0 };
            // A unit without a singular value has a direction in A and zeros in B.
            let empty = left[(i, i)].min(left[(j, j)]) <= EMPTY * largest;
            let right = right[(i, j)];
            require(
                empty || (right - wanted).abs() <= allowed && (left[(i, j)] - wanted).abs() <= allowed,
                || format!("BᵀB and A Aᵀ have {:e} and {right:e} at ({i}, {j})", left[(i, j)]),
            )?;
        }
        let row = down.row(i);
        let (low, high) = row.iter().fold((0.0f64, 0.0f64), |(low, high), x| (low.min(*x), high.max(*x)));
        require(-low <= high * (1.0 + ORTHONORMAL), || format!("the largest entry of row {i} is negative"))?;
    }
    Ok(())
}

/// `B = 0`, and the rows of `A` are orthonormal and their row space is as good as the best one.
fn check_rows(made: &Answer, truth: &Truth, wanted: &[f64], tolerance: &Tolerance) -> Verdict {
    require(made.up.largest() == 0.0, || "B is not zero".into())?;
    let down = &made.down;
    let overlap = down.times(&down.transposed()).minus(&Matrix::identity(down.rows)).largest();
    require(overlap <= ORTHONORMAL, || format!("the rows of A are {overlap:e} from orthonormal"))?;
    // The best product with these rows: M projected on Q, where A F = Rᵀ Qᵀ.
    let (q, r) = qr(&down.times(&truth.norm).transposed());
    let product = Product { up: truth.image.times(&q), down: oracle::solve_lower(&r.transposed(), down) };
    truth.complaint(wanted, &product, tolerance).map_or(Ok(()), Err)
}

/// Opposite rows of `A` that share a column of `B`: a product of zero, and half of it is the best of half the rank.
pub fn check_mirrored(
    made: &Answer,
    truth: &Truth,
    wanted: &[f64],
    tolerance: &Tolerance,
    scale: f64,
) -> Verdict {
    let (up, down) = halves(made)?;
    check_balance(&up, &down)?;
    let product = Product { up: up.scaled(scale), down };
    truth.complaint(wanted, &product, tolerance).map_or(Ok(()), Err)
}

/// `B₀` and `A₀` of mirrored factors.
pub fn halves(made: &Answer) -> Result<(Matrix, Matrix), String> {
    let rank = made.down.rows;
    let opposite = |i: usize, j: usize| made.down.row(i).iter().zip(made.down.row(j)).all(|(a, b)| *a == -*b);
    let pairs: Vec<(usize, usize)> = if rank >= 2 && opposite(0, 1) {
        (0..rank / 2).map(|k| (2 * k, 2 * k + 1)).collect()
    } else {
        (0..rank / 2).map(|k| (k, rank / 2 + k)).collect()
    };
    for &(i, j) in &pairs {
        require(opposite(i, j), || format!("rows {i} and {j} are not opposite"))?;
        require(made.up.column(i) == made.up.column(j), || format!("columns {i} and {j} are not equal"))?;
    }
    let root = 2f64.sqrt();
    Ok((
        Matrix::from_fn(made.up.rows, pairs.len(), |i, k| root * made.up[(i, pairs[k].0)]),
        Matrix::from_fn(pairs.len(), made.down.columns, |k, j| root * made.down[(pairs[k].0, j)]),
    ))
}

/// Relative error that a reported shift may have beyond that of the update: energies are sums of f32 products.
const SHIFT: f64 = 1e-3;

/// The trust region holds on the rows, is reached if it binds, and the reported shift is right.
fn check_shift(case: &Case, site: &Site, weight: &Matrix, rows: &Matrix, allowed: f64) -> Verdict {
    let share = 0.05;
    let mut options = subject::options_of(case, Method::Cntlora, Start::Update, case.rank);
    options.strength = Strength::MaxShift(share);
    let made = site
        .layer(&case.weight(), &options)
        .and_then(|layer| layer.factors(case.rank, &options))
        .map_err(|error| format!("refused: {error}"))?;
    let added = made.added();
    if weight.largest() == 0.0 {
        return require(added.up.times(&added.down).largest() == 0.0, || {
            "an update of a weight of zero".into()
        });
    }
    let found = shift_on_rows(&added.up, &added.down, weight, rows);
    let (reported, strength) = (made.shift, made.strength);
    let said = || format!("the shift on the rows is {found:e}, reported {reported:e}, η = {strength:e}");
    require(found.is_finite() && found <= share * (1.0 + allowed), said)?;
    require(strength == 1.0 || found >= share * (1.0 - allowed), said)?;
    // Below that, only rounding errors change the output.
    require((reported - found).abs() <= allowed * found.max(1e-4), said)
}

fn verdict(case: &Case) -> bool {
    match check(case) {
        Ok(()) => true,
        Err(complaint) => {
            println!("{complaint}");
            false
        }
    }
}

battery! {
    fn ordinary_activations(case: Ordinary) -> bool { verdict(&case.0) }
    fn means_far_from_zero(case: Offsets) -> bool { verdict(&case.0) }
    fn outlier_channels(case: Outliers) -> bool { verdict(&case.0) }
    fn constant_zero_and_repeated_channels(case: DeadChannels) -> bool { verdict(&case.0) }
    fn every_scale(case: Scales) -> bool { verdict(&case.0) }
    fn few_rows_and_small_ridges(case: FewRows) -> bool { verdict(&case.0) }
    fn structured_weights(case: Weights) -> bool { verdict(&case.0) }
    fn pairs_that_are_close(case: Pairs) -> bool { verdict(&case.0) }
    fn everything_at_once(case: Everything) -> bool { verdict(&case.0) }
}
