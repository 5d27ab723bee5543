//! One sentence of advice at the end of a report: the first rule that applies gives it.

use super::format::{count, percent};
use super::groups::{self, Group};
use super::{LayerReport, Report, SiteReport, kept, tokens};
use crate::constraint::rows_wanted;
use crate::method::RankRule;
use crate::rank::{Limits, Policy, allocate};
use crate::storage::quoted;

/// The share of an update that is called enough.
const ENOUGH: f64 = 0.9;

/// `--budget` is advised if it keeps more of the updates by at least this share.
const GAIN: f64 = 0.02;

/// The largest rank of `--budget`, as a multiple of the fixed rank.
const LARGEST: usize = 4;

/// The most important advice, as one sentence.
pub(super) fn advice(report: &Report) -> String {
    unusable_sites(report)
        .or_else(|| bad_rows(report))
        .or_else(|| few_rows(report))
        .or_else(|| empty_units(report))
        .or_else(|| budget(report))
        .or_else(|| rank(report))
        .unwrap_or_else(|| {
            "Choose the rank as for plain LoRA, because this method does not measure how much a rank keeps."
                .into()
        })
}

/// Sites whose activations cannot be used.
fn unusable_sites(report: &Report) -> Option<String> {
    let first = report.unusable.first()?;
    let modules: usize = report.unusable.iter().map(|site| site.modules.len()).sum();
    let have = if modules == 1 { "has" } else { "have" };
    let modules = count(modules as u64, "module");
    Some(match report.unusable.len() {
        1 => format!(
            "Record site {} again, because {modules} {have} no adapter without it.",
            quoted(&first.name)
        ),
        sites => format!("Record {sites} sites again, because {modules} {have} no adapter without them."),
    })
}

/// Rows that hold NaN or infinity.
fn bad_rows(report: &Report) -> Option<String> {
    let worst = report.sites.iter().max_by_key(|site| site.skipped_rows)?;
    (worst.skipped_rows > 0).then(|| {
        format!(
            "Check the recording of site {}, because {} with NaN or infinity had to be left out.",
            quoted(&worst.name),
            count(worst.skipped_rows, "row")
        )
    })
}

/// Sites with fewer rows than their width calls for.
fn few_rows(report: &Report) -> Option<String> {
    if !report.method.method.reads_activations() {
        return None;
    }
    let fine_tuning = few_rows_of(report, "tokens", tokens::fine_tuning(report), |site| Some(site.rows));
    fine_tuning.or_else(|| {
        few_rows_of(report, "pre-training tokens", tokens::pre_training(report), |site| site.source_rows)
    })
}

/// As [`few_rows`], for one kind of activations.
fn few_rows_of(
    report: &Report,
    noun: &str,
    tokens: u64,
    rows: impl Fn(&SiteReport) -> Option<u64>,
) -> Option<String> {
    let shortage = |site: &SiteReport| {
        let times = rows_wanted(site.width) as f64 / rows(site)?.max(1) as f64;
        (!site.embedding && times > 1.0).then_some(times)
    };
    let few: Vec<&SiteReport> = report.sites.iter().filter(|site| shortage(site).is_some()).collect();
    let of_experts = groups::sites_of_blocks(report);
    let (experts, others) = few.iter().partition(|site| of_experts.contains(site.name.as_str()));
    let shortages = |members| Group { name: String::new(), members }.figure(shortage);
    // The rarest expert would ask for far too many tokens, so the median expert decides.
    let times = shortages(others).map(|shortage| shortage.largest);
    let times = times.or_else(|| shortages(experts).map(|shortage| shortage.median))?;
    let reason = match few[..] {
        [site] => {
            let (name, rows) = (quoted(&site.name), count(rows(site)?, "row"));
            format!("site {name} has only {rows} for its {}", count(site.width as u64, "channel"))
        }
        _ => format!("{} sites have fewer than {} rows per channel", few.len(), rows_wanted(1)),
    };
    let wanted = (tokens as f64 * times).ceil();
    Some(format!("Record about {wanted:.0} {noun} instead of {tokens}, because {reason}."))
}

/// Ranks above the rank of the updates.
fn empty_units(report: &Report) -> Option<String> {
    let empty = report.layers.iter().map(|layer| layer.empty_units).fold(0, usize::saturating_add);
    let all = report.layers.iter().map(|layer| layer.rank).fold(0, usize::saturating_add);
    (empty > 0 && empty.saturating_mul(10) >= all).then(|| {
        format!(
            "Use a smaller rank, because {empty} of {} of rank have no singular value.",
            count(all as u64, "unit")
        )
    })
}

/// A budget in place of one rank for all layers.
fn budget(report: &Report) -> Option<String> {
    let method = &report.method;
    let (Policy::Fixed(rank), RankRule::Spectrum) = (method.ranks, method.method.rank_rule()) else {
        return None;
    };
    // The blocks of a module share one rank, so that the calculation below does not hold for them.
    if report.layers.iter().any(|layer| layer.block.is_some()) {
        return None;
    }
    let layers: Vec<_> = report.layers.iter().map(|layer| kept::as_layer(layer, method.start)).collect();
    let limits = Limits { max: rank.saturating_mul(LARGEST), ..method.limits };
    let ranks = allocate(Policy::BudgetOfRank(rank), limits, &layers).ok()?;
    let mut ranks = ranks.into_iter();
    let shared: Vec<LayerReport> = report
        .layers
        .iter()
        .map(|layer| LayerReport { rank: ranks.next().unwrap_or(0), ..layer.clone() })
        .collect();
    let (now, then) =
        (kept::mean_own(report)?, kept::mean(&shared, |layer| kept::at_multiple(layer, method, 1))?);
    (then >= now + GAIN).then(|| {
        format!(
            "Use --budget, which would keep {} of an update on average instead of {} with the same number of parameters.",
            percent(then),
            percent(now)
        )
    })
}

/// A higher or a lower rank for all layers.
fn rank(report: &Report) -> Option<String> {
    let (layers, method) = (&report.layers, &report.method);
    let now = kept::mean_own(report)?;
    let largest = layers.iter().map(|layer| layer.rank).max()?;
    let step = method.rank_step(1);
    let known = (step..)
        .step_by(step)
        .map_while(|rank| Some((rank, kept::mean(layers, |layer| kept::at(layer, method, rank))?)));
    // Beyond the full rank of every layer nothing changes.
    let updated = layers.iter().filter(|layer| layer.energy > 0.0);
    let full = updated.map(|layer| kept::rank_in(layer, usize::MAX)).max().unwrap_or(0).saturating_add(step);
    let enough = known.take_while(|(rank, _)| *rank < full).find(|(_, share)| *share >= ENOUGH);
    let now_in_words = percent(now);
    Some(match enough {
        Some((rank, share)) if now < ENOUGH => format!(
            "Use rank {rank} for all layers to keep {} of an update on average instead of {now_in_words}.",
            percent(share)
        ),
        Some((rank, share)) if rank <= largest / 2 => {
            format!(
                "Use rank {rank} to save parameters, because it still keeps {} of an update on average.",
                percent(share)
            )
        }
        _ if now >= ENOUGH => {
            format!("Keep these ranks, because they already keep {now_in_words} of an update on average.")
        }
        _ => match kept::mean_at_multiple(report, 2) {
            Some(twice) => format!(
                "Consider a higher rank if memory allows, because twice the rank would keep {} of an update on average instead of \
                 {now_in_words}.",
                percent(twice)
            ),
            None => format!(
                "Consider a higher rank if memory allows, because this adapter keeps only {now_in_words} of an update on average."
            ),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::super::UnusableSite;
    use super::super::testing::{block, layer, report, spectrum};
    use super::*;
    use crate::factors::Start;
    use crate::method::Method;
    use expect_test::{Expect, expect};

    #[track_caller]
    fn check(report: &Report, expected: Expect) {
        let advice = advice(report);
        expected.assert_eq(&advice);
        let sentences = advice.matches(". ").count() + usize::from(advice.ends_with('.'));
        assert_eq!(sentences, 1, "{advice}");
    }

    /// A report of layers whose singular values are all 1.
    fn flat(rank: usize, values: usize, energy: f64) -> Report {
        let mut report = report(vec![spectrum("q", rank, &vec![1.0; values], energy)]);
        report.method.ranks = Policy::Fixed(rank);
        report
    }

    fn unusable(name: &str) -> UnusableSite {
        let (reason, remedy) = ("all activations are zero".into(), "record more".into());
        UnusableSite {
            name: name.into(),
            modules: vec![format!("{name}.q"), format!("{name}.k")],
            reason,
            remedy,
        }
    }

    #[test]
    fn unusable_sites_come_first() {
        let mut report = flat(8, 16, 16.0);
        report.sites[0].skipped_rows = 3;
        report.unusable = vec![unusable("0")];
        check(&report, expect![[r#"Record site "0" again, because 2 modules have no adapter without it."#]]);
        report.unusable.push(unusable("1"));
        check(&report, expect!["Record 2 sites again, because 4 modules have no adapter without them."]);
        report.unusable.truncate(1);
        report.unusable[0].modules.truncate(1);
        check(&report, expect![[r#"Record site "0" again, because 1 module has no adapter without it."#]]);
    }

    #[test]
    fn rows_with_nan_come_before_few_rows() {
        let mut report = flat(8, 16, 16.0);
        report.sites[0].rows = 97;
        report.sites[0].skipped_rows = 3;
        check(
            &report,
            expect![[
                r#"Check the recording of site "in", because 3 rows with NaN or infinity had to be left out."#
            ]],
        );
    }

    #[test]
    fn few_rows_come_before_ranks() {
        let mut report = flat(8, 16, 16.0);
        report.sites[0].rows = 97;
        check(
            &report,
            expect![[
                r#"Record about 1536 tokens instead of 97, because site "in" has only 97 rows for its 384 channels."#
            ]],
        );
        report.sites[0].rows = 2048;
        report.sites[0].source_rows = Some(100);
        check(
            &report,
            expect![[
                r#"Record about 1536 pre-training tokens instead of 100, because site "in" has only 100 rows for its 384 channels."#
            ]],
        );
    }

    #[test]
    fn the_site_with_the_fewest_rows_decides_how_many_tokens_are_needed() {
        let mut report = flat(8, 16, 16.0);
        report.sites.push(SiteReport { name: "out".into(), rows: 256, ..report.sites[0].clone() });
        check(
            &report,
            expect![[
                r#"Record about 12288 tokens instead of 2048, because site "out" has only 256 rows for its 384 channels."#
            ]],
        );
        report.sites.push(SiteReport { name: "hidden".into(), rows: 512, ..report.sites[0].clone() });
        check(
            &report,
            expect![
                "Record about 12288 tokens instead of 2048, because 2 sites have fewer than 4 rows per channel."
            ],
        );
    }

    /// One expert has a single row, and the others half as many as they need.
    #[test]
    fn rare_experts_do_not_ask_for_far_too_many_tokens() {
        let mut report = flat(8, 16, 16.0);
        for number in 0..128 {
            let (site, rows) = (format!("up.{number}"), if number == 7 { 1 } else { 768 });
            report.layers.push(LayerReport { site: site.clone(), ..block("up", number) });
            report.sites.push(SiteReport { name: site, rows, ..report.sites[0].clone() });
        }
        check(
            &report,
            expect![
                "Record about 4096 tokens instead of 2048, because 128 sites have fewer than 4 rows per channel."
            ],
        );
    }

    #[test]
    fn rows_do_not_matter_to_embeddings_and_to_methods_that_read_weights() {
        let mut report = flat(8, 8, 8.5);
        report.sites[0].rows = 97;
        report.sites[0].embedding = true;
        check(
            &report,
            expect!["Keep these ranks, because they already keep 94.1 % of an update on average."],
        );
        report.sites[0].embedding = false;
        report.method.method = Method::Pissa;
        check(
            &report,
            expect!["Keep these ranks, because they already keep 94.1 % of an update on average."],
        );
    }

    #[test]
    fn ranks_above_the_rank_of_the_updates() {
        let mut report = flat(8, 8, 8.0);
        report.layers[0].empty_units = 6;
        check(&report, expect!["Use a smaller rank, because 6 of 8 units of rank have no singular value."]);
    }

    #[test]
    fn a_budget_that_keeps_more() {
        let mut values = vec![10.0];
        values.extend([1e-3; 15]);
        let mut report = flat(8, 16, 16.0);
        report.layers.push(spectrum("v", 8, &values, 100.1));
        check(
            &report,
            expect![
                "Use --budget, which would keep 96.8 % of an update on average instead of 75.0 % with the same number of parameters."
            ],
        );
        // The blocks of a module share one rank, so the calculation would not hold.
        report.layers.push(block("experts", 0));
        assert!(!advice(&report).contains("--budget"));
    }

    #[test]
    fn a_higher_rank_that_keeps_enough() {
        check(
            &flat(8, 16, 16.0),
            expect!["Use rank 15 for all layers to keep 93.8 % of an update on average instead of 50.0 %."],
        );
        let mut report = flat(8, 16, 16.0);
        report.method.start = Start::Mirrored;
        report.layers[0].energy_kept = 0.25;
        check(
            &report,
            expect!["Use rank 30 for all layers to keep 93.8 % of an update on average instead of 25.0 %."],
        );
    }

    #[test]
    fn higher_ranks_that_do_not_keep_enough() {
        check(
            &flat(8, 16, 64.0),
            expect![
                "Consider a higher rank if memory allows, because twice the rank would keep 25.0 % of an update on average instead of 12.5 %."
            ],
        );
        check(
            &flat(8, 8, 64.0),
            expect![
                "Consider a higher rank if memory allows, because this adapter keeps only 12.5 % of an update on average."
            ],
        );
    }

    #[test]
    fn a_smaller_rank_that_keeps_enough() {
        let report = report(vec![spectrum("q", 8, &[10.0, 1.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], 101.1)]);
        check(
            &report,
            expect!["Use rank 1 to save parameters, because it still keeps 98.9 % of an update on average."],
        );
    }

    #[test]
    fn ranks_that_are_right() {
        check(
            &flat(8, 16, 8.5),
            expect!["Keep these ranks, because they already keep 94.1 % of an update on average."],
        );
    }

    #[test]
    fn methods_that_do_not_measure_what_a_rank_keeps() {
        let mut report = report(vec![layer("q", 8)]);
        report.method.method = Method::Milora;
        check(
            &report,
            expect![
                "Choose the rank as for plain LoRA, because this method does not measure how much a rank keeps."
            ],
        );
    }
}
