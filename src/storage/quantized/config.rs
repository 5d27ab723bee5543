//! The configuration of a quantized checkpoint.

use serde_json::Value;

/// The facts of `quantization_config` that the tensors on disk leave open.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in super::super) struct Config {
    /// `quant_method`, if there is a configuration.
    pub(super) method: Option<String>,
    /// Rows and columns of the blocks of FP8.
    pub(super) block: Option<[u64; 2]>,
    /// Bits per number, of GPTQ and AWQ.
    pub(super) bits: Option<u64>,
    /// Inputs of a group, of GPTQ and AWQ. `None` also for one group of all inputs.
    pub(super) group_size: Option<u64>,
    /// The convention of GPTQ.
    pub(super) checkpoint_format: Option<String>,
    /// The kernel whose layout AWQ has.
    pub(super) version: Option<String>,
    /// The schemes of compressed-tensors.
    pub(super) schemes: Vec<Scheme>,
}

/// How compressed-tensors stores the weights of some modules.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Scheme {
    pub(super) bits: Option<u64>,
    pub(super) group_size: Option<u64>,
    pub(super) block: Option<[u64; 2]>,
}

/// The methods whose checkpoints are read.
const METHODS: [&str; 7] =
    ["fp8", "fbgemm_fp8", "bitsandbytes", "mxfp4", "compressed-tensors", "gptq", "awq"];

impl Config {
    /// Reads the configuration of a model, or of the language model inside it.
    pub(in super::super) fn of(config: Option<&Value>) -> Self {
        const KEYS: [&str; 2] = ["quantization_config", "compression_config"];
        let places = [config, config.and_then(|config| config.get("text_config"))];
        let found = places.into_iter().flatten().flat_map(|place| KEYS.map(|key| place.get(key)));
        let Some(found) = found.flatten().find(|found| found.is_object()) else { return Self::default() };
        let text = |key: &str| found.get(key).and_then(Value::as_str).map(str::to_owned);
        let number = |key: &str| found.get(key).and_then(Value::as_u64);
        let groups = found.get("config_groups").and_then(Value::as_object);
        let weights = groups.into_iter().flatten().filter_map(|(_, group)| group.get("weights"));
        let scheme = |weights: &Value| Scheme {
            bits: weights.get("num_bits").and_then(Value::as_u64),
            group_size: weights.get("group_size").and_then(Value::as_u64).filter(|size| *size > 0),
            block: weights.get("block_structure").and_then(pair),
        };
        Self {
            // Older files of bitsandbytes have no method.
            method: text("quant_method").or_else(|| Some("bitsandbytes".into())),
            block: found.get("weight_block_size").and_then(pair),
            bits: number("bits").or_else(|| number("w_bit")),
            group_size: number("group_size").or_else(|| number("q_group_size")).filter(|size| *size > 0),
            checkpoint_format: text("checkpoint_format"),
            version: text("version"),
            schemes: weights.map(scheme).collect(),
        }
    }

    /// True if there is a configuration.
    pub(super) fn exists(&self) -> bool {
        self.method.is_some()
    }

    /// True if it names this method.
    pub(super) fn is(&self, method: &str) -> bool {
        self.method.as_deref() == Some(method)
    }

    /// The method, if its checkpoints are not read.
    pub(in super::super) fn unread_method(&self) -> Option<&str> {
        self.method.as_deref().filter(|method| !METHODS.contains(method))
    }
}

fn pair(value: &Value) -> Option<[u64; 2]> {
    let lengths: Option<Vec<u64>> = value.as_array()?.iter().map(Value::as_u64).collect();
    <[u64; 2]>::try_from(lengths?).ok().filter(|lengths| lengths.iter().all(|length| *length > 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn facts_of_configurations_are_found() {
        let fp8 = json!({"text_config": {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 64]}}});
        let fp8 = Config::of(Some(&fp8));
        assert_eq!(
            (fp8.method.as_deref(), fp8.block, fp8.unread_method()),
            (Some("fp8"), Some([128, 64]), None)
        );
        let gptq = json!({"quantization_config": {"quant_method": "gptq", "bits": 3, "group_size": -1, "checkpoint_format": "gptq_v2"}});
        let gptq = Config::of(Some(&gptq));
        assert_eq!(
            (gptq.bits, gptq.group_size, gptq.checkpoint_format.as_deref()),
            (Some(3), None, Some("gptq_v2"))
        );
        let groups =
            json!({"g": {"weights": {"num_bits": 4, "group_size": 32, "block_structure": [128, 128]}}});
        let compressed =
            json!({"compression_config": {"quant_method": "compressed-tensors", "config_groups": groups}});
        let scheme = Scheme { bits: Some(4), group_size: Some(32), block: Some([128, 128]) };
        assert_eq!(Config::of(Some(&compressed)).schemes, [scheme]);
        let other = Config::of(Some(
            &json!({"quantization_config": {"quant_method": "aqlm", "weight_block_size": [0, 128]}}),
        ));
        assert_eq!((other.unread_method(), other.block), (Some("aqlm"), None));
        assert!(
            !Config::of(None).exists() && !Config::of(Some(&json!({"quantization_config": null}))).exists()
        );
    }
}
