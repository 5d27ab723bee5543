//! Unusable inputs are refused with an error that names the reason. They neither panic nor run forever.

use crate::inputs::{Activations, Table, Weight};
use crate::subject::{self, MIRRORED};
use cntlora_numerics::constraint::Coupling;
use cntlora_numerics::factors::{Start, Strength};
use cntlora_numerics::method::{Method, Options};
use cntlora_numerics::rank::{Limits, Policy};
use std::sync::mpsc;
use std::time::Duration;

const WIDTH: usize = 6;

fn ordinary() -> Table {
    Activations::plain(40, WIDTH).draw(1)
}

fn weight() -> Table {
    Weight::Dense.draw(5, WIDTH, 2)
}

fn options() -> Options {
    subject::options(Method::Cntlora, Start::Update, 2)
}

/// The error message of a request, within a time limit; `None` for success.
fn answer(target: Table, source: Option<Table>, weight: Table, options: Options) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    let label = format!("{options:?}");
    std::thread::spawn(move || {
        let answer = subject::answer(&target, source.as_ref(), &weight, &options);
        // The receiver is gone after the time limit.
        let _ = sender.send(answer.map(|made| made.up.is_finite() && made.down.is_finite()));
    });
    match receiver.recv_timeout(Duration::from_secs(20)) {
        Ok(Ok(finite)) => {
            assert!(finite, "factors that are not finite: {label}");
            None
        }
        Ok(Err(error)) => Some(error.to_string()),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("no end: {label}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("a panic: {label}"),
    }
}

fn assert_refused(label: &str, said: Option<String>, reasons: &[&str]) {
    let said = said.unwrap_or_else(|| panic!("{label}: accepted"));
    assert!(reasons.iter().any(|reason| said.contains(reason)), "{label}: {said}");
}

fn with(table: Table, change: impl Fn(usize, f32) -> f32) -> Table {
    let values = table.values.iter().enumerate().map(|(i, value)| change(i, *value)).collect();
    Table { values, ..table }
}

#[test]
fn numbers_that_are_not_finite() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let rows = with(ordinary(), |i, value| if i == 3 * WIDTH + 2 { bad } else { value });
        let said = answer(rows.clone(), None, weight(), options());
        assert_refused("rows", said, &["row 3, column 2 is not a finite"]);
        let said = answer(ordinary(), Some(rows), weight(), options());
        assert_refused("source", said, &["row 3, column 2 is not a finite"]);
        for method in Method::ALL {
            let options = subject::options(method, method.starts()[0], 2);
            let weight = with(weight(), |i, value| if i == 7 { bad } else { value });
            let source = method.needs_source().then(ordinary);
            let said = answer(ordinary(), source, weight, options);
            assert_refused(method.name(), said, &["the weight holds a value that is not finite"]);
        }
    }
}

#[test]
fn rows_without_information() {
    let none = || Table { rows: 0, width: WIDTH, values: Vec::new() };
    let equal = || with(ordinary(), |i, _| 1.0 + (i % WIDTH) as f32);
    let zero = || with(ordinary(), |_, _| 0.0);
    let one = || Activations { offset: 1.0, ..Activations::plain(1, WIDTH) }.draw(1);
    for method in Method::ALL.into_iter().filter(|method| method.reads_activations()) {
        let options = || subject::options(method, method.starts()[0], 2);
        // LoRA-Null looks at pre-training activations alone.
        let source = |rows: Table| method.needs_source().then_some(rows);
        let said = answer(none(), source(none()), weight(), options());
        assert_refused(method.name(), said, &["there are no rows"]);
        let said = answer(zero(), source(zero()), weight(), options());
        assert_refused(method.name(), said, &["zero", "equal"]);
    }
    for coupling in [Coupling::Transport, Coupling::Uncorrelated, Coupling::Paired] {
        for (label, rows) in [("equal rows", equal()), ("one row", one())] {
            let source = (coupling == Coupling::Paired).then(|| with(rows.clone(), |_, value| value + 1.0));
            let said = answer(rows, source, weight(), Options { coupling, ..options() });
            assert_refused(&format!("{label}, {coupling:?}"), said, &["equal"]);
        }
    }
    let eva = subject::options(Method::Eva, Start::Zero, 2);
    assert_refused("eva", answer(equal(), None, weight(), eva.clone()), &["equal"]);
    assert_refused("eva", answer(one(), None, weight(), eva), &["equal"]);
}

/// Squares beyond f32 at either end.
#[test]
fn numbers_that_are_too_large_or_too_small() {
    for coupling in [Coupling::Transport, Coupling::Uncorrelated] {
        let large = with(ordinary(), |_, value| value * 1e25);
        let small = with(ordinary(), |_, value| value * 1e-25);
        let options = || Options { coupling, ..options() };
        let said = answer(large, None, weight(), options());
        assert_refused("large", said, &["not finite", "too large"]);
        assert_refused("small", answer(small, None, weight(), options()), &["too small"]);
    }
}

#[test]
fn shapes_that_do_not_fit() {
    let narrow = || Activations::plain(40, WIDTH - 1).draw(1);
    for method in Method::ALL.into_iter().filter(|method| method.reads_activations()) {
        let options = subject::options(method, method.starts()[0], 2);
        let source = method.needs_source().then(narrow);
        assert_refused(method.name(), answer(narrow(), source, weight(), options), &["expected 5, found 6"]);
    }
    for method in Method::ALL.into_iter().filter(|method| method.needs_source()) {
        let options = subject::options(method, method.starts()[0], 2);
        let said = answer(ordinary(), None, weight(), options);
        assert_refused(method.name(), said, &["needs pre-training activations"]);
    }
    let said = answer(ordinary(), Some(narrow()), weight(), options());
    assert_refused("source", said, &["expected 6, found 5"]);
    let paired = Options { coupling: Coupling::Paired, ..options() };
    assert_refused("pairs", answer(ordinary(), None, weight(), paired), &["paired coupling needs source"]);
}

/// Every ridge terminates, also if only the second moment is singular.
#[test]
fn every_ridge_terminates() {
    let repeated = || Activations { repeated: 2, zero: 1, ..Activations::plain(40, WIDTH) }.draw(1);
    for ridge in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
        for coupling in [Coupling::Transport, Coupling::Uncorrelated] {
            let said = answer(repeated(), None, weight(), Options { ridge, coupling, ..options() });
            assert_refused(&format!("ridge {ridge:e}, {coupling:?}"), said, &["ridge", "damping"]);
        }
        for method in [Method::CordaIpm, Method::CordaKpm] {
            let said = answer(
                repeated(),
                None,
                weight(),
                Options { ridge, ..subject::options(method, Start::Residual, 2) },
            );
            assert_refused(&format!("ridge {ridge:e}, {}", method.name()), said, &["ridge", "damping"]);
        }
    }
    for ridge in [f64::MIN_POSITIVE, 1e-300, 1e-18, 1e-12] {
        for coupling in [Coupling::Transport, Coupling::Uncorrelated] {
            // Finite factors, or an error.
            let said = answer(repeated(), None, weight(), Options { ridge, coupling, ..options() });
            assert!(said.is_none_or(|said| said.contains("positive definite")), "ridge {ridge:e}");
        }
    }
}

/// Options with complaints cannot be used.
#[test]
fn options_that_do_not_fit_together_cannot_be_used() {
    let cases = [
        (
            "a rank above the largest",
            Options { ranks: Policy::Fixed(5), limits: limits(0, 2, 1), ..options() },
            "rank",
        ),
        ("a least rank above the largest", Options { limits: limits(3, 2, 1), ..options() }, "rank"),
        (
            "a start that the method does not have",
            Options { start: Start::Update, ..subject::options(Method::Pissa, Start::Residual, 2) },
            "start",
        ),
        (
            "a policy that the method does not have",
            Options { ranks: Policy::Energy(0.5), ..subject::options(Method::Milora, Start::Residual, 2) },
            "rank",
        ),
        ("a scale of zero", Options { scale: 0.0, ..options() }, "scale"),
        ("a scale that is no number", Options { scale: f64::NAN, ..options() }, "scale"),
        ("a negative preservation", Options { preserve: -1.0, ..options() }, "preservation"),
        ("a strength of zero", Options { strength: Strength::Fixed(0.0), ..options() }, "strength"),
        ("a negative shift", Options { strength: Strength::MaxShift(-1.0), ..options() }, "shift"),
        ("a share above one", Options { ranks: Policy::Energy(1.5), ..options() }, "share"),
        ("multiples of zero", Options { limits: limits(0, 2, 0), ..options() }, "multiple"),
    ];
    let mut accepted = Vec::new();
    for (label, options, reason) in cases {
        assert_ne!(options.complaints(), [], "{label}");
        match answer(ordinary(), None, weight(), options) {
            None => accepted.push(label),
            Some(said) => assert!(said.contains(reason), "{label}: {said}"),
        }
    }
    assert!(accepted.is_empty(), "accepted: {accepted:?}");
}

fn limits(min: usize, max: usize, multiple: usize) -> Limits {
    Limits { min, max, multiple }
}

#[test]
fn odd_ranks_of_mirrored_factors() {
    let Some(start) = MIRRORED else { return };
    let said = answer(ordinary(), None, weight(), subject::options(Method::Cntlora, start, 3));
    assert_refused("rank 3", said, &["2 or 4", "2 and 4", "even"]);
}
