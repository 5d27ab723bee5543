//! The identity of a layer.

use std::fmt;

/// The identity of a layer: a module and, where the module holds several weights, the number of one of them.
///
/// The experts in one fused parameter and the groups of a convolution are such blocks. The order is by module, then by number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct LayerName {
    /// The module, by its name at run time.
    pub module: String,
    /// The number of the block, if the module has blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<usize>,
}

impl LayerName {
    /// The layer that is a whole module.
    pub fn of_module(module: impl Into<String>) -> Self {
        Self { module: module.into(), block: None }
    }

    /// One block of a module.
    pub fn of_block(module: impl Into<String>, block: usize) -> Self {
        Self { module: module.into(), block: Some(block) }
    }
}

/// The layer that is a whole module.
impl From<&str> for LayerName {
    fn from(module: &str) -> Self {
        Self::of_module(module)
    }
}

/// The layer that is a whole module.
impl From<String> for LayerName {
    fn from(module: String) -> Self {
        Self::of_module(module)
    }
}

/// The module; for a block, a dot and the number follow.
impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.module)?;
        self.block.map_or(Ok(()), |block| write!(f, ".{block}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_blocks_end_in_their_number() {
        assert_eq!(LayerName::of_module("a.b").to_string(), "a.b");
        assert_eq!(LayerName::of_block("a.b", 12).to_string(), "a.b.12");
    }

    /// Block 10 comes after block 9, and the blocks of one module stay together.
    #[test]
    fn order_is_by_module_and_number() {
        let mut names = [
            LayerName::of_block("b", 10),
            LayerName::of_module("c"),
            LayerName::of_block("b", 9),
            LayerName::of_module("a"),
        ];
        names.sort();
        assert_eq!(names.map(|name| name.to_string()), ["a", "b.9", "b.10", "c"]);
    }

    /// A name in a file has no block where there is none.
    #[test]
    fn files_name_a_block_only_where_there_is_one() {
        let json = |name: &LayerName| serde_json::to_string(name).unwrap();
        let (module, block) = (LayerName::of_module("a"), LayerName::of_block("a", 3));
        assert_eq!(json(&module), r#"{"module":"a"}"#);
        assert_eq!(json(&block), r#"{"module":"a","block":3}"#);
        assert_eq!(serde_json::from_str::<LayerName>(&json(&module)).unwrap(), module);
        assert_eq!(serde_json::from_str::<LayerName>(&json(&block)).unwrap(), block);
    }
}
