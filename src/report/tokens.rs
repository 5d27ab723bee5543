//! The number of tokens that a run used. Sites record the same tokens, so their rows do not add up.

use super::{Report, SiteReport, groups};
use crate::method::Method;

/// The kind of the activations whose rows are [`SiteReport::rows`], in words.
pub(crate) fn kind_of_rows(method: Method) -> &'static str {
    if method.reads_only_source() { "pre-training" } else { "fine-tuning" }
}

/// The number of fine-tuning tokens, or of pre-training tokens if the method uses no others: the largest number of rows of a site.
/// Sites of experts count only if there are no others, because a token can be a row of several experts.
pub(super) fn fine_tuning(report: &Report) -> u64 {
    most(report, |site| Some(site.rows))
}

/// The number of pre-training tokens that are used beside fine-tuning tokens.
pub(super) fn pre_training(report: &Report) -> u64 {
    most(report, |site| site.source_rows)
}

fn most(report: &Report, rows: impl Fn(&SiteReport) -> Option<u64>) -> u64 {
    let of_blocks = groups::sites_of_blocks(report);
    let most = |blocks: bool| {
        let sites = report.sites.iter().filter(|site| of_blocks.contains(site.name.as_str()) == blocks);
        sites.filter_map(&rows).max()
    };
    most(false).or_else(|| most(true)).unwrap_or(0)
}

/// The tokens in words, such as `97 tokens of fine-tuning activations`; none if the run read no activations.
pub(super) fn words(report: &Report, number: impl Fn(u64) -> String) -> Option<String> {
    let fine_tuning = Some(fine_tuning(report)).filter(|tokens| *tokens > 0)?;
    let noun = if fine_tuning == 1 { "token" } else { "tokens" };
    let source = match pre_training(report) {
        0 => String::new(),
        tokens => format!(" and {} of pre-training activations", number(tokens)),
    };
    let kind = kind_of_rows(report.method.method);
    Some(format!("{} {noun} of {kind} activations{source}", number(fine_tuning)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{block, layer, report};
    use super::*;

    fn site(name: &str, rows: u64, source_rows: Option<u64>) -> SiteReport {
        SiteReport { name: name.into(), rows, source_rows, ..report(vec![]).sites[0].clone() }
    }

    #[test]
    fn tokens_are_the_most_rows_of_a_site_and_not_their_sum() {
        let mut report = report(vec![layer("q", 8)]);
        report.sites = vec![site("in", 97, Some(5)), site("out", 90, Some(7))];
        assert_eq!((fine_tuning(&report), pre_training(&report)), (97, 7));
        let words = words(&report, |tokens| tokens.to_string());
        assert_eq!(words.unwrap(), "97 tokens of fine-tuning activations and 7 of pre-training activations");
    }

    #[test]
    fn rows_of_experts_count_only_without_other_sites() {
        let mut report = report(vec![layer("q", 8), block("up", 0), block("up", 1)]);
        report.layers[1].site = "up".into();
        report.layers[2].site = "up".into();
        report.sites = vec![site("in", 97, None), site("up", 8 * 97, None)];
        assert_eq!(fine_tuning(&report), 97);
        report.sites.remove(0);
        assert_eq!(fine_tuning(&report), 8 * 97);
    }

    #[test]
    fn runs_without_activations_have_no_tokens() {
        let mut report = report(vec![layer("q", 8)]);
        report.sites = vec![site("in", 0, None)];
        assert_eq!(words(&report, |tokens| tokens.to_string()), None);
    }
}
