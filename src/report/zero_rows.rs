//! Rows that are all zero, such as the padding of batches, in one sentence for each kind of activations.

use super::Report;
use super::SiteReport;
use super::format::percent;
use super::tokens::kind_of_rows;
use crate::method::Method;
use crate::storage::quoted;

/// A sentence about the sites with rows that are all zero, if there are any. `sites` gives the name, the number of rows and the number of
/// those that are zero. `kind` names the activations.
pub(crate) fn sentence<'a>(kind: &str, sites: impl Iterator<Item = (&'a str, u64, u64)>) -> Option<String> {
    let (mut all, mut with) = (0, 0);
    let mut worst: Option<(&str, u64, u64)> = None;
    let share = |rows: u64, zero: u64| zero as f64 / rows.max(1) as f64;
    for (name, rows, zero) in sites {
        all += 1;
        if zero > 0 {
            with += 1;
            if worst.is_none_or(|(_, worst_rows, worst)| share(rows, zero) > share(worst_rows, worst)) {
                worst = Some((name, rows, zero));
            }
        }
    }
    let (name, rows, zero) = worst?;
    Some(format!(
        "{with} of {all} sites have {kind} rows that are all zero, such as the padding of batches, and these rows distort the statistics; \
         the worst is site {}: {zero} of {rows} rows ({}). Record only the rows of real tokens",
        quoted(name),
        percent(share(rows, zero))
    ))
}

/// The sentences about both kinds of activations of the sites of a report.
pub(crate) fn of_sites<'a>(
    method: Method,
    sites: impl Iterator<Item = &'a SiteReport> + Clone,
) -> impl Iterator<Item = String> {
    let rows = sites.filter(|site| !site.embedding);
    let target = rows.clone().map(|site| (site.name.as_str(), site.rows, site.zero_rows));
    let source = rows.filter_map(|site| Some((site.name.as_str(), site.source_rows?, site.source_zero_rows)));
    [sentence(kind_of_rows(method), target), sentence("pre-training", source)].into_iter().flatten()
}

/// As [`of_sites`].
pub(super) fn of_report(report: &Report) -> impl Iterator<Item = String> {
    of_sites(report.method.method, report.sites.iter())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{layer, report};
    use super::*;
    use expect_test::expect;

    /// The site with the largest share is named. Sites of tokens have no rows.
    #[test]
    fn the_share_of_zero_rows_is_told() {
        let mut report = report(vec![layer("q", 8)]);
        assert_eq!(of_report(&report).next(), None);
        let site = |name: &str, rows, zero_rows| SiteReport {
            name: name.into(),
            rows,
            zero_rows,
            ..report.sites[0].clone()
        };
        let sites = vec![site("a", 2048, 200), site("b", 256, 192), site("c", 100, 0)];
        report.sites = sites;
        report.sites[0].source_rows = Some(10);
        report.sites[0].source_zero_rows = 10;
        expect![[r#"
            2 of 3 sites have fine-tuning rows that are all zero, such as the padding of batches, and these rows distort the statistics; the worst is site "b": 192 of 256 rows (75.0 %). Record only the rows of real tokens
            1 of 1 sites have pre-training rows that are all zero, such as the padding of batches, and these rows distort the statistics; the worst is site "a": 10 of 10 rows (100.0 %). Record only the rows of real tokens"#]].assert_eq(&of_report(&report).collect::<Vec<_>>().join("\n"));
        report.sites.iter_mut().for_each(|site| site.embedding = true);
        assert_eq!(of_report(&report).next(), None);
    }
}
