//! A spectrum as a row of small bars.

/// Largest number of bars.
const COLUMNS: usize = 12;

const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// For terminals without blocks: darker letters for taller bars.
const LETTERS: [char; 8] = ['.', ':', '-', '=', '+', 'x', '#', '@'];

/// A bar per value, relative to the largest value. If there are more values than columns, a bar shows the mean of a group.
pub(crate) fn bars(values: &[f64], blocks: bool) -> String {
    let steps = if blocks { BLOCKS } else { LETTERS };
    let largest = values.iter().copied().fold(0.0, f64::max);
    let columns = values.len().min(COLUMNS);
    (0..columns)
        .map(|column| {
            let group = &values[column * values.len() / columns..(column + 1) * values.len() / columns];
            let mean = group.iter().sum::<f64>() / group.len() as f64;
            let share = if largest > 0.0 { mean / largest } else { 0.0 };
            steps[((share * steps.len() as f64) as usize).min(steps.len() - 1)]
        })
        .collect()
}

/// Returns whether this terminal shows blocks, which needs a UTF-8 locale.
pub(crate) fn blocks_shown(variable: impl Fn(&str) -> Option<String>) -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(variable)
        .find(|value| !value.is_empty())
        .unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    locale.contains("utf-8") || locale.contains("utf8")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest value gives a full bar, zero gives the smallest bar, and many values share columns.
    #[test]
    fn bars_are_relative_to_the_largest() {
        assert_eq!(bars(&[8.0, 4.0, 1.0, 0.0], true), "█▅▂▁");
        assert_eq!(bars(&[8.0, 4.0, 1.0, 0.0], false), "@+:.");
        assert_eq!(bars(&[], true), "");
        assert_eq!(bars(&[0.0, 0.0], true), "▁▁");
        assert_eq!(bars(&[1.0; 100], true), "█".repeat(COLUMNS));
        assert_eq!(bars(&[1.0; 13], true).chars().count(), COLUMNS);
    }

    /// The first variable that is set decides.
    #[test]
    fn blocks_need_a_utf8_locale() {
        let shown = |variables: &[(&str, &str)]| {
            blocks_shown(|name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into())
            })
        };
        assert!(shown(&[("LANG", "de_DE.UTF-8")]) && shown(&[("LC_ALL", ""), ("LC_CTYPE", "C.utf8")]));
        assert!(!shown(&[("LC_ALL", "C"), ("LANG", "en_US.UTF-8")]) && !shown(&[]));
    }
}
