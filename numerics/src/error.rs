//! Errors of the numerics: an [`Error`] says what is wrong, and its [`ErrorKind`] where to look for the cause.
//!
//! Errors have no [`source`](std::error::Error::source): each of them is complete. The tool adds the names of the file and the tensor.

/// A result of the numerics.
pub type Result<T> = std::result::Result<T, Error>;

impl From<crate::dense::Error> for Error {
    fn from(error: crate::dense::Error) -> Self {
        match error {
            crate::dense::Error::NonFinite { what } => Self::NonFinite { what },
            crate::dense::Error::NoConvergence { what } => Self::NoConvergence { what },
            other => unreachable!("{other}"),
        }
    }
}

/// The reason why a numerical step failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two lengths that must agree do not.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which length.
        what: &'static str,
        /// The length it must have.
        expected: usize,
        /// The length it has.
        found: usize,
    },
    /// A NaN or an infinity in the rows of a site, after conversion to f32.
    #[error("row {row}, column {column} is not a finite f32 number")]
    NonFiniteRow {
        /// Row of the first offender, counted from the first row given.
        row: usize,
        /// Its column.
        column: usize,
    },
    /// A NaN or an infinity in something that was computed or given whole.
    #[error("{what} holds a value that is not finite")]
    NonFinite {
        /// The numbers that were checked.
        what: &'static str,
    },
    /// Activations that give nothing to initialize from.
    #[error("{what}: there is nothing to initialize from")]
    NoVariation {
        /// The problem.
        what: &'static str,
    },
    /// [`Coupling::Paired`](crate::constraint::Coupling::Paired) without paired pre-training activations.
    #[error("paired coupling needs source activations, row for row")]
    MissingSource,
    /// A method that needs pre-training activations, without them.
    #[error("the method {method} needs pre-training activations")]
    NeedsSource {
        /// The method.
        method: &'static str,
    },
    /// [`Coupling::Paired`](crate::constraint::Coupling::Paired) with counts of tokens, which have no pairs.
    #[error("counts of tokens have no pairs, which paired coupling needs")]
    NoPairs,
    /// Statistics of no rows.
    #[error("there are no rows to take statistics of")]
    NoRows,
    /// A matrix that must be positive definite is not, even with the largest damping.
    #[error("{what} is not positive definite, even with a relative damping of {damping:e}")]
    NotPositiveDefinite {
        /// Which matrix.
        what: &'static str,
        /// The last damping tried, relative to the mean square of a channel.
        damping: f64,
    },
    /// A decomposition did not converge.
    #[error("the {what} did not converge")]
    NoConvergence {
        /// Which decomposition, of what.
        what: &'static str,
    },
    /// A method does not support a combination of options, or a layer.
    #[error("the method {method} does not support {what}: {instead}")]
    Combination {
        /// The method.
        method: &'static str,
        /// The start, the choice of ranks, or the kind of layer.
        what: String,
        /// The supported alternatives, or the reason.
        instead: String,
    },
    /// An odd rank where units of rank come in pairs.
    #[error("rank {rank} is odd, but {what} needs an even rank")]
    OddRank {
        /// The rank.
        rank: usize,
        /// The start or the method.
        what: String,
    },
    /// A choice has no such name.
    #[error("unknown {what} {found:?}: use one of {expected}")]
    UnknownName {
        /// The kind of choice, such as `method`.
        what: &'static str,
        /// The name given.
        found: String,
        /// The names that there are.
        expected: String,
    },
    /// Ranks that depend on all layers were asked of one.
    #[error(
        "ranks are shared out among layers: use Initializer::ranks with all layers, then Layer::factors_of_rank"
    )]
    SharedRanks,
    /// An option has a value outside its range.
    #[error("{what} is {found}, but must be {expected}")]
    Option {
        /// Which option.
        what: &'static str,
        /// The legal range, in words.
        expected: &'static str,
        /// The value given.
        found: f64,
    },
}

/// The place where the cause of an [`Error`] is.
///
/// ```
/// use cntlora_numerics::error::ErrorKind;
/// use cntlora_numerics::initializer::Initializer;
///
/// let refused = Initializer::builder().rank(0).build().unwrap_err();
/// assert_eq!(refused.kind(), ErrorKind::Options);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// In the options, or in what was asked of them.
    Options,
    /// In the shapes of rows, weights or statistics.
    Shape,
    /// In the numbers of rows or weights.
    Data,
    /// In a decomposition, for data that are legal.
    Decomposition,
}

impl Error {
    /// The place where the cause of the error is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Combination { .. }
            | Self::OddRank { .. }
            | Self::SharedRanks
            | Self::UnknownName { .. }
            | Self::Option { .. }
            | Self::MissingSource
            | Self::NeedsSource { .. }
            | Self::NoPairs => ErrorKind::Options,
            Self::Shape { .. } => ErrorKind::Shape,
            Self::NonFiniteRow { .. } | Self::NonFinite { .. } | Self::NoVariation { .. } | Self::NoRows => {
                ErrorKind::Data
            }
            Self::NotPositiveDefinite { .. } | Self::NoConvergence { .. } => ErrorKind::Decomposition,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn messages() {
        let errors = [
            Error::Shape { what: "width of the rows", expected: 3, found: 4 },
            Error::NonFiniteRow { row: 7, column: 1 },
            Error::NonFinite { what: "the weight" },
            Error::NoVariation { what: "all activations are zero" },
            Error::MissingSource,
            Error::NeedsSource { method: "sc-lora" },
            Error::NoPairs,
            Error::NoRows,
            Error::NotPositiveDefinite { what: "the metric of the activations", damping: 0.1 },
            Error::NoConvergence { what: "singular value decomposition" },
            Error::Combination {
                method: "eva",
                what: "start update".into(),
                instead: "it supports zero".into(),
            },
            Error::OddRank { rank: 3, what: "the mirrored start".into() },
            Error::UnknownName { what: "method", found: "lore".into(), expected: "lora, eva".into() },
            Error::SharedRanks,
            Error::Option { what: "the ridge", expected: "above 0 and at most 1", found: 0.0 },
        ];
        let text: Vec<String> = errors.iter().map(|error| format!("{:?}: {error}", error.kind())).collect();
        expect![[r#"
            Shape: width of the rows: expected 3, found 4
            Data: row 7, column 1 is not a finite f32 number
            Data: the weight holds a value that is not finite
            Data: all activations are zero: there is nothing to initialize from
            Options: paired coupling needs source activations, row for row
            Options: the method sc-lora needs pre-training activations
            Options: counts of tokens have no pairs, which paired coupling needs
            Data: there are no rows to take statistics of
            Decomposition: the metric of the activations is not positive definite, even with a relative damping of 1e-1
            Decomposition: the singular value decomposition did not converge
            Options: the method eva does not support start update: it supports zero
            Options: rank 3 is odd, but the mirrored start needs an even rank
            Options: unknown method "lore": use one of lora, eva
            Options: ranks are shared out among layers: use Initializer::ranks with all layers, then Layer::factors_of_rank
            Options: the ridge is 0, but must be above 0 and at most 1"#]].assert_eq(&text.join("\n"));
    }
}
