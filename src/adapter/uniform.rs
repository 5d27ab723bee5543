//! One rank for all layers.
//!
//! Some programs take one rank and one scale: llama.cpp scales each layer by `lora_alpha / rank of its tensors`, with one `lora_alpha`.
//! Rows of zeros in `A` and columns of zeros in `B` change no product, and no step of training changes them.

use super::Adapter;
use crate::factors::{Factors, LayerName};
use crate::rank::least_common_multiple;
use crate::storage::{Problem, quoted};
use faer::Mat;
use serde::{Deserialize, Serialize};

/// The rank that all layers get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UniformRank {
    /// The largest rank of a layer.
    Largest,
    /// This rank.
    Of(usize),
}

impl UniformRank {
    /// Refuses a rank below that of a layer.
    ///
    /// # Errors
    /// A usage problem that names the layer.
    pub fn check(self, name: &LayerName, rank: usize) -> Result<(), Problem> {
        match self {
            Self::Of(uniform) if uniform < rank => Err(Problem::usage(format!(
                "--uniform-rank is {uniform}, but module {} has rank {rank}",
                quoted(&name.module)
            ))
            .help(format!("give --uniform-rank={rank} or more, or a smaller rank"))),
            _ => Ok(()),
        }
    }
}

impl Adapter {
    /// The ranks of modules: that of a convolution in groups is the sum of the ranks of its groups.
    fn module_ranks(&self) -> impl Iterator<Item = (&LayerName, usize)> {
        self.layers.iter().map(|(name, factors)| (name, factors.a.nrows() * self.shape(name).parts()))
    }

    /// Returns the least and the largest rank of a module; `None` without layers.
    pub fn rank_range(&self) -> Option<(usize, usize)> {
        let ranks = || self.module_ranks().map(|(_, rank)| rank);
        ranks().min().zip(ranks().max())
    }

    /// Pads all factors with zeros to one rank. Returns this rank.
    ///
    /// # Errors
    /// A usage problem for a rank below that of a layer, or one that the groups of a convolution cannot share.
    pub fn pad(&mut self, uniform: UniformRank) -> Result<usize, Problem> {
        let largest = self.module_ranks().max_by_key(|(_, rank)| *rank);
        let Some((name, largest)) = largest else { return Ok(0) };
        uniform.check(name, largest)?;
        let step = self.layers.keys().map(|name| self.shape(name).parts()).fold(1, least_common_multiple);
        let rank = match uniform {
            UniformRank::Largest => largest.next_multiple_of(step),
            UniformRank::Of(rank) if rank.is_multiple_of(step) => rank,
            UniformRank::Of(rank) => {
                let what = format!(
                    "--uniform-rank is {rank}, but the groups of convolutions need a multiple of {step}"
                );
                let nearest = rank.next_multiple_of(step);
                return Err(Problem::usage(what).help(format!("give --uniform-rank={nearest}")));
            }
        };
        let parts: Vec<usize> = self.layers.keys().map(|name| self.shape(name).parts()).collect();
        for (factors, parts) in self.layers.values_mut().zip(parts) {
            *factors = padded(factors, rank / parts);
        }
        Ok(rank)
    }
}

/// Factors with the same product and a rank that is not smaller.
fn padded(Factors { a, b }: &Factors, rank: usize) -> Factors {
    let own = a.nrows();
    Factors {
        a: Mat::from_fn(rank, a.ncols(), |i, j| if i < own { a[(i, j)] } else { 0.0 }),
        b: Mat::from_fn(b.nrows(), rank, |i, j| if j < own { b[(i, j)] } else { 0.0 }),
    }
}

/// Factors without the units whose row in `A` and column in `B` are zero.
pub(super) fn without_padding(Factors { a, b }: &Factors) -> Factors {
    let is_zero = |unit: usize| {
        (0..a.ncols()).all(|j| a[(unit, j)] == 0.0) && (0..b.nrows()).all(|i| b[(i, unit)] == 0.0)
    };
    let kept: Vec<usize> = (0..a.nrows()).filter(|unit| !is_zero(*unit)).collect();
    Factors {
        a: Mat::from_fn(kept.len(), a.ncols(), |i, j| a[(kept[i], j)]),
        b: Mat::from_fn(b.nrows(), kept.len(), |i, j| b[(i, kept[j])]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{adapter, factors, write};
    use super::super::{CONFIG_FILE, PeftAdapter, TENSORS_FILE};
    use super::*;
    use crate::factors::LayerShape;
    use crate::storage::snapshot;
    use expect_test::expect;
    use safetensors::SafeTensors;
    use serde_json::Value;
    use std::fs;

    fn mixed() -> Adapter {
        adapter([("a", factors(5, 4, 1)), ("b", factors(3, 7, 4)), ("c", factors(6, 6, 3))])
    }

    /// llama.cpp scales every layer by `lora_alpha / b->ne[0]`, with the one `lora_alpha` of the configuration, and reads no patterns. The
    /// test states this formula, reads the files with the parser of the safetensors project, and compares with the products before
    /// padding. Without padding, the formula gives other products.
    #[test]
    fn llama_cpp_applies_padded_adapters_at_their_scale() {
        for (uniform, rank) in
            [(None, None), (Some(UniformRank::Largest), Some(4)), (Some(UniformRank::Of(16)), Some(16))]
        {
            let original = mixed();
            let mut adapter = mixed();
            assert_eq!(uniform.map(|uniform| adapter.pad(uniform).unwrap()), rank);
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), &adapter);
            let config = fs::read_to_string(folder.path().join(CONFIG_FILE)).unwrap();
            let config: Value = serde_json::from_str(&config).unwrap();
            let bytes = fs::read(folder.path().join(TENSORS_FILE)).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let matrix = |name: &str| {
                let tensor = tensors.tensor(name).unwrap();
                let numbers: Vec<f32> = tensor
                    .data()
                    .chunks(4)
                    .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
                    .collect();
                let [rows, columns] = tensor.shape().try_into().unwrap();
                Mat::from_fn(rows, columns, |i, j| numbers[i * columns + j])
            };
            let mut worst = 0f32;
            for (name, factors) in &original.layers {
                let a = matrix(&format!("base_model.model.{name}.lora_A.weight"));
                let b = matrix(&format!("base_model.model.{name}.lora_B.weight"));
                let (alpha, rank) = (config["lora_alpha"].as_f64().unwrap() as f32, b.ncols() as f32);
                let applied = &b * &a * faer::Scale(alpha / rank);
                let wanted = &factors.b * &factors.a * faer::Scale(original.scale as f32);
                worst = worst.max((applied - &wanted).norm_max() / wanted.norm_max());
            }
            assert_eq!(worst < 1e-6, uniform.is_some(), "{uniform:?}: {worst}");
            if let Some(rank) = rank {
                assert_eq!(config["r"], rank);
                assert_eq!(config["lora_alpha"], 2 * rank);
                for pattern in ["rank_pattern", "alpha_pattern"] {
                    assert_eq!(config[pattern].as_object().map(serde_json::Map::len), Some(0));
                }
            }
        }
    }

    /// The rank of a convolution is divided among its groups, and all experts get the whole rank.
    #[test]
    fn groups_share_the_rank_and_experts_do_not() {
        let mut whole = adapter([("q", factors(5, 4, 3))]);
        let group = LayerShape::Group { count: 2, kernel: vec![3] };
        let expert = LayerShape::Expert { count: 2, transposed: false };
        for (module, shape, rank) in [("c", group, 1), ("experts.up_proj", expert, 2)] {
            for block in [0, 1].map(|block| LayerName::of_block(module, block)) {
                whole.layers.insert(block.clone(), factors(5, 12, rank));
                whole.shapes.insert(block, shape.clone());
            }
        }
        assert_eq!(whole.rank_range(), Some((2, 3)));
        expect![[r#"
            --uniform-rank is 5, but the groups of convolutions need a multiple of 2; help: give --uniform-rank=6
        "#]]
        .assert_eq(&snapshot(whole.pad(UniformRank::Of(5)).unwrap_err()));
        assert_eq!(whole.pad(UniformRank::Largest).unwrap(), 4);
        let ranks: Vec<usize> = whole.layers.values().map(|factors| factors.a.nrows()).collect();
        assert_eq!(ranks, [2, 2, 4, 4, 4]);
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &whole);
        let read = PeftAdapter::open(folder.path()).unwrap();
        assert!(read.layers().values().all(|layer| layer.rank * layer.shape.parts() == 4));
    }

    #[test]
    fn ranks_below_that_of_a_layer_are_refused() {
        expect![[r#"
            --uniform-rank is 3, but module "b" has rank 4; help: give --uniform-rank=4 or more, or a smaller rank
        "#]]
        .assert_eq(&snapshot(mixed().pad(UniformRank::Of(3)).unwrap_err()));
        let mut same = mixed();
        assert_eq!(same.pad(UniformRank::Of(4)).unwrap(), 4);
    }

    #[test]
    fn padding_can_be_taken_off() {
        let original = factors(5, 4, 2);
        let again = without_padding(&padded(&original, 7));
        assert_eq!((again.a, again.b), (original.a, original.b));
    }
}
