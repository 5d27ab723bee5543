//! The other methods against their definitions.

use crate::inputs::{Case, Everything, Offsets, Ordinary, Scales, Weights};
use crate::oracle::{Matrix, eigen, svd};
use crate::subject::{self, Answer, MIRRORED, Site, units_per_component};
use crate::truth::{EMPTY, Facts, Truth, UNIT};
use crate::updates::{
    Fate, Verdict, check_balanced, check_mirrored, check_spectrum, fate, halves, require,
    says_nothing_varies, says_out_of_range,
};
use cntlora_numerics::factors::Start;
use cntlora_numerics::method::Method;

/// Orthonormality of f32 decompositions, for the sides in this battery.
const ORTHONORMAL: f64 = 1e-5;

struct Made {
    spectrum: Vec<f64>,
    energy: f64,
    answer: Answer,
}

/// The factors of a method, `Err(None)` if the recording was refused and may be.
fn make(case: &Case, method: Method, start: Start, facts: &Facts) -> Result<Made, Option<String>> {
    let rank = case.rank * units_per_component(start);
    let (target, _) = case.rows();
    let options = subject::options_of(case, method, start, rank);
    let made = Site::new(&target, None, &options).and_then(|site| {
        let layer = site.layer(&case.weight(), &options)?;
        let answer =
            layer.factors(rank.min(layer.spectrum().len() * units_per_component(start)), &options)?;
        Ok(Made { spectrum: layer.spectrum().to_vec(), energy: layer.energy(), answer })
    });
    let all_zero = facts.target.second_moment().largest() == 0.0;
    // Equal rows have no directions, and the second moment needs rows that are not zero.
    let must_refuse = match method {
        Method::Eva => fate(facts) == Fate::Refused,
        Method::CordaIpm | Method::CordaKpm => all_zero,
        _ => false,
    };
    let may_refuse = method.reads_activations() && {
        let largest = facts.target.second_moment().largest();
        fate(facts) == Fate::Either || !(1e-34..=1e36).contains(&largest)
    };
    match made {
        Ok(_) if must_refuse => Err(Some("accepted, although there is nothing to learn from".into())),
        Ok(made) if made.answer.up.is_finite() && made.answer.down.is_finite() => Ok(made),
        Ok(_) => Err(Some("factors that are not finite".into())),
        Err(error) if must_refuse && says_nothing_varies(&error) => Err(None),
        Err(error) if may_refuse && (says_out_of_range(&error) || says_nothing_varies(&error)) => Err(None),
        Err(error) => Err(Some(format!("refused: {error}"))),
    }
}

/// Checks that the result is the best approximation of this rank, for all starts of the method.
fn check_first(case: &Case, method: Method) -> Verdict {
    let (target, _) = case.rows();
    let facts = Facts::of(&target, None, false);
    let weight = case.weight().matrix();
    for start in [Start::Residual].into_iter().chain(MIRRORED) {
        let made = match make(case, method, start, &facts) {
            Ok(made) => made,
            Err(None) => return Ok(()),
            Err(Some(complaint)) => return Err(complaint),
        };
        let (truth, tolerance) = match method {
            Method::Pissa => Truth::of_weight(&weight),
            _ => Truth::of_response(&facts.target, &weight, case.ridge, true),
        };
        let wanted = svd(&truth.image).s;
        check_spectrum(&made.spectrum, made.energy, &wanted, &tolerance)?;
        if Some(start) == MIRRORED {
            check_mirrored(&made.answer, &truth, &wanted, &tolerance, case.scale)?;
        } else {
            check_balanced(&made.answer, &truth, &wanted, &tolerance)?;
        }
    }
    Ok(())
}

/// Checks that `X` is the last `r` triplets of `M`: its singular values are the last of `M`, and those of `M − X` are the others. The
/// tolerance of each value is the effect of moves of the norm, of rounding the stored factors, and of f64.
fn check_last(case: &Case, method: Method) -> Verdict {
    let (target, _) = case.rows();
    let facts = Facts::of(&target, None, false);
    let weight = case.weight().matrix();
    let made = match make(case, method, Start::Residual, &facts) {
        Ok(made) => made,
        Err(None) => return Ok(()),
        Err(Some(complaint)) => return Err(complaint),
    };
    let (truth, tolerance) = match method {
        Method::Milora => Truth::of_weight(&weight),
        _ => Truth::of_response(&facts.target, &weight, case.ridge, false),
    };
    let product = made.answer.update();
    let wanted = svd(&truth.image).s;
    let first = wanted.len() - product.down.rows;
    let image = product.up.times(&product.down).times(&truth.norm);
    let (last, rest) = (svd(&image).s, svd(&truth.image.minus(&image)).s);
    let storage = product.storage(&truth.norm)
        + 16.0 * (wanted.len() as f64) * f64::EPSILON * wanted[0]
        + (8.0 * UNIT * (wanted.len() as f64).sqrt() + EMPTY) * wanted[first];
    let shift = |i: usize| tolerance.values[i] + tolerance.norm * wanted[i];
    for (i, value) in wanted.iter().enumerate() {
        let allowed = storage + shift(i);
        let (found, of) = if i < first { (rest[i], "W − BA") } else { (last[i - first], "BA") };
        require((found - value).abs() <= allowed, || {
            format!("singular value {i} of {of} is {found:e} and not {value:e}, {allowed:e} allowed")
        })?;
    }
    let left = rest.get(first).copied().unwrap_or(0.0);
    require(left <= storage + shift(first), || format!("{left:e} of the last components was left behind"))
}

/// `BᵀB = I` on the first columns of `W`, and `A = BᵀW`.
fn check_olora(case: &Case) -> Verdict {
    let (target, _) = case.rows();
    let facts = Facts::of(&target, None, false);
    let weight = case.weight().matrix();
    for start in [Start::Residual].into_iter().chain(MIRRORED) {
        let made = make(case, Method::Olora, start, &facts).map_err(Option::unwrap_or_default)?;
        let (up, down) = match Some(start) == MIRRORED {
            true => halves(&made.answer)?,
            false => (made.answer.up.clone(), made.answer.down.clone()),
        };
        let overlap = up.transposed().times(&up).minus(&Matrix::identity(up.columns)).largest();
        require(overlap <= ORTHONORMAL, || format!("BᵀB is {overlap:e} from the identity"))?;
        let unit = 8.0 * UNIT * (weight.rows.max(weight.columns) as f64).sqrt() * weight.norm();
        let error = down.minus(&up.transposed().times(&weight)).norm();
        require(error <= unit, || format!("A is {error:e} from BᵀW, {unit:e} allowed"))?;
        let columns = weight.leading_columns(up.columns);
        let outside = columns.minus(&up.times(&up.transposed()).times(&columns)).norm();
        require(outside <= unit, || {
            format!("the first columns of W are {outside:e} outside B, {unit:e} allowed")
        })?;
    }
    Ok(())
}

/// Each row holds as much of the variance as its leading eigenvector, the rows are orthonormal, and `B = 0`.
fn check_eva(case: &Case) -> Verdict {
    let (target, _) = case.rows();
    let facts = Facts::of(&target, None, false);
    let made = match make(case, Method::Eva, Start::Zero, &facts) {
        Ok(made) => made,
        Err(None) => return Ok(()),
        Err(Some(complaint)) => return Err(complaint),
    };
    let (down, covariance) = (&made.answer.down, &facts.target.covariance);
    require(made.answer.up.largest() == 0.0, || "B is not zero".into())?;
    let overlap = down.times(&down.transposed()).minus(&Matrix::identity(down.rows)).largest();
    require(overlap <= ORTHONORMAL, || format!("the rows of A are {overlap:e} from orthonormal"))?;
    let (values, _) = eigen(covariance);
    // The errors of the entries and of the decomposition of a covariance in f32.
    let allowed = 128.0 * UNIT * (covariance.rows as f64).sqrt() * facts.target.variance();
    let explained = down.times(covariance).times(&down.transposed());
    for (i, value) in values.iter().enumerate().take(down.rows) {
        let (found, reported) = (explained[(i, i)], made.spectrum[i].powi(2));
        require((found - value).abs() <= allowed && (reported - value).abs() <= allowed, || {
            format!(
                "direction {i} explains {found:e}, reported {reported:e}, and not {value:e}, {allowed:e} allowed"
            )
        })?;
    }
    let error = (made.energy - facts.target.variance()).abs();
    require(error <= allowed, || format!("the variance is {error:e} off, {allowed:e} allowed"))
}

/// Methods without data: the form of their factors, which do not change the model.
fn check_random(case: &Case) -> Verdict {
    let facts = Facts::of(&case.rows().0, None, false);
    for method in [Method::Lora, Method::Gaussian, Method::Orthogonal] {
        if method == Method::Orthogonal && case.rank % 2 == 1 {
            continue;
        }
        let made = make(case, method, Start::Zero, &facts).map_err(Option::unwrap_or_default)?;
        let Answer { up, down, .. } = &made.answer;
        let product = up.times(down).largest();
        let bound = 1.0 / (down.columns as f64).sqrt() * (1.0 + UNIT);
        let holds = match method {
            Method::Lora => up.largest() == 0.0 && down.largest() <= bound && down.largest() > 0.0,
            Method::Gaussian => up.largest() == 0.0 && down.largest() > 0.0,
            _ => {
                product <= 8.0 * UNIT * up.norm() * down.norm() && up.largest() > 0.0 && down.largest() > 0.0
            }
        };
        require(holds, || format!("{} has another form: product {product:e}", method.name()))?;
    }
    Ok(())
}

fn verdict(found: Verdict) -> bool {
    found.inspect_err(|complaint| println!("{complaint}")).is_ok()
}

battery! {
    fn pissa(case: Weights) -> bool { verdict(check_first(&case.0, Method::Pissa)) }
    fn milora(case: Weights) -> bool { verdict(check_last(&case.0, Method::Milora)) }
    fn olora(case: Weights) -> bool { verdict(check_olora(&case.0)) }
    fn corda_ipm_of_ordinary_activations(case: Ordinary) -> bool { verdict(check_first(&case.0, Method::CordaIpm)) }
    fn corda_ipm_of_everything(case: Everything) -> bool { verdict(check_first(&case.0, Method::CordaIpm)) }
    fn corda_kpm_of_ordinary_activations(case: Ordinary) -> bool { verdict(check_last(&case.0, Method::CordaKpm)) }
    fn corda_kpm_of_everything(case: Everything) -> bool { verdict(check_last(&case.0, Method::CordaKpm)) }
    fn corda_ipm_at_every_scale(case: Scales) -> bool { verdict(check_first(&case.0, Method::CordaIpm)) }
    fn corda_kpm_at_every_scale(case: Scales) -> bool { verdict(check_last(&case.0, Method::CordaKpm)) }
    fn eva_at_every_scale(case: Scales) -> bool { verdict(check_eva(&case.0)) }
    fn eva_of_means_far_from_zero(case: Offsets) -> bool { verdict(check_eva(&case.0)) }
    fn eva_of_ordinary_activations(case: Ordinary) -> bool { verdict(check_eva(&case.0)) }
    fn eva_of_everything(case: Everything) -> bool { verdict(check_eva(&case.0)) }
    fn methods_that_look_at_nothing(case: Ordinary) -> bool { verdict(check_random(&case.0)) }
}
