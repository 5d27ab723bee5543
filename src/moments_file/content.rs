//! What a moments file says of itself: its metadata, without the sums.

use super::RowRanges;
use crate::moments::Counts;
use crate::simd::Precision;
use crate::storage::json::UniqueKeys;
use crate::storage::{Problem, quoted};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// What kind of file it is.
const FORMAT: &str = "moments";

/// The newest version of the metadata that this program reads. A file is of the oldest version that has all that it holds: sums over
/// rows are in version 1, counts of tokens from 2 on.
const VERSION: u64 = 2;

/// What was measured, and from what.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// What Gram matrices were computed with.
    pub precision: Precision,
    /// The sites by name.
    pub sites: BTreeMap<String, MeasuredSite>,
    /// The files that rows were read from, in reading order.
    pub sources: Vec<MeasuredSource>,
    /// Which part of a divided measurement this is, if it is one. It may be one without sites.
    pub part: Option<Part>,
}

/// A part of a measurement that was divided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Which one, from 0.
    pub index: u64,
    /// How many there are.
    pub count: u64,
    /// What the parts of one measurement have in common, and those of others do not.
    pub whole: String,
}

/// A site that was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredSite {
    /// Numbers per row, at least one; of an embedding the tokens of its vocabulary.
    pub width: usize,
    /// Whether tokens were counted, in place of rows that were added.
    pub counts: bool,
    /// Runtime names of the modules that read it, in order.
    pub modules: Vec<String>,
    /// Rows that were left out of the sums because they held NaN or infinity.
    pub skipped_rows: u64,
}

/// A file that rows were read from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredSource {
    /// Its path, as it was named.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// What tells it from other files: [`fingerprint`](crate::storage::fingerprint).
    pub fingerprint: String,
    /// The rows of each site that were read, counted within this file; of an embedding as many as it met tokens.
    #[serde(deserialize_with = "unique_keys")]
    pub rows: BTreeMap<String, RowRanges>,
}

impl MeasuredSource {
    /// Rows that another source of the same fingerprint has as well, and their site; the first ones.
    pub(crate) fn first_in_common<'a>(&'a self, other: &Self) -> Option<(&'a str, Range<u64>)> {
        self.rows.iter().find_map(|(site, rows)| Some((site.as_str(), other.rows.get(site)?.overlap(rows)?)))
    }
}

/// Whether metadata are those of a moments file, sound or not.
pub(super) fn claims(text: &str) -> bool {
    serde_json::from_str(text).is_ok_and(|Kind { format, .. }| format == FORMAT)
}

impl Content {
    /// Rows of a site that were read, skipped ones included.
    pub fn rows(&self, site: &str) -> u64 {
        let rows = self.sources.iter().filter_map(|source| source.rows.get(site));
        rows.map(RowRanges::count).fold(0, u64::saturating_add)
    }

    /// The metadata as JSON, with a hash of the sums of each site.
    pub(super) fn to_text(&self, hashes: &BTreeMap<&str, String>) -> String {
        let sites = self.sites.iter().map(|(name, site)| {
            let MeasuredSite { width, counts, modules, skipped_rows } = site.clone();
            let sha256 = hashes.get(name.as_str()).cloned().unwrap_or_default();
            (name.clone(), SiteText { width: width as u64, counts, modules, skipped_rows, sha256 })
        });
        let version = if self.sites.values().any(|site| site.counts) { VERSION } else { 1 };
        let text = Text {
            kind: Kind { format: FORMAT.into(), version },
            tool_version: env!("CARGO_PKG_VERSION").into(),
            precision: self.precision,
            sites: sites.collect(),
            sources: self.sources.clone(),
            part: self.part.clone(),
        };
        serde_json::to_string(&text).expect("text and integers can be written to memory")
    }

    /// Reads metadata, and the hash of the sums of each site.
    pub(super) fn parse(text: &str) -> Result<(Self, BTreeMap<String, String>), Problem> {
        let kind: Kind = serde_json::from_str(text).map_err(malformed)?;
        if kind.format != FORMAT {
            let what = format!("expected a file of moments, found one of {}", quoted(&kind.format));
            return Err(Problem::data(what).help("make moments of activations with `cntlora moments`"));
        }
        if kind.version > VERSION {
            let what = format!(
                "expected version {VERSION} of the moments file or an older one, found {}",
                kind.version
            );
            return Err(Problem::data(what).help("it was written by a newer version: update cntlora"));
        }
        let text: Text = serde_json::from_str(text).map_err(malformed)?;
        let mut hashes = BTreeMap::new();
        let mut sites = BTreeMap::new();
        for (name, site) in text.sites {
            let SiteText { width, counts, modules, skipped_rows, sha256 } = site;
            let refused = |what: &str| Err(Problem::data(what).in_tensor(&name));
            let width = match usize::try_from(width) {
                Ok(width) if width > 0 => width,
                _ => {
                    return refused(&format!(
                        "expected a width of at least 1 that fits in memory, found {width}"
                    ));
                }
            };
            if counts && width > Counts::MOST {
                let most = Counts::MOST;
                return refused(&format!("expected counts of at most {most} tokens, found {width}"));
            }
            if modules.is_empty() {
                return refused("expected at least one module that reads this site, found none");
            }
            hashes.insert(name.clone(), sha256);
            sites.insert(name, MeasuredSite { width, counts, modules, skipped_rows });
        }
        if let Some(Part { index, count, .. }) = text.part
            && index >= count
        {
            return Err(Problem::data(format!("expected a part below {count}, found part {index}")));
        }
        let content = Self { precision: text.precision, sites, sources: text.sources, part: text.part };
        content.check_rows()?;
        Ok((content, hashes))
    }

    /// Every row belongs to a site, and every site has rows.
    fn check_rows(&self) -> Result<(), Problem> {
        let named = self.sources.iter().flat_map(|source| source.rows.keys());
        if let Some(stranger) = named.into_iter().find(|site| !self.sites.contains_key(*site)) {
            let what =
                format!("its sources have rows of the site {}, which it does not hold", quoted(stranger));
            return Err(Problem::data(what));
        }
        match self.sites.keys().find(|site| self.rows(site) == 0) {
            Some(site) => {
                Err(Problem::data("expected rows of this site in its sources, found none").in_tensor(site))
            }
            None => Ok(()),
        }
    }
}

fn malformed(error: serde_json::Error) -> Problem {
    Problem::data(format!("the metadata entry \"cntlora\" is not that of a moments file: {error}"))
        .help("make moments of activations with `cntlora moments`")
}

#[derive(Serialize, Deserialize)]
struct Kind {
    format: String,
    version: u64,
}

/// The metadata as they stand in the file.
#[derive(Serialize, Deserialize)]
struct Text {
    #[serde(flatten)]
    kind: Kind,
    tool_version: String,
    precision: Precision,
    #[serde(deserialize_with = "unique_keys")]
    sites: BTreeMap<String, SiteText>,
    sources: Vec<MeasuredSource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    part: Option<Part>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteText {
    width: u64,
    #[serde(default, skip_serializing_if = "is_false")]
    counts: bool,
    modules: Vec<String>,
    skipped_rows: u64,
    /// Of the sums: count, sum, Gram triangle and maxima, or the counts of tokens, in little-endian bytes.
    sha256: String,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn unique_keys<'de, D, T>(deserializer: D) -> Result<BTreeMap<String, T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    UniqueKeys::deserialize(deserializer).map(|keys| keys.0)
}
