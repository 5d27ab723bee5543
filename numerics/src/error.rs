//! Errors of the numerics. They know nothing of files: the crate `cntlora` wraps them in a `Problem` that names the file and the
//! tensor.

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

/// Why a numerical step was refused.
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
    /// Activations from which nothing can be learned.
    #[error("{what}: there is nothing to initialize from")]
    NoVariation {
        /// What is the matter with them.
        what: &'static str,
    },
    /// A coupling needs pre-training activations, row for row.
    #[error("paired coupling needs source activations, row for row")]
    MissingSource,
    /// Counts of tokens, which do not say what was met together.
    #[error("counts of tokens have no pairs, which paired coupling needs")]
    NoPairs,
    /// Statistics were asked of no rows at all.
    #[error("there are no rows to take statistics of")]
    NoRows,
    /// A matrix that must be positive definite is not, even after the whole ladder of damping.
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
    /// A method does not have what is asked of it.
    #[error("the method {method} has no {what}: {instead}")]
    Combination {
        /// The method.
        method: &'static str,
        /// What is asked for.
        what: String,
        /// What it has.
        instead: String,
    },
    /// An odd rank where units of rank come in pairs.
    #[error("rank {rank} is odd, but {what} needs an even rank")]
    OddRank {
        /// The rank.
        rank: usize,
        /// The start or the method.
        what: &'static str,
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
