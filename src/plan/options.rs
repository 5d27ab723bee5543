//! Checks the options of the method, alone and together with the layers.

use super::nearest::list;
use super::{PlannedLayer, PlannedSite, Recording, Request};
use crate::constraint::Coupling;
use crate::element::Element;
use crate::error::Error;
use crate::method::Options;
use crate::rank::Policy;
use crate::simd::Precision;
use crate::storage::{Problem, Problems};

/// Number of layers in a message.
const SHOWN: usize = 3;

/// Checks that need no layers.
pub(super) fn check_values(
    options: &Options,
    (has_target, has_source): (bool, bool),
    problems: &mut Problems,
) {
    problems.0.extend(options.complaints().iter().map(|error| {
        let problem = Problem::usage(error.to_string());
        match *error {
            Error::OddRank { rank: 1, .. } => problem.help("give --rank 2"),
            Error::OddRank { rank, .. } => problem.help(format!("give --rank {} or {}", rank - 1, rank + 1)),
            _ => problem,
        }
    }));
    // Programs multiply with the scale in single precision. The options report a scale that is not positive themselves.
    if options.scale > 0.0
        && options.scale.is_finite()
        && let Some(lost) = Element::F32.loses(options.scale)
    {
        let what = format!(
            "the scale {:e} is {lost} in single precision, in which adapters are computed",
            options.scale
        );
        problems.push(Problem::usage(what).help("give a --scale nearer to 1"));
    }
    let has_useless_target = has_target && options.method.reads_only_source();
    if has_useless_target {
        let what = format!("the method {} does not use fine-tuning activations", options.method.name());
        let help = "remove --activations or --moments, and give pre-training activations with --source or --source-moments";
        problems.push(Problem::usage(what).help(help));
    }
    if has_source && !options.method.reads_source() {
        let what = format!("the method {} does not use pre-training activations", options.method.name());
        problems.push(Problem::usage(what).help("remove --source"));
    }
    if !has_source && !has_useless_target && options.method.needs_source() {
        let error = Error::NeedsSource { method: options.method.name() };
        problems.push(Problem::usage(error.to_string()).help("give them with --source or --source-moments"));
    }
    if options.method.has_constraints() && options.coupling == Coupling::Paired && !has_source {
        problems.push(
            Problem::usage(
                "the coupling paired needs pre-training activations, one row for each fine-tuning row",
            )
            .help("give them with --source, or choose --coupling uncorrelated"),
        );
    }
}

/// Refuses moments if the coupling needs rows.
pub(super) fn check_pairs(request: &Request, problems: &mut Problems) {
    if request.method.coupling == Coupling::Paired
        && !(request.moments.is_empty() && request.source_moments.is_empty())
    {
        problems.push(
            Problem::usage("the coupling paired needs the rows of both kinds of activations, not moments")
                .help(
                    "give the activations with --activations and --source, or choose --coupling uncorrelated",
                ),
        );
    }
}

/// Refuses moments of another precision than the requested one.
pub(super) fn check_moments_precision(recording: &Recording, precision: Precision) -> Result<(), Problem> {
    match recording {
        Recording::Moments(set) if set.content().precision != precision => {
            let (expected, found) = (precision.name(), set.content().precision.name());
            let what = format!("expected moments in precision {expected}, found {found}");
            let problem = Problem::usage(what).help(format!("give --precision {found}"));
            Err(match set.files().next() {
                Some(file) => problem.in_file(file.path()),
                None => problem,
            })
        }
        _ => Ok(()),
    }
}

/// Refuses sites without rows.
pub(super) fn check_rows(sites: &[PlannedSite], problems: &mut Problems) {
    for site in sites.iter().filter(|site| site.rows == 0 || site.source_rows == Some(0)) {
        let problem = Problem::data("this site has no rows");
        problems.push(problem.in_tensor(&site.name).help("remove --strict to continue without this site"));
    }
}

/// Checks the rank policy against the layers that were found.
///
/// [`rank`](crate::rank) moves every rank into the limits. But an explicit rank that is impossible for a layer is refused, so that the
/// user chooses another one.
pub(super) fn check_ranks(options: &Options, sites: &[PlannedSite], problems: &mut Problems) {
    let layers = || sites.iter().flat_map(|site| &site.layers);
    let multiple = options.limits.multiple.max(1);
    match options.ranks {
        // The options report an odd rank themselves.
        Policy::Fixed(rank) if options.has_pairs() && !rank.is_multiple_of(2) => {}
        Policy::Fixed(rank) => {
            let (min, max) = (options.limits.min, options.limits.max);
            if rank > max {
                // The options report it themselves.
                return;
            }
            if !rank.is_multiple_of(multiple) || rank < min {
                let (least, largest) = (min.max(1).next_multiple_of(multiple), max / multiple * multiple);
                let help = if least > largest {
                    format!("give --rank {least} and --max-rank {least}")
                } else {
                    let nearest = (rank / multiple * multiple).clamp(least, largest);
                    format!("give --rank {nearest}, or change the limits")
                };
                let what = format!("rank {rank} must be from {min} to {max}, in steps of {multiple}");
                problems.push(Problem::usage(what).help(help));
                return;
            }
            let over: Vec<_> = layers().filter(|layer| rank > layer.max_rank).collect();
            if let Some(limit) = over.iter().map(|layer| layer.max_rank).min() {
                let modules = list(over.iter().take(SHOWN).map(|layer| &layer.name));
                let more = match over.len().saturating_sub(SHOWN) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                let what = format!("rank {rank} is over the limit of {modules}{more}");
                problems.push(Problem::usage(what).help(if limit >= options.limits.min.max(1) {
                    format!(
                        "the largest rank that is possible for all layers is {limit}: give --rank {limit}, or exclude layers \
                         with --exclude"
                    )
                } else {
                    format!("the largest rank of one of them is {limit}: exclude it with --exclude, or change the limits")
                }));
            }
        }
        Policy::Budget(budget) => {
            let parameters = |layer: &PlannedLayer, rank: usize| {
                // A rank of the module is divided among its parts.
                let rank = (rank / layer.shape.parts()) as u64;
                rank.saturating_mul((layer.outputs + layer.inputs) as u64)
            };
            let step = |layer: &PlannedLayer| options.rank_step(layer.shape.parts());
            let least = |layer: &PlannedLayer| options.limits.min.next_multiple_of(step(layer));
            let floor = layers()
                .map(|layer| parameters(layer, least(layer).min(layer.max_rank)))
                .fold(0, u64::saturating_add);
            let unit = layers().map(|layer| parameters(layer, step(layer))).min().unwrap_or(0);
            let needed = floor.max(unit);
            if budget < needed {
                let what = format!("a budget of {budget} parameters is too small for the smallest ranks");
                problems.push(Problem::usage(what).help(format!("give --budget={needed} or more")));
            }
        }
        Policy::Energy(_) | Policy::BudgetOfRank(_) | Policy::Shared(_) | Policy::Proportional(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Fixture;
    use super::*;
    use crate::factors::Start;
    use crate::method::Method;
    use crate::rank::Limits;
    use crate::storage::snapshot;
    use expect_test::expect;

    #[test]
    fn unused_activations_are_refused() {
        let mut problems = Problems::default();
        check_values(
            &Options { method: Method::Lora, start: Start::Zero, ..Options::default() },
            (true, true),
            &mut problems,
        );
        let residual = |method| Options { method, start: Start::Residual, ..Options::default() };
        check_values(&residual(Method::ScLora), (true, false), &mut problems);
        check_values(&residual(Method::LoraNull), (true, false), &mut problems);
        check_values(&residual(Method::LoraNull), (false, false), &mut problems);
        let astra = Options { ranks: Policy::Proportional(4), ..residual(Method::Astra) };
        check_values(&astra, (true, true), &mut problems);
        check_values(&Options { beta: Some(-0.1), ..residual(Method::ScLora) }, (true, true), &mut problems);
        expect![[r#"
            the method lora does not use pre-training activations; help: remove --source
            the method sc-lora needs pre-training activations; help: give them with --source or --source-moments
            the method lora-null does not use fine-tuning activations; help: remove --activations or --moments, and give pre-training activations with --source or --source-moments
            the method lora-null needs pre-training activations; help: give them with --source or --source-moments
            the method astra does not use pre-training activations; help: remove --source
            beta is -0.1, but must be from 0 to 1
        "#]].assert_eq(&snapshot(problems));
    }

    #[test]
    fn ranks_must_fit_the_layers() {
        let mut fixture = Fixture::bert();
        let with = |fixture: &mut Fixture, ranks, min, max, multiple| {
            fixture.request.method.ranks = ranks;
            fixture.request.method.limits = Limits { min, max, multiple };
        };
        fixture.request.method.start = Start::Mirrored;
        with(&mut fixture, Policy::Fixed(7), 0, 7, 1);
        fixture.check_refusal(&expect![[r#"
            Usage: rank 7 is odd, but the mirrored start needs an even rank
                help: give --rank 6 or 8
        "#]]);
        with(&mut fixture, Policy::Fixed(1), 0, 4, 1);
        fixture.check_refusal(&expect![[r#"
            Usage: rank 1 is odd, but the mirrored start needs an even rank
                help: give --rank 2
        "#]]);
        with(&mut fixture, Policy::Budget(23), 0, 128, 1);
        fixture.check_refusal(&expect![[r#"
            Usage: a budget of 23 parameters is too small for the smallest ranks
                help: give --budget=24 or more
        "#]]);
        fixture.request.method.start = Start::Residual;
        with(&mut fixture, Policy::Fixed(7), 0, 7, 1);
        fixture.check_refusal(&expect![[r#"
            Usage: rank 7 is over the limit of "encoder.layer.0.attention.self.key", "encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.value" and 1 more
                help: the largest rank that is possible for all layers is 6: give --rank 6, or exclude layers with --exclude
        "#]]);

        with(&mut fixture, Policy::Fixed(3), 0, 4, 2);
        fixture.check_refusal(&expect![[r#"
            Usage: rank 3 must be from 0 to 4, in steps of 2
                help: give --rank 2, or change the limits
        "#]]);
        // The advice is a valid rank.
        with(&mut fixture, Policy::Fixed(5), 5, 8, 4);
        fixture.check_refusal(&expect![[r#"
            Usage: rank 5 must be from 5 to 8, in steps of 4
                help: give --rank 8, or change the limits
        "#]]);
        with(&mut fixture, Policy::Fixed(3), 0, 3, 4);
        fixture.check_refusal(&expect![[r#"
            Usage: rank 3 must be from 0 to 3, in steps of 4
                help: give --rank 4 and --max-rank 4
        "#]]);
        with(&mut fixture, Policy::Fixed(8), 0, 8, 8);
        fixture.check_refusal(&expect![[r#"
            Usage: rank 8 is over the limit of "encoder.layer.0.attention.self.key", "encoder.layer.0.attention.self.query", "encoder.layer.0.attention.self.value" and 1 more
                help: the largest rank of one of them is 0: exclude it with --exclude, or change the limits
        "#]]);
        with(&mut fixture, Policy::Fixed(0), 0, 4, 1);
        fixture.check_refusal(&expect![[r#"
            Usage: the rank is 0, but must be at least 1
        "#]]);
        with(&mut fixture, Policy::Energy(f64::NAN), 0, 128, 1);
        fixture.check_refusal(&expect![[r#"
            Usage: the energy share is NaN, but must be above 0 and at most 1
        "#]]);
        with(&mut fixture, Policy::Energy(0.9), 5, 4, 1);
        fixture.check_refusal(&expect![[r#"
            Usage: the least rank is 5, but must be at most the largest rank
        "#]]);
        // The cheapest rank costs 6 + 6 parameters; one for each of the four layers costs 3 · 12 + 16.
        with(&mut fixture, Policy::Budget(11), 0, 128, 1);
        fixture.check_refusal(&expect![[r#"
            Usage: a budget of 11 parameters is too small for the smallest ranks
                help: give --budget=12 or more
        "#]]);
        with(&mut fixture, Policy::Budget(51), 1, 128, 1);
        fixture.check_refusal(&expect![[r#"
            Usage: a budget of 51 parameters is too small for the smallest ranks
                help: give --budget=52 or more
        "#]]);
        with(&mut fixture, Policy::Budget(52), 1, 128, 1);
        assert!(fixture.plan().sites[0].layers.iter().all(|layer| layer.max_rank == 6));
    }
}
