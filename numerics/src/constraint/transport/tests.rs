//! Both ways against each other, on covariances that are hard.

use super::*;
use crate::moments::Moments;
use crate::random::gaussian;

/// A covariance as recordings have it: from rows, by the sums of the crate.
fn covariance(rows: usize, width: usize, scale: impl Fn(usize) -> f32, seed: u64) -> Mat<f64> {
    let mixing = gaussian::<f32>(width, width, seed, "mixing") * faer::Scale(0.5 / (width as f32).sqrt());
    let plain = gaussian::<f32>(rows, width, seed, "rows");
    let decaying = Mat::from_fn(rows, width, |i, j| plain[(i, j)] / (1.0 + j as f32 / 8.0).sqrt());
    let beside = gaussian::<f32>(rows, width, seed, "beside");
    let mixed = &decaying * mixing + beside * faer::Scale(0.03);
    let rows = Mat::from_fn(rows, width, |i, j| mixed[(i, j)] * scale(j) + 0.1);
    Moments::of(rows.as_ref()).unwrap().covariance().unwrap()
}

const WIDTH: usize = 330;
const ROUNDING: f64 = 1e-5;

/// Ordinary, with one channel and with four channels that are as loud as in language models, with channels that are zero, and from fewer
/// rows than channels.
fn cases() -> Vec<(&'static str, Mat<f64>)> {
    let ordinary = |_: usize| 1.0;
    let loud = |j: usize| if j == 7 { 1000.0 } else { 1.0 };
    let several = |j: usize| if j.is_multiple_of(80) { 300.0 } else { 1.0 };
    let dead = |j: usize| if j.is_multiple_of(5) || (64..130).contains(&j) { 0.0 } else { 1.0 };
    let spread = |j: usize| (-(j as f32) / 100.0).exp();
    vec![
        ("ordinary", covariance(2000, WIDTH, ordinary, 1)),
        ("one loud channel", covariance(2000, WIDTH, loud, 2)),
        ("loud channels", covariance(2000, WIDTH, several, 3)),
        ("dead channels", zeros(covariance(2000, WIDTH, dead, 4), dead)),
        ("quiet channels", covariance(2000, WIDTH, spread, 5)),
        ("few rows", covariance(150, WIDTH, ordinary, 6)),
        ("very few rows", covariance(20, WIDTH, ordinary, 7)),
    ]
}

/// Channels that are always zero have no variance at all.
fn zeros(covariance: Mat<f64>, scale: impl Fn(usize) -> f32) -> Mat<f64> {
    Mat::from_fn(covariance.nrows(), covariance.ncols(), |i, j| {
        if scale(i) == 0.0 || scale(j) == 0.0 { 0.0 } else { covariance[(i, j)] }
    })
}

/// `|W (found − wanted)| / |W wanted|` for a random weight, whose columns are as large as the inverse of a channel's deviation for half
/// of the weights: then a loud channel does not hide the others.
fn distance(found: &Mat<f64>, wanted: &Mat<f64>, covariance: &Mat<f64>) -> f64 {
    let plain = gaussian::<f64>(40, found.nrows(), 1, "weight");
    let weighted = Mat::from_fn(40, found.nrows(), |i, j| {
        let deviation = covariance[(j, j)].sqrt();
        if deviation > 0.0 { plain[(i, j)] / deviation } else { 0.0 }
    });
    let off = |weight: &Mat<f64>| (weight * (found - wanted)).norm_l2() / (weight * wanted).norm_l2();
    off(&plain).max(off(&weighted))
}

fn median_variance(covariance: &Mat<f64>) -> f64 {
    let mut variances: Vec<f64> =
        covariance.diagonal().column_vector().iter().copied().filter(|variance| *variance > 0.0).collect();
    variances.sort_unstable_by(f64::total_cmp);
    variances[variances.len() / 2]
}

/// The product with a weight is that of the eigendecomposition, for an isotropic source. No case needs the fallback.
#[test]
fn isotropic_transport_agrees_with_the_eigendecomposition() {
    let noise = super::super::statistics::noise(WIDTH);
    for (name, covariance) in cases() {
        for ridge in [1e-2, 0.1, 1.0] {
            let variance = median_variance(&covariance);
            let target = Target { covariance: covariance.as_ref(), lambda: ridge * variance };
            let wanted = eigen::isotropic(target, variance, noise, Par::Seq).unwrap().unwrap().cross;
            let found = blocks::isotropic(target, variance, noise, Par::Seq).unwrap();
            let found = found.unwrap_or_else(|reason| panic!("{name}, {ridge}: {reason}"));
            let off = distance(&found, &wanted, &covariance);
            assert!(off < ROUNDING, "{name}, {ridge}: {off:e}");
        }
    }
}

/// The same for a measured source, whose loud channels are others; and the Fréchet term.
#[test]
fn measured_transport_agrees_with_the_eigendecomposition() {
    let cases = cases();
    for (i, (name, covariance)) in cases.iter().enumerate() {
        let other = &cases[(i + 2) % cases.len()].1;
        for ridge in [1e-2, 1.0] {
            let target =
                Target { covariance: covariance.as_ref(), lambda: ridge * median_variance(covariance) };
            let least = ridge * median_variance(other);
            let source = Target { covariance: other.as_ref(), lambda: least }.damped();
            let problem = || eigen::Measured::new(target, source.as_ref(), Par::Seq).unwrap();
            let wanted = problem().by_eigenvalues(target, Par::Seq).unwrap();
            let found = blocks::measured(&problem(), target, least * target.lambda, Par::Seq).unwrap();
            let found = found.unwrap_or_else(|reason| panic!("{name}, {ridge}: {reason}"));
            let off = distance(&found.cross, &wanted.cross, covariance);
            assert!(off < ROUNDING, "{name}, {ridge}: {off:e}");
            let (found, wanted) = (found.overlap.unwrap(), wanted.overlap.unwrap());
            assert!((found / wanted - 1.0).abs() < 1e-9, "{name}, {ridge}: {found} and {wanted}");
        }
    }
}

/// Where eigenvalues are near the rounding errors of the sums, the eigendecomposition decides which of them count: here they decay
/// through that range without a gap.
#[test]
fn eigenvalues_near_the_noise_need_the_eigendecomposition() {
    let noise = super::super::statistics::noise(WIDTH);
    let basis = crate::oracle::orthonormal(WIDTH, WIDTH, 3, "basis");
    let scaled = Mat::from_fn(WIDTH, WIDTH, |i, j| basis[(i, j)] * (-(j as f64) / 8.0).exp());
    let covariance = scaled * basis.transpose();
    let variance = median_variance(&covariance);
    let target = Target { covariance: covariance.as_ref(), lambda: 0.01 * variance };
    let refused = blocks::isotropic(target, variance, noise, Par::Seq).unwrap().unwrap_err();
    assert_eq!(refused, "some eigenvalues are near the rounding errors of the sums");
    // Without noise all of them count.
    let found = blocks::isotropic(target, variance, 0.0, Par::Seq).unwrap().unwrap();
    let wanted = eigen::isotropic(target, variance, 0.0, Par::Seq).unwrap().unwrap().cross;
    assert!(distance(&found, &wanted, &covariance) < ROUNDING);
}

/// A covariance that is not positive semidefinite, and a source with less variance than stated, are left to the eigendecomposition.
#[test]
fn statistics_out_of_range_need_the_eigendecomposition() {
    let mut covariance = covariance(900, WIDTH, |_| 1.0, 1);
    let identity = Mat::<f64>::identity(WIDTH, WIDTH);
    let target = Target { covariance: covariance.as_ref(), lambda: 0.01 };
    let problem = eigen::Measured::new(target, identity.as_ref(), Par::Seq).unwrap();
    let refused = blocks::measured(&problem, target, 1e3, Par::Seq).unwrap().unwrap_err();
    assert_eq!(refused, "rounding errors hide its least eigenvalues");
    covariance[(3, 3)] = -1.0;
    let target = Target { covariance: covariance.as_ref(), lambda: 0.01 };
    let refused = blocks::isotropic(target, 1.0, 1e-5, Par::Seq).unwrap().unwrap_err();
    assert_eq!(refused, "the covariance has negative eigenvalues");
    assert!(eigen::isotropic(target, 1.0, 1e-5, Par::Seq).unwrap().is_none());
}

/// Wide sites take the reduction, with the same bits for any number of threads.
#[test]
fn threads_do_not_change_the_result() {
    let covariance = covariance(1600, WIDE + 5, |_| 1.0, 1);
    let target = Target { covariance: covariance.as_ref(), lambda: 0.01 };
    let source = Target { covariance: covariance.as_ref(), lambda: 0.3 }.damped();
    let result = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let par = Par::rayon(16);
            let alone = isotropic(target, 1.0, 1e-5, par).unwrap().unwrap();
            (alone.cross, measured(target, source.as_ref(), 0.3, par).unwrap().unwrap().cross)
        })
    };
    let one = result(1);
    assert!([2, 3].into_iter().all(|threads| result(threads) == one));
    let blocks = blocks::isotropic(target, 1.0, 1e-5, Par::rayon(16)).unwrap().unwrap();
    assert_eq!(blocks, one.0);
}
