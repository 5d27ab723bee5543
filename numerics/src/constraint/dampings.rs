//! The dampings that a site needed.

#[cfg(doc)]
use super::Coupling;

/// The relative dampings that were used: the ridge, or the first larger damping with which the factorization succeeded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dampings {
    /// Of the covariance, in [`Coupling::Transport`].
    pub covariance: Option<f64>,
    /// Of the denominator `C + ρ_p S + λ I`.
    pub denominator: f64,
    /// Of the metric `C + λ I`, where that is another matrix.
    pub metric: Option<f64>,
}

impl Dampings {
    /// Each damping with the name of its matrix.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let covariance = self.covariance.map(|damping| ("covariance of the activations", damping));
        let denominator = ("second moment of the activations", self.denominator);
        let metric = self.metric.map(|damping| ("metric of the activations", damping));
        covariance.into_iter().chain([denominator]).chain(metric)
    }

    /// The largest of them.
    pub fn largest(&self) -> f64 {
        self.named().map(|(_, damping)| damping).fold(0.0, f64::max)
    }
}
