//! The command verify.

use super::args::VerifyArgs;
use super::limits;
use super::terminal::Terminal;
use crate::adapter::{Outcome, Verification, verify};
use crate::report::format::{bytes, count, number, percent};
use crate::storage::{Access, Checkpoint, Problems};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Verifies an adapter, and prints the checks.
pub(crate) fn run(args: &VerifyArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let mut problems = Problems::default();
    let base = match &args.base {
        Some(path) => problems.collect(Checkpoint::open(path, Access::Auto)),
        None => None,
    };
    limits::refuse_below(0)?;
    let verification = problems.collect(verify(&args.adapter, base.as_ref(), &BTreeMap::new()));
    let Some(verification) = verification else { return Err(problems.into()) };
    problems.or_ok(())?;
    terminal.result(&verification, render)?;
    Ok(())
}

/// A line per check, and the figures of the adapter.
fn render(verification: &Verification) -> String {
    let mut text = String::new();
    for check in &verification.checks {
        let _ = match &check.outcome {
            Outcome::Passed => writeln!(text, "passed    {}", check.what),
            Outcome::NotMade(reason) => writeln!(text, "not made  {}: {reason}", check.what),
        };
    }
    let ranks = match (verification.min_rank, verification.max_rank) {
        (least, largest) if least < largest => format!("ranks {least} to {largest}"),
        (rank, _) => format!("rank {rank}"),
    };
    let scale =
        verification.scale.map_or("several scales".into(), |scale| format!("scale {}", number(scale)));
    let _ = writeln!(
        text,
        "\n{}, {}, {}, {ranks}, {scale}",
        count(verification.layers, "layer"),
        count(verification.parameters, "parameter"),
        bytes(verification.bytes),
    );
    if let Some(share) = verification.largest_relative_update {
        let _ = writeln!(text, "the largest update is {} of its weight (Frobenius norms)", percent(share));
    }
    for note in &verification.notes {
        let _ = writeln!(text, "{note}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapter::Check;
    use expect_test::expect;

    #[test]
    fn checks_that_were_not_made_are_listed_as_such() {
        let check = |what: &str, outcome| Check { what: what.into(), outcome };
        let verification = Verification {
            checks: vec![
                check("all values are finite", Outcome::Passed),
                check("the weights fit", Outcome::NotMade("no base was given".into())),
            ],
            layers: 2,
            parameters: 23040,
            bytes: 93_000,
            min_rank: 4,
            max_rank: 8,
            scale: Some(1.0),
            largest_relative_update: Some(0.0125),
            notes: vec!["needs its residual base".into()],
        };
        expect![[r#"
            passed    all values are finite
            not made  the weights fit: no base was given

            2 layers, 23040 parameters, 93.0 kB, ranks 4 to 8, scale 1.000
            the largest update is 1.2 % of its weight (Frobenius norms)
            needs its residual base
        "#]]
        .assert_eq(&render(&verification));
    }
}
