//! The name of a module as a type and a depth: `layers.3.mlp.up` is `layers.*.mlp.up` at depth 3.

/// The place of a module in its model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The name with its first number replaced by `*`.
    pub kind: String,
    /// The first number.
    pub depth: Option<u64>,
}

pub(super) fn place(module: &str) -> Place {
    let mut depth = None;
    let parts: Vec<&str> = module
        .split('.')
        .map(|part| match part.parse() {
            Ok(number) if depth.is_none() => {
                depth = Some(number);
                "*"
            }
            _ => part,
        })
        .collect();
    Place { kind: parts.join("."), depth }
}

/// The leading parts that all names share, with the dot after them; never a whole name.
pub(super) fn common_prefix<'a>(mut kinds: impl Iterator<Item = &'a str>) -> &'a str {
    let Some(first) = kinds.next() else { return "" };
    let start = first.rfind('.').map_or("", |end| &first[..=end]);
    kinds.fold(start, |prefix, kind| {
        let mut prefix = prefix;
        while !kind.starts_with(prefix) || kind.len() == prefix.len() {
            let shorter = prefix.strip_suffix('.').unwrap_or(prefix);
            prefix = shorter.rfind('.').map_or("", |end| &shorter[..=end]);
        }
        prefix
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_is_the_depth() {
        let of = |module| {
            let Place { kind, depth } = place(module);
            (kind, depth)
        };
        assert_eq!(of("layers.3.experts.7.up"), ("layers.*.experts.7.up".into(), Some(3)));
        assert_eq!(of("lm_head"), ("lm_head".into(), None));
        assert_eq!(of("a.99999999999999999999999"), ("a.99999999999999999999999".into(), None));
        assert_eq!(of(""), (String::new(), None));
    }

    #[test]
    fn the_common_prefix_consists_of_whole_parts() {
        let of = |kinds: &[&'static str]| common_prefix(kinds.iter().copied());
        assert_eq!(of(&["model.*.attention.q", "model.*.mlp.up"]), "model.*.");
        assert_eq!(of(&["model.*.q", "model.*.q.x"]), "model.*.");
        assert_eq!(of(&["model.*.q"]), "model.*.");
        assert_eq!(of(&["a.b", "c.b"]), "");
        assert_eq!(of(&["q", "q.x"]), "");
        assert_eq!(of(&["", "a."]), "");
        assert_eq!(of(&[]), "");
    }
}
