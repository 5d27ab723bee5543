//! Parts of names that wrappers of modules add: `torch.compile`, data parallel training, PEFT and others.
//!
//! Models that are loaded from a checkpoint have none of them, so PEFT does not find modules under such names.

use super::visible::quoted;
use std::borrow::Cow;

/// Parts that a wrapper adds at any place.
const ANYWHERE: [&str; 4] =
    ["_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"];

/// Prefixes that a wrapper of the whole model adds.
const LEADING: [&str; 4] = ["module.", "_forward_module.", "base_model.model.", "0.auto_model."];

/// The end that PEFT adds to the names of modules that it wraps.
pub(crate) const WRAPPED_LAYER: &str = ".base_layer";

/// The name of a module without the parts of wrappers. It never becomes empty.
pub(crate) fn without_wrappers(module: &str) -> Cow<'_, str> {
    let is_wrapper = |part: &str| ANYWHERE.contains(&part);
    let name = match module.split('.').any(is_wrapper) {
        false => Cow::Borrowed(module),
        true => {
            let parts: Vec<&str> = module.split('.').filter(|part| !is_wrapper(part)).collect();
            Cow::Owned(parts.join("."))
        }
    };
    if name.is_empty() {
        return Cow::Borrowed(module);
    }
    let inner = without_prefixes(&name);
    match name.len() - inner.len() {
        0 => name,
        start => match name {
            Cow::Borrowed(name) => Cow::Borrowed(&name[start..]),
            Cow::Owned(name) => Cow::Owned(name[start..].to_owned()),
        },
    }
}

/// A name without the leading parts of wrappers.
fn without_prefixes(mut name: &str) -> &str {
    while let Some(inner) = LEADING.iter().find_map(|prefix| name.strip_prefix(prefix)) {
        if inner.is_empty() {
            break;
        }
        name = inner;
    }
    name
}

/// The name of a recorded module without the parts of wrappers, and without the end that PEFT adds to the layers that it wraps.
pub(crate) fn of_recorded(module: &str) -> Cow<'_, str> {
    let inner = module.trim_end_matches(WRAPPED_LAYER);
    without_wrappers(if inner.is_empty() { module } else { inner })
}

/// The name of a tensor whose module has no parts of wrappers.
pub(crate) fn of_tensor(tensor: &str) -> Cow<'_, str> {
    let Some((module, last)) = tensor.rsplit_once('.') else { return Cow::Borrowed(tensor) };
    let inner = of_recorded(module);
    if inner == module { Cow::Borrowed(tensor) } else { Cow::Owned(format!("{inner}.{last}")) }
}

/// The rest of a name after a prefix. Parts of wrappers may come before the prefix.
pub(crate) fn after_prefix<'a>(mut name: &'a str, prefix: &str) -> Option<&'a str> {
    loop {
        if let Some(rest) = name.strip_prefix(prefix) {
            return Some(rest);
        }
        let part = ANYWHERE.iter().find_map(|part| name.strip_prefix(part)?.strip_prefix('.'));
        name = part.or_else(|| LEADING.iter().find_map(|leading| name.strip_prefix(leading)))?;
    }
}

/// Counts names that had parts of wrappers, and keeps the first one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wrapped {
    count: usize,
    first: Option<(String, String)>,
}

impl Wrapped {
    /// Counts a name if it had parts of wrappers.
    pub(crate) fn add(&mut self, before: &str, after: &str) {
        if before != after {
            self.count += 1;
            self.first.get_or_insert_with(|| (before.to_owned(), after.to_owned()));
        }
    }

    /// The number of names, and the first one before and after.
    pub(crate) fn found(&self) -> Option<(usize, &str, &str)> {
        self.first.as_ref().map(|(before, after)| (self.count, before.as_str(), after.as_str()))
    }

    /// A note for the user, if there is any such name. The argument has the words for one thing with a name, and for several.
    pub(crate) fn note(&self, [one, several]: [&str; 2]) -> Option<String> {
        let (count, before, after) = self.found()?;
        let kind = if count == 1 { one } else { several };
        let [before, after] = [before, after].map(quoted);
        Some(format!(
            "parts of wrappers are left out of the names of {count} {kind}: {before} is {after} here"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quickcheck::quickcheck;

    quickcheck! {
        /// A name without wrappers has none left, and is never empty.
        fn removing_wrappers_twice_changes_nothing_more(seeds: Vec<u8>) -> bool {
            let parts = ["q", "_orig_mod", "module", "base_model", "model", "0", "auto_model", "base_layer", ""];
            let name: Vec<&str> = seeds.iter().map(|seed| parts[usize::from(*seed) % parts.len()]).collect();
            let name = name.join(".");
            let once = without_wrappers(&name).into_owned();
            without_wrappers(&once) == once && once.is_empty() == name.is_empty()
        }
    }

    #[test]
    fn wrappers_may_come_before_a_prefix() {
        let after = |name| after_prefix(name, "base_model.model.");
        assert_eq!(after("base_model.model.q"), Some("q"));
        assert_eq!(after("module._orig_mod.base_model.model.module.q"), Some("module.q"));
        assert_eq!([after("q"), after("x.base_model.model.q"), after("_orig_mod")], [None; 3]);
    }

    #[test]
    fn wrappers_are_removed_from_modules_and_tensors() {
        for (name, expected) in [
            ("_orig_mod.model.layers.0.q_proj", "model.layers.0.q_proj"),
            ("module.model.layers.0.q_proj", "model.layers.0.q_proj"),
            ("module._orig_mod.model.q", "model.q"),
            ("_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module.q", "model.layers.0.q"),
            ("model.layers.0._checkpoint_wrapped_module.mlp.up", "model.layers.0.mlp.up"),
            ("base_model.model.model.layers.0.q", "model.layers.0.q"),
            ("base_model.model.model.layers.0.q.base_layer", "model.layers.0.q"),
            ("0.auto_model.encoder.layer.0.q", "encoder.layer.0.q"),
            // These are names of their own.
            ("module", "module"),
            ("encoder.module.q", "encoder.module.q"),
            ("base_model.q", "base_model.q"),
            ("base_layer.0", "base_layer.0"),
            ("modules.0.q", "modules.0.q"),
            ("_orig_mod", "_orig_mod"),
            (".base_layer", ".base_layer"),
        ] {
            assert_eq!(of_recorded(name), expected, "{name}");
        }
        for (tensor, expected) in [
            ("module.q.weight", "q.weight"),
            ("module.weight", "module.weight"),
            ("q.base_layer.weight", "q.weight"),
            ("base_layer.weight", "base_layer.weight"),
            ("q", "q"),
        ] {
            assert_eq!(of_tensor(tensor), expected, "{tensor}");
        }
    }
}
