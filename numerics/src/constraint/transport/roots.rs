//! Rational approximations of the inverse square root: method 3 of Hale, Higham & Trefethen 2008, *Computing `A^α`, `log(A)`, and
//! related matrix functions by contour integrals*.
//!
//! `x^-½ ≈ Σ wᵢ / (x + σᵢ)` with positive numbers `wᵢ` and `σᵢ`. The relative error falls by the factor `exp(−2π² / (log κ + 6))`, about,
//! with each term, for a ratio `κ` of the ends of the interval.

use crate::dense::Fraction;
use std::f64::consts::{FRAC_PI_2, PI};

/// The fractions of `x^-½` for `least ≤ x ≤ largest`, with a relative error of at most `error`. `None` if there are none, as for a ratio
/// of the ends that f64 does not hold.
pub(super) fn inverse_root(least: f64, largest: f64, error: f64) -> Option<Vec<Fraction>> {
    const MOST: usize = 80;
    if !(least > 0.0 && largest.is_finite() && least > f64::EPSILON * f64::EPSILON * largest) {
        return None;
    }
    let largest = largest.max(2.0 * least);
    (3..=MOST).map(|terms| fractions(least, largest, terms)).find(|fractions| {
        /// Points per term: the error alternates about twice per term.
        const POINTS: usize = 16;
        let points = POINTS * fractions.len();
        let point = |i: usize| least * (largest / least).powf(i as f64 / points as f64);
        (0..=points).map(point).all(|x| (value(fractions, x) * x.sqrt() - 1.0).abs() <= error)
    })
}

/// The sum of the fractions.
fn value(fractions: &[Fraction], x: f64) -> f64 {
    fractions.iter().map(|Fraction { shift, coefficient }| coefficient / (x + shift)).sum()
}

fn fractions(least: f64, largest: f64, terms: usize) -> Vec<Fraction> {
    let complement = least / largest;
    let quarter = quarter_period(complement);
    let scale = 2.0 * quarter * least.sqrt() / (PI * terms as f64);
    let term = |i: usize| {
        let (sn, cn, dn) = jacobi((i as f64 + 0.5) * quarter / terms as f64, complement);
        Fraction { shift: least * (sn / cn).powi(2), coefficient: scale * dn / (cn * cn) }
    };
    (0..terms).map(term).collect()
}

/// The complete elliptic integral `K` of the parameter `1 − complement`: by the arithmetic-geometric mean.
fn quarter_period(complement: f64) -> f64 {
    let (mut a, mut b) = (1.0, complement.sqrt());
    while a - b > 1e-15 * a {
        (a, b) = (0.5 * (a + b), (a * b).sqrt());
    }
    FRAC_PI_2 / a
}

/// Jacobi's elliptic functions sn, cn and dn of `0 < u < K` and the parameter `1 − complement`, by Gauss' transformation (Bulirsch 1965).
fn jacobi(u: f64, complement: f64) -> (f64, f64, f64) {
    let (mut means, mut a, mut b) = (Vec::new(), 1.0f64, complement);
    let c = loop {
        b = b.sqrt();
        means.push((a, b));
        let c = 0.5 * (a + b);
        if (a - b).abs() <= 1e-15 * a {
            break c;
        }
        b *= a;
        a = c;
    };
    let (sine, cosine) = (u * c).sin_cos();
    let mut ratio = cosine / sine;
    let (mut c, mut dn) = (c * ratio, 1.0);
    for (mean, geometric) in means.into_iter().rev() {
        ratio *= c;
        c *= dn;
        dn = (geometric + ratio) / (mean + ratio);
        ratio = c / mean;
    }
    let sn = (c * c + 1.0).sqrt().recip();
    (sn, c * sn, dn)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error holds between the points of the search, for every ratio of the ends, and the number of terms is as documented.
    #[test]
    fn roots_have_the_stated_error() {
        for (ratio, error) in
            [(1.0, 1e-9), (3.0, 1e-12), (1e3, 1e-9), (1e7, 1e-9), (1e12, 1e-12), (1e18, 1e-6)]
        {
            for least in [1e-9, 1.0, 1e6] {
                let found = inverse_root(least, ratio * least, error).unwrap();
                for i in 0..=9973 {
                    let x = least * ratio.powf(f64::from(i) / 9973.0);
                    let off = value(&found, x) * x.sqrt() - 1.0;
                    assert!(off.abs() <= 1.1 * error, "{ratio:e} from {least:e}: {off:e} at {x:e}");
                }
                let terms = -error.ln() * (ratio.ln() + 6.0) / (2.0 * PI * PI);
                assert!((found.len() as f64) < 1.3 * terms + 3.0, "{ratio:e}, {error:e}: {}", found.len());
                assert!(found.iter().all(|term| term.shift > 0.0 && term.coefficient > 0.0));
            }
        }
    }

    /// Intervals that have no root give no fractions.
    #[test]
    fn impossible_intervals_have_no_fractions() {
        for (least, largest) in [(0.0, 1.0), (-1.0, 1.0), (1.0, f64::INFINITY), (f64::NAN, 1.0), (1e-40, 1.0)]
        {
            assert_eq!(inverse_root(least, largest, 1e-9), None, "{least} to {largest}");
        }
    }
}
