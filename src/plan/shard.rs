//! The parts of a divided job, and the borders between them.

use super::{Plan, PlannedSite, SiteRows, cost};
use crate::activations::Site;
use crate::simd::BLOCK_ROWS;
use serde::{Deserialize, Serialize};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fmt;
use std::str::FromStr;

/// One of several parts of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Index of the part, from 0.
    pub index: u64,
    /// Number of parts, at least one.
    pub count: u64,
}

impl Shard {
    /// Part `index` of `count`; `None` if there is no such part.
    pub fn new(index: u64, count: u64) -> Option<Self> {
        (index < count).then_some(Self { index, count })
    }

    /// The name of its output. The names of all parts sort by index.
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
        shard.ok_or_else(|| "expected I/N with I from 0 to N - 1, for example 0/4".into())
    }
}

/// A border between two blocks: a site, and the first row after the border.
type Cut = (usize, u64);

/// The rows of one part: from one cut to the next. All parts have about the same work, which is the number of rows times the square of
/// the width. Sites keep their order. Sites without rows in this part are omitted. Token counts need no work, and those of a site
/// belong to one part.
pub(super) fn part_of(shard: Shard, sites: &[&Site]) -> Vec<SiteRows> {
    let (first, end) = (cut(shard.index, shard.count, sites), cut(shard.index + 1, shard.count, sites));
    let mut part = Vec::new();
    for (index, site) in sites.iter().enumerate() {
        let row_at = |cut: Cut| match index.cmp(&cut.0) {
            Ordering::Less => site.rows(),
            Ordering::Equal => cut.1,
            Ordering::Greater => 0,
        };
        // Rows before the end of the part, without the rows before its start.
        let rows = row_at(first)..row_at(end);
        if !rows.is_empty() {
            part.push(SiteRows::of(site, rows));
        }
    }
    part
}

/// The first border with at least `index / count` of the work before it. The first and the last border enclose all sites, also those
/// without work.
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
    // Division comes first, because the product can overflow.
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

/// The work of a part so far, and its index. Of parts with equal work, the first is the least.
#[derive(Clone, Copy, Debug)]
struct Load(f64, usize);

impl Ord for Load {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0).then(self.1.cmp(&other.1))
    }
}

impl PartialOrd for Load {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Load {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Load {}

/// The sites of a part. Sites are assigned in order of decreasing work, each to the part with the least work so far.
pub(super) fn sites_of(plan: &Plan, shard: Shard) -> Vec<&PlannedSite> {
    let work = |site: &PlannedSite| {
        let work = cost::work(std::slice::from_ref(site), &plan.method);
        work.moments + work.factors
    };
    let mut sites: Vec<(f64, &PlannedSite)> = plan.sites.iter().map(|site| (work(site), site)).collect();
    // The sort is stable: sites with equal work keep the order of their names.
    sites.sort_by(|a, b| b.0.total_cmp(&a.0));
    // The number of parts with work is at most the number of sites.
    let parts = usize::try_from(shard.count).map_or(sites.len(), |count| count.min(sites.len()));
    let mut loads: BinaryHeap<Reverse<Load>> = (0..parts).map(|part| Reverse(Load(0.0, part))).collect();
    let mut part = Vec::new();
    for (work, site) in sites {
        // Without sites there are no parts.
        let Some(mut least) = loads.peek_mut() else { break };
        least.0.0 += work;
        if least.0.1 as u64 == shard.index {
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
    use expect_test::expect;
    use quickcheck::quickcheck;

    /// Files with sites of these widths and numbers of rows. A site of width 0 has counts of three tokens.
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
        /// The parts contain every row exactly once, in order. They start and end at borders of blocks. No part has more than its
        /// share and one block. Token counts are not divided.
        fn parts_contain_every_row_once(widths: Vec<u8>, files: Vec<u16>, count: u8) -> bool {
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
    fn shards_have_the_form_i_of_n() {
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, count: 3 }));
        assert_eq!(Shard { index: 2, count: 3 }.to_string(), "2/3");
        assert_eq!(Shard { index: 2, count: 30 }.file_name(".x"), "part-00002-of-00030.x");
        let errors =
            ["", "3", "3/3", "0/0", "-1/2", "1/2/3", "a/b"].map(|text| text.parse::<Shard>().unwrap_err());
        assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
        expect!["expected I/N with I from 0 to N - 1, for example 0/4"].assert_eq(&errors[0]);
    }
}
