//! The place of a module's weight: its own tensor, a share of a tensor, or, for experts, one or several tensors.
//!
//! This undoes the splits and joins that transformers makes when it loads a checkpoint. `presets` undoes its renames.
//!
//! Source: `conversion_mapping.py` of transformers 5.23.

use super::names::{Names, Unresolved};

/// The place of a weight.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stored<'a> {
    /// Its own tensor.
    Own(&'a str),
    /// One of several equal shares of the rows of a tensor.
    Share {
        /// The tensor.
        tensor: &'a str,
        /// Index of the share.
        index: u64,
        /// Number of shares.
        of: u64,
    },
    /// A parameter with the name of the module.
    Parameter(&'a str),
    /// For each expert, the tensors whose concatenated rows are its matrix.
    Experts(Vec<Vec<&'a str>>),
}

/// End of the module name, end of the tensor name, index of the share, number of shares.
const SHARES: [(&str, &str, u64, u64); 2] =
    [(".mlp.gate_proj", ".mlp.weights_in", 0, 2), (".mlp.up_proj", ".mlp.weights_in", 1, 2)];

/// A parameter of fused experts, and the names of its parts on disk.
const EXPERTS: [(&str, &[&str]); 5] = [
    ("gate_up_proj", &["gate_proj", "up_proj"]),
    ("gate_up_proj", &["w1", "w3"]),
    ("up_proj", &["up_proj"]),
    ("down_proj", &["down_proj"]),
    ("down_proj", &["w2"]),
];

/// Finds the weight of a module.
pub(super) fn locate<'a>(names: &Names<'a>, module: &str) -> Result<Stored<'a>, Unresolved<'a>> {
    let unresolved = match names.resolve(module) {
        Ok(tensor) => return Ok(Stored::Own(tensor)),
        Err(unresolved) => unresolved,
    };
    if let Some(tensor) = names.parameter(module)? {
        return Ok(Stored::Parameter(tensor));
    }
    for (end, fused, index, of) in SHARES {
        if let Some(parent) = module.strip_suffix(end)
            && let Ok(tensor) = names.resolve(&format!("{parent}{fused}"))
        {
            return Ok(Stored::Share { tensor, index, of });
        }
    }
    experts(names, module).map_or(Err(unresolved), |experts| Ok(Stored::Experts(experts)))
}

/// The tensors of experts that are stored separately.
fn experts<'a>(names: &Names<'a>, module: &str) -> Option<Vec<Vec<&'a str>>> {
    let (parent, last) = module.rsplit_once('.')?;
    let found = |parts: &[&str]| -> Vec<Vec<&'a str>> {
        let expert = |number: usize| -> Option<Vec<&'a str>> {
            let part = |part: &&str| names.resolve(&format!("{parent}.{number}.{part}")).ok();
            parts.iter().map(part).collect()
        };
        (0..).map_while(expert).collect()
    };
    EXPERTS
        .into_iter()
        .filter(|(fused, _)| *fused == last)
        .map(|(_, parts)| found(parts))
        .find(|experts| !experts.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::renames::Renames;
    use super::*;

    #[track_caller]
    fn check(tensors: &[&'static str], pairs: &[(&str, Option<Stored<'static>>)]) {
        let renames = Renames::new(&[]).unwrap();
        let names = Names::new(tensors.iter().copied(), pairs.iter().map(|pair| pair.0), &renames);
        for (module, expected) in pairs {
            assert_eq!(locate(&names, module).ok().as_ref(), expected.as_ref(), "{module}");
        }
    }

    #[test]
    fn shares_of_the_swiglu_of_dinov2() {
        let tensor = "dinov2.encoder.layer.0.mlp.weights_in.weight";
        check(
            &[tensor, "dinov2.encoder.layer.0.mlp.weights_out.weight"],
            &[
                ("dinov2.encoder.layer.0.mlp.gate_proj", Some(Stored::Share { tensor, index: 0, of: 2 })),
                ("encoder.layer.0.mlp.up_proj", Some(Stored::Share { tensor, index: 1, of: 2 })),
                (
                    "dinov2.encoder.layer.0.mlp.down_proj",
                    Some(Stored::Own("dinov2.encoder.layer.0.mlp.weights_out.weight")),
                ),
                ("dinov2.encoder.layer.1.mlp.up_proj", None),
            ],
        );
    }

    /// A tensor of the layer's own name has precedence over a share.
    #[test]
    fn own_tensor_has_precedence() {
        let tensors = ["layers.0.mlp.gate_proj.weight", "layers.0.mlp.weights_in.weight"];
        check(&tensors, &[("layers.0.mlp.gate_proj", Some(Stored::Own("layers.0.mlp.gate_proj.weight")))]);
    }

    #[test]
    fn experts_in_one_parameter() {
        let tensor = "model.layers.0.mlp.experts.gate_up_proj";
        check(
            &[tensor, "model.layers.0.mlp.experts.gate_up_proj_bias"],
            &[
                ("model.layers.0.mlp.experts.gate_up_proj", Some(Stored::Parameter(tensor))),
                ("layers.0.mlp.experts.gate_up_proj", Some(Stored::Parameter(tensor))),
                ("layers.0.mlp.experts.down_proj", None),
            ],
        );
    }

    #[test]
    fn experts_with_tensors_of_their_own() {
        check(
            &[
                "model.layers.0.block_sparse_moe.experts.0.w1.weight",
                "model.layers.0.block_sparse_moe.experts.0.w2.weight",
                "model.layers.0.block_sparse_moe.experts.0.w3.weight",
                "model.layers.0.block_sparse_moe.experts.1.w1.weight",
                "model.layers.0.block_sparse_moe.experts.1.w2.weight",
                "model.layers.0.block_sparse_moe.experts.1.w3.weight",
            ],
            &[
                (
                    "model.layers.0.mlp.experts.gate_up_proj",
                    Some(Stored::Experts(vec![
                        vec![
                            "model.layers.0.block_sparse_moe.experts.0.w1.weight",
                            "model.layers.0.block_sparse_moe.experts.0.w3.weight",
                        ],
                        vec![
                            "model.layers.0.block_sparse_moe.experts.1.w1.weight",
                            "model.layers.0.block_sparse_moe.experts.1.w3.weight",
                        ],
                    ])),
                ),
                (
                    "layers.0.mlp.experts.down_proj",
                    Some(Stored::Experts(vec![
                        vec!["model.layers.0.block_sparse_moe.experts.0.w2.weight"],
                        vec!["model.layers.0.block_sparse_moe.experts.1.w2.weight"],
                    ])),
                ),
                ("model.layers.1.mlp.experts.down_proj", None),
            ],
        );
        check(
            &["layers.3.mlp.experts.0.down_proj.weight", "layers.3.mlp.experts.0.gate_proj.weight"],
            &[
                (
                    "layers.3.mlp.experts.down_proj",
                    Some(Stored::Experts(vec![vec!["layers.3.mlp.experts.0.down_proj.weight"]])),
                ),
                ("layers.3.mlp.experts.gate_up_proj", None),
            ],
        );
    }
}
