//! The names nearest to one that was not found, for messages.

use crate::storage::quoted;

/// How many names a message shows.
const SHOWN: usize = 3;

/// The few candidates that take the fewest edits to become `name`, nearest first, ties in order of name.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let name: Vec<char> = name.chars().collect();
    let mut nearest: Vec<(usize, &str)> = Vec::with_capacity(SHOWN + 1);
    for candidate in candidates {
        let letters: Vec<char> = candidate.chars().collect();
        let at_least = letters.len().abs_diff(name.len());
        if nearest.len() == SHOWN && nearest[SHOWN - 1].0 < at_least {
            continue;
        }
        let entry = (edit_distance(&name, &letters), candidate);
        if let Err(place) = nearest.binary_search(&entry) {
            nearest.insert(place, entry);
            nearest.truncate(SHOWN);
        }
    }
    nearest.into_iter().map(|(_, candidate)| candidate).collect()
}

/// Names in quotes, separated by commas.
pub(super) fn list<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(quoted).collect::<Vec<_>>().join(", ")
}

/// Fewest insertions, deletions and substitutions from one to the other (Levenshtein), one row of the table at a time.
fn edit_distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    quickcheck! {
        /// The distance is a metric, so that "nearest" means something.
        fn edit_distance_is_a_metric(a: String, b: String, c: String) -> bool {
            let [a, b, c] = [a, b, c].map(|text| text.chars().take(12).collect::<Vec<_>>());
            (edit_distance(&a, &b) == 0) == (a == b)
                && edit_distance(&a, &b) == edit_distance(&b, &a)
                && edit_distance(&a, &c) <= edit_distance(&a, &b) + edit_distance(&b, &c)
                && edit_distance(&a, &b) >= a.len().abs_diff(b.len())
        }

        /// Leaving candidates out by their length alone must not change the answer.
        fn the_nearest_are_those_of_a_full_sort(name: String, candidates: Vec<String>) -> bool {
            let letters = |text: &str| text.chars().collect::<Vec<_>>();
            let mut sorted: Vec<_> = candidates
                .iter()
                .map(|candidate| (edit_distance(&letters(&name), &letters(candidate)), candidate.as_str()))
                .collect();
            sorted.sort();
            sorted.dedup();
            let expected: Vec<_> = sorted.into_iter().take(SHOWN).map(|(_, candidate)| candidate).collect();
            nearest(&name, candidates.iter().map(String::as_str)) == expected
        }
    }
}
