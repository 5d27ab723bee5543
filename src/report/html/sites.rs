//! The activations of the sites, and the distance of fine-tuning from pre-training activations.

use super::chart::{Bar, bars, figure};
use super::escape;
use super::table::{self, Cell};
use crate::report::figures::rows_in_words;
use crate::report::format::{duration, grouped, number, percent};
use crate::report::groups::{self, Group};
use crate::report::{Report, SiteReport, zero_rows};

/// Charts with more bars are folded.
const OPEN: usize = 40;

/// A chart of distances, if there are any, a chart of effective ranks, and the table.
pub(super) fn section(report: &Report) -> String {
    let sites = groups::of_sites(report);
    zeros(report) + &distances(&sites) + &effective_ranks(&sites) + &all(&sites)
}

/// A paragraph about rows that are all zero, if there are any.
fn zeros(report: &Report) -> String {
    zero_rows::of_report(report).map(|words| format!("<p>{}</p>\n", escape::text(&words))).collect()
}

/// The Fréchet distance as a share of the root mean square of the pre-training activations. The page shows all distances like this.
fn relative_distance(site: &SiteReport) -> Option<f64> {
    let scale = site.source_spread?.mean_square.sqrt();
    site.frechet_distance.filter(|_| scale > 0.0).map(|distance| distance / scale)
}

fn effective_rank(site: &SiteReport) -> Option<f64> {
    site.spread.map(|spread| spread.effective_rank)
}

fn source_effective_rank(site: &SiteReport) -> Option<f64> {
    site.source_spread.map(|spread| spread.effective_rank)
}

fn distances(sites: &[Group<'_, SiteReport>]) -> String {
    let title = "Distance of fine-tuning from pre-training activations";
    let caption = "Fréchet distance of the Gaussians with the same means and damped covariances: how far activations have to move, in \
                   root mean square, to become pre-training ones; as a share of the root mean square of the latter.";
    let bar = |site: &Group<'_, SiteReport>| {
        let distance = site.figure(relative_distance)?;
        let text = distance.range(number);
        Some(Bar { label: site.name.clone(), value: distance.median, mark: None, text, strong: true })
    };
    chart(
        title,
        caption,
        "share of the activations' root mean square",
        sites.iter().filter_map(bar).collect(),
    )
}

fn effective_ranks(sites: &[Group<'_, SiteReport>]) -> String {
    let title = "Effective rank of the activations";
    let mark = match sites.iter().any(|site| site.figure(source_effective_rank).is_some()) {
        true => " The line marks pre-training activations.",
        false => "",
    };
    let caption = format!(
        "Number of directions over which fine-tuning activations spread: (tr Σ)² / |Σ|² of their covariance Σ.{mark}"
    );
    let bar = |site: &Group<'_, SiteReport>| {
        let rank = site.figure(effective_rank)?;
        let mark = site.figure(source_effective_rank).map(|rank| rank.median);
        let text = format!("{} of {}", rank.range(number), site.members[0].width);
        Some(Bar { label: site.name.clone(), value: rank.median, mark, text, strong: true })
    };
    chart(title, &caption, "directions", sites.iter().filter_map(bar).collect())
}

/// The chart, folded if it is long; empty without bars.
fn chart(title: &str, caption: &str, axis: &str, rows: Vec<Bar>) -> String {
    let chart = figure(title, caption, &bars(title, axis, &rows));
    match rows.len() {
        0 => String::new(),
        1..=OPEN => chart,
        sites => format!("<details><summary>{title}, {sites} sites</summary>\n{chart}</details>\n"),
    }
}

fn all(sites: &[Group<'_, SiteReport>]) -> String {
    let headings = [
        "site",
        "blocks",
        "width",
        "rows",
        "source rows",
        "damping",
        "effective rank",
        "top direction",
        "distance",
        "time",
    ];
    table::grouped("sites", headings, sites, |site| site.name.clone(), row)
}

fn row(group: &Group<'_, SiteReport>) -> [Cell; 10] {
    let site = group.members[0];
    let rows = |rows: f64| rows_in_words(rows, site.embedding, grouped);
    [
        table::name(&group.name),
        table::blocks(group),
        table::number(&site.width.to_string(), site.width as f64),
        table::figure(group.figure(|site| Some(site.rows as f64).filter(|rows| *rows > 0.0)), rows),
        table::figure(group.figure(|site| site.source_rows.map(|rows| rows as f64)), rows),
        table::figure(group.figure(|site| Some(site.damping).filter(|damping| *damping > 0.0)), number),
        table::figure(group.figure(effective_rank), number),
        table::share(group.figure(|site| site.spread.map(|spread| spread.top_share)), percent),
        table::figure(group.figure(relative_distance), number),
        table::figure(group.figure(|site| Some(site.moments_seconds + site.constraint_seconds)), duration),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing::{block, report};
    use crate::spread::Spread;

    #[test]
    fn methods_that_read_no_activations_show_no_figures_of_them() {
        let mut report = report(vec![]);
        assert!(section(&report).contains("Effective rank of the activations"));
        report.sites[0].spread = None;
        report.sites[0].damping = 0.0;
        report.sites[0].rows = 0;
        let section = section(&report);
        assert!(!section.contains("ffective rank"), "{section}");
        assert!(!section.contains("damping") && !section.contains("rows"), "{section}");
    }

    #[test]
    fn distances_are_relative_to_pre_training_activations() {
        let mut report = report(vec![]);
        assert_eq!(distances(&groups::of_sites(&report)), "");
        let site = &mut report.sites[0];
        site.frechet_distance = Some(3.0);
        assert_eq!(relative_distance(site), None);
        site.source_spread =
            Some(Spread { mean_square: 4.0, variance: 4.0, effective_rank: 7.0, top_share: 0.5 });
        assert_eq!(relative_distance(site), Some(1.5));
        let section = section(&report);
        assert!(section.contains(">1.500</text>") && section.contains("12.50 of 384"), "{section}");
        assert!(section.contains("class=\"mark\""), "{section}");
    }

    #[test]
    fn embeddings_count_tokens() {
        let mut report = report(vec![]);
        assert!(section(&report).contains("<span>2\u{202f}048</span>"));
        report.sites[0].embedding = true;
        assert!(section(&report).contains("<span>2\u{202f}048 tokens</span>"));
    }

    #[test]
    fn sites_of_experts_are_one_bar_and_one_row() {
        let layers = (0..128)
            .map(|number| crate::report::LayerReport { site: format!("up.{number}"), ..block("up", number) });
        let mut report = report(layers.collect());
        let site = report.sites.remove(0);
        report.sites = (0..128)
            .map(|number| SiteReport { name: format!("up.{number}"), rows: 100 + number, ..site.clone() })
            .collect();
        let section = section(&report);
        assert_eq!(section.matches("class=\"bar strong\"").count(), 1, "{section}");
        let (open, folded) = section.split_once("<details>").unwrap();
        assert_eq!((open.matches("<tr>").count(), folded.matches("<tr>").count()), (2, 129));
        assert!(open.contains("164 <small>100–227</small>"), "{open}");
    }
}
