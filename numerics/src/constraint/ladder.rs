//! Damping that is raised when a factorization fails.

use crate::error::{Error, Result};

/// Factor between two rungs of the ladder.
const STEP: f64 = 10.0;
/// Largest relative damping.
pub const LARGEST_RIDGE: f64 = 1.0;

/// Refuses a ridge outside its range.
///
/// # Errors
/// [`Error::Option`].
pub(crate) fn check_ridge(ridge: f64) -> Result<()> {
    if ridge > 0.0 && ridge <= LARGEST_RIDGE {
        return Ok(());
    }
    Err(Error::Option { what: "the ridge", expected: "above 0 and at most 1", found: ridge })
}

/// The dampings that are tried: the ridge, ten times as much, and so on up to 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ladder {
    ridge: f64,
    /// Rungs below this are skipped: such a damping is lost in the rounding errors of f64.
    least: f64,
    climbs: bool,
}

impl Ladder {
    /// The ladder of a matrix of this width, from a legal ridge. Unless it `climbs`, only the ridge is tried.
    pub(super) fn new(ridge: f64, width: usize, climbs: bool) -> Self {
        const MARGIN: f64 = 4096.0;
        Self { ridge, least: MARGIN * f64::EPSILON * width as f64, climbs }
    }

    /// The first result of an attempt, and its damping.
    ///
    /// # Errors
    /// [`Error::NotPositiveDefinite`], naming `what`, if no attempt gives a result; the errors of an attempt.
    pub(super) fn climb<T>(
        self,
        what: &'static str,
        mut attempt: impl FnMut(f64) -> Result<Option<T>>,
    ) -> Result<(T, f64)> {
        let mut damping = self.ridge;
        loop {
            if damping >= self.least
                && let Some(result) = attempt(damping)?
            {
                return Ok((result, damping));
            }
            if !self.climbs || damping * STEP > LARGEST_RIDGE {
                return Err(Error::NotPositiveDefinite { what, damping });
            }
            damping *= STEP;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every ridge terminates, and legal ones try each rung once.
    #[test]
    fn every_ridge_terminates() {
        for ridge in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300, 1.5] {
            let refused = check_ridge(ridge).unwrap_err();
            assert!(matches!(refused, Error::Option { what: "the ridge", .. }), "{ridge}: {refused}");
        }
        for ridge in [f64::from_bits(1), 1e-300, 0.02, 1.0] {
            let refused = Ladder::new(ridge, 100, true).climb::<()>("m", |damping| {
                assert!((9e-11..=1.0).contains(&damping), "{damping}");
                Ok(None)
            });
            assert!(matches!(refused, Err(Error::NotPositiveDefinite { what: "m", .. })), "{ridge}");
        }
        let (result, damping) =
            Ladder::new(1e-4, 100, true).climb("m", |damping| Ok((damping > 5e-3).then_some(7))).unwrap();
        assert_eq!(result, 7);
        assert!((damping / 1e-2 - 1.0).abs() < 1e-9);
        let refused = Ladder::new(1e-4, 100, false).climb("m", |damping| Ok((damping > 5e-3).then_some(7)));
        assert_eq!(refused, Err(Error::NotPositiveDefinite { what: "m", damping: 1e-4 }));
    }
}
