//! Options that are checked once.

use super::{Activations, Layer, Site};
use crate::constraint::{ChannelScale, Coupling, Norm, Shrinkage};
use crate::error::Result;
use crate::factors::{Start, Strength};
use crate::method::{Method, Options, RankRule};
use crate::rank::{self, Limits, Policy};
use std::sync::Arc;

/// The options of an initialization, checked. See the [module](super) for its place.
///
/// ```
/// use cntlora_numerics::initializer::{Initializer, Statistics};
/// use faer::Mat;
///
/// let rows = Mat::from_fn(100, 6, |i, j| ((i * i + 3 * j) % 11) as f32);
/// let weight = Mat::from_fn(8, 6, |i, j| ((2 * i + j * j) % 5) as f32);
///
/// let initializer = Initializer::builder().rank(4).build()?;
/// let mut statistics = Statistics::new(6);
/// statistics.add(&rows)?;
/// let layer = initializer.site(&statistics)?.layer("q_proj", weight.as_ref())?;
/// let factors = layer.factors()?;
/// assert_eq!((factors.b.shape(), factors.a.shape()), ((8, 4), (4, 6)));
/// # Ok::<(), cntlora_numerics::error::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Initializer {
    options: Arc<Options>,
}

impl Initializer {
    /// Starts with the default options: method `cntlora`, rank 16.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Options that were put together elsewhere.
    ///
    /// # Errors
    /// The first of [`Options::complaints`].
    pub fn new(options: Options) -> Result<Self> {
        options.check()?;
        Ok(Self { options: Arc::new(options) })
    }

    /// The options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Does the part of the work that depends on the activations of a site alone, `O(d³)` operations for most methods. All weights
    /// that read the site share it.
    ///
    /// # Errors
    /// [`Error::NoRows`], [`Error::NoVariation`] and [`Error::NonFinite`] for activations that give nothing to initialize from;
    /// [`Error::Shape`] for statistics of different widths; [`Error::NeedsSource`] for a method that needs pre-training activations,
    /// without them; [`Error::MissingSource`] and [`Error::NoPairs`] for
    /// [`Coupling::Paired`] without paired statistics; [`Error::Combination`] for a method that does not adapt embeddings;
    /// [`Error::NotPositiveDefinite`] and [`Error::NoConvergence`] if a decomposition fails.
    ///
    /// [`Error::NoRows`]: crate::error::Error::NoRows
    /// [`Error::NoVariation`]: crate::error::Error::NoVariation
    /// [`Error::NonFinite`]: crate::error::Error::NonFinite
    /// [`Error::Shape`]: crate::error::Error::Shape
    /// [`Error::NeedsSource`]: crate::error::Error::NeedsSource
    /// [`Error::MissingSource`]: crate::error::Error::MissingSource
    /// [`Error::NoPairs`]: crate::error::Error::NoPairs
    /// [`Error::Combination`]: crate::error::Error::Combination
    /// [`Error::NotPositiveDefinite`]: crate::error::Error::NotPositiveDefinite
    /// [`Error::NoConvergence`]: crate::error::Error::NoConvergence
    pub fn site<'a>(&self, activations: impl Into<Activations<'a>>) -> Result<Site> {
        self.site_with_stream("", Some(activations.into()))
    }

    /// A site for methods that use weights alone.
    ///
    /// # Errors
    /// [`Error::NoRows`](crate::error::Error::NoRows) if the method uses activations.
    pub fn site_without_activations(&self) -> Result<Site> {
        self.site_with_stream("", None)
    }

    /// A site whose random numbers are selected by a name, besides the seed.
    #[doc(hidden)]
    pub fn site_with_stream(&self, name: &str, activations: Option<Activations<'_>>) -> Result<Site> {
        Site::new(self.options.clone(), name, activations)
    }

    /// A rank for each layer, in their order, by the policy of the options. Layers of one module, such as the experts of a
    /// mixture, get the same rank. 0 means that the layer gets no adapter.
    ///
    /// ```
    /// use cntlora_numerics::initializer::{Initializer, Statistics};
    /// use cntlora_numerics::rank::Policy;
    /// use faer::Mat;
    ///
    /// let mut statistics = Statistics::new(6);
    /// statistics.add(&Mat::from_fn(100, 6, |i, j| ((i * i + 3 * j) % 11) as f32))?;
    /// let weight = |rows: usize| Mat::from_fn(rows, 6, |i, j| ((2 * i + j * j) % 5) as f32);
    ///
    /// let initializer = Initializer::builder().ranks(Policy::Budget(80)).build()?;
    /// let site = initializer.site(&statistics)?;
    /// let layers = [site.layer("q_proj", weight(8).as_ref())?, site.layer("v_proj", weight(4).as_ref())?];
    /// for (layer, rank) in layers.iter().zip(initializer.ranks(&layers)?) {
    ///     println!("{}: rank {rank}, {:?}", layer.name(), layer.factors_of_rank(rank)?.b.shape());
    /// }
    /// # Ok::<(), cntlora_numerics::error::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Option`](crate::error::Error::Option) for a budget that does not pay for the least ranks, or for no rank at all.
    pub fn ranks<'a>(&self, layers: impl IntoIterator<Item = &'a Layer>) -> Result<Vec<usize>> {
        // A layer that is no block shares its rank with no other, whatever their names.
        let key = |(index, layer): (usize, &'a Layer)| {
            let name = layer.name();
            (
                (&name.module, name.block.map_or(index, |_| usize::MAX)),
                layer.as_rank_layer(self.options.start),
            )
        };
        let layers: Vec<_> = layers.into_iter().enumerate().map(key).collect();
        rank::allocate_by_module(self.options.ranks, self.options.limits, &layers)
    }
}

/// Largest rank of a layer where ranks follow a share of the energy, unless another is given.
const LARGEST_OF_ENERGY: usize = 128;

/// Largest rank of a layer where a budget is spent, in units of the rank, unless another is given.
const LARGEST_OF_BUDGET: usize = 4;

/// Largest rank of a layer where ranks are shared out, in units of the rank, unless another is given: EVA's `ρ`.
const LARGEST_OF_SHARED: usize = 2;

/// The options of an [`Initializer`], before they are checked. Everything has a default.
///
/// ```
/// use cntlora_numerics::factors::Start;
/// use cntlora_numerics::initializer::Initializer;
/// use cntlora_numerics::method::Method;
///
/// let initializer = Initializer::builder().method(Method::Pissa).rank(8).seed(1).build()?;
/// assert_eq!(initializer.options().start, Method::Pissa.starts()[0]);
///
/// let refused = Initializer::builder().start(Start::Mirrored).rank(7).build().unwrap_err();
/// assert_eq!(refused.to_string(), "rank 7 is odd, but the mirrored start needs an even rank");
/// # Ok::<(), cntlora_numerics::error::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    /// The start, the ranks and the limits are those of the fields below.
    options: Options,
    start: Option<Start>,
    rank: usize,
    ranks: Option<Policy>,
    min_rank: usize,
    max_rank: Option<usize>,
    rank_multiple: usize,
}

impl Default for Builder {
    fn default() -> Self {
        let options = Options::default();
        let Limits { min, max, multiple } = options.limits;
        Self {
            options,
            start: None,
            rank: max,
            ranks: None,
            min_rank: min,
            max_rank: None,
            rank_multiple: multiple,
        }
    }
}

impl Builder {
    /// How an adapter is initialized. The default is [`Method::Cntlora`].
    pub fn method(mut self, method: Method) -> Self {
        self.options.method = method;
        self
    }

    /// The rank of every layer, unless [`Self::ranks`] are given; for [`Method::Eva`] and [`Method::Astra`] the mean rank. The default
    /// is 16.
    pub fn rank(mut self, rank: usize) -> Self {
        self.rank = rank;
        self
    }

    /// How ranks are chosen. The default is one rank for all layers; for [`Method::Eva`], [`Policy::Shared`]; for
    /// [`Method::Astra`], [`Policy::Proportional`].
    pub fn ranks(mut self, ranks: Policy) -> Self {
        self.ranks = Some(ranks);
        self
    }

    /// The least rank of a layer. The default is 0: no adapter.
    pub fn min_rank(mut self, rank: usize) -> Self {
        self.min_rank = rank;
        self
    }

    /// The largest rank of a layer. The default is the rank itself if all layers have one rank, 128 for [`Policy::Energy`], 4 times the
    /// rank for budgets, and twice the rank for [`Policy::Shared`] and [`Policy::Proportional`].
    pub fn max_rank(mut self, rank: usize) -> Self {
        self.max_rank = Some(rank);
        self
    }

    /// Ranks are multiples of this number. The default is 1.
    pub fn rank_multiple(mut self, multiple: usize) -> Self {
        self.rank_multiple = multiple;
        self
    }

    /// The model before the first training step. The default is the first of the method's
    /// [starts](Method::starts).
    pub fn start(mut self, start: Start) -> Self {
        self.start = Some(start);
        self
    }

    /// How much of the update is taken, for [`Start::Update`].
    pub fn strength(mut self, strength: Strength) -> Self {
        self.options.strength = strength;
        self
    }

    /// The scale `s`: the adapter adds `s · B A`. PEFT's `lora_alpha` of a layer is `s` times its rank. The default is 1.
    pub fn scale(mut self, scale: f64) -> Self {
        self.options.scale = scale;
        self
    }

    /// How fine-tuning and pre-training activations correspond, for [`Method::Cntlora`].
    pub fn coupling(mut self, coupling: Coupling) -> Self {
        self.options.coupling = coupling;
        self
    }

    /// The weight of the preservation of pre-training inputs, for [`Method::Cntlora`]. The default is 0.
    pub fn preserve(mut self, weight: f64) -> Self {
        self.options.preserve = weight;
        self
    }

    /// The damping, relative to the scale of a channel, for methods that [have one](Method::has_ridge). The default is 0.01.
    pub fn ridge(mut self, ridge: f64) -> Self {
        self.options.ridge = ridge;
        self
    }

    /// The scale of a channel, for [`Method::Cntlora`].
    pub fn channel_scale(mut self, scale: ChannelScale) -> Self {
        self.options.channel_scale = scale;
        self
    }

    /// The correction of covariances for few rows, for [`Method::Cntlora`].
    pub fn shrinkage(mut self, shrinkage: Shrinkage) -> Self {
        self.options.shrinkage = shrinkage;
        self
    }

    /// The weight `β` of the pre-training activations, from 0 to 1, for [`Method::ScLora`].
    pub fn beta(mut self, weight: f64) -> Self {
        self.options.beta = Some(weight);
        self
    }

    /// The norm in which an update is cut to low rank, for [`Method::Cntlora`].
    pub fn norm(mut self, norm: Norm) -> Self {
        self.options.norm = norm;
        self
    }

    /// The seed of random numbers. The default is 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.options.seed = seed;
        self
    }

    /// The options as they are, unchecked.
    pub fn options(&self) -> Options {
        let method = self.options.method;
        let by_default = match method.rank_rule() {
            RankRule::Shared => Policy::Shared(self.rank),
            RankRule::Proportional => Policy::Proportional(self.rank),
            RankRule::Spectrum | RankRule::Fixed => Policy::Fixed(self.rank),
        };
        let ranks = self.ranks.unwrap_or(by_default);
        let largest = match ranks {
            Policy::Fixed(rank) => rank,
            Policy::Energy(_) => LARGEST_OF_ENERGY,
            Policy::Budget(_) => self.rank.saturating_mul(LARGEST_OF_BUDGET),
            Policy::BudgetOfRank(rank) => rank.saturating_mul(LARGEST_OF_BUDGET),
            Policy::Shared(rank) | Policy::Proportional(rank) => rank.saturating_mul(LARGEST_OF_SHARED),
        };
        let max = self.max_rank.unwrap_or(largest);
        Options {
            start: self.start.unwrap_or(method.starts()[0]),
            ranks,
            limits: Limits { min: self.min_rank, max, multiple: self.rank_multiple },
            ..self.options.clone()
        }
    }

    /// Checks the options.
    ///
    /// # Errors
    /// The first of [`Options::complaints`].
    pub fn build(&self) -> Result<Initializer> {
        Initializer::new(self.options())
    }
}
