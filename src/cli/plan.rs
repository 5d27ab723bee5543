//! The command plan.

use super::limits;
use super::prepare::prepare;
use super::rank_hint;
use super::rate::Rate;
use super::resolve::PlanTask;
use super::terminal::Terminal;
use crate::adapter::{Format, UniformRank};
use crate::plan::{Division, Plan, PlannedLayer};
use crate::rank::Policy;
use crate::report::format::{bytes, count, duration};
use crate::report::table::{Align, Table};
use crate::storage::visible;
use crate::storage::visible::printable;
use serde::Serialize;
use std::fmt::Write as _;

/// Plans a job, and prints the plan.
pub(crate) fn run(task: &PlanTask, terminal: &Terminal) -> anyhow::Result<()> {
    let (plan, inputs) = prepare(&task.job, task.output.as_ref(), terminal)?;
    if let Some(room) = limits::room(plan.threads)
        && room.bytes < plan.peak_memory
    {
        terminal
            .warning(&format!("`cntlora init` would have less memory here: {}; {}", room.limit, room.help));
    }
    if let Some(hint) = rank_hint_of(&plan, task.job.writing.format, task.job.writing.uniform) {
        terminal.note(&hint);
    }
    let Some(nodes) = task.nodes else {
        terminal.result(&plan, render)?;
        return Ok(());
    };
    // The plan can be for another machine. The rate is that of this one.
    let (threads, _) = limits::of_run(plan.threads, terminal);
    let rate = Rate::measure(threads, plan.precision)?;
    let division = Division::new(&plan, &inputs, nodes);
    let divided = DividedPlan { plan, division, rate };
    terminal.result(&divided, |DividedPlan { plan, division, rate }| {
        format!("{}\n{}", render(plan), render_division(division, rate, threads))
    })?;
    Ok(())
}

/// A hint about the ranks, if the adapter is one of PEFT.
fn rank_hint_of(plan: &Plan, format: Format, uniform: Option<UniformRank>) -> Option<String> {
    let largest = plan.layers().map(|layer| layer.max_rank).max().filter(|_| format == Format::Peft)?;
    Some(match (uniform, plan.method.ranks) {
        (Some(UniformRank::Of(rank)), _) | (None, Policy::Fixed(rank)) => rank_hint::server(rank),
        (Some(UniformRank::Largest), Policy::Fixed(rank)) => rank_hint::server(rank),
        (Some(UniformRank::Largest), _) => {
            format!("Ranks are at most {largest}. {}", rank_hint::server(largest))
        }
        (None, _) => {
            format!(
                "Ranks are at most {largest}, and can differ. {}\n{}",
                rank_hint::server(largest),
                rank_hint::ONE_RANK
            )
        }
    })
}

/// A plan, and its work on several nodes.
#[derive(Debug, Serialize)]
struct DividedPlan {
    plan: Plan,
    division: Division,
    rate: Rate,
}

/// The phases of a divided run, and the work of the busiest node in each phase.
fn render_division(division: &Division, rate: &Rate, threads: usize) -> String {
    let mut table = Table::new([
        ("phase", Align::Left),
        ("nodes", Align::Right),
        ("memory", Align::Right),
        ("operations", Align::Right),
        ("reads", Align::Right),
        ("writes", Align::Right),
        ("time", Align::Right),
    ]);
    let phases = [
        ("moments", division.nodes, &division.moments, rate.moments),
        ("layers", division.nodes, &division.layers, rate.factors),
        ("joining", 1, &division.joining, rate.factors),
    ];
    for (phase, nodes, share, rate) in phases {
        table.row([
            phase.into(),
            nodes.to_string(),
            bytes(share.memory),
            format!("{:.1e}", share.operations),
            bytes(share.read),
            bytes(share.written),
            duration(share.operations / rate),
        ]);
    }
    format!(
        "{}\nEach figure is that of the busiest node. The last phase chooses the ranks, because it needs the\n\
         spectra of all layers. Times include computation only, at {:.0} and {:.0} GFLOP/s for moments and\n\
         layers, measured now on this machine with {}.\n",
        table.render(),
        rate.moments / 1e9,
        rate.factors / 1e9,
        count(threads as u64, "thread"),
    )
}

/// The layers and a summary, within 80 columns.
pub(crate) fn render(plan: &Plan) -> String {
    let mut table = Table::new([
        ("module", Align::Left),
        ("shape", Align::Right),
        ("format", Align::Left),
        ("rank up to", Align::Right),
        ("rows", Align::Right),
    ]);
    for site in &plan.sites {
        for layer in &site.layers {
            table.row([
                visible(&layer.name.to_string()),
                format!("{}×{}", layer.outputs, layer.inputs),
                visible(layer.quantization.as_deref().unwrap_or(layer.element.name())),
                layer.max_rank.to_string(),
                site.rows.to_string(),
            ]);
        }
    }
    let parameters = most_parameters(plan);
    let mut text = table.render();
    let _ = writeln!(text, "\n{}", summary(plan));
    let _ = writeln!(
        text,
        "{:.1e} operations, adapter of at most {} in {}",
        plan.work.moments + plan.work.factors,
        count(parameters, "parameter"),
        bytes(parameters.saturating_mul(plan.element.size() as u64)),
    );
    for note in &plan.notes {
        let _ = writeln!(text, "note: {}", printable(note));
    }
    for skipped in &plan.skipped {
        let _ = writeln!(text, "left out: {}: {}", visible(&skipped.name), visible(&skipped.reason));
    }
    text
}

/// Prints the notes of a plan on stderr.
pub(crate) fn show_notes(plan: &Plan, terminal: &Terminal) {
    plan.notes.iter().for_each(|note| terminal.note(&format!("note: {note}")));
}

/// The layers, sites, bytes and memory of a plan.
pub(crate) fn summary(plan: &Plan) -> String {
    format!(
        "{} at {}, {} of activations to read, about {} of memory",
        count(plan.layers().count() as u64, "layer"),
        count(plan.sites.len() as u64, "site"),
        bytes(plan.sites.iter().map(|site| site.bytes).fold(0, u64::saturating_add)),
        bytes(plan.peak_memory),
    )
}

/// The largest number of parameters that the ranks allow.
fn most_parameters(plan: &Plan) -> u64 {
    let at_ranks = |rank: &dyn Fn(&PlannedLayer) -> usize| {
        plan.layers()
            .map(|layer| {
                (rank(layer) as u64)
                    .saturating_mul((layer.outputs as u64).saturating_add(layer.inputs as u64))
            })
            .fold(0, u64::saturating_add)
    };
    let ceiling = at_ranks(&|layer| layer.max_rank);
    match plan.method.ranks {
        Policy::Fixed(_) | Policy::Energy(_) => ceiling,
        Policy::Budget(parameters) => ceiling.min(parameters),
        Policy::Shared(_) | Policy::Proportional(_) => ceiling,
        Policy::BudgetOfRank(rank) => ceiling.min(at_ranks(&|layer| rank.min(layer.max_rank))),
    }
}

/// Plans for tests.
#[cfg(test)]
pub(crate) mod testing {
    use crate::element::Element;
    use crate::factors::{LayerShape, Strength};
    use crate::method::Options;
    use crate::plan::{Nonfinite, Plan, PlannedLayer, PlannedSite, SideBySide, Skipped, Work};
    use crate::rank::{Limits, Policy};
    use crate::simd::Precision;
    use crate::storage::Piece;

    pub(crate) fn plan_of(ranks: Policy) -> Plan {
        let layer = |module: &str, outputs| PlannedLayer {
            name: module.into(),
            weight: vec![Piece::of(format!("{module}.weight"), 0..4 * outputs as u64)],
            shape: LayerShape::Linear,
            element: Element::Bf16,
            quantization: None,
            outputs,
            inputs: 4,
            max_rank: 3,
        };
        Plan {
            model: "model".into(),
            sites: vec![PlannedSite {
                image_bytes: 0,
                name: "in".into(),
                width: 4,
                rows: 100,
                source_rows: None,
                rows_to_read: 100,
                bytes: 1600,
                classes: None,
                layers: vec![layer("query", 6), layer("value", 2)],
            }],
            notes: Vec::new(),
            skipped: vec![Skipped { name: "conv".into(), reason: "its weight is not a matrix".into() }],
            shared: vec![],
            method: Options {
                strength: Strength::MaxShift(0.05),
                ranks,
                limits: Limits { min: 0, max: 3, multiple: 1 },
                ..Options::default()
            },
            nonfinite: Nonfinite::Refuse,
            strict: false,
            precision: Precision::F32,
            element: Element::F16,
            threads: 1,
            side_by_side: SideBySide::ONE,
            peak_memory: 2_000_000,
            work: Work { moments: 2000.0, factors: 3000.0 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::plan_of;
    use super::*;
    use crate::plan::Share;
    use expect_test::expect;

    #[test]
    fn plans_are_shown_as_a_table() {
        expect![[r#"
            module  shape  format  rank up to  rows
            query     6×4  BF16             3   100
            value     2×4  BF16             3   100

            2 layers at 1 site, 1.6 kB of activations to read, about 2.0 MB of memory
            5.0e3 operations, adapter of at most 48 parameters in 96 B
            left out: conv: its weight is not a matrix
        "#]]
        .assert_eq(&render(&plan_of(Policy::Fixed(3))));
    }

    #[test]
    fn ranks_have_a_hint() {
        let of = |ranks, uniform| rank_hint_of(&plan_of(ranks), Format::Peft, uniform).unwrap() + "\n";
        let hints = [
            of(Policy::Fixed(3), None),
            of(Policy::Fixed(3), Some(UniformRank::Largest)),
            of(Policy::Energy(0.9), Some(UniformRank::Largest)),
            of(Policy::Energy(0.9), Some(UniformRank::Of(20))),
            of(Policy::Energy(0.9), None),
        ];
        assert_eq!(rank_hint_of(&plan_of(Policy::Fixed(3)), Format::Mlx, None), None);
        expect![[r#"
            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 3: the next limit that vLLM takes is 8.
            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 3: the next limit that vLLM takes is 8.
            Ranks are at most 3. A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 3: the next limit that vLLM takes is 8.
            A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 20: the next limit that vLLM takes is 32.
            Ranks are at most 3, and can differ. A server with a limit on ranks, such as --max-lora-rank of vLLM, has to allow rank 3: the next limit that vLLM takes is 8.
            llama.cpp and mlx-lm take one rank and one scale for all layers: for them, give --uniform-rank.
        "#]]
        .assert_eq(&hints.concat());
    }

    #[test]
    fn divisions_are_shown_as_a_table() {
        let share = |memory, operations, read, written| Share { memory, operations, read, written };
        let division = Division {
            nodes: 8,
            moments: share(1_000_000, 3e13, 20_000_000_000, 5_000_000),
            layers: share(2_000_000, 5e11, 3_000_000, 4_000),
            joining: share(30_000, 1e6, 20_000, 10_000),
        };
        let text = render_division(&division, &Rate { moments: 1e11, factors: 5e10 }, 2);
        expect![[r#"
            phase    nodes   memory  operations    reads   writes     time
            moments      8   1.0 MB      3.0e13  20.0 GB   5.0 MB  5.0 min
            layers       8   2.0 MB      5.0e11   3.0 MB   4.0 kB   10.0 s
            joining      1  30.0 kB       1.0e6  20.0 kB  10.0 kB     0 ms

            Each figure is that of the busiest node. The last phase chooses the ranks, because it needs the
            spectra of all layers. Times include computation only, at 100 and 50 GFLOP/s for moments and
            layers, measured now on this machine with 2 threads.
        "#]]
        .assert_eq(&text);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }

    /// An adapter has no more parameters than the policy and the largest ranks allow.
    #[test]
    fn budgets_bound_the_adapter() {
        let most = |ranks| most_parameters(&plan_of(ranks));
        assert_eq!(most(Policy::Energy(0.9)), 48);
        assert_eq!(most(Policy::Budget(20)), 20);
        assert_eq!(most(Policy::Budget(1000)), 48);
        assert_eq!(most(Policy::BudgetOfRank(2)), 32);
    }
}
