//! The methods that take a subspace of the outputs, of the inputs or of the weight, against their definitions. Where eigenvalues or
//! singular values tie, any directions among them are right.

use crate::inputs::{
    Activations, Case, DeadChannels, FewRows, Offsets, Ordinary, Outliers, Stream, Table, Weights,
};
use crate::oracle::{self, Matrix, eigen, qr, svd};
use crate::subject::{self, Answer, Site, units_per_component};
use crate::truth::{EMPTY, Sample, UNIT};
use crate::updates::{Verdict, check_balance, halves, require};
use cntlora_numerics::constraint::Coupling;
use cntlora_numerics::factors::Start;
use cntlora_numerics::method::{Method, Options};

/// Orthonormality of stored factors, for the sides in this battery.
const ORTHONORMAL: f64 = 1e-5;
/// Covers the difference between random moves of the sums and the worst case.
const SAFETY: f64 = 8.0;

/// Another recording at the same site: louder where the first is quiet, with the same outliers.
fn other(case: &Case) -> Table {
    let width = case.target.width;
    let source = Activations {
        decay: 1,
        offset: 0.5,
        outliers: case.target.outliers,
        ..Activations::plain(3 * width, width)
    };
    source.draw(case.seed ^ 0xabc)
}

/// The second moment of rows, and a bound on the effect of sums in f32 on a quantity that follows from it.
struct Moment {
    sample: Sample,
    exact: Matrix,
}

impl Moment {
    fn of(rows: &Table) -> Self {
        let sample = Sample::of(&rows.matrix());
        Self { exact: sample.second_moment(), sample }
    }

    /// Bound on the Frobenius norm of the change of `R C Rᵀ`.
    fn uncertainty(&self, r: &Matrix) -> f64 {
        let moved = (0..3).map(|seed| self.sample.moved(&mut Stream::new(seed), 1.0).second_moment());
        let change = moved.map(|moved| congruent(&moved.minus(&self.exact), r).norm());
        SAFETY * change.fold(0.0, f64::max)
    }
}

/// `R M Rᵀ`.
fn congruent(m: &Matrix, r: &Matrix) -> Matrix {
    r.times(m).times(&r.transposed())
}

fn orthonormal(what: &str, columns: &Matrix) -> Verdict {
    let overlap = columns.transposed().times(columns).minus(&Matrix::identity(columns.columns)).largest();
    require(overlap <= ORTHONORMAL, || format!("{what} are {overlap:e} from orthonormal"))
}

/// The error that rounding to f32 makes in a product with a matrix.
fn rounding(matrix: &Matrix) -> f64 {
    8.0 * UNIT * (matrix.rows.max(matrix.columns) as f64).sqrt() * matrix.norm()
}

struct Made {
    spectrum: Vec<f64>,
    energy: f64,
    effective_rank: Option<f64>,
    answer: Answer,
}

fn make(case: &Case, rows: (&Table, Option<&Table>), options: &Options) -> Result<Made, String> {
    let refused = |error: cntlora_numerics::error::Error| format!("refused: {error}");
    // The rows of the two recordings are no pairs.
    let options = &Options { coupling: Coupling::Uncorrelated, ..options.clone() };
    let site = Site::new(rows.0, rows.1, options).map_err(refused)?;
    let layer = site.layer(&case.weight(), options).map_err(refused)?;
    // Mirrored factors have at most half as many directions.
    let units = units_per_component(options.start);
    let rank = (case.rank * units).min(layer.spectrum().len() * units);
    let answer = layer.factors(rank, options).map_err(refused)?;
    require(answer.up.is_finite() && answer.down.is_finite(), || "factors that are not finite".into())?;
    let (spectrum, energy) = (layer.spectrum().to_vec(), layer.energy());
    Ok(Made { spectrum, energy, effective_rank: layer.effective_rank(), answer })
}

/// `B` holds the leading eigenvectors of `W (p C − q S) Wᵀ`, and `A = BᵀW`; for all starts. SC-LoRA has `p = 1 − β` and `q = β`, Astra `p = 1`
/// and no `S`.
fn check_outputs(case: &Case, method: Method) -> Verdict {
    let (target, _) = case.rows();
    let source = other(case);
    let weight = case.weight().matrix();
    let (c, s) = (Moment::of(&target), Moment::of(&source));
    if c.exact.largest() == 0.0 {
        return Ok(());
    }
    for (beta, start) in [(0.5, Start::Residual), (0.9, Start::Residual), (0.2, Start::Mirrored)] {
        let options = Options {
            beta: method.has_beta().then_some(beta),
            ..subject::options_of(case, method, start, case.rank * units_per_component(start))
        };
        let (p, q) = if method.has_beta() { (1.0 - beta, beta) } else { (1.0, 0.0) };
        let source = method.has_beta().then_some(&source);
        let made = make(case, (&target, source), &options)?;
        let (up, down) = match start {
            Start::Mirrored => halves(&made.answer)?,
            _ => (made.answer.up.clone(), made.answer.down.clone()),
        };
        orthonormal("the columns of B", &up)?;
        let error = down.minus(&up.transposed().times(&weight)).norm();
        let unit = rounding(&weight);
        require(error <= unit, || format!("A is {error:e} from BᵀW, {unit:e} allowed"))?;
        let (of_c, of_s) = (congruent(&c.exact, &weight), congruent(&s.exact, &weight));
        let wanted = of_c.scaled(p).plus(&of_s, -q);
        let (values, _) = eigen(&wanted);
        let allowed = 2.0 * (p * c.uncertainty(&weight) + q * s.uncertainty(&weight))
            + p * rounding(&of_c)
            + q * rounding(&of_s);
        let found = congruent(&wanted, &up.transposed());
        for i in 0..up.columns {
            let (found, value) = (found[(i, i)], values[i]);
            require((found - value).abs() <= allowed, || {
                format!("direction {i} has {found:e} and not {value:e}, {allowed:e} allowed")
            })?;
        }
        if method == Method::Astra {
            let whole = wanted.trace();
            for (i, deviation) in made.spectrum.iter().enumerate() {
                let found = deviation * deviation;
                require((found - values[i].max(0.0)).abs() <= allowed, || {
                    format!("eigenvalue {i} is {found:e} and not {:e}, {allowed:e} allowed", values[i])
                })?;
            }
            let off = (made.energy - whole).abs();
            require(off <= (weight.rows as f64).sqrt() * allowed, || format!("the energy is {off:e} off"))?;
            check_effective_rank(made.effective_rank, &values, allowed)?;
        }
    }
    Ok(())
}

/// `exp` of the entropy of the shares of the eigenvalues. Each share `p` may be wrong by `e`, and with it `−p ln p` by `e (1 + |ln e|)`.
fn check_effective_rank(found: Option<f64>, values: &[f64], allowed: f64) -> Verdict {
    let found = found.ok_or("no effective rank")?;
    let whole: f64 = values.iter().map(|value| value.max(0.0)).sum();
    if whole == 0.0 {
        return require(found == 0.0, || format!("outputs of zero have the effective rank {found}"));
    }
    let shares = values.iter().map(|value| value.max(0.0) / whole).filter(|share| *share > 0.0);
    let wanted = (-shares.map(|share| share * share.ln()).sum::<f64>()).exp();
    let error = (2.0 * allowed / whole).min(0.3);
    let allowed =
        wanted * ((values.len() as f64 * error * (1.0 - error.max(1e-300).ln())).exp() - 1.0) + 1e-9;
    require((found - wanted).abs() <= allowed, || {
        format!("the effective rank is {found} and not {wanted}, {allowed:e} allowed")
    })
}

/// `B A = W U Uᵀ`, balanced, where the rows of `A` span `U`, which holds as little of `S` as the last eigenvectors.
fn check_null(case: &Case) -> Verdict {
    // The hard recording is that of the pre-training activations.
    let (source, _) = case.rows();
    let target = other(case);
    let weight = case.weight().matrix();
    let s = Moment::of(&source);
    if s.exact.largest() == 0.0 {
        return Ok(());
    }
    let options = subject::options_of(case, Method::LoraNull, Start::Residual, case.rank);
    let made = make(case, (&target, Some(&source)), &options)?;
    check_balance(&made.answer.up, &made.answer.down)?;
    let product = made.answer.update();
    let rows: Vec<f64> = (0..product.down.rows).map(|i| oracle::norm(product.down.row(i))).collect();
    let down =
        Matrix::from_fn(product.down.rows, product.down.columns, |i, j| product.down[(i, j)] / rows[i]);
    let (directions, _) = qr(&down.transposed());
    orthonormal("the directions of A", &directions)?;
    let identity = Matrix::identity(s.exact.rows);
    let allowed =
        2.0 * (case.rank as f64).sqrt() * s.uncertainty(&identity) + case.rank as f64 * rounding(&s.exact);
    let found = congruent(&s.exact, &directions.transposed()).trace();
    let (values, _) = eigen(&s.exact);
    let least: f64 = values[values.len() - case.rank..].iter().sum();
    require((found - least).abs() <= allowed, || {
        format!("the rows of A hold {found:e} of S and not {least:e}, {allowed:e} allowed")
    })?;
    let wanted = weight.times(&directions).times(&directions.transposed());
    let error = product.up.times(&product.down).minus(&wanted).norm();
    let unit = rounding(&weight) + EMPTY * wanted.norm();
    require(error <= unit, || format!("the product is {error:e} from W U Uᵀ, {unit:e} allowed"))
}

/// The last singular vectors: orthonormal, and `Bᵀ W Aᵀ` holds the last singular values. Of MiCA only `B`, whose columns `W` maps to as
/// little.
fn check_tail(case: &Case) -> Verdict {
    let (target, _) = case.rows();
    let weight = case.weight().matrix();
    let values = svd(&weight).s;
    let last = &values[values.len() - case.rank..];
    let unit = rounding(&weight) + 1e-9 * weight.norm();
    for start in [Start::Residual, Start::Mirrored] {
        let rank = case.rank * units_per_component(start);
        let made = make(case, (&target, None), &subject::options_of(case, Method::OloraTail, start, rank))?;
        let (up, down) = match start {
            Start::Mirrored => halves(&made.answer)?,
            _ => (made.answer.up.clone(), made.answer.down.clone()),
        };
        orthonormal("the columns of B", &up)?;
        orthonormal("the rows of A", &down.transposed())?;
        let core = up.transposed().times(&weight).times(&down.transposed());
        let last = &values[values.len() - up.columns..];
        let wanted = Matrix::from_fn(up.columns, up.columns, |i, j| if i == j { last[i] } else { 0.0 });
        let error = core.minus(&wanted).largest();
        require(error <= unit, || {
            format!("Bᵀ W Aᵀ is {error:e} from the last singular values, {unit:e} allowed")
        })?;
    }
    let made = make(case, (&target, None), &subject::options_of(case, Method::Mica, Start::Zero, case.rank))?;
    let Answer { up, down, .. } = &made.answer;
    require(down.largest() == 0.0, || "A is not zero".into())?;
    orthonormal("the columns of B", up)?;
    let rows = up.transposed().times(&weight);
    for (i, value) in last.iter().enumerate() {
        let error = (oracle::norm(rows.row(i)) - value).abs();
        require(error <= unit, || {
            format!("column {i} of B is {error:e} from its singular value, {unit:e} allowed")
        })?;
    }
    Ok(())
}

fn verdict(found: Verdict) -> bool {
    found.inspect_err(|complaint| println!("{complaint}")).is_ok()
}

battery! {
    fn sc_lora_of_ordinary_activations(case: Ordinary) -> bool { verdict(check_outputs(&case.0, Method::ScLora)) }
    fn sc_lora_of_outlier_channels(case: Outliers) -> bool { verdict(check_outputs(&case.0, Method::ScLora)) }
    fn sc_lora_of_zero_and_repeated_channels(case: DeadChannels) -> bool { verdict(check_outputs(&case.0, Method::ScLora)) }
    fn sc_lora_of_few_rows(case: FewRows) -> bool { verdict(check_outputs(&case.0, Method::ScLora)) }
    fn sc_lora_of_structured_weights(case: Weights) -> bool { verdict(check_outputs(&case.0, Method::ScLora)) }
    fn sc_lora_of_means_far_from_zero(case: Offsets) -> bool { verdict(check_outputs(&case.0, Method::ScLora)) }
    fn astra_of_ordinary_activations(case: Ordinary) -> bool { verdict(check_outputs(&case.0, Method::Astra)) }
    fn astra_of_outlier_channels(case: Outliers) -> bool { verdict(check_outputs(&case.0, Method::Astra)) }
    fn astra_of_zero_and_repeated_channels(case: DeadChannels) -> bool { verdict(check_outputs(&case.0, Method::Astra)) }
    fn astra_of_few_rows(case: FewRows) -> bool { verdict(check_outputs(&case.0, Method::Astra)) }
    fn astra_of_structured_weights(case: Weights) -> bool { verdict(check_outputs(&case.0, Method::Astra)) }
    fn lora_null_of_ordinary_activations(case: Ordinary) -> bool { verdict(check_null(&case.0)) }
    fn lora_null_of_outlier_channels(case: Outliers) -> bool { verdict(check_null(&case.0)) }
    fn lora_null_of_zero_and_repeated_channels(case: DeadChannels) -> bool { verdict(check_null(&case.0)) }
    fn lora_null_of_few_rows(case: FewRows) -> bool { verdict(check_null(&case.0)) }
    fn lora_null_of_structured_weights(case: Weights) -> bool { verdict(check_null(&case.0)) }
    fn tails_of_ordinary_weights(case: Ordinary) -> bool { verdict(check_tail(&case.0)) }
    fn tails_of_structured_weights(case: Weights) -> bool { verdict(check_tail(&case.0)) }
}
