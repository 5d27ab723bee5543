//! The most similar names to a name that was not found, for messages.

use crate::storage::quoted;
use std::fmt::Display;
use strsim::levenshtein;

/// Number of names in a message.
const SHOWN: usize = 3;

/// The most characters of a name that are compared: its last ones.
const LONGEST: usize = 256;

/// The candidates with the smallest edit distance to `name`, nearest first, ties sorted by name.
fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let name = end_of(name);
    let length = name.chars().count();
    let mut nearest: Vec<(usize, &str)> = Vec::with_capacity(SHOWN + 1);
    for candidate in candidates {
        // The distance is at least the difference in length. Most candidates of another length need no more work.
        let compared = end_of(candidate);
        let at_least = compared.chars().count().abs_diff(length);
        if nearest.len() == SHOWN && nearest[SHOWN - 1].0 < at_least {
            continue;
        }
        let entry = (levenshtein(name, compared), candidate);
        if let Err(place) = nearest.binary_search(&entry) {
            nearest.insert(place, entry);
            nearest.truncate(SHOWN);
        }
    }
    nearest.into_iter().map(|(_, candidate)| candidate).collect()
}

/// The end of a message about a name that was not found: the most similar ones. Empty without candidates.
pub(super) fn similar<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    match nearest(name, candidates) {
        names if names.is_empty() => String::new(),
        names => format!("; similar names are {}", list(names)),
    }
}

/// The part of a name that is compared. Two long names would need as many steps as the product of their lengths.
fn end_of(name: &str) -> &str {
    name.char_indices().rev().nth(LONGEST - 1).map_or(name, |(at, _)| &name[at..])
}

/// Names in quotes, separated by commas.
pub(super) fn list(names: impl IntoIterator<Item = impl Display>) -> String {
    names.into_iter().map(|name| quoted(&name.to_string())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    quickcheck! {
        /// Skipping candidates by their length does not change the result.
        fn nearest_names_match_a_full_sort(name: String, candidates: Vec<String>) -> bool {
            let mut sorted: Vec<_> = candidates
                .iter()
                .map(|candidate| (levenshtein(&name, candidate), candidate.as_str()))
                .collect();
            sorted.sort();
            sorted.dedup();
            let expected: Vec<_> = sorted.into_iter().take(SHOWN).map(|(_, candidate)| candidate).collect();
            nearest(&name, candidates.iter().map(String::as_str)) == expected
        }
    }
}
