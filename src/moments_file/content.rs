//! The metadata of a moments file.

use super::RowRanges;
use crate::moments::Counts;
use crate::simd::Precision;
use crate::storage::json::UniqueKeys;
use crate::storage::{Problem, Schema, quoted};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// The metadata. A file has the oldest version that supports its content: version 1 has sums over rows, version 2 also counts of tokens,
/// version 3 also numbers of rows that are all zero.
const SCHEMA: Schema = Schema {
    format: "moments",
    newest: 3,
    name: "moments metadata",
    help: "measure activations with `cntlora moments`",
};

/// The measured sites, and their sources.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// Precision of the Gram matrices.
    pub precision: Precision,
    /// The sites by name.
    pub sites: BTreeMap<String, MeasuredSite>,
    /// The source files of the rows, in reading order.
    pub sources: Vec<MeasuredSource>,
    /// The part of a divided measurement, if it is one. A part can have no sites.
    pub part: Option<Part>,
}

/// A part of a divided measurement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Index of the part, from 0.
    pub index: u64,
    /// Number of parts.
    pub count: u64,
    /// Identifies the measurement. It is equal for all its parts.
    pub whole: String,
}

/// A measured site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredSite {
    /// Numbers per row, at least one; for an embedding, tokens of the vocabulary.
    pub width: usize,
    /// True for token counts, false for sums of rows.
    pub counts: bool,
    /// Runtime names of the modules that read it, sorted.
    pub modules: Vec<String>,
    /// Number of rows that were skipped because of NaN or infinity.
    pub skipped_rows: u64,
}

impl MeasuredSite {
    /// The kind of the site, in words.
    pub(super) fn kind(&self) -> String {
        match self.counts {
            true => format!("counts of {} tokens", self.width),
            false => format!("rows of {} numbers", self.width),
        }
    }

    /// Compares with the same site in other moments, whose sums can be added if all but the skipped rows is equal.
    ///
    /// # Errors
    /// The difference, in words. `before` says where this site is, as in "in the files before".
    pub(super) fn check_same(&self, other: &Self, before: &str) -> Result<(), String> {
        if (self.width, self.counts) != (other.width, other.counts) {
            return Err(format!("expected {} as {before}, found {}", self.kind(), other.kind()));
        }
        if self.modules != other.modules {
            let list =
                |modules: &[String]| modules.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
            let (expected, found) = (list(&self.modules), list(&other.modules));
            return Err(format!("expected the modules {expected} as {before}, found {found}"));
        }
        Ok(())
    }
}

/// A source file of rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredSource {
    /// Its path, as the user gave it.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// Its [`fingerprint`](crate::storage::fingerprint).
    pub fingerprint: String,
    /// The rows that were read for each site, as ranges within this file; for an embedding, as many as counted tokens.
    #[serde(deserialize_with = "unique_keys")]
    pub rows: BTreeMap<String, RowRanges>,
}

impl MeasuredSource {
    /// Adds a source to others. Rows of the same file are put together.
    pub(super) fn join(sources: &mut Vec<Self>, source: &Self) {
        match sources.iter_mut().find(|known| known.fingerprint == source.fingerprint) {
            None => sources.push(source.clone()),
            Some(known) => known.extend(source),
        }
    }

    /// Adds the rows of another source with the same fingerprint.
    pub(super) fn extend(&mut self, other: &Self) {
        for (site, rows) in &other.rows {
            self.rows.entry(site.clone()).or_default().extend(rows);
        }
    }

    /// The first rows, with their site, that another source with the same fingerprint also contains.
    pub(crate) fn first_in_common<'a>(&'a self, other: &Self) -> Option<(&'a str, Range<u64>)> {
        self.rows.iter().find_map(|(site, rows)| Some((site.as_str(), other.rows.get(site)?.overlap(rows)?)))
    }
}

/// Returns whether metadata claim to be those of a moments file, valid or not.
pub(super) fn claims(text: &str) -> bool {
    SCHEMA.claims(text.as_bytes())
}

impl Content {
    /// Number of rows that were read of a site, including skipped ones.
    pub fn rows(&self, site: &str) -> u64 {
        let rows = self.sources.iter().filter_map(|source| source.rows.get(site));
        rows.map(RowRanges::count).fold(0, u64::saturating_add)
    }

    /// As [`rows`](Self::rows), for all sites with rows.
    pub fn rows_of_sites(&self) -> BTreeMap<&str, u64> {
        let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
        for (site, rows) in self.sources.iter().flat_map(|source| &source.rows) {
            let sum = sums.entry(site).or_default();
            *sum = sum.saturating_add(rows.count());
        }
        sums
    }

    /// The metadata as JSON, with what they state about the sums of each site.
    pub(super) fn to_text(&self, stated: &BTreeMap<&str, Stated>) -> String {
        let sites = self.sites.iter().map(|(name, site)| {
            let MeasuredSite { width, counts, modules, skipped_rows } = site.clone();
            let Stated { sha256, zero_rows } = stated.get(name.as_str()).cloned().unwrap_or_default();
            (name.clone(), SiteText { width: width as u64, counts, modules, skipped_rows, zero_rows, sha256 })
        });
        let version = match () {
            () if stated.values().any(|site| site.zero_rows > 0) => 3,
            () if self.sites.values().any(|site| site.counts) => 2,
            () => 1,
        };
        let text = Text {
            format: SCHEMA.format.into(),
            version,
            tool_version: env!("CARGO_PKG_VERSION").into(),
            precision: self.precision,
            sites: sites.collect(),
            sources: self.sources.clone(),
            part: self.part.clone(),
        };
        serde_json::to_string(&text).expect("text and integers can be written to memory")
    }

    /// Reads metadata, and what they state about the sums of each site.
    pub(super) fn parse(text: &str) -> Result<(Self, BTreeMap<String, Stated>), Problem> {
        let text: Text = SCHEMA.parse(text.as_bytes())?;
        let mut stated = BTreeMap::new();
        let mut sites = BTreeMap::new();
        for (name, site) in text.sites {
            let SiteText { width, counts, modules, skipped_rows, zero_rows, sha256 } = site;
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
                return refused("this site has no modules");
            }
            stated.insert(name.clone(), Stated { sha256, zero_rows });
            sites.insert(name, MeasuredSite { width, counts, modules, skipped_rows });
        }
        if let Some(Part { index, count, .. }) = text.part
            && index >= count
        {
            return Err(Problem::data(format!("expected a part below {count}, found part {index}")));
        }
        let content = Self { precision: text.precision, sites, sources: text.sources, part: text.part };
        content.check_rows()?;
        Ok((content, stated))
    }

    /// Checks that every row belongs to a site, and that every site has rows.
    fn check_rows(&self) -> Result<(), Problem> {
        let rows = self.rows_of_sites();
        if let Some(stranger) = rows.keys().find(|site| !self.sites.contains_key(**site)) {
            let what = format!(
                "the sources contain rows of the site {}, which is not in the file",
                quoted(stranger)
            );
            return Err(Problem::data(what));
        }
        match self.sites.keys().find(|site| rows.get(site.as_str()).is_none_or(|rows| *rows == 0)) {
            Some(site) => Err(Problem::data("the sources contain no rows of this site").in_tensor(site)),
            None => Ok(()),
        }
    }
}

/// The statements of the metadata about the sums of a site.
#[derive(Clone, Debug, Default)]
pub(super) struct Stated {
    /// Their hash.
    pub(super) sha256: String,
    /// Number of rows that are all zero.
    pub(super) zero_rows: u64,
}

/// The JSON of the metadata.
#[derive(Serialize, Deserialize)]
struct Text {
    format: String,
    version: u64,
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
    /// Number of rows that are all zero. Older files do not have it.
    #[serde(default, skip_serializing_if = "is_zero")]
    zero_rows: u64,
    /// Hash of the sums in little-endian bytes: count, sum, Gram triangle and maxima, or the token counts.
    sha256: String,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
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
