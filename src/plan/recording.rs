//! A recording of one kind of activations: rows, or their moments.

use super::weights::StandIn;
use crate::activations::{ActivationSet, Part, Site};
use crate::moments::{Counts, RowsOrTokens};
use crate::moments_file::MomentsSet;
use crate::storage::{Access, Problems, Source};
use std::path::{Path, PathBuf};

/// An open recording.
#[derive(Debug)]
pub enum Recording {
    /// Rows to read.
    Activations(ActivationSet),
    /// Moments from an earlier measurement.
    Moments(MomentsSet),
}

/// A site of a recording.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordedSite<'a> {
    pub name: &'a str,
    pub width: usize,
    pub modules: &'a [String],
    /// Number of rows in the moments, or of rows to add to them.
    pub rows: u64,
    /// Number of rows to read.
    pub rows_to_read: u64,
    /// Bytes to read.
    pub bytes: u64,
    /// Bytes of one image, if rows are cut from images.
    pub image_bytes: u64,
    /// The stored parts of its rows; empty if the moments are known, or if the method reads no activations. For the input of an
    /// embedding, the token counts, if they are known.
    pub recorded: RowsOrTokens<&'a [Part], Option<&'a Counts>>,
    /// A file with data of this site.
    pub path: &'a Path,
}

impl<'a> RecordedSite<'a> {
    /// The token counts, if they are known.
    pub(super) fn counts(&self) -> Option<&'a Counts> {
        self.recorded.tokens().flatten()
    }
}

impl Recording {
    /// Opens the moments files if there are any, otherwise the activations.
    pub(super) fn open(
        activations: &[PathBuf],
        moments: &[PathBuf],
        access: Access,
    ) -> Result<Self, Problems> {
        match moments {
            [] => ActivationSet::open(activations, access).map(Self::Activations),
            paths => MomentsSet::open(paths, access).map(Self::Moments),
        }
    }

    /// The sites, sorted by name.
    pub(super) fn sites(&self) -> Vec<RecordedSite<'_>> {
        match self {
            Self::Activations(set) => set.sites().map(|site| of_rows(set, site)).collect(),
            Self::Moments(set) => {
                let rows = set.content().rows_of_sites();
                let rows = |name: &String| rows.get(name.as_str()).copied().unwrap_or(0);
                let names = set.content().sites.keys();
                names.filter_map(|name| of_moments(set, name, rows(name))).collect()
            }
        }
    }

    /// A site by name.
    pub(super) fn site(&self, name: &str) -> Option<RecordedSite<'_>> {
        match self {
            Self::Activations(set) => set.site(name).map(|site| of_rows(set, site)),
            Self::Moments(set) => of_moments(set, name, set.content().rows(name)),
        }
    }

    /// The open files, in reading order.
    pub fn files(&self) -> Vec<&Source> {
        match self {
            Self::Activations(set) => set.files().iter().collect(),
            Self::Moments(set) => set.files().collect(),
        }
    }

    /// Returns an error if a file changed since it was opened.
    ///
    /// # Errors
    /// As [`Source::check_unchanged`].
    pub fn check_unchanged(&self) -> Result<(), Problems> {
        match self {
            Self::Activations(set) => set.check_unchanged(),
            Self::Moments(set) => set.check_unchanged(),
        }
    }
}

fn of_rows<'a>(set: &'a ActivationSet, site: &'a Site) -> RecordedSite<'a> {
    RecordedSite {
        name: &site.name,
        width: site.width,
        modules: &site.modules,
        rows: site.rows(),
        rows_to_read: if site.counts().is_some() { 0 } else { site.rows() },
        bytes: site.bytes(),
        image_bytes: site.image_bytes(),
        recorded: recorded(site.counts(), site.parts()),
        path: set.files()[site.first_file].path(),
    }
}

fn recorded<'a>(
    counts: Option<&'a Counts>,
    parts: &'a [Part],
) -> RowsOrTokens<&'a [Part], Option<&'a Counts>> {
    counts.map_or(RowsOrTokens::Rows(parts), |counts| RowsOrTokens::Tokens(Some(counts)))
}

/// A weight that stands for a site, if there are no activations.
pub(super) fn of_weight<'a>(weight: &'a StandIn, checkpoint: &'a Path) -> RecordedSite<'a> {
    RecordedSite {
        name: &weight.module,
        width: weight.inputs,
        modules: std::slice::from_ref(&weight.module),
        rows: 0,
        rows_to_read: 0,
        bytes: 0,
        image_bytes: 0,
        recorded: if weight.is_table { RowsOrTokens::Tokens(None) } else { RowsOrTokens::Rows(&[]) },
        path: checkpoint,
    }
}

fn of_moments<'a>(set: &'a MomentsSet, name: &str, rows: u64) -> Option<RecordedSite<'a>> {
    let (name, site) = set.content().sites.get_key_value(name)?;
    Some(RecordedSite {
        name,
        width: site.width,
        modules: &site.modules,
        rows,
        rows_to_read: 0,
        bytes: set.bytes(name),
        image_bytes: 0,
        recorded: match site.counts {
            true => RowsOrTokens::Tokens(set.counts(name)),
            false => RowsOrTokens::Rows(&[]),
        },
        path: set.path_of(name)?,
    })
}
