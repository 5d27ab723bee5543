//! The activations of every site, and how far fine-tuning ones are from pre-training ones.

use super::super::{Report, SiteReport};
use super::chart::{Bar, bars, figure};
use super::number::{grouped, seconds};
use super::table::{self, Cell};
use crate::report::table as text;

/// A chart of distances, where there are any, a chart of effective ranks, and the table.
pub(super) fn section(report: &Report) -> String {
    distances(&report.sites) + &effective_ranks(&report.sites) + &all(&report.sites)
}

/// The Fréchet distance as a share of the pre-training activations' root mean square: what is shown of it everywhere.
fn relative_distance(site: &SiteReport) -> Option<f64> {
    let scale = site.source_spread?.mean_square.sqrt();
    site.frechet_distance.filter(|_| scale > 0.0).map(|distance| distance / scale)
}

fn distances(sites: &[SiteReport]) -> String {
    let rows: Vec<Bar> = sites
        .iter()
        .filter_map(|site| {
            let distance = relative_distance(site)?;
            let text = text::number(distance);
            Some(Bar { label: site.name.clone(), value: distance, mark: None, text, strong: true })
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let title = "Distance of fine-tuning from pre-training activations";
    let caption = "Fréchet distance of the Gaussians with the same means and damped covariances: how far activations have to move, in \
                   root mean square, to become pre-training ones; as a share of the root mean square of the latter.";
    figure(title, caption, &bars(title, "share of the activations' root mean square", &rows))
}

fn effective_ranks(sites: &[SiteReport]) -> String {
    let rows: Vec<Bar> = sites
        .iter()
        .filter_map(|site| {
            let rank = site.spread?.effective_rank;
            let mark = site.source_spread.map(|spread| spread.effective_rank);
            let text = format!("{} of {}", text::number(rank), site.width);
            Some(Bar { label: site.name.clone(), value: rank, mark, text, strong: true })
        })
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    let title = "Effective rank of the activations";
    let mark = match sites.iter().any(|site| site.source_spread.is_some()) {
        true => " The line marks pre-training activations.",
        false => "",
    };
    let caption = format!(
        "Over how many directions fine-tuning activations spread: (tr Σ)² / |Σ|² of their covariance Σ.{mark}"
    );
    figure(title, &caption, &bars(title, "directions", &rows))
}

fn all(sites: &[SiteReport]) -> String {
    let rows: Vec<[Cell; 9]> = sites
        .iter()
        .map(|site| {
            let optional = |value: Option<f64>, words: fn(f64) -> String| {
                value.map_or_else(table::none, |value| table::number(&words(value), value))
            };
            let rows = |rows: u64| table::number(&grouped(rows), rows as f64);
            let time = site.moments_seconds + site.constraint_seconds;
            [
                table::name(&site.name),
                table::number(&site.width.to_string(), site.width as f64),
                rows(site.rows),
                site.source_rows.map_or_else(table::none, rows),
                optional(Some(site.damping).filter(|damping| *damping > 0.0), text::number),
                optional(site.spread.map(|spread| spread.effective_rank), text::number),
                site.spread.map_or_else(table::none, |spread| {
                    table::share(&text::percent(spread.top_share), spread.top_share)
                }),
                optional(relative_distance(site), text::number),
                table::number(&seconds(time), time),
            ]
        })
        .collect();
    let headings = [
        "site",
        "width",
        "rows",
        "source rows",
        "damping",
        "effective rank",
        "top direction",
        "distance",
        "time",
    ];
    table::render("sites", headings, &rows)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::report;
    use super::*;
    use crate::spread::Spread;

    /// Of methods that look at no activations nothing is shown of them.
    #[test]
    fn sites_without_activations_have_no_figures() {
        let mut report = report(vec![]);
        assert!(section(&report).contains("Effective rank of the activations"));
        report.sites[0].spread = None;
        report.sites[0].damping = 0.0;
        let section = section(&report);
        assert!(!section.contains("Effective rank of the activations"), "{section}");
        assert!(!section.contains("12.50") && !section.contains("25.0"), "{section}");
    }

    /// Distances are told relative to the pre-training activations, and not at all without them.
    #[test]
    fn distances_are_relative() {
        let mut report = report(vec![]);
        assert_eq!(distances(&report.sites), "");
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
}
