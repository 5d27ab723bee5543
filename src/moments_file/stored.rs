//! The tensors of a site in a moments file: names, formats and shapes.

use super::MeasuredSite;

/// A tensor of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    Count,
    Sum,
    Gram,
    AbsMax,
    Counts,
}

impl Stored {
    /// The tensors of a site.
    pub(super) fn of(site: &MeasuredSite) -> &'static [Self] {
        if site.counts { &[Self::Counts] } else { &[Self::Count, Self::Sum, Self::Gram, Self::AbsMax] }
    }

    /// Its name.
    pub(super) fn tensor(self, site: &str) -> String {
        let name = match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Gram => "gram",
            Self::AbsMax => "abs_max",
            Self::Counts => "counts",
        };
        format!("{site}/{name}")
    }

    pub(super) fn dtype(self) -> &'static str {
        match self {
            Self::Count | Self::Counts => "U64",
            Self::Sum | Self::Gram => "F64",
            Self::AbsMax => "F32",
        }
    }

    /// Shape for a site of this width. On overflow, the shape is one that no file has.
    pub(super) fn shape(self, width: u64) -> Vec<u64> {
        match self {
            Self::Count => vec![],
            Self::Sum | Self::AbsMax | Self::Counts => vec![width],
            Self::Gram => vec![width.saturating_mul(width.saturating_add(1)) / 2],
        }
    }
}
