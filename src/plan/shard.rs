//! The parts of a job that is divided, and where rows are cut.

use super::{Plan, PlannedSite, SiteRows, cost};
use crate::activations::Site;
use crate::simd::BLOCK_ROWS;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// One of several parts of a job, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Which one, below `count`.
    pub index: u64,
    /// How many there are, at least one.
    pub count: u64,
}

impl Shard {
    /// Part `index` of `count`; `None` if there is no such part.
    pub fn new(index: u64, count: u64) -> Option<Self> {
        (index < count).then_some(Self { index, count })
    }

    /// The name of its output, such that parts are in order of name.
    pub fn file_name(self, ending: &str) -> String {
        format!("part-{:05}-of-{:05}{ending}", self.index, self.count)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

impl FromStr for Shard {
    type Err = String;

    /// Parses `I/N`.
    fn from_str(text: &str) -> Result<Self, String> {
        let numbers =
            text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
        let shard = numbers.and_then(|(index, count)| Self::new(index, count));
        shard.ok_or_else(|| "expected I/N with I from 0 to N - 1, such as 0/4".into())
    }
}

/// A place between two blocks: a site, and the first of its rows that is behind it.
type Cut = (usize, u64);

/// What a part does of the work on these sites: rows from one cut to the next, so that all parts have about the same work, counted as
/// rows times the square of their width. Sites stay in order, and a site without rows in this part is left out. Counts of tokens are
/// no work, and all of a site are of one part.
pub(super) fn part_of(shard: Shard, sites: &[&Site]) -> Vec<SiteRows> {
    let (first, end) = (cut(shard.index, shard.count, sites), cut(shard.index + 1, shard.count, sites));
    let mut part = Vec::new();
    for (index, site) in sites.iter().enumerate() {
        let row_at = |cut: Cut| match index.cmp(&cut.0) {
            std::cmp::Ordering::Less => site.rows(),
            std::cmp::Ordering::Equal => cut.1,
            std::cmp::Ordering::Greater => 0,
        };
        // Rows that come before a cut, less those that come before the one in front of it.
        let rows = row_at(first)..row_at(end);
        if !rows.is_empty() {
            part.push(SiteRows::of(site, rows));
        }
    }
    part
}

/// The first place between two blocks with at least `index / count` of the work before it; the first and the last have all sites between
/// them, also those that are no work.
fn cut(index: u64, count: u64, sites: &[&Site]) -> Cut {
    match index {
        0 => return (0, 0),
        _ if index == count => return (sites.len(), 0),
        _ => {}
    }
    let cost_of_row = |site: &Site| (site.width as u128).saturating_mul(site.width as u128);
    let rows = |site: &Site| site.parts().iter().map(|part| u128::from(part.rows)).sum::<u128>();
    let cost = |site: &&Site| cost_of_row(site).saturating_mul(rows(site));
    let total = sites.iter().map(cost).fold(0, u128::saturating_add);
    // Not by multiplication first: the total may be any u128.
    let (whole, rest) = (total / u128::from(count), total % u128::from(count));
    let target = whole * u128::from(index) + rest * u128::from(index) / u128::from(count);
    let mut before = 0u128;
    for (place, site) in sites.iter().enumerate() {
        let mut row = 0;
        for part in site.parts() {
            let needed = target.saturating_sub(before).div_ceil(cost_of_row(site));
            let blocks = needed.div_ceil(BLOCK_ROWS as u128).saturating_mul(BLOCK_ROWS as u128);
            if needed <= u128::from(part.rows) {
                let rows = u64::try_from(blocks).map_or(part.rows, |rows| rows.min(part.rows));
                return (place, row + rows);
            }
            before = before.saturating_add(cost_of_row(site).saturating_mul(u128::from(part.rows)));
            row = row.saturating_add(part.rows);
        }
    }
    (sites.len(), 0)
}

/// The sites of a part: those with most work are dealt out first, each to the part that has least so far.
pub(super) fn sites_of(plan: &Plan, shard: Shard) -> Vec<&PlannedSite> {
    let work = |site: &PlannedSite| {
        let work = cost::work(std::slice::from_ref(site), &plan.method);
        work.moments + work.factors
    };
    let mut sites: Vec<(f64, &PlannedSite)> = plan.sites.iter().map(|site| (work(site), site)).collect();
    // Stable: equal work in order of name.
    sites.sort_by(|a, b| b.0.total_cmp(&a.0));
    // There are never more parts with work than there are sites.
    let parts = usize::try_from(shard.count).map_or(sites.len(), |count| count.min(sites.len()));
    let mut loads = vec![0.0; parts];
    let mut part = Vec::new();
    for (work, site) in sites {
        let least = (0..parts).min_by(|&a, &b| f64::total_cmp(&loads[a], &loads[b])).unwrap_or(0);
        loads[least] += work;
        if least as u64 == shard.index {
            part.push(site);
        }
    }
    part.sort_by(|a, b| a.name.cmp(&b.name));
    part
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activations::ActivationSet;
    use crate::storage::{Source, safetensors};
    use quickcheck::quickcheck;

    /// Files in which sites of these widths have these rows, and those of width 0 have counts of three tokens.
    fn set(widths: &[u64], files: &[u64]) -> ActivationSet {
        let file = |(index, rows): (usize, &u64)| {
            let tensors = widths.iter().enumerate().map(|(site, width)| {
                let tensor = match width {
                    0 => ("U8".to_owned(), vec![3], vec![5, 0, 7]),
                    _ => ("F16".to_owned(), vec![*rows, *width], vec![0; (2 * rows * width) as usize]),
                };
                (format!("{site:03}"), tensor)
            });
            let mut bytes = Vec::new();
            safetensors::write(&mut bytes, &Default::default(), &tensors.collect()).unwrap();
            Source::from_bytes(&format!("{index}.safetensors"), bytes)
        };
        ActivationSet::from_sources(files.iter().enumerate().map(file).collect()).unwrap()
    }

    quickcheck! {
        /// The parts are all rows, each once and in order; they begin and end where blocks do; none has more than its share
        /// but for a block; and counts of tokens are in one piece.
        fn parts_are_the_whole(widths: Vec<u8>, files: Vec<u16>, count: u8) -> bool {
            let widths: Vec<u64> = widths.iter().take(5).map(|width| u64::from(width % 7)).chain([3]).collect();
            let files: Vec<u64> = files.iter().take(4).map(|rows| u64::from(rows % 3000)).chain([600]).collect();
            let set = set(&widths, &files);
            let sites: Vec<&Site> = set.sites().collect();
            let count = u64::from(count % 9) + 1;
            let mut next: Vec<(String, u64)> = Vec::new();
            let borders: Vec<u64> = files.iter().scan(0, |first, rows| {
                let part = (*first, *first + rows);
                *first += rows;
                Some((part.0..part.1).step_by(BLOCK_ROWS).chain([part.1]))
            }).flatten().collect();
            let rows = |site: &&&Site| site.counts().is_none();
            let total: u128 =
                sites.iter().filter(rows).map(|site| u128::from(site.rows()) * (site.width * site.width) as u128).sum();
            let mut fair = true;
            for index in 0..count {
                let mut work = 0u128;
                for SiteRows { name, width, counts, rows, .. } in part_of(Shard::new(index, count).unwrap(), &sites) {
                    if counts {
                        fair &= rows == (0..12 * files.len() as u64);
                        next.push((name, rows.end));
                        continue;
                    }
                    fair &= borders.contains(&rows.start) && borders.contains(&rows.end);
                    work += u128::from(rows.end - rows.start) * (width * width) as u128;
                    match next.last_mut().filter(|(last, _)| *last == name) {
                        Some((_, row)) => {
                            fair &= *row == rows.start;
                            *row = rows.end;
                        }
                        None => {
                            fair &= rows.start == 0;
                            next.push((name, rows.end));
                        }
                    }
                }
                fair &= work <= total / u128::from(count) + 1 + (BLOCK_ROWS * 36) as u128;
            }
            let all: Vec<(String, u64)> = sites.iter().map(|site| (site.name.clone(), site.rows())).collect();
            fair && next == all
        }
    }

    #[test]
    fn shards_are_written_as_i_of_n() {
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, count: 3 }));
        assert_eq!(Shard { index: 2, count: 3 }.to_string(), "2/3");
        assert_eq!(Shard { index: 2, count: 30 }.file_name(".x"), "part-00002-of-00030.x");
        for text in ["", "3", "3/3", "0/0", "-1/2", "1/2/3", "a/b"] {
            assert!(text.parse::<Shard>().unwrap_err().starts_with("expected I/N"), "{text}");
        }
    }
}
