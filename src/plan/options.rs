//! The options of the method, on their own and against the layers.

use super::nearest::list;
use super::{PlannedLayer, PlannedSite, Recording, Request};
use crate::constraint::Coupling;
use crate::error::Error;
use crate::method::{Method, Options};
use crate::rank::Policy;
use crate::simd::{Precision, Tier, Unsupported, Workspace};
use crate::storage::{Problem, Problems};

/// How many layers a message names.
const SHOWN: usize = 3;

/// Checks what can be said without any layer.
pub(super) fn check_values(options: &Options, has_source: bool, problems: &mut Problems) {
    problems.0.extend(options.complaints().iter().map(|error| {
        let problem = Problem::usage(error.to_string());
        match *error {
            Error::OddRank { rank: 1, .. } => problem.help("give --rank 2"),
            Error::OddRank { rank, .. } => problem.help(format!("give --rank {} or {}", rank - 1, rank + 1)),
            _ => problem,
        }
    }));
    if options.method != Method::Cntlora && has_source {
        let what = format!("the method {} does not look at pre-training activations", options.method.name());
        problems.push(Problem::usage(what).help("leave --source out"));
    }
    if options.method == Method::Cntlora && options.coupling == Coupling::Paired && !has_source {
        problems.push(
            Problem::usage("the coupling paired needs pre-training activations, row for row")
                .help("give them with --source, or choose --coupling uncorrelated"),
        );
    }
}

/// Refuses a precision that this processor does not have.
pub(super) fn check_precision(precision: Precision) -> Result<(), Problem> {
    let refused = |error: Unsupported| Problem::usage(error.to_string()).help("leave out --precision");
    Workspace::new(Tier::best(), precision).map(drop).map_err(refused)
}

/// Refuses moments where rows are needed.
pub(super) fn check_pairs(request: &Request, problems: &mut Problems) {
    if request.method.coupling == Coupling::Paired
        && !(request.moments.is_empty() && request.source_moments.is_empty())
    {
        problems.push(
            Problem::usage("the coupling paired needs the rows of both kinds of activations, and cannot start from moments")
                .help("give the activations with --activations and --source, or choose --coupling uncorrelated"),
        );
    }
}

/// Refuses moments that were computed in another precision than the one that is asked for.
pub(super) fn check_moments_precision(recording: &Recording, precision: Precision) -> Result<(), Problem> {
    match recording {
        Recording::Moments(set) if set.content().precision != precision => {
            let (expected, found) = (precision.name(), set.content().precision.name());
            let what = format!("expected moments in precision {expected}, found {found}");
            let problem = Problem::usage(what).help(format!("give --precision {found}"));
            Err(match set.files().next() {
                Some(file) => problem.in_file(file.path()),
                None => problem,
            })
        }
        _ => Ok(()),
    }
}

/// Refuses sites that headers show to have no rows.
pub(super) fn check_rows(sites: &[PlannedSite], problems: &mut Problems) {
    for site in sites.iter().filter(|site| site.rows == 0 || site.source_rows == Some(0)) {
        let problem = Problem::data("expected at least one row of this site, found none");
        problems.push(problem.in_tensor(&site.name).help("leave --strict out to go on without this site"));
    }
}

/// Checks the rank policy against the layers that were found.
///
/// [`rank`](crate::rank) brings every rank between the limits by itself. A rank that the user names and a layer cannot have is
/// refused all the same: the user decides what takes its place.
pub(super) fn check_ranks(options: &Options, sites: &[PlannedSite], problems: &mut Problems) {
    let layers = || sites.iter().flat_map(|site| &site.layers);
    let multiple = options.limits.multiple.max(1);
    match options.ranks {
        // That an odd rank is refused is said already.
        Policy::Fixed(rank) if options.has_pairs() && !rank.is_multiple_of(2) => {}
        Policy::Fixed(rank) => {
            let (min, max) = (options.limits.min, options.limits.max);
            if rank > max {
                // The options complain of it themselves.
                return;
            }
            if !rank.is_multiple_of(multiple) || rank < min {
                let (least, largest) = (min.max(1).next_multiple_of(multiple), max / multiple * multiple);
                let help = if least > largest {
                    format!("give --rank {least} and --max-rank {least}")
                } else {
                    let nearest = (rank / multiple * multiple).clamp(least, largest);
                    format!("give --rank {nearest}, or change the limits")
                };
                let what = format!("rank {rank} must be from {min} to {max}, in steps of {multiple}");
                problems.push(Problem::usage(what).help(help));
                return;
            }
            let over: Vec<_> = layers().filter(|layer| rank > layer.max_rank).collect();
            if let Some(limit) = over.iter().map(|layer| layer.max_rank).min() {
                let modules = list(over.iter().take(SHOWN).map(|layer| layer.module.as_str()));
                let more = match over.len().saturating_sub(SHOWN) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                let what = format!("rank {rank} is over the limit of {modules}{more}");
                problems.push(Problem::usage(what).help(if limit >= options.limits.min.max(1) {
                    format!(
                        "the largest rank that all layers can have is {limit}: give --rank {limit}, or leave layers out with \
                         --exclude"
                    )
                } else {
                    format!("one of them can have {limit} at most: leave it out with --exclude, or change the limits")
                }));
            }
        }
        Policy::Budget(budget) => {
            let parameters = |layer: &PlannedLayer, rank: usize| {
                // A rank of the module is divided among its parts.
                let rank = (rank / layer.shape.parts()) as u64;
                rank.saturating_mul((layer.outputs + layer.inputs) as u64)
            };
            let step = |layer: &PlannedLayer| options.rank_step(layer.shape.parts());
            let least = |layer: &PlannedLayer| options.limits.min.next_multiple_of(step(layer));
            let floor = layers()
                .map(|layer| parameters(layer, least(layer).min(layer.max_rank)))
                .fold(0, u64::saturating_add);
            let unit = layers().map(|layer| parameters(layer, step(layer))).min().unwrap_or(0);
            let needed = floor.max(unit);
            if budget < needed {
                let what = format!("a budget of {budget} parameters does not pay for the least ranks");
                problems.push(Problem::usage(what).help(format!("give --budget={needed} or more")));
            }
        }
        Policy::Energy(_) | Policy::BudgetOfRank(_) | Policy::Shared(_) => {}
    }
}
