//! The whole path from rows to factors.

use super::*;
use crate::constraint::{Coupling, Evidence};
use crate::error::{Error, ErrorKind};
use crate::factors::{LayerName, LayerShape, Start};
use crate::method::{Method, Options};
use crate::moments::{Counts, Moments};
use crate::random::gaussian;
use crate::rank::Policy;
use expect_test::expect;
use faer::Mat;

const WIDTH: usize = 24;

fn rows(name: &str) -> Mat<f32> {
    let mixing = gaussian::<f32>(WIDTH, WIDTH, 1, "mixing") * faer::Scale(0.3);
    gaussian::<f32>(700, WIDTH, 1, name) * (mixing + Mat::<f32>::identity(WIDTH, WIDTH))
}

fn statistics(name: &str) -> Statistics {
    let mut statistics = Statistics::new(WIDTH);
    statistics.add(&rows(name)).unwrap();
    statistics
}

fn weight(outputs: usize) -> Mat<f32> {
    gaussian(outputs, WIDTH, 2, "weight")
}

#[test]
fn defaults_are_those_of_the_options() {
    assert_eq!(Initializer::builder().options(), Options::default());
    let eva = Initializer::builder().method(Method::Eva).rank(8).options();
    assert_eq!((eva.ranks, eva.limits.max, eva.start), (Policy::Shared(8), 16, Start::Zero));
    let energy = Initializer::builder().ranks(Policy::Energy(0.5)).options();
    assert_eq!(energy.limits.max, 128);
    for method in Method::ALL {
        assert!(Initializer::builder().method(method).build().is_ok(), "{method}");
    }
}

/// Statistics that wait in the buffer, moments, and evidence give the same bits.
#[test]
fn all_forms_of_activations_agree() {
    let initializer =
        Initializer::builder().coupling(Coupling::Transport).start(Start::Mirrored).rank(4).build().unwrap();
    let factors = |activations: Activations<'_>| {
        let layer = initializer.site(activations).unwrap().layer("w", weight(10).as_ref()).unwrap();
        let factors = layer.factors().unwrap();
        (factors.a, factors.b)
    };
    let (target, source) = (statistics("target"), statistics("source"));
    let moments = |name| Moments::of(rows(name).as_ref()).unwrap();
    let (target_moments, source_moments) = (moments("target"), moments("source"));
    let wanted = factors(Activations::with_source(&target, &source));
    assert_eq!(factors(Activations::with_source(&target_moments, &source_moments)), wanted);
    let evidence = Evidence { target: &target_moments, source: Some(&source_moments), change: None };
    assert_eq!(factors(evidence.into()), wanted);
    assert_ne!(factors((&target).into()), wanted, "the source matters");
}

#[test]
fn the_number_of_threads_does_not_change_the_bits() {
    let initializer = Initializer::builder().start(Start::Mirrored).rank(4).build().unwrap();
    let made = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let site = initializer.site(&statistics("target")).unwrap();
            let factors = site.layer("w", weight(10).as_ref()).unwrap().factors().unwrap();
            (factors.a, factors.b)
        })
    };
    assert_eq!(made(1), made(3));
}

/// A site of tokens takes the weights of embeddings, one column for each token.
#[test]
fn embeddings_have_sites_of_tokens() {
    let counts = Counts::new((0..WIDTH as u64).collect()).unwrap();
    for method in [Method::Cntlora, Method::CordaIpm, Method::Lora] {
        let initializer = Initializer::builder().method(method).rank(4).build().unwrap();
        let site = initializer.site(&counts).unwrap();
        let factors = site.layer("embed", weight(10).as_ref()).unwrap().factors().unwrap();
        assert_eq!((factors.a.shape(), factors.b.shape()), ((4, WIDTH), (10, 4)), "{method}");
        assert_eq!(factors.a.norm_max() == 0.0, method == Method::Lora, "{method}");
    }
    let eva = Initializer::builder().method(Method::Eva).build().unwrap();
    let refused = eva.site(&counts).unwrap_err();
    expect!["the method eva does not support embeddings: tokens that occur equally often vary alike, so they have no leading directions"].assert_eq(&refused.to_string());
}

#[test]
fn a_budget_is_shared_out_among_layers() {
    let initializer =
        Initializer::builder().ranks(Policy::Budget(400)).start(Start::Mirrored).build().unwrap();
    let site = initializer.site(&statistics("target")).unwrap();
    let layers =
        [("q", 10), ("v", 6)].map(|(name, outputs)| site.layer(name, weight(outputs).as_ref()).unwrap());
    let ranks = initializer.ranks(&layers).unwrap();
    let mut parameters = 0;
    for (layer, rank) in layers.iter().zip(&ranks) {
        let factors = layer.factors_of_rank(*rank).unwrap();
        assert_eq!((factors.a.nrows(), factors.b.ncols()), (*rank, *rank));
        parameters += rank * (layer.shape().0 + layer.shape().1);
    }
    assert!((350..=400).contains(&parameters), "{ranks:?}");
    let refused = layers[0].factors().unwrap_err();
    assert_eq!((&refused, refused.kind()), (&Error::SharedRanks, ErrorKind::Options));
}

/// Layers that are blocks of one module get one rank; equal names of whole modules do not.
#[test]
fn blocks_of_a_module_share_a_rank() {
    let initializer = Initializer::builder().ranks(Policy::Energy(0.9)).start(Start::Zero).build().unwrap();
    let site = initializer.site(&statistics("target")).unwrap();
    let one = Mat::from_fn(10, WIDTH, |i, j| if i == 0 { weight(10)[(0, j)] } else { 0.0 });
    let layers = |name: fn(usize) -> LayerName| {
        [weight(10), one.clone()]
            .iter()
            .enumerate()
            .map(|(index, weight)| {
                let shape = LayerShape::Expert { count: 2, transposed: false };
                site.layer_of_shape(name(index), weight.as_ref(), &shape).unwrap()
            })
            .collect::<Vec<_>>()
    };
    let experts = layers(|index| LayerName::of_block("experts", index));
    let ranks = initializer.ranks(&experts).unwrap();
    assert_eq!(ranks[0], ranks[1]);
    assert_eq!(experts[0].rank(), Err(Error::SharedRanks));
    let modules = layers(|_| LayerName::of_module("same"));
    let ranks = initializer.ranks(&modules).unwrap();
    assert!(ranks[0] > ranks[1], "{ranks:?}");
    assert_eq!(modules[1].rank(), Ok(ranks[1]));
}

#[test]
fn ranks_that_a_layer_does_not_have_are_refused() {
    let site = |method| {
        let initializer = Initializer::builder().method(method).rank(4).build().unwrap();
        initializer.site(&statistics("target")).unwrap()
    };
    let mirrored = Initializer::builder().start(Start::Mirrored).rank(4).build().unwrap();
    let layer = mirrored.site(&statistics("target")).unwrap().layer("w", weight(10).as_ref()).unwrap();
    let refused = |layer: &Layer, rank| layer.factors_of_rank(rank).unwrap_err().to_string();
    expect!["the rank is 22, but must be at most the largest rank of the layer"]
        .assert_eq(&refused(&layer, layer.largest_rank() + 2));
    expect!["rank 3 is odd, but the mirrored start needs an even rank"].assert_eq(&refused(&layer, 3));
    let none = layer.factors_of_rank(0).unwrap();
    assert_eq!((none.a.shape(), none.b.shape()), ((0, WIDTH), (10, 0)));
    // Half of the factors of these methods are not those of half the rank.
    for method in [Method::Orthogonal, Method::Milora, Method::Gaussian] {
        let layer = site(method).layer("w", weight(10).as_ref()).unwrap();
        assert!(layer.factors_of_rank(4).is_ok(), "{method}");
        assert!(matches!(layer.factors_of_rank(2), Err(Error::Option { what: "the rank", .. })), "{method}");
    }
}

#[test]
fn activations_that_a_method_needs_are_missing() {
    let refused = |initializer: Initializer| initializer.site_without_activations().unwrap_err();
    assert_eq!(refused(Initializer::builder().build().unwrap()), Error::NoRows);
    let paired = Initializer::builder().coupling(Coupling::Paired).build().unwrap();
    assert_eq!(paired.site(&statistics("target")).unwrap_err(), Error::MissingSource);
    let embedding = Initializer::builder().method(Method::Orthogonal).build().unwrap();
    let site = embedding.site_without_activations().unwrap();
    let refused = site.layer_of_shape("e", weight(10).as_ref(), &LayerShape::Embedding).unwrap_err();
    expect!["the method orthogonal does not support embeddings: PEFT supports it for other layers only, and gives embeddings the factors of lora"].assert_eq(&refused.to_string());
}
