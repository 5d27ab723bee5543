//! What was recorded of one kind of activations: the rows themselves, or the moments of them.

use super::weights::StandIn;
use crate::activations::{ActivationSet, Part, Site};
use crate::moments::Counts;
use crate::moments_file::MomentsSet;
use crate::storage::{Access, Problems, Source};
use std::path::{Path, PathBuf};

/// A recording, opened.
#[derive(Debug)]
pub enum Recording {
    /// Rows, to be read.
    Activations(ActivationSet),
    /// Moments that were measured before.
    Moments(MomentsSet),
}

/// A site of a recording.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordedSite<'a> {
    pub name: &'a str,
    pub width: usize,
    pub modules: &'a [String],
    /// Rows that the moments are, or will be, those of.
    pub rows: u64,
    /// Rows that are still to be read.
    pub rows_to_read: u64,
    /// Bytes to read.
    pub bytes: u64,
    /// Bytes of an image that rows are cut from.
    pub image_bytes: u64,
    /// What its modules read.
    pub kind: Kind<'a>,
    /// A file that holds it.
    pub path: &'a Path,
}

/// What the modules of a site read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind<'a> {
    /// Rows, which are stored in these parts; none if their moments are known, or the method does not look at them.
    Rows(&'a [Part]),
    /// Tokens: the site is the input of an embedding. How often each was met, unless the method does not look at that.
    Tokens(Option<&'a Counts>),
}

impl<'a> RecordedSite<'a> {
    /// Whether it is the input of an embedding.
    pub(super) fn is_of_tokens(&self) -> bool {
        matches!(self.kind, Kind::Tokens(_))
    }

    /// How often each token was met, if that is known.
    pub(super) fn counts(&self) -> Option<&'a Counts> {
        match self.kind {
            Kind::Rows(_) => None,
            Kind::Tokens(counts) => counts,
        }
    }

    /// The parts of its rows.
    pub(super) fn parts(&self) -> &'a [Part] {
        match self.kind {
            Kind::Rows(parts) => parts,
            Kind::Tokens(_) => &[],
        }
    }
}

impl Recording {
    /// Opens what is named, moments if there are any.
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

    /// The sites, in order of name.
    pub(super) fn sites(&self) -> Vec<RecordedSite<'_>> {
        match self {
            Self::Activations(set) => set.sites().map(|site| of_rows(set, site)).collect(),
            Self::Moments(set) => {
                set.content().sites.keys().filter_map(|name| of_moments(set, name)).collect()
            }
        }
    }

    /// A site by name.
    pub(super) fn site(&self, name: &str) -> Option<RecordedSite<'_>> {
        match self {
            Self::Activations(set) => set.site(name).map(|site| of_rows(set, site)),
            Self::Moments(set) => of_moments(set, name),
        }
    }

    /// The files that were opened, in reading order.
    pub fn files(&self) -> Vec<&Source> {
        match self {
            Self::Activations(set) => set.files().iter().collect(),
            Self::Moments(set) => set.files().collect(),
        }
    }

    /// Refuses files that changed since they were opened.
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
        kind: kind_of(site.counts(), site.parts()),
        path: set.files()[site.first_file].path(),
    }
}

fn kind_of<'a>(counts: Option<&'a Counts>, parts: &'a [Part]) -> Kind<'a> {
    counts.map_or(Kind::Rows(parts), |counts| Kind::Tokens(Some(counts)))
}

/// A weight that takes the place of a site where there are no activations.
pub(super) fn of_weight<'a>(weight: &'a StandIn, checkpoint: &'a Path) -> RecordedSite<'a> {
    RecordedSite {
        name: &weight.module,
        width: weight.inputs,
        modules: std::slice::from_ref(&weight.module),
        rows: 0,
        rows_to_read: 0,
        bytes: 0,
        image_bytes: 0,
        kind: if weight.is_table { Kind::Tokens(None) } else { Kind::Rows(&[]) },
        path: checkpoint,
    }
}

fn of_moments<'a>(set: &'a MomentsSet, name: &str) -> Option<RecordedSite<'a>> {
    let (name, site) = set.content().sites.get_key_value(name)?;
    Some(RecordedSite {
        name,
        width: site.width,
        modules: &site.modules,
        rows: set.content().rows(name),
        rows_to_read: 0,
        bytes: set.bytes(name),
        image_bytes: 0,
        kind: kind_of(set.counts(name), &[]),
        path: set.path_of(name)?,
    })
}
