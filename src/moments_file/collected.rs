//! Moments in memory: of the sites of a model, while its rows are computed.

use super::collected_site::CollectedSite;
use super::{Content, MeasuredSite, MeasuredSource, MomentsSet, RowRanges, SiteSums, to_bytes, write};
use crate::error::Error;
use crate::initializer::{AnyRows, Statistics, Together};
use crate::moments::{Counts, Moments, RowsOrTokens};
use crate::simd::{Precision, Tier, Workspace};
use crate::storage::{Hashing, Problem, Problems, quoted};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// The moments of several sites, which grow while rows are added.
///
/// The sums of a site have the bits of a moments file that is measured from one recording with the same rows in one tensor of the same
/// number format: rows are cut into blocks from the first row on.
#[derive(Debug)]
pub struct Collected {
    precision: Precision,
    /// True if rows with NaN or infinity are skipped.
    skips_nonfinite: bool,
    /// All sites share it.
    together: Together,
    sites: BTreeMap<String, CollectedSite>,
    /// The sources of rows that were measured before. Rows that were added here belong to none of them.
    sources: Vec<MeasuredSource>,
    /// Bytes of the rows that were added here.
    bytes: u64,
    /// The problem of a row. The sums can contain a part of the rows that were added with it, so they are not used.
    refused: Option<Problem>,
}

impl Collected {
    /// The name of these moments in messages, and of the rows before they have a file.
    pub const NAME: &str = "statistics in memory";

    /// The moments of no sites. With `skips_nonfinite`, rows with NaN or infinity are skipped and counted, in place of an error.
    ///
    /// # Errors
    /// A usage problem if this processor does not support the precision.
    pub fn new(precision: Precision, skips_nonfinite: bool) -> Result<Self, Problem> {
        let workspace = Workspace::new(Tier::best(), precision)
            .map_err(|error| Problem::usage(error.to_string()).help("remove the precision"))?;
        let (together, sites, sources) = (Together::new(workspace), BTreeMap::new(), Vec::new());
        Ok(Self { precision, skips_nonfinite, together, sites, sources, bytes: 0, refused: None })
    }

    /// Moments that begin with those of files.
    ///
    /// # Errors
    /// As [`MomentsSet::read`], and as [`new`](Self::new).
    pub fn from_set(set: &MomentsSet) -> Result<Self, Problem> {
        let content = set.content();
        let mut collected = Self::new(content.precision, false)?;
        for (name, site) in &content.sites {
            let sums = match set.counts(name) {
                Some(counts) => RowsOrTokens::Tokens(counts.counts().to_vec()),
                None => RowsOrTokens::Rows(Some(Box::new(collected.statistics(set.read(name)?)?))),
            };
            let (modules, width) = (site.modules.clone(), site.width);
            let site = CollectedSite { modules, width, sums, skipped: site.skipped_rows };
            collected.sites.insert(name.clone(), site);
        }
        collected.sources = content.sources.clone();
        Ok(collected)
    }

    /// Statistics that begin with sums.
    fn statistics(&self, moments: Moments) -> Result<Statistics, Problem> {
        let statistics = Statistics::with_precision(moments, self.precision);
        let statistics = statistics.map_err(|error| Problem::usage(error.to_string()))?;
        Ok(match self.skips_nonfinite {
            true => statistics.skipping_nonfinite(),
            false => statistics,
        })
    }

    /// Precision of the Gram matrices.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The sites by name, also those without rows.
    pub fn sites(&self) -> &BTreeMap<String, CollectedSite> {
        &self.sites
    }

    /// Adds a site, or modules to a site. `width` is the number of numbers per row, or of tokens of the vocabulary if `tokens`.
    ///
    /// # Errors
    /// A usage problem for a width that is zero or too large, no modules, or a site that is known with another width or kind.
    pub fn declare(
        &mut self,
        name: &str,
        modules: &[String],
        width: usize,
        tokens: bool,
    ) -> Result<(), Problem> {
        let refuse = |what: String| Err(of_site(name, Problem::usage(what)));
        if modules.is_empty() {
            return refuse("no modules were given".into());
        }
        if width == 0 || (tokens && width > Counts::MOST) {
            let most = if tokens { format!(" and at most {}", Counts::MOST) } else { String::new() };
            return refuse(format!("expected a width of at least 1{most}, found {width}"));
        }
        let sums = if tokens { RowsOrTokens::Tokens(Vec::new()) } else { RowsOrTokens::Rows(None) };
        let site = self.sites.entry(name.to_owned()).or_insert_with(|| CollectedSite {
            modules: Vec::new(),
            width,
            sums,
            skipped: 0,
        });
        if (site.width, site.is_tokens()) != (width, tokens) {
            let kind =
                |width, tokens| MeasuredSite { width, counts: tokens, modules: vec![], skipped_rows: 0 };
            let (expected, found) = (kind(site.width, site.is_tokens()).kind(), kind(width, tokens).kind());
            return refuse(format!("was declared with {expected} before, and now with {found}"));
        }
        site.modules.extend_from_slice(modules);
        site.modules.sort();
        site.modules.dedup();
        Ok(())
    }

    /// Removes a site with its sums.
    pub fn remove(&mut self, name: &str) {
        self.sites.remove(name);
        for source in &mut self.sources {
            source.rows.remove(name);
        }
        self.sources.retain(|source| !source.rows.is_empty());
    }

    /// Gives some modules of a site a new site with a copy of its sums. With all of its modules, the site gets the new name.
    ///
    /// Sites are separated when modules that read the same rows so far begin to read different ones.
    ///
    /// # Errors
    /// A usage problem for an unknown site, no modules, modules that the site does not have, and a name that another site has.
    pub fn split(&mut self, name: &str, modules: &[String], new: &str) -> Result<(), Problem> {
        self.check_usable()?;
        let site = known(&self.sites, name)?;
        let refuse = |what: String| Err(of_site(name, Problem::usage(what)));
        if modules.is_empty() {
            return refuse("no modules were given".into());
        }
        if let Some(other) = modules.iter().find(|module| !site.modules.contains(module)) {
            return refuse(format!("has no module {}", quoted(other)));
        }
        let (moved, rest): (Vec<_>, Vec<_>) =
            site.modules.iter().cloned().partition(|module| modules.contains(module));
        if (new != name || !rest.is_empty()) && self.sites.contains_key(new) {
            return refuse(format!("cannot be divided: there is a site {} already", quoted(new)));
        }
        let sums = match &site.sums {
            RowsOrTokens::Rows(Some(sums)) => {
                RowsOrTokens::Rows(Some(Box::new(self.statistics(sums.moments().into_owned())?)))
            }
            RowsOrTokens::Rows(None) => RowsOrTokens::Rows(None),
            RowsOrTokens::Tokens(counts) => RowsOrTokens::Tokens(counts.clone()),
        };
        let copy = CollectedSite { modules: moved, width: site.width, sums, skipped: site.skipped() };
        for source in &mut self.sources {
            let rows = source.rows.get(name).cloned();
            source.rows.extend(rows.map(|rows| (new.to_owned(), rows)));
        }
        if rest.is_empty() {
            if new != name {
                self.remove(name);
            }
        } else if let Some(site) = self.sites.get_mut(name) {
            site.modules = rest;
        }
        self.sites.insert(new.to_owned(), copy);
        Ok(())
    }

    /// Takes rows of a site. They count, but full blocks wait for [`multiply`](Self::multiply), so that those of many sites are multiplied
    /// side by side. Call it after each forward pass, and when it [`is_due`](Self::is_due).
    ///
    /// # Errors
    /// A usage problem for an unknown site, for one that counts tokens, and for rows of another width; a data problem for a number that is
    /// not finite as an f32, unless such rows are skipped. After that, the sums cannot be used any more.
    pub fn add_rows<'a>(&mut self, name: &str, rows: impl Into<AnyRows<'a>>) -> Result<(), Problem> {
        self.check_usable()?;
        let rows = rows.into();
        let site = known(&self.sites, name)?;
        let (width, bytes) = (site.width, rows.bytes());
        match &site.sums {
            RowsOrTokens::Rows(Some(_)) => {}
            RowsOrTokens::Rows(None) => {
                let moments = Moments::try_new(width).ok_or_else(|| {
                    let bytes = Moments::memory(width as u64);
                    of_site(
                        name,
                        Problem::environment(format!("not enough memory for {bytes} bytes of moments")),
                    )
                })?;
                let statistics = Box::new(self.statistics(moments)?);
                if let Some(site) = self.sites.get_mut(name) {
                    site.sums = RowsOrTokens::Rows(Some(statistics));
                }
            }
            RowsOrTokens::Tokens(_) => {
                return Err(of_site(name, Problem::usage("counts tokens, but rows of numbers were given")));
            }
        }
        let Some(CollectedSite { sums: RowsOrTokens::Rows(Some(statistics)), .. }) = self.sites.get_mut(name)
        else {
            unreachable!("the site was prepared for rows");
        };
        let before = statistics.count() + statistics.skipped();
        match statistics.take(rows) {
            Ok(()) => {
                self.bytes = self.bytes.saturating_add(bytes);
                Ok(())
            }
            Err(Error::NonFiniteRow { row, column }) => {
                let row = before + row as u64;
                let what = format!("row {row}, column {column} is not a finite f32 number");
                let problem = of_site(name, Problem::data(what)).help(
                    "find the inputs with which the model computes such numbers, or skip such rows with nonfinite=\"skip-rows\"",
                );
                self.refused = Some(problem.clone());
                Err(problem)
            }
            Err(other) => Err(of_site(name, Problem::usage(other.to_string()))),
        }
    }

    /// Adds the blocks that wait to the sums, on the current rayon pool.
    pub fn multiply(&mut self) {
        let statistics = self.sites.values_mut().filter_map(|site| match &mut site.sums {
            RowsOrTokens::Rows(Some(statistics)) => Some(&mut **statistics),
            _ => None,
        });
        self.together.multiply(statistics);
    }

    /// True if the blocks that wait need more memory than [`memory`](Self::memory) counts for them.
    pub fn is_due(&self) -> bool {
        let bytes = self.sites.values().map(CollectedSite::waiting_bytes).sum::<u64>();
        bytes > most_waiting(self.sites.values())
    }

    /// Counts tokens of the vocabulary of a site.
    ///
    /// # Errors
    /// A usage problem for an unknown site and for one that has rows; a data problem for a token outside of the vocabulary: then no token
    /// was counted.
    pub fn add_tokens(&mut self, name: &str, tokens: &[i64]) -> Result<(), Problem> {
        self.check_usable()?;
        known(&self.sites, name)?;
        let Some(CollectedSite { sums: RowsOrTokens::Tokens(counts), width, .. }) = self.sites.get_mut(name)
        else {
            return Err(of_site(name, Problem::usage("has rows of numbers, but tokens were given")));
        };
        let index = |token: i64| usize::try_from(token).ok().filter(|index| index < width);
        if let Some((place, token)) = tokens.iter().enumerate().find(|(_, token)| index(**token).is_none()) {
            let what = format!("token {token} at place {place} is not in the vocabulary of {width} tokens");
            let problem = of_site(name, Problem::data(what));
            return Err(problem.help("check that the tokenizer belongs to the model"));
        }
        counts.resize(*width, 0);
        tokens.iter().filter_map(|&token| index(token)).for_each(|index| counts[index] += 1);
        self.bytes = self.bytes.saturating_add(size_of_val(tokens) as u64);
        Ok(())
    }

    /// Adds the moments of further rows. The sums have the bits of `cntlora merge` of both files.
    ///
    /// # Errors
    /// A usage problem for another precision; data problems for a site with another width, kind or modules, and for rows that both count.
    pub fn merge(&mut self, other: &Self) -> Result<(), Problems> {
        self.check_usable()?;
        other.check_usable()?;
        let mut problems = Problems::default();
        if self.precision != other.precision {
            let what = format!("expected moments in precision {}, found {}", self.precision, other.precision);
            problems.push(Problem::usage(what));
        }
        for (name, site) in &other.sites {
            let Some(known) = self.sites.get(name) else { continue };
            if let Err(what) = known.measured().check_same(&site.measured(), "before") {
                problems.push(of_site(name, Problem::data(what)));
            }
        }
        let mut sources = self.all_sources(Self::NAME)?;
        for source in other.all_sources(Self::NAME)? {
            let same = sources.iter().find(|known| known.fingerprint == source.fingerprint);
            if let Some((site, rows)) = same.and_then(|known| known.first_in_common(&source)) {
                let (first, last) = (rows.start, rows.end - 1);
                let recording = quoted(&source.path);
                let what = format!("rows {first} to {last} of the recording {recording} are counted twice");
                problems.push(of_site(site, Problem::data(what)).help("every row must count once"));
                break;
            }
            MeasuredSource::join(&mut sources, &source);
        }
        problems.or_ok(())?;
        for (name, site) in &other.sites {
            self.declare(name, &site.modules, site.width, site.is_tokens())?;
            self.merge_site(name, site)?;
        }
        (self.sources, self.bytes) = (sources, 0);
        Ok(())
    }

    fn merge_site(&mut self, name: &str, other: &CollectedSite) -> Result<(), Problem> {
        let refused = |error: Error| of_site(name, Problem::data(error.to_string()));
        let copied = match &other.sums {
            RowsOrTokens::Rows(Some(theirs)) => Some(self.statistics(theirs.moments().into_owned())?),
            _ => None,
        };
        let Some(site) = self.sites.get_mut(name) else { return Ok(()) };
        // Skipped rows of both are counted in one place.
        site.skipped += other.skipped();
        match (&mut site.sums, &other.sums) {
            (RowsOrTokens::Rows(Some(mine)), RowsOrTokens::Rows(Some(_))) => {
                if let Some(theirs) = &copied {
                    mine.merge(theirs).map_err(refused)?;
                }
            }
            (RowsOrTokens::Rows(mine @ None), RowsOrTokens::Rows(_)) => *mine = copied.map(Box::new),
            (RowsOrTokens::Tokens(mine), RowsOrTokens::Tokens(theirs)) => {
                mine.resize(mine.len().max(theirs.len()), 0);
                for (mine, theirs) in mine.iter_mut().zip(theirs) {
                    *mine = mine.saturating_add(*theirs);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Bytes of the sums of all sites, also of those without rows yet, of the rows that wait for a block, and of the blocks that wait.
    pub fn memory(&self) -> u64 {
        let sites = self.sites.values().map(CollectedSite::memory).fold(0, u64::saturating_add);
        sites.saturating_add(most_waiting(self.sites.values()))
    }

    /// The sites with rows, or `all` sites, and the sources of the rows. `source` names the rows that were added here.
    ///
    /// # Errors
    /// A data problem if a row was refused.
    pub(super) fn content(&self, source: &str, all: bool) -> Result<Content, Problem> {
        self.check_usable()?;
        let sites = self.sites.iter().filter(|(_, site)| all || site.read() > 0);
        Ok(Content {
            precision: self.precision,
            sites: sites.map(|(name, site)| (name.clone(), site.measured())).collect(),
            sources: self.all_sources(source)?,
            part: None,
        })
    }

    /// The sums of a site.
    ///
    /// # Errors
    /// A usage problem for an unknown site; a data problem if no token was counted, or too many.
    pub fn sums(&self, name: &str) -> Result<SiteSums<'_>, Problem> {
        known(&self.sites, name)?.sums().map_err(|problem| of_site(name, problem))
    }

    /// Writes a moments file. `source` names the origin of the rows.
    ///
    /// # Errors
    /// A data problem if there are no rows, or if a row was refused; I/O problems of writing.
    pub fn save(&self, path: &Path, source: &str) -> Result<(), Problem> {
        let content = self.content(source, false)?;
        if content.sites.is_empty() {
            let problem = Problem::data("there is nothing to save: no rows were added").in_file(path);
            return Err(problem.help("run the model while its inputs are recorded"));
        }
        write(path, &content, &|site| self.sums(site))
    }

    /// The bytes of a moments file. It has no sites if there are no rows.
    ///
    /// # Errors
    /// A data problem if a row was refused; an environment problem if there is not enough memory.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Problem> {
        to_bytes(&self.content(Self::NAME, false)?, &|site| self.sums(site))
    }

    fn check_usable(&self) -> Result<(), Problem> {
        self.refused.clone().map_or(Ok(()), Err)
    }

    /// The sources of all rows. The rows that were added here are one source. It is identified by their sums: the same rows have the same
    /// identity, so that rows that are counted twice can be refused.
    fn all_sources(&self, name: &str) -> Result<Vec<MeasuredSource>, Problem> {
        let earlier = |site: &str| {
            let rows = self.sources.iter().filter_map(|source| source.rows.get(site));
            rows.map(RowRanges::count).sum::<u64>()
        };
        let mut rows = BTreeMap::new();
        let mut hashing = Hashing::default();
        for source in &self.sources {
            hashing.update(source.fingerprint.as_bytes());
        }
        let sites = self.sites.iter();
        let added = sites.map(|(name, site)| (name, site.read().saturating_sub(earlier(name))));
        let added: Vec<_> = added.filter(|(_, rows)| *rows > 0).collect();
        // Side by side: rows that wait are multiplied for it.
        let identity = |(name, _): &(&String, u64)| Ok(self.sums(name)?.identity());
        let identities: Vec<_> = added.par_iter().map(identity).collect::<Result<_, Problem>>()?;
        for ((name, count), identity) in added.into_iter().zip(identities) {
            rows.insert(name.clone(), std::iter::once(0..count).collect());
            hashing.update(&count.to_le_bytes());
            hashing.update(name.as_bytes());
            hashing.update(identity.as_bytes());
        }
        let mut sources = self.sources.clone();
        for source in sources.iter_mut().filter(|source| source.path == Self::NAME) {
            source.path = name.to_owned();
        }
        if !rows.is_empty() {
            let (path, bytes) = (name.to_owned(), self.bytes);
            sources.push(MeasuredSource { path, bytes, fingerprint: hashing.finish(), rows });
        }
        Ok(sources)
    }
}

/// Bytes that full blocks may occupy while they wait: those of one block for each site, but no more than 64 MiB.
fn most_waiting<'a>(sites: impl Iterator<Item = &'a CollectedSite>) -> u64 {
    sites.map(CollectedSite::block_bytes).fold(0, u64::saturating_add).min(64 << 20)
}

fn known<'a>(sites: &'a BTreeMap<String, CollectedSite>, name: &str) -> Result<&'a CollectedSite, Problem> {
    sites.get(name).ok_or_else(|| of_site(name, Problem::usage("was not declared")))
}

/// Names the site in front of a message.
fn of_site(name: &str, problem: Problem) -> Problem {
    problem.in_site(name)
}
