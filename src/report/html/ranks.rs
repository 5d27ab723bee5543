//! A heat map of the ranks, with a row per type of module and a column per depth.

use super::chart::{figure, label, svg};
use super::escape;
use super::module::{Place, common_prefix, place};
use crate::report::LayerReport;
use crate::report::format::count;
use crate::report::groups::Group;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// With more depths than this, a phone has no room for the numbers in the cells.
const NARROW: usize = 14;

/// With more depths than this, no screen has.
const DENSE: usize = 40;

/// The heat map; empty if no module has a number in its name. The blocks of a module are one cell.
pub(super) fn heat_map(groups: &[Group<'_, LayerReport>]) -> String {
    let mut ranks: BTreeMap<String, BTreeMap<u64, usize>> = BTreeMap::new();
    for group in groups {
        if let Place { kind, depth: Some(depth) } = place(&group.name) {
            let rank = group.members.iter().map(|layer| layer.rank).max().unwrap_or(0);
            ranks.entry(kind).or_default().insert(depth, rank);
        }
    }
    let depths: BTreeSet<u64> = ranks.values().flat_map(|row| row.keys().copied()).collect();
    let depths: Vec<u64> = depths.into_iter().collect();
    let largest = ranks.values().flat_map(BTreeMap::values).copied().max().unwrap_or(0);
    if depths.is_empty() {
        return String::new();
    }
    let prefix = common_prefix(ranks.keys().map(String::as_str));
    let title = "Ranks over depth";
    let described: Vec<String> = ranks
        .iter()
        .map(|(kind, row)| {
            let cells: Vec<String> = row.iter().map(|(depth, rank)| format!("{depth}: {rank}")).collect();
            format!("{kind} – {}", cells.join(", "))
        })
        .collect();
    let height = ROW * ranks.len() as f64;
    let body = strips(&ranks, &depths, prefix, largest) + &axis(&depths, height);
    let chart = svg(title, &described.join("; "), height + 36.0, &body);
    let class = match depths.len() {
        many if many > DENSE => " class=\"dense\"",
        many if many > NARROW => " class=\"narrow\"",
        _ => "",
    };
    let common = match prefix {
        "" => String::new(),
        prefix => format!(" of {}", escape::name(prefix.trim_end_matches('.'))),
    };
    let caption = format!(
        "A row per type of module{common}, a column per depth. A stronger colour is a higher rank: \
         0 <span class=\"scale\"></span> {largest}. Cells with a dashed frame have rank 0 and no adapter.",
    );
    figure(title, &caption, &format!("<div{class}>{chart}</div>"))
}

const ROW: f64 = 48.0;

fn strips(
    ranks: &BTreeMap<String, BTreeMap<u64, usize>>,
    depths: &[u64],
    prefix: &str,
    largest: usize,
) -> String {
    let mut body = String::new();
    let width = 100.0 / depths.len() as f64;
    for ((kind, row), y) in ranks.iter().zip((0..).map(|row| ROW * f64::from(row))) {
        let label = label(kind.strip_prefix(prefix).unwrap_or(kind));
        let _ = write!(body, "<text x=\"0\" y=\"{:.0}\">{label}</text>", y + 14.0);
        for (depth, &rank) in row {
            let x = width * depths.partition_point(|before| before < depth) as f64;
            let share = if largest > 0 { rank as f64 / largest as f64 } else { 0.0 };
            let (cell, number) = match rank {
                0 => ("cell none", "value"),
                _ if share > 0.5 => ("cell", "value on"),
                _ => ("cell", "value"),
            };
            let _ = write!(
                body,
                "<rect class=\"{cell}\" x=\"{x:.3}%\" y=\"{:.0}\" width=\"{width:.3}%\" height=\"24\" \
                 fill-opacity=\"{share:.2}\"><title>{label}, depth {depth}: {}</title></rect>\
                 <text class=\"{number}\" x=\"{:.3}%\" y=\"{:.0}\" text-anchor=\"middle\">{rank}</text>",
                y + 20.0,
                if rank == 0 { "no adapter".into() } else { format!("rank {rank}") },
                x + width / 2.0,
                y + 36.0,
            );
        }
    }
    body
}

/// The axis of depths below the rows, with as many numbers as fit.
fn axis(depths: &[u64], top: f64) -> String {
    let width = 100.0 / depths.len() as f64;
    let step = depths.len().div_ceil(NARROW);
    let mut body = String::new();
    for (index, depth) in depths.iter().enumerate().step_by(step) {
        let x = width * (index as f64 + 0.5);
        let _ = write!(
            body,
            "<text class=\"tick\" x=\"{x:.3}%\" y=\"{:.0}\" text-anchor=\"middle\">{depth}</text>",
            top + 12.0
        );
    }
    let _ = write!(
        body,
        "<text class=\"tick\" x=\"0\" y=\"{:.0}\">depth ({})</text>",
        top + 30.0,
        count(depths.len() as u64, "block")
    );
    body
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::groups;
    use crate::report::testing::{block, layer};

    #[test]
    fn every_layer_has_a_cell_with_its_rank() {
        let layers = [layer("m.0.q", 4), layer("m.1.q", 8), layer("m.1.v", 0), layer("head", 16)];
        let map = heat_map(&groups::of_layers(&layers));
        for cell in ["q, depth 0: rank 4", "q, depth 1: rank 8", "v, depth 1: no adapter"] {
            assert!(map.contains(cell), "{cell} is not in {map}");
        }
        assert_eq!(map.matches("<rect").count(), 3);
        assert!(map.contains("fill-opacity=\"1.00\"><title>q, depth 1"), "{map}");
        assert!(map.contains("m.*.q – 0: 4, 1: 8"), "the alternative text has the numbers: {map}");
        assert_eq!(heat_map(&groups::of_layers(&[layer("head", 16)])), "");
    }

    #[test]
    fn the_experts_of_a_module_are_one_cell() {
        let layers: Vec<LayerReport> = (0..128).map(|number| block("m.0.experts.up", number)).collect();
        let map = heat_map(&groups::of_layers(&layers));
        assert_eq!(map.matches("<rect").count(), 1, "{map}");
        assert!(map.contains("m.*.experts.up – 0: 8"), "{map}");
    }
}
