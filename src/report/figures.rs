//! The figures of a module, which text and page show.

use super::groups::{Figure, Group};
use super::{LayerReport, Report, SiteReport, kept};
use crate::factors::Start;
use crate::method::Options;
use std::collections::BTreeMap;

/// The figures of the layers of one module. A figure is none if no layer has it.
pub(super) struct Figures {
    pub rank: Option<Figure>,
    /// The shares that the rank, twice the rank and four times the rank keep.
    pub kept: [Option<Figure>; 3],
    pub strength: Option<Figure>,
    pub shift: Option<Figure>,
    /// The first singular values.
    pub largest: Option<Figure>,
    /// The rows of the sites.
    pub rows: Option<Figure>,
    /// True if the rows are tokens that embeddings read.
    pub embedding: bool,
}

/// The sites by name.
pub(super) fn sites(report: &Report) -> BTreeMap<&str, &SiteReport> {
    report.sites.iter().map(|site| (site.name.as_str(), site)).collect()
}

impl Figures {
    pub(super) fn of(
        group: &Group<'_, LayerReport>,
        method: &Options,
        sites: &BTreeMap<&str, &SiteReport>,
    ) -> Self {
        let adapted = |of: &dyn Fn(&LayerReport) -> Option<f64>| {
            group.figure(|layer| if layer.rank > 0 { of(layer) } else { None })
        };
        let multiple = |factor| adapted(&|layer| kept::at_multiple(layer, method, factor));
        // Only this start moves the output.
        let moved = |value: f64| (method.start == Start::Update).then_some(value);
        let site = |layer: &LayerReport| sites.get(layer.site.as_str());
        let positive = |value: f64| Some(value).filter(|value| *value > 0.0);
        let [twice, four_times] = kept::MULTIPLES;
        Self {
            rank: group.figure(|layer| Some(layer.rank as f64)),
            kept: [adapted(&|layer| kept::own(layer, method)), multiple(twice), multiple(four_times)],
            strength: adapted(&|layer| moved(layer.strength)),
            shift: adapted(&|layer| moved(layer.shift)),
            largest: group.figure(|layer| positive(*layer.singular_values.first()?)),
            rows: group.figure(|layer| positive(site(layer)?.rows as f64)),
            embedding: group.members.iter().any(|layer| site(layer).is_some_and(|site| site.embedding)),
        }
    }
}

/// Rows of a site in words: `2048`, or `2048 tokens` if embeddings read them. `number` writes the digits.
pub(super) fn rows_in_words(rows: f64, embedding: bool, number: impl Fn(u64) -> String) -> String {
    let unit = if embedding { " tokens" } else { "" };
    format!("{}{unit}", number(rows as u64))
}
