//! Sites that cannot be used: the refusals of the numerics that are about the activations of one site, and the step that helps.

use crate::constraint::LARGEST_RIDGE;
use crate::error::Error;
use crate::factors::module_and_block;
use crate::plan::{PlannedLayer, PlannedSite};
use crate::report::UnusableSite;
use crate::storage::Problem;
use std::collections::BTreeSet;

/// Why a site gives no layers.
pub(super) enum Failure {
    /// Its activations cannot be used. A run can go on without the site.
    Unusable {
        reason: String,
        /// The step that helps.
        remedy: String,
    },
    /// The run cannot go on.
    Fatal(Problem),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Fatal(problem)
    }
}

impl Failure {
    /// A refusal of the numerics that is about the activations of a site.
    pub(super) fn of_activations(error: &Error, site: &str) -> Self {
        const LOOK: &str = "look at the recorded numbers with `cntlora inspect FILE --values`";
        let remedy = match *error {
            Error::NoRows | Error::NoVariation { .. } => "record more and different inputs".to_owned(),
            Error::NotPositiveDefinite { damping, .. } if damping < LARGEST_RIDGE => {
                format!("give --ridge {LARGEST_RIDGE}, the largest that is legal")
            }
            Error::NotPositiveDefinite { .. } => "record its activations again".to_owned(),
            Error::NonFinite { .. } | Error::NoConvergence { .. } => LOOK.to_owned(),
            _ => return Self::Fatal(Problem::data(error.to_string()).in_tensor(site)),
        };
        Self::Unusable { reason: error.to_string(), remedy }
    }

    /// As [`Self::of_activations`], of the pre-training activations.
    pub(super) fn of_source(error: &Error, site: &str) -> Self {
        match Self::of_activations(error, site) {
            Self::Unusable { reason, remedy } => {
                Self::Unusable { reason: format!("pre-training activations: {reason}"), remedy }
            }
            fatal @ Self::Fatal(_) => fatal,
        }
    }
}

/// A site that is left out.
pub(super) fn left_out(planned: &PlannedSite, reason: String, remedy: String) -> UnusableSite {
    UnusableSite { name: planned.name.clone(), modules: modules(&planned.layers), reason, remedy }
}

/// A refusal to go on without a site.
pub(super) fn refusal(site: &UnusableSite, strict: bool) -> Problem {
    let problem = Problem::data(site.reason.clone()).in_tensor(&site.name);
    match strict {
        true => problem.help(format!("leave --strict out to go on without this site, or {}", site.remedy)),
        false => problem.help(site.remedy.clone()),
    }
}

/// The module that a layer is, or is a block of.
pub(super) fn module(layer: &PlannedLayer) -> &str {
    let name = layer.module.as_str();
    let block = layer.shape.blocks().and_then(|_| module_and_block(name));
    block.map_or(name, |(module, _)| module)
}

/// The modules of layers, each once, in order of name.
fn modules(layers: &[PlannedLayer]) -> Vec<String> {
    let modules: BTreeSet<&str> = layers.iter().map(module).collect();
    modules.into_iter().map(str::to_owned).collect()
}

/// The option that leaves a module out, all of its blocks included.
pub(super) fn exclusion(layer: &PlannedLayer) -> String {
    let module = regex::escape(module(layer));
    let blocks = if layer.shape.blocks().is_some() { r"(\.\d+)?" } else { "" };
    format!("--exclude '^{module}{blocks}$'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factors::LayerShape;
    use crate::method::Options;

    fn remedy(error: &Error) -> Option<String> {
        match Failure::of_activations(error, "s") {
            Failure::Unusable { remedy, .. } => Some(remedy),
            Failure::Fatal(_) => None,
        }
    }

    /// A larger ridge is advised only where a legal one is larger than what was tried.
    #[test]
    fn the_advised_ridge_is_legal() {
        let error = |damping| Error::NotPositiveDefinite { what: "second moment", damping };
        let advice = remedy(&error(0.3)).unwrap();
        let ridge: f64 = advice.split([' ', ',']).find_map(|word| word.parse().ok()).unwrap();
        assert!(advice.starts_with("give --ridge 1,") && ridge > 0.3, "{advice}");
        assert_eq!(Options { ridge, ..Options::default() }.complaints(), []);
        assert!(!remedy(&error(1.0)).unwrap().contains("--ridge"));
    }

    /// Errors of the job, and not of the activations, end the run.
    #[test]
    fn other_refusals_end_the_run() {
        let shape = Error::Shape { what: "width", expected: 2, found: 3 };
        assert!(remedy(&shape).is_none() && remedy(&Error::MissingSource).is_none());
        assert!(remedy(&Error::NonFinite { what: "second moment" }).unwrap().contains("cntlora inspect"));
    }

    /// All blocks of a module are left out together, and no other module is.
    #[test]
    fn modules_are_excluded_whole() {
        let layer = |module: &str, shape| PlannedLayer {
            module: module.into(),
            weight: vec![],
            shape,
            element: crate::element::Element::F32,
            outputs: 2,
            inputs: 2,
            max_rank: 1,
        };
        let expert = layer("a.experts.up.3", LayerShape::Expert { count: 4, transposed: false });
        assert_eq!(exclusion(&expert), r"--exclude '^a\.experts\.up(\.\d+)?$'");
        assert_eq!(exclusion(&layer("a.3", LayerShape::Linear)), r"--exclude '^a\.3$'");
        let again = expert.clone();
        assert_eq!(modules(&[expert, again, layer("a.3", LayerShape::Linear)]), ["a.3", "a.experts.up"]);
    }
}
