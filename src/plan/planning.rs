//! The making of a plan: opens the inputs, checks them together, and estimates memory and work.

use super::cost::Memory;
use super::layers::Found;
use super::naming::{Named, Naming};
use super::recording::{RecordedSite, Recording};
use super::renames::Renames;
use super::schedule::Limits;
use super::select::Selector;
use super::{Plan, Request, SideBySide, cost, layers, options, recording, schedule, weights};
use crate::constraint::Coupling;
use crate::method::Options;
use crate::storage::{Checkpoint, Problem, Problems, quoted};
use std::path::PathBuf;

/// The open files of a plan.
pub struct Inputs {
    /// The model.
    pub checkpoint: Checkpoint,
    /// Fine-tuning activations. `None` if none were given and the method needs none. For methods that use only pre-training activations,
    /// these.
    pub target: Option<Recording>,
    /// Pre-training activations that are used beside fine-tuning ones.
    pub source: Option<Recording>,
}

/// Opens the inputs, checks headers and options, and plans the run.
///
/// # Errors
/// All problems of the options, the checkpoint and both sets of activations together. Checks that depend on a failed check are
/// skipped.
pub fn plan(request: &Request) -> Result<(Plan, Inputs), Problems> {
    plan_with(request, |problems| {
        let checkpoint = problems.collect(Checkpoint::open(&request.model, request.access));
        let open = |activations: &[PathBuf], moments: &[PathBuf], problems: &mut Problems| {
            problems.collect(Recording::open(activations, moments, request.access))
        };
        let method = request.method.method;
        let needs_target = method.reads_activations() && !method.reads_only_source();
        let target = match request.has_target() || needs_target {
            true => open(&request.activations, &request.moments, problems),
            false => None,
        };
        let source = match request.has_source() {
            true => open(&request.source, &request.source_moments, problems),
            false => None,
        };
        (checkpoint, target, source)
    })
}

/// As [`plan()`], with inputs that are open. The paths of the request only tell which inputs there are.
///
/// # Errors
/// As [`plan()`].
pub fn plan_opened(request: &Request, inputs: Inputs) -> Result<(Plan, Inputs), Problems> {
    plan_with(request, |_| (Some(inputs.checkpoint), inputs.target, inputs.source))
}

fn plan_with(
    request: &Request,
    open: impl FnOnce(&mut Problems) -> (Option<Checkpoint>, Option<Recording>, Option<Recording>),
) -> Result<(Plan, Inputs), Problems> {
    let mut problems = Problems::default();
    options::check_values(&request.method, (request.has_target(), request.has_source()), &mut problems);
    options::check_pairs(request, &mut problems);
    let renames = problems.collect(Renames::new(&request.renames));
    let adapter_renames = problems.collect(Renames::of_adapter(&request.adapter_renames));
    let selector = problems.collect(Selector::new(&request.selection));
    let (checkpoint, target, source) = open(&mut problems);
    let only_source = request.method.method.reads_only_source();
    let (target, source) = if only_source { (source, None) } else { (target, source) };
    for recording in [&target, &source].into_iter().flatten() {
        problems.collect(options::check_moments_precision(recording, request.precision));
    }

    let naming = adapter_renames.map(|renames| Naming::new(renames, checkpoint.as_ref()));
    let stand_ins;
    let mut sites: Option<Vec<RecordedSite<'_>>> = match (&target, &checkpoint, &selector, &naming) {
        (Some(target), _, _, Some(_)) => Some(target.sites()),
        (None, Some(checkpoint), Some(selector), Some(naming))
            if !request.has_target() && !request.method.method.reads_activations() =>
        {
            weights::check_selection(&request.selection, &mut problems);
            stand_ins = weights::stand_ins(checkpoint, selector, naming);
            Some(stand_ins.iter().map(|weight| recording::of_weight(weight, checkpoint.path())).collect())
        }
        _ => None,
    };
    let named = match (&sites, &naming) {
        (Some(sites), Some(naming)) => naming.of_sites(sites, &mut problems),
        _ => Named::default(),
    };
    for (site, modules) in sites.iter_mut().flatten().zip(&named.modules) {
        site.modules = modules;
    }
    if let (Some(_), Some(sites), Some(selector), Some(source)) = (&target, &sites, &selector, &source) {
        layers::check_source(sites, source, selector, request.method.coupling, &mut problems);
    }
    if let (Some(sites), Some(selector)) = (&sites, &selector) {
        selector.check(sites.iter().flat_map(|site| site.modules).map(String::as_str), &mut problems);
    }
    let mut found = Found::default();
    if let (Some(checkpoint), Some(sites), Some(selector), Some(renames)) =
        (&checkpoint, &sites, &selector, &renames)
    {
        let names = (renames, &named.before);
        found = layers::find(checkpoint, sites, source.as_ref(), selector, names, &request.method);
        problems.0.append(&mut found.problems.0);
        options::check_ranks(&request.method, &found.sites, &mut problems);
        if request.strict && request.method.method.reads_activations() {
            options::check_rows(&found.sites, &mut problems);
        }
        if found.sites.is_empty()
            && problems.0.is_empty()
            && let Some(first) = found.skipped.first()
        {
            let what = format!("no selected module has a weight that can be adapted: {}", first.reason);
            problems.push(Problem::data(what).in_tensor(&first.name));
        }
    }
    let memory = Memory::of_run(&found.sites, &request.method);
    let Options { method, coupling, .. } = request.method;
    let cheaper = match method.has_constraints() && coupling == Coupling::Transport {
        true => "; --coupling uncorrelated and smaller ranks need less",
        false => "; smaller ranks need less",
    };
    let limits = Limits { max_memory: request.max_memory, room: request.room.as_ref() };
    let side_by_side = schedule::side_by_side(&memory, request.threads, limits, cheaper);
    let side_by_side = problems.collect(side_by_side);
    match (checkpoint, side_by_side) {
        (Some(checkpoint), Some(side_by_side)) if problems.0.is_empty() => {
            let plan = Plan {
                model: request.model.clone(),
                peak_memory: memory.peak(side_by_side),
                work: cost::work(&found.sites, &request.method),
                sites: found.sites,
                skipped: found.skipped,
                shared: found.shared,
                notes: named.notes.into_iter().chain(found.notes).collect(),
                method: request.method.clone(),
                nonfinite: request.nonfinite,
                strict: request.strict,
                precision: request.precision,
                element: request.element,
                threads: request.threads,
                side_by_side,
            };
            log(&plan);
            Ok((plan, Inputs { checkpoint, target, source }))
        }
        _ => Err(problems),
    }
}

fn log(plan: &Plan) {
    for site in &plan.sites {
        tracing::info!(site = %quoted(&site.name), width = site.width, rows = site.rows, layers = site.layers.len(), "planned");
        for layer in &site.layers {
            let shape = format_args!("{}x{}", layer.outputs, layer.inputs);
            tracing::debug!(layer = %quoted(&layer.name.to_string()), tensor = %quoted(&layer.tensors()), %shape, "planned");
        }
    }
    let (threads, memory, SideBySide { narrow: side_by_side, wide }) =
        (plan.threads, plan.peak_memory, plan.side_by_side);
    tracing::info!(sites = plan.sites.len(), threads, side_by_side, wide, memory, "planned the run");
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Fixture, INNER, QUERY, WIDTH};
    use super::super::{Division, Share};
    use super::*;
    use crate::element::Element;
    use crate::factors::Start;
    use crate::method::Method;
    use crate::simd::Precision;
    use expect_test::expect;

    #[test]
    fn plan_matches_the_headers() {
        let mut fixture = Fixture::bert();
        let source = fixture.activations("source", 3, WIDTH);
        fixture.request.source = vec![source];
        let plan = fixture.plan();
        assert_eq!(plan.sites.len(), 2);
        let site = &plan.sites[0];
        assert_eq!((site.name.as_str(), site.width, site.rows, site.source_rows), (QUERY, 6, 8, Some(3)));
        assert_eq!(site.bytes, (8 + 3) * WIDTH * 2);
        let modules: Vec<_> =
            site.layers.iter().map(|layer| layer.name.module.rsplit('.').next().unwrap()).collect();
        assert_eq!(modules, ["key", "query", "value"]);
        let value = &site.layers[2];
        assert_eq!(value.tensors(), "bert.encoder.layer.0.attention.self.value.weight");
        assert_eq!((value.element, value.outputs, value.inputs, value.max_rank), (Element::Bf16, 6, 6, 4));
        assert_eq!(plan.sites[1].rows, 16);
        assert_eq!(plan.sites[1].layers[0].outputs, 10);
        assert!(plan.skipped.is_empty());
    }

    /// A plan is equal after a round trip through JSON, and the same request gives the same plan.
    #[test]
    fn plans_round_trip_and_are_deterministic() {
        let fixture = Fixture::bert();
        let plan = fixture.plan();
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
        assert_eq!(serde_json::to_string(&fixture.plan()).unwrap(), json);
    }

    /// More rows need more work, but not more memory.
    #[test]
    fn memory_does_not_depend_on_rows() {
        let fixture = Fixture::bert();
        let few = fixture.plan();
        fixture.activations("target", 800, WIDTH);
        let many = fixture.plan();
        assert_eq!(few.peak_memory, many.peak_memory);
        assert_eq!(many.work.moments, 100.0 * few.work.moments);
        assert_eq!(many.work.factors, few.work.factors);
    }

    /// The old code wrote adapters without any effect, or with infinite products.
    #[test]
    fn scales_that_are_lost_are_refused() {
        let mut fixture = Fixture::bert();
        let mut refused = |scale| {
            fixture.request.method.scale = scale;
            crate::storage::shown(&fixture.refused(), fixture.folder.path())
        };
        let texts = [0.0, 1e308, 1e-50].map(&mut refused).concat();
        expect![[r#"
            Usage: the scale is 0, but must be a positive number
            Usage: the scale 1e308 is infinite in single precision, in which adapters are computed
                help: give a --scale nearer to 1
            Usage: the scale 1e-50 is zero in single precision, in which adapters are computed
                help: give a --scale nearer to 1
        "#]]
        .assert_eq(&texts);
        for scale in [1e-14, 1e30] {
            fixture.request.method.scale = scale;
            fixture.plan();
        }
    }

    #[test]
    fn problems_of_all_inputs_are_reported_together() {
        let mut fixture = Fixture::bert();
        fixture.request.selection.targets = vec!["dense".into(), "querry".into(), "self.key".into()];
        fixture.request.renames = vec!["(=x".parse().unwrap()];
        fixture.request.method.ridge = -1.0;
        fixture.request.method.coupling = Coupling::Paired;
        fixture.request.model = fixture.folder.path().join("missing.safetensors");
        fixture.check_refusal(&expect![[r#"
            Usage: the ridge is -1, but must be above 0 and at most 1
            Usage: the coupling paired needs pre-training activations, one row for each fine-tuning row
                help: give them with --source, or choose --coupling uncorrelated
            Usage: --rename: "(" is not a regular expression: unclosed group
                help: write a backslash before a literal dot or bracket
            Io: missing.safetensors: cannot open: No such file or directory (os error 2)
                help: check the path
            Usage: --target: no module is named "querry"; similar names are "query", "key", "dense"
                help: give the name of a module, or the end of its name, such as q_proj or self_attn.q_proj
        "#]]);
    }

    /// Without activations, the layers come from the checkpoint. Names of embeddings and output heads are excluded.
    #[test]
    fn checkpoint_names_the_layers_without_activations() {
        let mut fixture = Fixture::bert();
        fixture.request.method =
            Options { start: Start::Residual, method: Method::Pissa, ..fixture.request.method };
        let with_activations = fixture.plan();
        assert_eq!(with_activations.layers().count(), 4);
        assert!(with_activations.sites.iter().all(|site| (site.rows, site.bytes) == (0, 0)));
        assert_eq!(with_activations.work.moments, 0.0);

        fixture.model(&[
            ("embeddings.word_embeddings.weight", "F32", &[30, WIDTH]),
            ("layer.0.query.weight", "F32", &[WIDTH, WIDTH]),
            ("layer.0.norm.weight", "F32", &[WIDTH]),
            ("layer.0.dense.weight", "F32", &[INNER, WIDTH]),
            ("layer.0.relative_attention_bias.weight", "F32", &[32, WIDTH]),
            ("layer.0.scales.weight", "I64", &[WIDTH, WIDTH]),
            ("lm_head.weight", "F32", &[30, WIDTH]),
        ]);
        fixture.request.activations = vec![];
        fixture.check_refusal(&expect![[r#"
            Usage: without activations, the layers must be named
                help: give --target q_proj,v_proj or --target all-linear, or give --activations, which name the layers
        "#]]);
        fixture.request.selection.targets = vec!["all-linear".into()];
        let plan = fixture.plan();
        let modules: Vec<_> = plan.layers().map(|layer| layer.name.module.as_str()).collect();
        assert_eq!(modules, ["layer.0.dense", "layer.0.query"]);
        assert_eq!(plan.skipped[0].name, "layer.0.scales");
        fixture.request.selection.targets = vec!["queri".into()];
        fixture.check_refusal(&expect![[r#"
            Usage: --target: no module is named "queri"; similar names are "query", "dense", "scales"
                help: give the name of a module, or the end of its name, such as q_proj or self_attn.q_proj
        "#]]);
        fixture.request.selection.targets = vec!["all-linear".into()];
        fixture.request.method =
            Options { method: Method::Cntlora, start: Start::Update, ..fixture.request.method };
        fixture.check_refusal(&expect![[r#"
            Usage: no files or folders with activations were given
                help: give files or folders with --activations
        "#]]);
    }

    /// With moments, no rows are read. The paired coupling and another precision are refused.
    #[test]
    fn moments_replace_rows() {
        use crate::moments::Moments;
        use crate::moments_file::{Content, MeasuredSite, MeasuredSource, write};
        let mut fixture = Fixture::bert();
        let modules = vec!["encoder.layer.0.attention.self.query".to_owned()];
        let width = WIDTH as usize;
        let content = Content {
            precision: Precision::F32,
            sites: [(QUERY.to_owned(), MeasuredSite { width, counts: false, modules, skipped_rows: 5 })]
                .into(),
            sources: vec![MeasuredSource {
                path: "a.safetensors".into(),
                bytes: 100,
                fingerprint: String::new(),
                rows: [(QUERY.to_owned(), std::iter::once(0..5).collect())].into(),
            }],
            part: None,
        };
        let path = fixture.folder.path().join("m.moments.safetensors");
        write(&path, &content, &|_| Ok(Moments::new(width).into())).unwrap();
        fixture.request.activations = Vec::new();
        fixture.request.moments = vec![path.clone()];
        let (plan, inputs) = plan(&fixture.request).unwrap();
        assert_eq!((plan.sites[0].rows, plan.sites[0].rows_to_read, plan.work.moments), (5, 0, 0.0));
        assert_eq!(Division::new(&plan, &inputs, 4).moments, Share::default());
        fixture.request.precision = Precision::Bf16;
        fixture.check_refusal(&expect![[r#"
            Usage: m.moments.safetensors: expected moments in precision bf16, found f32
                help: give --precision f32
        "#]]);
        fixture.request.precision = Precision::F32;
        fixture.request.source_moments = vec![path];
        fixture.request.method.coupling = Coupling::Paired;
        fixture.check_refusal(&expect![[r#"
            Usage: the coupling paired needs the rows of both kinds of activations, not moments
                help: give the activations with --activations and --source, or choose --coupling uncorrelated
        "#]]);
    }
}
