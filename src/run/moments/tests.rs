//! Pairs in all formats, and messages about unusable rows.

use super::*;
use crate::element::Element;
use crate::moments::Sides;
use crate::random::gaussian;
use crate::storage::shown;
use crate::storage::{Source, safetensors};
use expect_test::expect;
use faer::Mat;
use std::collections::BTreeMap;
use std::path::Path;

const ROWS: usize = 700;
const WIDTH: usize = 5;

fn reading(observer: &dyn Observer) -> Reading<'_> {
    Reading { nonfinite: Nonfinite::Refuse, precision: Precision::F32, threads: 1, observer, partial: None }
}

/// Activations of one site, in memory.
fn recording(name: &str, element: Element, rows: &Mat<f64>) -> ActivationSet {
    let numbers = (0..rows.nrows()).flat_map(|i| (0..rows.ncols()).map(move |j| rows[(i, j)]));
    let mut bytes = Vec::new();
    element.encode(numbers, &mut bytes);
    let shape = vec![rows.nrows() as u64, rows.ncols() as u64];
    let tensors = BTreeMap::from([("s".to_string(), (element.name().to_string(), shape, bytes))]);
    let mut file = Vec::new();
    safetensors::write(&mut file, &BTreeMap::new(), &tensors).unwrap();
    ActivationSet::from_sources(vec![Source::from_bytes(name, file)]).unwrap()
}

fn pairs(
    reading: Reading<'_>,
    z: &ActivationSet,
    x: &ActivationSet,
) -> Result<Measured<PairedMoments>, Problem> {
    reading.measure_pairs((z, z.site("s").unwrap()), (x, x.site("s").unwrap()))
}

/// The numbers after rounding to a format.
fn stored(element: Element, rows: &Mat<f64>) -> Mat<f64> {
    let numbers = (0..rows.nrows()).flat_map(|i| (0..rows.ncols()).map(move |j| rows[(i, j)]));
    let mut bytes = Vec::new();
    element.encode(numbers, &mut bytes);
    let number = |i: usize, j: usize| {
        let bytes = &bytes[(i * WIDTH + j) * element.size()..][..element.size()];
        match element {
            Element::F64 => f64::from_le_bytes(bytes.try_into().unwrap()),
            Element::F32 => f32::from_le_bytes(bytes.try_into().unwrap()).into(),
            Element::F16 => half::f16::from_le_bytes(bytes.try_into().unwrap()).into(),
            _ => half::bf16::from_le_bytes(bytes.try_into().unwrap()).into(),
        }
    };
    Mat::from_fn(rows.nrows(), rows.ncols(), number)
}

/// `E[(z − x) xᵀ]` is as accurate as the numbers in both files, also far from zero, for all pairs of formats.
#[test]
fn changes_of_close_pairs() {
    let x = gaussian::<f64>(ROWS, WIDTH, 1, "x");
    let x = Mat::from_fn(ROWS, WIDTH, |i, j| x[(i, j)] + 20.0);
    let toward = gaussian::<f64>(WIDTH, WIDTH, 1, "toward");
    let formats = [Element::F64, Element::F32, Element::F16, Element::Bf16];
    for (left, right) in formats.into_iter().flat_map(|left| formats.map(|right| (left, right))) {
        for distance in [1e-2, 1e-4, 1e-6] {
            let z = &x + &x * &toward * faer::Scale(distance);
            let [z, x] = [(left, &z), (right, &x)].map(|(element, rows)| stored(element, rows));
            let sets = (recording("z", left, &z), recording("x", right, &x));
            let measured = pairs(reading(&()), &sets.0, &sets.1).unwrap();
            let Sides { source, target, change } = measured.moments.split().unwrap();
            let product = |a: &Mat<f64>, b: &Mat<f64>| a.transpose() * b * faer::Scale(1.0 / ROWS as f64);
            let wanted = product(&(&z - &x), &x);
            let error = (&change - &wanted).norm_l2() / wanted.norm_l2().max(f64::MIN_POSITIVE);
            assert!(error < 1e-6, "{left:?} {right:?} {distance:e}: {error:e}");
            for (moments, rows) in [(source, &z), (target, &x)] {
                let wanted = product(rows, rows);
                let error = (moments.second_moment().unwrap() - &wanted).norm_l2() / wanted.norm_l2();
                assert!(error < 1e-6, "{left:?} {right:?} {distance:e}: {error:e}");
            }
        }
    }
}

/// The message names the first number that is not finite, in each row first on the pre-training side. Numbers that are finite only as
/// f64 and differences that overflow are refused.
#[test]
fn nonfinite_pairs_are_refused_with_their_place() {
    let rows = gaussian::<f64>(ROWS, WIDTH, 1, "rows");
    let with = |changes: &[(usize, usize, f64)]| {
        let mut rows = rows.clone();
        changes.iter().for_each(|(row, column, number)| rows[(*row, *column)] = *number);
        rows
    };
    let refusal = |z: &Mat<f64>, x: &Mat<f64>| {
        let sets = (recording("z", Element::F64, z), recording("x", Element::F64, x));
        let problem = pairs(reading(&()), &sets.0, &sets.1).map(|_| ()).unwrap_err();
        let skipping = Reading { nonfinite: Nonfinite::SkipRows, ..reading(&()) };
        let measured = pairs(skipping, &sets.0, &sets.1).unwrap();
        assert_eq!((measured.skipped_rows, measured.moments.joint().count()), (1, ROWS as u64 - 1));
        shown(&problem.into(), Path::new("-"))
    };
    let (z, x) = (with(&[(650, 3, f64::NAN)]), with(&[(650, 1, f64::INFINITY)]));
    expect![[r#"
        Data: z: tensor "s": row 650, column 3 is not a finite f32 number
            help: record these activations again, or skip such rows with --nonfinite skip-rows; `cntlora inspect --values` counts such numbers
    "#]].assert_eq(&refusal(&z, &x));
    let x = with(&[(650, 4, -1e39)]);
    expect![[r#"
        Data: x: tensor "s": row 650, column 4 is not a finite f32 number
            help: record these activations again, or skip such rows with --nonfinite skip-rows; `cntlora inspect --values` counts such numbers
    "#]].assert_eq(&refusal(&rows, &x));
    let (z, x) = (with(&[(2, 1, 3.5e38)]), with(&[(2, 1, 3.3e38)]));
    expect![[r#"
        Data: z: tensor "s": row 2, column 1 is not a finite f32 number
            help: record these activations again, or skip such rows with --nonfinite skip-rows; `cntlora inspect --values` counts such numbers
    "#]].assert_eq(&refusal(&z, &x));
    let (z, x) = (with(&[(2, 1, 3e38)]), with(&[(2, 1, -3e38)]));
    expect![[r#"
        Data: x: tensor "s": row 2, column 1: its difference from the pre-training activations is not a finite f32 number
            help: check that both recordings come from the same inputs, or skip such rows with --nonfinite skip-rows
    "#]].assert_eq(&refusal(&z, &x));
}

#[test]
fn a_missing_site_and_missing_memory_are_reported() {
    let set = recording("x.safetensors", Element::F32, &Mat::zeros(1, 2));
    let site = crate::run::site_statistics::site_of(&set, "t").map(drop);
    let extent = Extent { site: "s", width: 1 << 30, rows: 0..1, precision: Precision::F32 };
    let begun = reading(&()).begin(None, &extent, 1).map(drop);
    let texts = [site, begun].map(|result| shown(&result.unwrap_err().into(), Path::new("-")));
    expect![[r#"
        Data: tensor "t": the activations have no site with this name
        Io: tensor "s": not enough memory for 4611686035607257088 bytes of moments
    "#]]
    .assert_eq(&texts.concat());
}
