//! The methods, each a short file in the vocabulary of the other rooms, and the options that decide the factors.
//!
//! What depends on the activations of a site is computed once for it, as a [`Basis`]; each weight that reads the site is
//! decomposed on that basis into a [`Draft`]; and when the ranks are known, a draft gives the factors.

pub mod cntlora;
pub mod corda;
mod draft;
pub mod eva;
pub mod lora;
pub mod milora;
pub mod olora;
pub mod orthogonal;
pub mod pissa;

pub use draft::{Decomposition, Draft, Nested};

use crate::constraint::{Constraint, Coupling, Evidence, Norm, SiteOperator, Terms, TokenConstraint};
use crate::error::{Error, Result};
use crate::factors::{LayerShape, Start, Strength};
use crate::low_rank;
use crate::moments::Counts;
use crate::rank::{Limits, Policy};
use faer::{MatRef, Par};

/// How an adapter is initialized. Each variant is described in the module of its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// [`cntlora`].
    #[default]
    Cntlora,
    /// [`pissa`].
    Pissa,
    /// [`milora`].
    Milora,
    /// [`olora`].
    Olora,
    /// [`corda`], instruction-previewed mode.
    CordaIpm,
    /// [`corda`], knowledge-preserved mode.
    CordaKpm,
    /// [`eva`].
    Eva,
    /// [`lora`], by Kaiming's rule.
    Lora,
    /// [`lora`], normally distributed.
    Gaussian,
    /// [`orthogonal`].
    Orthogonal,
}

/// How a method comes to its ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankRule {
    /// From singular values: every policy but [`Policy::Shared`].
    Spectrum,
    /// [`Policy::Shared`], or one rank for all.
    Shared,
    /// One rank for all.
    Fixed,
}

/// What the factors of a method satisfy, apart from rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// `BᵀB = A Aᵀ`.
    Balanced,
    /// `BᵀB = I`.
    OrthonormalUp,
    /// `B = 0`, and the rows of `A` are orthonormal.
    OrthonormalDown,
    /// `B = 0`.
    ZeroUp,
    /// `A = 0`.
    ZeroDown,
    /// `B A = 0`, and neither factor is zero.
    ZeroProduct,
}

impl Method {
    /// All methods.
    pub const ALL: [Self; 10] = [
        Self::Cntlora,
        Self::Pissa,
        Self::Milora,
        Self::Olora,
        Self::CordaIpm,
        Self::CordaKpm,
        Self::Eva,
        Self::Lora,
        Self::Gaussian,
        Self::Orthogonal,
    ];

    /// Its name, as options and reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cntlora => "cntlora",
            Self::Pissa => "pissa",
            Self::Milora => "milora",
            Self::Olora => "olora",
            Self::CordaIpm => "corda-ipm",
            Self::CordaKpm => "corda-kpm",
            Self::Eva => "eva",
            Self::Lora => "lora",
            Self::Gaussian => "gaussian",
            Self::Orthogonal => "orthogonal",
        }
    }

    /// The starts that it has, the usual one first.
    pub fn starts(self) -> &'static [Start] {
        match self {
            Self::Cntlora => &[Start::Update, Start::Residual, Start::Zero],
            Self::Pissa | Self::Milora | Self::Olora | Self::CordaIpm | Self::CordaKpm => &[Start::Residual],
            Self::Eva | Self::Lora | Self::Gaussian | Self::Orthogonal => &[Start::Zero],
        }
    }

    /// Whether it looks at activations. The others look at weights alone.
    pub fn reads_activations(self) -> bool {
        matches!(self, Self::Cntlora | Self::CordaIpm | Self::CordaKpm | Self::Eva)
    }

    /// Why it adapts no embeddings, if it does not.
    pub fn reason_against_embeddings(self) -> Option<&'static str> {
        match self {
            Self::Eva => {
                Some("tokens that were met equally often vary alike, so that they have no leading directions")
            }
            Self::Orthogonal => {
                Some("PEFT has it for other layers, and gives embeddings the factors of lora in its place")
            }
            Self::Cntlora
            | Self::Pissa
            | Self::Milora
            | Self::Olora
            | Self::CordaIpm
            | Self::CordaKpm
            | Self::Lora
            | Self::Gaussian => None,
        }
    }

    /// Whether it damps the second moment.
    pub fn has_ridge(self) -> bool {
        matches!(self, Self::Cntlora | Self::CordaIpm | Self::CordaKpm)
    }

    /// How it comes to its ranks.
    pub fn rank_rule(self) -> RankRule {
        match self {
            Self::Cntlora | Self::Pissa | Self::CordaIpm => RankRule::Spectrum,
            Self::Eva => RankRule::Shared,
            Self::Milora | Self::Olora | Self::CordaKpm | Self::Lora | Self::Gaussian | Self::Orthogonal => {
                RankRule::Fixed
            }
        }
    }

    /// What its factors of a layer of this shape satisfy.
    pub fn form(self, start: Start, shape: &LayerShape) -> Form {
        match (self, start) {
            (Self::Cntlora, Start::Zero) | (Self::Eva, _) => Form::OrthonormalDown,
            (Self::Cntlora | Self::Pissa | Self::Milora | Self::CordaIpm | Self::CordaKpm, _) => {
                Form::Balanced
            }
            (Self::Olora, _) => Form::OrthonormalUp,
            (Self::Lora | Self::Gaussian, _) if *shape == LayerShape::Embedding => Form::ZeroDown,
            (Self::Lora | Self::Gaussian, _) => Form::ZeroUp,
            (Self::Orthogonal, _) => Form::ZeroProduct,
        }
    }
}

/// What a method makes of the activations of a site, for all weights that read it.
#[derive(Debug)]
pub enum Basis {
    /// Nothing: the method looks at weights alone.
    None,
    /// The constraints of [`cntlora`].
    Constraint(Constraint),
    /// The constraints of [`cntlora`] for an embedding.
    Tokens(TokenConstraint),
    /// The second moment of [`corda`].
    Covariance(corda::Covariance),
    /// The directions of [`eva`].
    Directions(eva::Directions),
}

impl Basis {
    /// What the method of the options makes of a site. Only [`cntlora`] looks at more than the target. `name` gives the
    /// site's random stream.
    ///
    /// # Errors
    /// What the constructors of the variants return; [`Error::NoRows`] without evidence where the method needs some.
    pub fn new(evidence: Option<Evidence<'_>>, name: &str, options: &Options, par: Par) -> Result<Self> {
        if !options.method.reads_activations() {
            return Ok(Self::None);
        }
        let evidence = evidence.ok_or(Error::NoRows)?;
        match options.method {
            Method::CordaIpm | Method::CordaKpm => {
                corda::Covariance::new(evidence.target, options.ridge, par).map(Self::Covariance)
            }
            Method::Eva => eva::Directions::new(evidence.target, name, options, par).map(Self::Directions),
            _ => Constraint::new(evidence, options.terms(), par).map(Self::Constraint),
        }
    }

    /// What the method of the options makes of the tokens that an embedding met.
    ///
    /// # Errors
    /// As [`Self::new`]; [`Error::Combination`] for a method that adapts no embeddings.
    pub fn of_tokens(target: &Counts, source: Option<&Counts>, options: &Options, par: Par) -> Result<Self> {
        let method = options.method;
        if let Some(reason) = method.reason_against_embeddings() {
            let (method, what) = (method.name(), "embeddings".to_owned());
            return Err(Error::Combination { method, what, instead: reason.into() });
        }
        match method {
            Method::Cntlora => TokenConstraint::new(target, source, options.terms(), par).map(Self::Tokens),
            Method::CordaIpm | Method::CordaKpm => {
                Ok(Self::Covariance(corda::Covariance::of_tokens(target, options.ridge)))
            }
            _ => Ok(Self::None),
        }
    }

    /// The relative damping that was used, if there was any.
    pub fn damping(&self) -> Option<f64> {
        match self {
            Self::Constraint(constraint) => Some(constraint.damping()),
            Self::Tokens(constraint) => Some(constraint.damping()),
            Self::Covariance(covariance) => Some(covariance.damping()),
            Self::None | Self::Directions(_) => None,
        }
    }

    /// Distance between both kinds of activations: see [`Constraint::frechet_distance`].
    pub fn frechet_distance(&self) -> Option<f64> {
        match self {
            Self::Constraint(constraint) => constraint.frechet_distance(),
            Self::Tokens(constraint) => constraint.frechet_distance(),
            Self::None | Self::Covariance(_) | Self::Directions(_) => None,
        }
    }

    /// What [`cntlora`] asks of the constraints of a site, whatever its activations are.
    fn constraint(&self) -> Option<&dyn SiteOperator> {
        match self {
            Self::Constraint(constraint) => Some(constraint),
            Self::Tokens(constraint) => Some(constraint),
            Self::None | Self::Covariance(_) | Self::Directions(_) => None,
        }
    }

    /// Decomposes one weight, `W (m × d)`, of a layer of this shape: one of the parts among which its module divides the rank of
    /// the options, if it does. `name` gives its random stream.
    ///
    /// # Errors
    /// [`Error::Shape`] if the weight does not read activations of this width; [`Error::NonFinite`] for a weight with NaN
    /// or infinity; [`Error::Combination`] for a rank that the method cannot have; what the decomposition returns.
    ///
    /// # Panics
    /// If the basis was made for another method.
    pub fn decompose(
        &self,
        weight: MatRef<'_, f32>,
        shape: &LayerShape,
        name: &str,
        options: &Options,
        par: Par,
    ) -> Result<Draft> {
        let options = &options.of_part(shape.parts());
        // It looks at the whole weight itself.
        if let (Method::Cntlora, Some(constraint)) = (options.method, self.constraint()) {
            return Ok(Draft::Update(cntlora::decompose(constraint, weight, name, options, par)?));
        }
        let (outputs, inputs) = weight.shape();
        crate::dense::check_finite("the weight", weight)?;
        Ok(match (options.method, self) {
            (Method::CordaIpm, Self::Covariance(covariance)) => {
                let part = corda::Part::First;
                Draft::Update(corda::decompose(covariance, weight, part, name, options, par)?)
            }
            (Method::CordaKpm, Self::Covariance(covariance)) => {
                let part = corda::Part::Last;
                Draft::Update(corda::decompose(covariance, weight, part, name, options, par)?)
            }
            (Method::Eva, Self::Directions(directions)) => Draft::Nested(eva::decompose(directions, weight)?),
            (Method::Pissa, _) => Draft::Update(pissa::decompose(weight, name, options, par)?),
            (Method::Milora, _) => Draft::Update(milora::decompose(weight, options, par)?),
            (Method::Olora, _) => Draft::Nested(olora::decompose(weight, options, par)?),
            (Method::Lora | Method::Gaussian, _) if *shape == LayerShape::Embedding => {
                Draft::Nested(lora::embedding(outputs, inputs, name, options))
            }
            (Method::Lora, _) => Draft::Nested(lora::kaiming(outputs, inputs, name, options)),
            (Method::Gaussian, _) => {
                Draft::Nested(lora::gaussian(outputs, inputs, shape.parts(), name, options))
            }
            (Method::Orthogonal, _) => Draft::Nested(orthogonal::decompose(outputs, inputs, name, options)?),
            (method, basis) => panic!("{basis:?} is no basis of {method:?}"),
        })
    }

    /// Bytes that [`Self::new`] needs at its peak for a site of width `d`, and bytes that its result holds.
    pub fn memory(width: u64, options: &Options, measured_source: bool) -> (u64, u64) {
        match options.method {
            Method::Cntlora => Constraint::memory(width, options.terms(), measured_source),
            Method::CordaIpm | Method::CordaKpm => corda::Covariance::memory(width),
            Method::Eva => eva::Directions::memory(width, options),
            _ => (0, 0),
        }
    }

    /// As [`Self::memory`], for an embedding of `V` tokens in `k` [classes](crate::constraint::token_classes).
    pub fn memory_of_tokens(
        tokens: u64,
        classes: u64,
        options: &Options,
        measured_source: bool,
    ) -> (u64, u64) {
        match options.method {
            Method::Cntlora => TokenConstraint::memory(tokens, classes, options.terms(), measured_source),
            Method::CordaIpm | Method::CordaKpm => corda::Covariance::memory_of_tokens(tokens),
            _ => (0, 0),
        }
    }
}

/// Refuses a weight that does not read activations of this width.
fn check_width(weight: MatRef<'_, f32>, expected: usize) -> Result<()> {
    let found = weight.ncols();
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape { what: "input features of the weight", expected, found })
}

/// Everything but the data that decides the factors.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Options {
    /// How an adapter is initialized.
    pub method: Method,
    /// How the two kinds of activations correspond.
    pub coupling: Coupling,
    /// Weight `ρ_p` of "pre-training inputs are left alone".
    pub preserve: f64,
    /// Damping `ρ`, relative to the mean eigenvalue.
    pub ridge: f64,
    /// The norm of the truncation.
    pub norm: Norm,
    /// How much of the update is taken.
    pub strength: Strength,
    /// What the model computes before the first step.
    pub start: Start,
    /// How ranks are chosen.
    pub ranks: Policy,
    /// What every choice of ranks honours.
    pub limits: Limits,
    /// `s`: the adapter adds `s · B A`; PEFT's `lora_alpha` of a layer is `s` times its rank.
    pub scale: f64,
    /// Seed of the randomized decompositions.
    pub seed: u64,
}

impl Default for Options {
    /// Transport, rank 16, a shift of at most 0.05, the base untouched.
    fn default() -> Self {
        Self {
            method: Method::default(),
            coupling: Coupling::default(),
            preserve: 0.0,
            ridge: 0.01,
            norm: Norm::default(),
            strength: Strength::default(),
            start: Start::default(),
            ranks: Policy::Fixed(16),
            limits: Limits { min: 0, max: 16, multiple: 1 },
            scale: 1.0,
            seed: 0,
        }
    }
}

/// Singular values that are computed and reported at least, where a layer has so many.
const SPECTRUM: usize = 16;

impl Options {
    /// The part that concerns a site.
    pub fn terms(&self) -> Terms {
        Terms { coupling: self.coupling, preserve: self.preserve, ridge: self.ridge }
    }

    /// How many components of an update are computed for a layer of this full rank, `min(m, d)`.
    pub fn components(&self, full_rank: usize) -> usize {
        match self.method.rank_rule() {
            RankRule::Fixed => self.fixed_rank(full_rank),
            RankRule::Spectrum | RankRule::Shared => self.limits.max.max(SPECTRUM).min(full_rank),
        }
    }

    /// The options of one of the parts among which a layer divides its rank.
    pub fn of_part(&self, parts: usize) -> Self {
        let Limits { min, max, .. } = self.limits;
        let multiple = self.limits.step(parts) / parts;
        let ranks = match self.ranks {
            Policy::Fixed(rank) => Policy::Fixed(rank / parts),
            other => other,
        };
        Self {
            ranks,
            limits: Limits { min: min.div_ceil(parts), max: max / parts, multiple },
            ..self.clone()
        }
    }

    /// The least step between ranks of a layer that divides them among parts.
    pub fn rank_step(&self, parts: usize) -> usize {
        // An even rank for each part.
        let of_part = if self.method == Method::Orthogonal { 2 } else { 1 };
        self.limits.step(of_part * parts)
    }

    /// The rank of a layer of this full rank where all layers have one rank.
    pub fn fixed_rank(&self, full_rank: usize) -> usize {
        match self.ranks {
            Policy::Fixed(rank) => rank.min(full_rank),
            _ => self.limits.max.min(full_rank),
        }
    }

    /// Bytes that the decomposition of a weight needs at its peak, besides the weight and the basis.
    pub fn memory(&self, outputs: u64, inputs: u64) -> u64 {
        let components = self.components(outputs.min(inputs) as usize) as u64;
        match self.method {
            Method::Cntlora | Method::Pissa | Method::CordaIpm => {
                low_rank::memory(outputs, inputs, components)
            }
            Method::Milora | Method::CordaKpm => low_rank::last_components_memory(outputs, inputs),
            // The columns and their orthonormal basis, or what is drawn.
            Method::Olora | Method::Eva | Method::Lora | Method::Gaussian | Method::Orthogonal => {
                2 * 4 * components * (outputs + inputs)
            }
        }
    }

    /// Every option whose value is outside its range.
    pub fn complaints(&self) -> Vec<Error> {
        let mut complaints = Vec::new();
        let mut require = |legal: bool, what, expected, found| {
            if !legal {
                complaints.push(Error::Option { what, expected, found });
            }
        };
        let positive = |x: f64| x.is_finite() && x > 0.0;
        const POSITIVE: &str = "a positive number";
        require(positive(self.ridge) && self.ridge <= 1.0, "the ridge", "above 0 and at most 1", self.ridge);
        require(
            self.preserve.is_finite() && self.preserve >= 0.0,
            "the preservation weight",
            "0 or a positive number",
            self.preserve,
        );
        match self.strength {
            Strength::MaxShift(share) => require(positive(share), "the largest shift", POSITIVE, share),
            Strength::Fixed(strength) => require(positive(strength), "the strength", POSITIVE, strength),
        }
        require(positive(self.scale), "the scale", POSITIVE, self.scale);
        match self.ranks {
            Policy::Fixed(rank) | Policy::BudgetOfRank(rank) | Policy::Shared(rank) => {
                require(rank > 0, "the rank", "at least 1", rank as f64);
            }
            Policy::Energy(share) => {
                require(share > 0.0 && share <= 1.0, "the energy share", "above 0 and at most 1", share);
            }
            Policy::Budget(parameters) => {
                require(parameters > 0, "the parameter budget", "at least 1", parameters as f64);
            }
        }
        let Limits { min, max, multiple } = self.limits;
        require(multiple > 0, "the rank multiple", "at least 1", multiple as f64);
        require(max > 0, "the largest rank", "at least 1", max as f64);
        require(min <= max, "the least rank", "at most the largest rank", min as f64);
        if let (Method::Orthogonal, Policy::Fixed(rank)) = (self.method, self.ranks) {
            require(rank.is_multiple_of(2), "the rank of the method orthogonal", "even", rank as f64);
        }
        complaints.extend(self.missing_combinations());
        complaints
    }

    /// What the method does not have.
    fn missing_combinations(&self) -> impl Iterator<Item = Error> {
        let method = self.method.name();
        let starts = self.method.starts();
        let start = (!starts.contains(&self.start)).then(|| Error::Combination {
            method,
            what: format!("start {}", self.start.name()),
            instead: format!(
                "it has {}",
                starts.iter().map(|start| start.name()).collect::<Vec<_>>().join(", ")
            ),
        });
        let legal = match (self.method.rank_rule(), self.ranks) {
            (RankRule::Spectrum, policy) => !matches!(policy, Policy::Shared(_)),
            (RankRule::Shared, policy) => matches!(policy, Policy::Fixed(_) | Policy::Shared(_)),
            (RankRule::Fixed, policy) => matches!(policy, Policy::Fixed(_)),
        };
        let ranks = (!legal).then(|| Error::Combination {
            method,
            what: "ranks by this rule".into(),
            instead: match self.method.rank_rule() {
                RankRule::Spectrum => "it has one rank for all layers, a share of the energy, or a budget",
                RankRule::Shared => "it has a rank that layers share out, or one for all",
                RankRule::Fixed => "it has one rank for all layers",
            }
            .into(),
        });
        start.into_iter().chain(ranks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_legal() {
        assert_eq!(Options::default().complaints(), []);
    }

    /// Every option that has a range complains outside it, and all complaints come together.
    #[test]
    fn every_range_is_checked() {
        let options = Options {
            preserve: -1.0,
            ridge: 0.0,
            strength: Strength::MaxShift(f64::NAN),
            ranks: Policy::Energy(1.5),
            limits: Limits { min: 3, max: 0, multiple: 0 },
            scale: f64::INFINITY,
            ..Options::default()
        };
        let texts: Vec<String> = options.complaints().iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "the ridge is 0, but must be above 0 and at most 1",
                "the preservation weight is -1, but must be 0 or a positive number",
                "the largest shift is NaN, but must be a positive number",
                "the scale is inf, but must be a positive number",
                "the energy share is 1.5, but must be above 0 and at most 1",
                "the rank multiple is 0, but must be at least 1",
                "the largest rank is 0, but must be at least 1",
                "the least rank is 3, but must be at most the largest rank",
            ]
        );
        for (ranks, text) in [
            (Policy::Fixed(0), "the rank is 0, but must be at least 1"),
            (Policy::BudgetOfRank(0), "the rank is 0, but must be at least 1"),
            (Policy::Budget(0), "the parameter budget is 0, but must be at least 1"),
        ] {
            let complaints = Options { ranks, ..Options::default() }.complaints();
            assert_eq!(complaints.iter().map(ToString::to_string).collect::<Vec<_>>(), [text]);
        }
        let strength = Options { strength: Strength::Fixed(0.0), ..Options::default() }.complaints();
        assert_eq!(strength[0].to_string(), "the strength is 0, but must be a positive number");
    }
}
