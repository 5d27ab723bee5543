//! Adapters for mlx-lm: `adapters.safetensors`, with `MODULE.lora_a` of shape `[inputs, rank]` and `MODULE.lora_b` of shape `[rank, outputs]`,
//! and `adapter_config.json` with one rank and one scale. The layer adds `scale · (x lora_a) lora_b`.
//!
//! mlx-lm adapts the modules in `keys` of every block of the model. Modules whose factors are not in the file start with `lora_b = 0`.
//!
//! Source: `tuner/lora.py` and `tuner/utils.py` of mlx-lm, August 2026.

use super::contents::{Contents, Entries, Entry, pretty};
use super::folder::OutputFolder;
use super::layer::{PeftLayer, Renaming, matrix_shape};
use super::location::open_tensors;
use super::names::MLX_FILE;
use super::numbers::{element_of, in_module};
use super::peft::check;
use super::{CONFIG_FILE, Carried, FileRecord, Format, refuse_shapes_without_place};
use crate::factors::{LayerName, LayerShape};
use crate::storage::safetensors::Tensor;
use crate::storage::{Access, NewFile, Problem, Problems, Source, is_missing, quoted, read_json};
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The suffixes of `A` and `B`.
const SUFFIXES: [&str; 2] = [".lora_a", ".lora_b"];

/// Writes an adapter for mlx-lm, with `cntlora.json` and the files beside it. Returns the files and the hash of the tensors. The
/// configuration comes last, because it completes the adapter.
///
/// # Errors
/// A usage problem for ranks that differ, and for layers that mlx-lm does not adapt.
pub(super) fn write(
    output: &OutputFolder<'_>,
    contents: &Contents<'_>,
) -> Result<(Vec<NewFile>, FileRecord), Problems> {
    let Contents { adapter, element, .. } = *contents;
    check(adapter, element)?;
    contents.peft.carried.map_or(Ok(()), Carried::refuse)?;
    refuse_shapes_without_place(Format::Mlx, adapter.shapes.iter())?;
    let rank = match adapter.rank_range() {
        Some((least, largest)) if least == largest => largest,
        range => {
            let (least, largest) = range.unwrap_or_default();
            let what =
                format!("mlx-lm takes one rank for all layers, but the ranks are {least} to {largest}");
            return Err(Problem::usage(what).help("give --uniform-rank").into());
        }
    };
    let mut entries = Entries::new();
    for (layer, factors) in &adapter.layers {
        let (inputs, outputs) = (factors.a.ncols() as u64, factors.b.nrows() as u64);
        let [down, up] = SUFFIXES.map(|suffix| format!("{}{suffix}", layer.module));
        let a = move || factors.a.transpose().to_owned();
        entries.insert(down, Entry::factor(vec![inputs, rank as u64], element, a));
        let b = move || factors.b.transpose().to_owned();
        entries.insert(up, Entry::factor(vec![rank as u64, outputs], element, b));
    }
    let (mut files, hash) = contents.write(output, MLX_FILE, BTreeMap::new(), &entries)?;
    let keys: BTreeSet<&str> = adapter.layers.keys().map(|layer| key_of(&layer.module)).collect();
    let base = contents.peft.loading.and_then(|loading| loading.base_name.as_ref()).unwrap_or(&adapter.base);
    let config = json!({
        "fine_tune_type": "lora",
        "lora_parameters": { "dropout": 0.0, "keys": keys, "rank": rank, "scale": adapter.scale },
        "model": base,
        // All blocks.
        "num_layers": -1,
    });
    files.push(output.write(CONFIG_FILE, pretty(&config).as_bytes())?);
    Ok((files, hash))
}

/// The name of a module inside its block, such as `self_attn.q_proj` for `model.layers.0.self_attn.q_proj`; the whole name of a module
/// outside of the blocks.
fn key_of(module: &str) -> &str {
    let mut start = 0;
    for part in module.split('.') {
        let end = start + part.len();
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) && end < module.len() {
            return &module[end + 1..];
        }
        start = end + 1;
    }
    module
}

/// The keys of the configuration that are read.
#[derive(Deserialize)]
struct Config {
    #[serde(default = "usual_type")]
    fine_tune_type: String,
    lora_parameters: Parameters,
}

#[derive(Deserialize)]
struct Parameters {
    rank: usize,
    scale: f64,
}

fn usual_type() -> String {
    "lora".into()
}

/// Opens the valid layers of an adapter, with replacements in the names of modules, and the file with their tensors. Each invalid layer adds
/// to `problems`.
pub(super) fn open(
    folder: &Path,
    renames: &Renaming<'_>,
    problems: &mut Problems,
) -> Option<(BTreeMap<LayerName, PeftLayer>, Source)> {
    let config = problems.collect(read_config(&folder.join(CONFIG_FILE)));
    let tensors = problems.collect(open_tensors(&folder.join(MLX_FILE)));
    let (Config { lora_parameters, .. }, (source, header)) = (config?, tensors?);
    let mut pairs: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
    for (key, tensor) in header.tensors {
        let sides = SUFFIXES.into_iter().enumerate();
        let mut found = sides.filter_map(|(side, suffix)| Some((key.strip_suffix(suffix)?, side)));
        match found.next() {
            Some((module, side)) => pairs.entry(module.to_owned()).or_default()[side] = Some(tensor),
            None => {
                let what = "unsupported tensor name: expected MODULE.lora_a or MODULE.lora_b";
                problems.push(Problem::data(what).in_file(source.path()).in_tensor(&key));
            }
        }
    }
    let mut layers = BTreeMap::new();
    for (module, pair) in pairs {
        let layer =
            layer_of(&module, pair, &lora_parameters).map_err(|problem| problem.in_file(source.path()));
        let (Some(layer), Some(name)) = (problems.collect(layer), problems.collect(renames(&module))) else {
            continue;
        };
        if layers.insert(LayerName::of_module(&name), layer).is_some() {
            let what = "another module has the same name after the renames";
            problems.push(Problem::data(what).in_file(source.path()).in_tensor(&module));
        }
    }
    Some((layers, source))
}

fn read_config(path: &Path) -> Result<Config, Problem> {
    if is_missing(path) {
        let problem = Problem::data("the configuration of the adapter for mlx-lm is missing").in_file(path);
        return Err(problem.help("give the folder that contains both files of the adapter"));
    }
    let config: Config =
        read_json(&Source::open(path, Access::Read)?, "configuration of an adapter for mlx-lm")?;
    match config.fine_tune_type.as_str() {
        "lora" => Ok(config),
        other => {
            let what = format!("unsupported fine_tune_type {}: expected \"lora\"", quoted(other));
            Err(Problem::data(what).in_file(path))
        }
    }
}

fn layer_of(
    module: &str,
    [a, b]: [Option<Tensor>; 2],
    parameters: &Parameters,
) -> Result<PeftLayer, Problem> {
    let [a_key, b_key] = SUFFIXES.map(|suffix| format!("{module}{suffix}"));
    let missing = |key: &str| {
        Problem::data("the tensor is missing, but others of the same layer are present").in_tensor(key)
    };
    let (a, b) = (a.ok_or_else(|| missing(&a_key))?, b.ok_or_else(|| missing(&b_key))?);
    let two_axes = |tensor: &Tensor, rule: &str, key: &str| {
        let found = matrix_shape(tensor, rule).map_err(|problem| problem.in_tensor(key))?;
        match tensor.shape.len() {
            2 => Ok(found),
            _ => Err(Problem::data(format!("{rule}, found {:?}", tensor.shape)).in_tensor(key)),
        }
    };
    let (inputs, rank) = two_axes(&a, "lora_a must have shape [inputs, rank]", &a_key)?;
    let (rows, outputs) = two_axes(&b, "lora_b must have shape [rank, outputs]", &b_key)?;
    if (rank, rows) != (parameters.rank, parameters.rank) {
        let what = format!(
            "lora_a has rank {rank} and lora_b has rank {rows}, but {CONFIG_FILE} says {}",
            parameters.rank
        );
        return Err(in_module(module, what));
    }
    if a.dtype != b.dtype {
        let (a, b) = (quoted(&a.dtype), quoted(&b.dtype));
        let what = format!("lora_b has number format {b}, but lora_a has {a}");
        return Err(Problem::data(what).in_tensor(&b_key));
    }
    let element = element_of(&a.dtype).map_err(|problem| problem.in_tensor(&a_key))?;
    Ok(PeftLayer {
        rank,
        inputs,
        outputs,
        shape: LayerShape::Linear,
        scale: parameters.scale,
        element,
        component: None,
        is_flattened: false,
        a,
        b,
        is_transposed: true,
        block: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{adapter, factors, provenance, rows, try_write};
    use super::super::{Adapter, PeftAdapter, UniformRank, verify};
    use super::*;
    use crate::element::Element;
    use crate::storage::snapshot;
    use expect_test::expect;
    use safetensors::SafeTensors;
    use serde_json::Map;
    use std::fs;

    fn written(adapter: &Adapter) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut record = provenance("update", &[]);
        record.remove("method");
        try_write(folder.path(), adapter, Element::F32, &record, Format::Mlx).unwrap();
        folder
    }

    fn small() -> Adapter {
        let mut adapter = adapter([
            ("model.layers.0.self_attn.q_proj", factors(4, 3, 2)),
            ("model.layers.11.mlp.up_proj", factors(5, 3, 1)),
            ("lm_head", factors(6, 3, 2)),
        ]);
        adapter.pad(UniformRank::Largest).unwrap();
        adapter
    }

    /// The oracle is the formula of mlx-lm, `scale · (x lora_a) lora_b`, with the tensors as the parser of the safetensors project reads
    /// them. The configuration has the keys that mlx-lm reads.
    #[test]
    fn mlx_adds_the_same_product() {
        let adapter = small();
        let folder = written(&adapter);
        let bytes = fs::read(folder.path().join("adapters.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(tensors.len(), 6);
        let numbers = |name: &str| -> (Vec<usize>, Vec<f32>) {
            let tensor = tensors.tensor(name).unwrap();
            let numbers = tensor.data().chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
            (tensor.shape().to_vec(), numbers.collect())
        };
        for (layer, factors) in &adapter.layers {
            let (a_shape, a) = numbers(&format!("{layer}.lora_a"));
            let (b_shape, b) = numbers(&format!("{layer}.lora_b"));
            let (inputs, outputs) = (factors.a.ncols(), factors.b.nrows());
            assert_eq!((a_shape, b_shape), (vec![inputs, 2], vec![2, outputs]), "{layer}");
            for (i, j) in (0..inputs).flat_map(|i| (0..outputs).map(move |j| (i, j))) {
                let added = 2.0 * (0..2).map(|k| a[i * 2 + k] * b[k * outputs + j]).sum::<f32>();
                let wanted = 2.0 * (0..2).map(|k| factors.b[(j, k)] * factors.a[(k, i)]).sum::<f32>();
                assert_eq!(added, wanted, "{layer}");
            }
        }
        let config = fs::read_to_string(folder.path().join(CONFIG_FILE)).unwrap();
        expect![[r#"
            {
              "fine_tune_type": "lora",
              "lora_parameters": {
                "dropout": 0.0,
                "keys": [
                  "lm_head",
                  "mlp.up_proj",
                  "self_attn.q_proj"
                ],
                "rank": 2,
                "scale": 2.0
              },
              "model": "tiny",
              "num_layers": -1
            }
        "#]]
        .assert_eq(&config);
    }

    #[test]
    fn adapters_for_mlx_are_read_back_and_verified() {
        let adapter = small();
        let folder = written(&adapter);
        let read = PeftAdapter::open(folder.path()).unwrap();
        assert!(read.layers().keys().eq(adapter.layers.keys()));
        for (name, layer) in read.layers() {
            let found = read.factors(layer).unwrap();
            let wanted = &adapter.layers[name];
            assert_eq!((rows(&found.a), rows(&found.b)), (rows(&wanted.a), rows(&wanted.b)), "{name}");
            assert_eq!((layer.scale, layer.rank), (2.0, 2));
        }
        let verification = verify(folder.path(), None, &BTreeMap::new()).unwrap();
        assert_eq!((verification.layers, verification.max_rank), (3, 2));
    }

    #[test]
    fn adapters_that_mlx_cannot_hold_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |adapter: &Adapter| {
            let written = try_write(folder.path(), adapter, Element::F32, &Map::new(), Format::Mlx);
            snapshot(written.unwrap_err())
        };
        let mut convolution = adapter([("conv", factors(4, 18, 2))]);
        convolution.shapes.insert("conv".into(), LayerShape::Convolution(vec![3, 3]));
        let mixed = adapter([("q", factors(5, 4, 3)), ("v", factors(5, 4, 1))]);
        expect![[r#"
            mlx-lm takes one rank for all layers, but the ranks are 1 to 3; help: give --uniform-rank
            this format does not support module "conv": it is a convolution; help: give --format peft, or leave the module out with --exclude
        "#]]
        .assert_eq(&(refused(&mixed) + &refused(&convolution)));
    }

    #[test]
    fn damaged_adapters_for_mlx_are_refused() {
        let folder = written(&small());
        let config = folder.path().join(CONFIG_FILE);
        let text = fs::read_to_string(&config).unwrap();
        let refused = |from: &str, to: &str| {
            fs::write(&config, text.replace(from, to)).unwrap();
            snapshot(PeftAdapter::open(folder.path()).unwrap_err())
        };
        let mut texts = refused("\"lora\"", "\"dora\"");
        texts += &refused("\"rank\": 2", "\"rank\": 3");
        texts += &refused("\"rank\"", "\"ranks\"");
        fs::remove_file(&config).unwrap();
        texts += &snapshot(PeftAdapter::open(folder.path()).unwrap_err());
        expect![[r#"
            FOLDER/adapter_config.json: unsupported fine_tune_type "dora": expected "lora"
            FOLDER/adapters.safetensors: module "lm_head": lora_a has rank 2 and lora_b has rank 2, but adapter_config.json says 3
            FOLDER/adapters.safetensors: module "model.layers.0.self_attn.q_proj": lora_a has rank 2 and lora_b has rank 2, but adapter_config.json says 3
            FOLDER/adapters.safetensors: module "model.layers.11.mlp.up_proj": lora_a has rank 2 and lora_b has rank 2, but adapter_config.json says 3
            FOLDER/adapter_config.json: invalid configuration of an adapter for mlx-lm: missing field `rank` at line 12 column 3
            FOLDER/adapter_config.json: the configuration of the adapter for mlx-lm is missing; help: give the folder that contains both files of the adapter
        "#]]
        .assert_eq(&texts);
    }

    #[test]
    fn keys_are_names_inside_a_block() {
        let keys = ["model.layers.0.q", "lm_head", "h.3.attn.c", "a.0", "layers.x1.q", "l.1.experts.2.w"];
        assert_eq!(keys.map(key_of), ["q", "lm_head", "attn.c", "a.0", "layers.x1.q", "experts.2.w"]);
    }
}
