//! Experts and other blocks of one module, and their sites, in groups: a group is one row of the report.

use super::{LayerReport, Report, SiteReport};
use std::collections::{BTreeMap, BTreeSet};

/// Members that share one row of the report.
#[derive(Debug)]
pub(super) struct Group<'a, T> {
    /// The name of the row.
    pub name: String,
    /// At least one.
    pub members: Vec<&'a T>,
}

/// A figure of all members of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Figure {
    pub least: f64,
    /// The upper median if the number of members is even.
    pub median: f64,
    pub largest: f64,
}

impl<T> Group<'_, T> {
    /// The number of members, if there are several.
    pub(super) fn blocks(&self) -> Option<usize> {
        Some(self.members.len()).filter(|blocks| *blocks > 1)
    }

    /// The figure over the members that have it; none if no member has it.
    pub(super) fn figure(&self, of: impl Fn(&T) -> Option<f64>) -> Option<Figure> {
        let mut values: Vec<f64> = self.members.iter().filter_map(|member| of(member)).collect();
        values.sort_by(f64::total_cmp);
        let (least, largest) = (*values.first()?, *values.last()?);
        Some(Figure { least, median: values[values.len() / 2], largest })
    }
}

impl Figure {
    /// The range, or the value if all are the same: `8–16`, `8`.
    pub(super) fn range(self, words: impl Fn(f64) -> String) -> String {
        let (least, largest) = (words(self.least), words(self.largest));
        if least == largest { least } else { format!("{least}–{largest}") }
    }
}

/// The layers by module. Blocks of one module form a group, and so do experts that are modules of their own: `experts.7.up`
/// is a member of `experts.*.up`.
pub(super) fn of_layers<'a>(layers: &'a [LayerReport]) -> Vec<Group<'a, LayerReport>> {
    let mut groups: BTreeMap<String, Vec<&LayerReport>> = BTreeMap::new();
    for layer in layers {
        groups.entry(group_of(layer)).or_default().push(layer);
    }
    // A name without a second member stays as it is.
    let named = |(name, members): (String, Vec<&'a LayerReport>)| match members[..] {
        [only] => Group { name: only.name().to_string(), members },
        _ => Group { name, members },
    };
    groups.into_iter().map(named).collect()
}

fn group_of(layer: &LayerReport) -> String {
    let is_number = |part: &str| part.parse::<usize>().is_ok();
    let mut before = "";
    let parts = layer.module.split('.').map(|part| {
        let part = if before == "experts" && is_number(part) { "*" } else { part };
        before = part;
        part
    });
    parts.collect::<Vec<_>>().join(".")
}

/// The names of the sites that experts and other blocks read.
pub(super) fn sites_of_blocks(report: &Report) -> BTreeSet<&str> {
    let groups = of_layers(&report.layers);
    let members = groups.iter().filter(|group| group.blocks().is_some()).flat_map(|group| &group.members);
    members.map(|layer| layer.site.as_str()).collect()
}

/// The sites by group of the layers that read them: the sites of single experts form one group.
pub(super) fn of_sites(report: &Report) -> Vec<Group<'_, SiteReport>> {
    let layers = of_layers(&report.layers);
    let mut name_of: BTreeMap<&str, &str> = BTreeMap::new();
    for group in layers.iter().filter(|group| group.blocks().is_some()) {
        let sites: BTreeSet<&str> = group.members.iter().map(|layer| layer.site.as_str()).collect();
        if sites.len() > 1 {
            for site in sites {
                // Gate and up projections of an expert read one site: the first group gives the name.
                name_of.entry(site).or_insert(&group.name);
            }
        }
    }
    let mut groups: BTreeMap<&str, Vec<&SiteReport>> = BTreeMap::new();
    for site in &report.sites {
        let name = name_of.get(site.name.as_str()).copied().unwrap_or(&site.name);
        groups.entry(name).or_default().push(site);
    }
    groups.into_iter().map(|(name, members)| Group { name: name.into(), members }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{block, layer, report};
    use super::*;

    #[test]
    fn blocks_and_experts_are_grouped() {
        let layers = [
            block("0.experts.up", 0),
            block("0.experts.up", 1),
            layer("1.experts.0.up", 8),
            layer("1.experts.1.up", 4),
            layer("2.experts.0.up", 8),
            layer("list.0", 8),
            layer("list.1", 8),
        ];
        let groups: Vec<_> =
            of_layers(&layers).into_iter().map(|group| (group.name, group.members.len())).collect();
        let expected =
            [("0.experts.up", 2), ("1.experts.*.up", 2), ("2.experts.0.up", 1), ("list.0", 1), ("list.1", 1)];
        assert_eq!(groups, expected.map(|(name, members)| (name.to_owned(), members)));
    }

    #[test]
    fn figures_have_a_range_and_a_median() {
        let layers = [layer("a.experts.0", 4), layer("a.experts.1", 8), layer("a.experts.2", 6)];
        let group = &of_layers(&layers)[0];
        let ranks = group.figure(|layer| Some(layer.rank as f64)).unwrap();
        assert_eq!(ranks, Figure { least: 4.0, median: 6.0, largest: 8.0 });
        assert_eq!(ranks.range(|rank| rank.to_string()), "4–8");
        assert_eq!(Figure { largest: 4.0, ..ranks }.range(|rank| rank.to_string()), "4");
        assert_eq!(group.figure(|_| None), None);
    }

    #[test]
    fn sites_of_single_experts_are_grouped() {
        let mut layers = vec![block("up", 0), block("up", 1), layer("q", 8)];
        layers[0].site = "up.0".into();
        layers[1].site = "up.1".into();
        let mut report = report(layers);
        for name in ["up.0", "up.1"] {
            report.sites.push(SiteReport { name: name.into(), ..report.sites[0].clone() });
        }
        let groups: Vec<_> =
            of_sites(&report).into_iter().map(|group| (group.name, group.members.len())).collect();
        assert_eq!(groups, [("in".to_owned(), 1), ("up".to_owned(), 2)]);
    }
}
