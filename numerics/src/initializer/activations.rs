//! The statistics that a site is made from.

use super::Statistics;
use crate::constraint::{Evidence, SiteEvidence, TokenEvidence};
use crate::moments::{Counts, Moments, RowsOrTokens, Sides};
use faer::MatRef;
use std::borrow::Cow;

/// The statistics of the activations of a site.
///
/// [`Initializer::site`](super::Initializer::site) makes it from a reference to [`Statistics`], to [`Counts`] of tokens, or to the
/// [`Sides`] of [`PairedStatistics`](super::PairedStatistics). [`Self::with_source`] adds the statistics of pre-training activations.
///
/// ```
/// use cntlora_numerics::constraint::Coupling;
/// use cntlora_numerics::initializer::{Activations, Initializer, Statistics};
/// use faer::Mat;
///
/// let rows = |step: usize| Mat::from_fn(50, 4, move |i, j| ((step * i + j * j) % 7) as f32);
/// let (mut target, mut source) = (Statistics::new(4), Statistics::new(4));
/// target.add(&rows(2))?;
/// source.add(&rows(3))?;
/// let initializer = Initializer::builder().rank(2).coupling(Coupling::Transport).build()?;
/// let site = initializer.site(Activations::with_source(&target, &source))?;
/// assert!(site.frechet_distance().is_some());
/// # Ok::<(), cntlora_numerics::error::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Activations<'a>(RowsOrTokens<RowStatistics<'a>, TokenEvidence<'a>>);

/// The parts of [`Evidence`]. Moments are owned where rows wait in the buffer of [`Statistics`].
#[derive(Clone, Debug)]
struct RowStatistics<'a> {
    target: Cow<'a, Moments>,
    source: Option<Cow<'a, Moments>>,
    change: Option<MatRef<'a, f64>>,
}

impl<'a> Activations<'a> {
    /// Fine-tuning and pre-training activations. Only methods with
    /// [`reads_source`](crate::method::Method::reads_source) use the latter.
    pub fn with_source<T: Recorded>(target: &'a T, source: &'a T) -> Self {
        target.activations(Some(source))
    }

    pub(super) fn evidence(&self) -> SiteEvidence<'_> {
        match &self.0 {
            RowsOrTokens::Rows(rows) => RowsOrTokens::Rows(Evidence {
                target: &rows.target,
                source: rows.source.as_deref(),
                change: rows.change,
            }),
            RowsOrTokens::Tokens(tokens) => RowsOrTokens::Tokens(*tokens),
        }
    }
}

/// Statistics of one kind of activations.
pub trait Recorded: sealed::Sealed {
    /// The statistics of a site: of fine-tuning activations, and of pre-training activations, if there are any.
    fn activations<'a>(&'a self, source: Option<&'a Self>) -> Activations<'a>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Statistics {}
    impl Sealed for super::Moments {}
    impl Sealed for super::Counts {}
}

impl Recorded for Statistics {
    fn activations<'a>(&'a self, source: Option<&'a Self>) -> Activations<'a> {
        let (target, source) = (self.moments(), source.map(Statistics::moments));
        Activations(RowsOrTokens::Rows(RowStatistics { target, source, change: None }))
    }
}

impl Recorded for Moments {
    fn activations<'a>(&'a self, source: Option<&'a Self>) -> Activations<'a> {
        Evidence { target: self, source, change: None }.into()
    }
}

impl Recorded for Counts {
    fn activations<'a>(&'a self, source: Option<&'a Self>) -> Activations<'a> {
        TokenEvidence { target: self, source }.into()
    }
}

impl<'a, T: Recorded> From<&'a T> for Activations<'a> {
    fn from(target: &'a T) -> Self {
        target.activations(None)
    }
}

impl<'a> From<&'a Sides> for Activations<'a> {
    fn from(sides: &'a Sides) -> Self {
        let Sides { source, target, change } = sides;
        Evidence { target, source: Some(source), change: Some(change.as_ref()) }.into()
    }
}

impl<'a> From<Evidence<'a>> for Activations<'a> {
    fn from(Evidence { target, source, change }: Evidence<'a>) -> Self {
        let (target, source) = (Cow::Borrowed(target), source.map(Cow::Borrowed));
        Self(RowsOrTokens::Rows(RowStatistics { target, source, change }))
    }
}

impl<'a> From<TokenEvidence<'a>> for Activations<'a> {
    fn from(tokens: TokenEvidence<'a>) -> Self {
        Self(RowsOrTokens::Tokens(tokens))
    }
}
