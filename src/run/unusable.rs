//! Sites that cannot be used: errors of the numerics about the activations of one site, and remedies.

use crate::constraint::LARGEST_RIDGE;
use crate::error::Error;
use crate::plan::{PlannedLayer, PlannedSite};
use crate::report::UnusableSite;
use crate::storage::Problem;
use std::collections::BTreeSet;

/// The reason why a site has no layers.
pub(super) enum Failure {
    /// Its activations cannot be used. The run can continue without the site.
    Unusable {
        reason: String,
        /// The remedy, in words.
        remedy: String,
    },
    /// The run cannot continue.
    Fatal(Problem),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Fatal(problem)
    }
}

impl Failure {
    /// From an error of the numerics about the activations of a site.
    pub(super) fn of_activations(error: &Error, site: &str) -> Self {
        const LOOK: &str = "inspect the recorded numbers with `cntlora inspect FILE --values`";
        let remedy = match *error {
            Error::NoRows | Error::NoVariation { .. } => "record more and different inputs".to_owned(),
            Error::NotPositiveDefinite { damping, .. } if damping < LARGEST_RIDGE => {
                format!("give --ridge {LARGEST_RIDGE}, the largest valid value")
            }
            Error::NotPositiveDefinite { .. } => "record its activations again".to_owned(),
            Error::NonFinite { .. } | Error::NoConvergence { .. } => LOOK.to_owned(),
            _ => return Self::Fatal(Problem::data(error.to_string()).in_tensor(site)),
        };
        Self::Unusable { reason: error.to_string(), remedy }
    }

    /// As [`Self::of_activations`], for pre-training activations.
    pub(super) fn of_source(error: &Error, site: &str) -> Self {
        match Self::of_activations(error, site) {
            Self::Unusable { reason, remedy } => {
                Self::Unusable { reason: format!("pre-training activations: {reason}"), remedy }
            }
            fatal @ Self::Fatal(_) => fatal,
        }
    }
}

/// The record of an unusable site.
pub(super) fn left_out(planned: &PlannedSite, reason: String, remedy: String) -> UnusableSite {
    UnusableSite { name: planned.name.clone(), modules: modules(&planned.layers), reason, remedy }
}

/// The problem of an unusable site that ends the run.
pub(super) fn refusal(site: &UnusableSite, strict: bool) -> Problem {
    let problem = Problem::data(site.reason.clone()).in_tensor(&site.name);
    match strict {
        true => problem.help(format!("remove --strict to continue without this site, or {}", site.remedy)),
        false => problem.help(site.remedy.clone()),
    }
}

/// The modules of layers, sorted, without duplicates.
fn modules(layers: &[PlannedLayer]) -> Vec<String> {
    let modules: BTreeSet<&str> = layers.iter().map(|layer| layer.name.module.as_str()).collect();
    modules.into_iter().map(str::to_owned).collect()
}

/// The option that excludes a module with all its blocks.
pub(super) fn exclusion(layer: &PlannedLayer) -> String {
    let module = regex::escape(&layer.name.module);
    let blocks = if layer.name.block.is_some() { r"(\.\d+)?" } else { "" };
    format!("--exclude '^{module}{blocks}$'")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::factors::{LayerName, LayerShape};
    use crate::method::Options;
    use expect_test::expect;

    fn remedy(error: &Error) -> Option<String> {
        match Failure::of_activations(error, "s") {
            Failure::Unusable { remedy, .. } => Some(remedy),
            Failure::Fatal(_) => None,
        }
    }

    /// A larger ridge is advised only if a larger valid one exists.
    #[test]
    fn advised_ridge_is_valid() {
        let error = |damping| Error::NotPositiveDefinite { what: "second moment", damping };
        let advice = remedy(&error(0.3)).unwrap();
        let ridge: f64 = advice.split([' ', ',']).find_map(|word| word.parse().ok()).unwrap();
        assert!(ridge > 0.3, "{advice}");
        expect!["give --ridge 1, the largest valid value"].assert_eq(&advice);
        assert_eq!(Options { ridge, ..Options::default() }.complaints(), []);
        expect!["record its activations again"].assert_eq(&remedy(&error(1.0)).unwrap());
    }

    /// Errors that do not come from the activations end the run.
    #[test]
    fn other_errors_end_the_run() {
        let shape = Error::Shape { what: "width", expected: 2, found: 3 };
        assert!(remedy(&shape).is_none() && remedy(&Error::MissingSource).is_none());
        expect!["inspect the recorded numbers with `cntlora inspect FILE --values`"]
            .assert_eq(&remedy(&Error::NonFinite { what: "second moment" }).unwrap());
        expect!["record more and different inputs"].assert_eq(&remedy(&Error::NoRows).unwrap());
    }

    /// The option excludes all blocks of a module, and no other module.
    #[test]
    fn exclusion_matches_whole_modules() {
        let layer = |name: LayerName, shape| PlannedLayer {
            name,
            weight: vec![],
            shape,
            element: crate::element::Element::F32,
            quantization: None,
            outputs: 2,
            inputs: 2,
            max_rank: 1,
        };
        let expert =
            layer(LayerName::of_block("a.experts.up", 3), LayerShape::Expert { count: 4, transposed: false });
        assert_eq!(exclusion(&expert), r"--exclude '^a\.experts\.up(\.\d+)?$'");
        assert_eq!(exclusion(&layer("a.3".into(), LayerShape::Linear)), r"--exclude '^a\.3$'");
        let again = expert.clone();
        assert_eq!(
            modules(&[expert, again, layer("a.3".into(), LayerShape::Linear)]),
            ["a.3", "a.experts.up"]
        );
    }
}
