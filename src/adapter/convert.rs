//! A trained adapter made into one for the original base, and to smaller rank.
//!
//! An adapter from a residual start belongs to the base `W − s B₀ A₀` that was written with it. Trained to `B A`, it is for the original
//! base the update `s (B A − B₀ A₀)`, of twice the rank: what PEFT's `path_initial_model_for_weight_conversion` computes.

use super::{Adapter, PeftAdapter, PeftLayer};
use crate::factors::{Factors, LayerShape, combine, module_and_block};
use crate::rank::least_common_multiple;
use crate::storage::{Problem, Problems, quoted};
use std::collections::BTreeMap;

/// What a conversion gives.
pub struct Conversion {
    /// The adapter for the original base.
    pub adapter: Adapter,
    /// Share of the square of each layer's update that is left after the cut, by module name.
    pub kept: BTreeMap<String, f64>,
}

/// Takes the initial adapter, if there is one, from the trained one, and cuts the result to a rank, if there is one: that of a
/// convolution in groups is divided among them.
///
/// The scale is that of the trained adapter where all layers share one; otherwise it is 1, and the up matrices hold it.
///
/// # Errors
/// Usage: a rank that cannot be divided among the groups of a convolution. Data: a layer that the initial adapter does not have, or
/// has in another shape; values that are not finite. I/O: what reading meets.
pub fn convert(
    trained: &PeftAdapter,
    initial: Option<&PeftAdapter>,
    rank: Option<usize>,
) -> Result<Conversion, Problems> {
    let mut problems = Problems::default();
    problems.collect(rank.map_or(Ok(()), |rank| check_rank(trained, rank)));
    let scale = common_scale(trained).unwrap_or(1.0);
    let mut adapter = Adapter {
        layers: BTreeMap::new(),
        shapes: BTreeMap::new(),
        scale,
        base: trained.config().and_then(|config| config.base_model_name_or_path.clone()).unwrap_or_default(),
    };
    let mut kept = BTreeMap::new();
    for (module, layer) in trained.layers() {
        let converted = difference(trained, module, layer, initial, scale).and_then(|factors| match rank {
            None => Ok((factors, 1.0)),
            Some(rank) => combine::truncated(&factors, rank / layer.shape.parts()).map_err(|error| {
                let what = format!("module {}: {error}", quoted(module));
                Problem::data(what).in_file(trained.source().path())
            }),
        });
        if let Some((factors, share)) = problems.collect(converted) {
            adapter.layers.insert(module.clone(), factors);
            kept.insert(module.clone(), share);
            if layer.shape != LayerShape::Linear {
                adapter.shapes.insert(module.clone(), layer.shape.clone());
            }
        }
    }
    problems.or_ok(Conversion { adapter, kept })
}

/// Refuses a rank that the groups of a convolution cannot share.
fn check_rank(adapter: &PeftAdapter, rank: usize) -> Result<(), Problem> {
    let parts = |layer: &PeftLayer| layer.shape.parts();
    let step = adapter.layers().values().map(parts).fold(1, least_common_multiple);
    let Some((name, layer)) = adapter.layers().iter().find(|(_, layer)| !rank.is_multiple_of(parts(layer)))
    else {
        return Ok(());
    };
    let (module, _) = module_and_block(name).unwrap_or((name, 0));
    let what = format!(
        "module {} is a convolution in {} groups: expected a rank that they can share, found {rank}",
        quoted(module),
        parts(layer)
    );
    let nearest = rank.next_multiple_of(step);
    Err(Problem::usage(what).in_file(adapter.source().path()).help(format!("give --rank {nearest}")))
}

/// The update of a layer on the original base, of which the adapter adds `scale` times the product.
fn difference(
    trained: &PeftAdapter,
    module: &str,
    layer: &PeftLayer,
    initial: Option<&PeftAdapter>,
    scale: f64,
) -> Result<Factors, Problem> {
    let factors = with_scale(trained.factors(layer)?, layer.scale / scale);
    let Some(initial) = initial else { return Ok(factors) };
    let complain = |what: String| {
        Problem::data(what)
            .in_file(initial.source().path())
            .help("give with --init the adapter that the training started from")
    };
    let before = initial.layers().get(module).ok_or_else(|| {
        complain(format!("expected module {}, which the trained adapter has, found none", quoted(module)))
    })?;
    let shape = |layer: &PeftLayer| (layer.outputs, layer.inputs);
    if shape(before) != shape(layer) {
        let (expected, found) = (shape(layer), shape(before));
        return Err(complain(format!(
            "module {}: expected outputs and inputs {expected:?} as in the trained adapter, found {found:?}",
            quoted(module)
        )));
    }
    let before = with_scale(initial.factors(before)?, before.scale / scale);
    Ok(combine::difference(&factors, &before))
}

fn with_scale(factors: Factors, scale: f64) -> Factors {
    Factors { b: factors.b * faer::Scale(scale as f32), a: factors.a }
}

/// The scale of all layers, if they share one.
fn common_scale(adapter: &PeftAdapter) -> Option<f64> {
    let mut scales = adapter.layers().values().map(|layer| layer.scale);
    let first = scales.next()?;
    (first > 0.0 && scales.all(|scale| scale == first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{adapter, factors, write};
    use super::*;
    use faer::Mat;

    fn opened(layers: Vec<(&'static str, Factors)>, scale: f64) -> (tempfile::TempDir, PeftAdapter) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &Adapter { scale, ..adapter(layers) });
        let adapter = PeftAdapter::open(folder.path()).unwrap();
        (folder, adapter)
    }

    fn update(adapter: &Adapter, module: &str) -> Mat<f32> {
        let Factors { a, b } = &adapter.layers[module];
        b * a * faer::Scale(adapter.scale as f32)
    }

    /// The oracle forms both products. The initial adapter may have another scale and other ranks.
    #[test]
    fn the_initial_update_is_taken_away() {
        let trained = || vec![("q", factors(5, 4, 2)), ("v", factors(3, 4, 1))];
        let before = || vec![("q", factors(5, 4, 1)), ("v", factors(3, 4, 1))];
        let (_one, trained_adapter) = opened(trained(), 2.0);
        let (_two, initial) = opened(before(), 0.5);
        let converted = convert(&trained_adapter, Some(&initial), None).unwrap();
        assert_eq!(converted.adapter.scale, 2.0);
        assert_eq!(converted.kept.values().copied().collect::<Vec<_>>(), [1.0, 1.0]);
        for ((module, after), (_, before)) in trained().into_iter().zip(before()) {
            let wanted = after.b * after.a * faer::Scale(2.0f32) - before.b * before.a * faer::Scale(0.5f32);
            assert!((update(&converted.adapter, module) - wanted).norm_max() < 1e-5, "{module}");
        }
        assert_eq!(converted.adapter.layers["q"].a.nrows(), 3);
        let cut = convert(&trained_adapter, Some(&initial), Some(1)).unwrap();
        assert!(cut.adapter.layers.values().all(|factors| factors.a.nrows() == 1));
        assert!(cut.kept["q"] < 1.0 && cut.kept["q"] > 0.0);
    }

    /// The rank of a convolution in groups is that of all of them together, before the cut and after it.
    #[test]
    fn groups_divide_the_rank_among_them() {
        let shape = LayerShape::Group { count: 2, kernel: vec![3] };
        let mut whole =
            adapter([("c.0", factors(5, 12, 3)), ("c.1", factors(5, 12, 3)), ("q", factors(5, 4, 3))]);
        whole.shapes = ["c.0", "c.1"].map(|group| (group.to_owned(), shape.clone())).into();
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &whole);
        let opened = PeftAdapter::open(folder.path()).unwrap();
        let cut = convert(&opened, None, Some(2)).unwrap();
        let ranks: Vec<usize> = cut.adapter.layers.values().map(|factors| factors.a.nrows()).collect();
        assert_eq!(ranks, [1, 1, 2]);
        assert_eq!(cut.adapter.shape("c.1"), &shape);
        let problems = convert(&opened, None, Some(3)).map(|_| ()).unwrap_err();
        let what = "module \"c\" is a convolution in 2 groups: expected a rank that they can share, found 3";
        assert!(problems.to_string().ends_with(what), "{problems}");
        assert_eq!(problems.0[0].next_step(), Some("give --rank 4"));
    }

    #[test]
    fn an_initial_adapter_of_another_model_is_refused() {
        let (_one, trained) = opened(vec![("q", factors(5, 4, 2)), ("v", factors(3, 4, 1))], 1.0);
        let (_two, initial) = opened(vec![("q", factors(5, 3, 2))], 1.0);
        let problems = convert(&trained, Some(&initial), None).map(|_| ()).unwrap_err();
        let text = problems.to_string();
        assert_eq!(problems.0.len(), 2, "{text}");
        assert!(text.contains("expected outputs and inputs (5, 4) as in the trained adapter, found (5, 3)"));
        assert!(text.contains("expected module \"v\", which the trained adapter has"), "{text}");
        assert!(problems.0.iter().all(|problem| problem.next_step().unwrap().contains("--init")));
    }
}
