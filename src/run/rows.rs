//! One warning per run about sites with few rows relative to their width, and one about rows that are all zero.

use super::{Event, Observer};
use crate::constraint::rows_wanted;
use crate::plan::Plan;
use crate::report::{SiteReport, kind_of_rows, zero_rows};
use crate::storage::quoted;
use std::collections::BTreeSet;

/// Warns about sites with too few rows for accurate statistics. This does not apply to token counts.
pub(super) fn warn_of_few<'a>(
    plan: &Plan,
    sites: impl Iterator<Item = &'a SiteReport>,
    observer: &dyn Observer,
) {
    if !plan.method.method.reads_activations() {
        return;
    }
    let embeddings: BTreeSet<&str> =
        plan.sites.iter().filter(|site| site.classes.is_some()).map(|site| site.name.as_str()).collect();
    let sites: Vec<&SiteReport> = sites.filter(|site| !embeddings.contains(site.name.as_str())).collect();
    let shrinks = plan.method.method.has_constraints();
    for message in few(kind_of_rows(plan.method.method), shrinks, &sites, |site| Some(site.rows))
        .into_iter()
        .chain(few("pre-training", shrinks, &sites, |site| site.source_rows))
    {
        observer.event(Event::Warning { message });
    }
}

/// Warns about rows that are all zero.
pub(super) fn warn_of_zeros<'a>(
    plan: &Plan,
    sites: impl Iterator<Item = &'a SiteReport> + Clone,
    observer: &dyn Observer,
) {
    zero_rows::of_sites(plan.method.method, sites)
        .for_each(|message| observer.event(Event::Warning { message }));
}

/// The warning for one kind of rows, if a site has too few.
fn few(
    kind: &str,
    shrinks: bool,
    sites: &[&SiteReport],
    rows: impl Fn(&SiteReport) -> Option<u64>,
) -> Option<String> {
    let few = sites.iter().filter_map(|site| {
        let rows = rows(site)?;
        (rows < rows_wanted(site.width)).then_some((site, rows))
    });
    let few: Vec<_> = few.collect();
    let share = |(site, rows): &(&&SiteReport, u64)| *rows as f64 / site.width as f64;
    let (worst, found) = few.iter().min_by(|a, b| share(a).total_cmp(&share(b)))?;
    let (name, width, wanted) = (quoted(&worst.name), worst.width, rows_wanted(worst.width));
    let advice = if shrinks { ", or try --shrinkage oas" } else { "" };
    Some(format!(
        "{} of {} sites have fewer {kind} rows than 4 times their width, so their statistics are partly noise; the worst is site \
         {name}: {found} rows of width {width}, but {wanted} are recommended. Record more rows{advice}",
        few.len(),
        sites.len(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn site(name: &str, width: usize, rows: u64, source_rows: Option<u64>) -> SiteReport {
        SiteReport {
            name: name.into(),
            embedding: false,
            width,
            rows,
            source_rows,
            skipped_rows: 0,
            zero_rows: 0,
            source_zero_rows: 0,
            damping: 0.01,
            spread: None,
            source_spread: None,
            frechet_distance: None,
            moments_seconds: 0.0,
            constraint_seconds: 0.0,
        }
    }

    /// One line with the number of affected sites, and the worst site.
    #[test]
    fn warning_names_the_worst_site() {
        let sites = [site("a", 10, 39, Some(40)), site("b", 100, 300, None), site("c", 10, 40, Some(7))];
        let sites: Vec<&SiteReport> = sites.iter().collect();
        let message = few("fine-tuning", true, &sites, |site| Some(site.rows)).unwrap();
        expect![[r#"2 of 3 sites have fewer fine-tuning rows than 4 times their width, so their statistics are partly noise; the worst is site "b": 300 rows of width 100, but 400 are recommended. Record more rows, or try --shrinkage oas"#]].assert_eq(&message);
        let message = few("pre-training", false, &sites, |site| site.source_rows).unwrap();
        expect![[r#"1 of 3 sites have fewer pre-training rows than 4 times their width, so their statistics are partly noise; the worst is site "c": 7 rows of width 10, but 40 are recommended. Record more rows"#]].assert_eq(&message);
        assert_eq!(few("fine-tuning", true, &sites[2..], |site| Some(site.rows)), None);
    }
}
