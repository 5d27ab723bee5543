//! The two kinds of activations.

/// Something about the activations of a site: of rows of numbers, or of the tokens that an embedding reads.
///
/// The moments of rows are [`Moments`](super::Moments), those of tokens [`Counts`](super::Counts). Everything that exists once for
/// each kind is a `RowsOrTokens`: references to sums, files to read, estimates of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowsOrTokens<R, T> {
    /// Of rows.
    Rows(R),
    /// Of tokens.
    Tokens(T),
}

impl<R, T> RowsOrTokens<R, T> {
    /// True for tokens.
    pub fn is_tokens(&self) -> bool {
        matches!(self, Self::Tokens(_))
    }

    /// The value of rows, if it is one.
    pub fn rows(self) -> Option<R> {
        match self {
            Self::Rows(rows) => Some(rows),
            Self::Tokens(_) => None,
        }
    }

    /// The value of tokens, if it is one.
    pub fn tokens(self) -> Option<T> {
        match self {
            Self::Rows(_) => None,
            Self::Tokens(tokens) => Some(tokens),
        }
    }

    /// References to the value inside.
    pub fn as_ref(&self) -> RowsOrTokens<&R, &T> {
        match self {
            Self::Rows(rows) => RowsOrTokens::Rows(rows),
            Self::Tokens(tokens) => RowsOrTokens::Tokens(tokens),
        }
    }
}
