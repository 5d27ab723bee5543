//! The tool on quantized bases: the golden checkpoints of all formats, beside plain checkpoints with the same weights in F32.

use cntlora::adapter::PeftAdapter;
use cntlora::element::Element;
use cntlora::random::gaussian;
use cntlora::storage::{Access, Source, safetensors};
use expect_test::expect;
use faer::Mat;
use serde_json::Value;
use small::Small;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

mod small;

const CASES: [&str; 13] = [
    "awq",
    "bitsandbytes-int8",
    "compressed-float8",
    "compressed-int8",
    "compressed-integers",
    "compressed-mxfp4",
    "compressed-nvfp4",
    "fp4",
    "fp8-blocks",
    "gptq",
    "gptq-v2",
    "mxfp4",
    "nf4",
];

type Tensors = BTreeMap<String, (String, Vec<u64>, Vec<u8>)>;

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quantized").join(case)
}

/// The tensors of a file, as they are on disk.
fn read(path: &Path) -> Tensors {
    let source = Source::open(path, Access::Read).unwrap();
    let header = safetensors::Header::read(&source).unwrap();
    let read = |(name, tensor): (String, safetensors::Tensor)| {
        let bytes = source.read_vec(tensor.offset, tensor.length).unwrap();
        (name, (tensor.dtype, tensor.shape, bytes))
    };
    header.tensors.into_iter().map(read).collect()
}

fn numbers((dtype, _, bytes): &(String, Vec<u64>, Vec<u8>)) -> Vec<f64> {
    let element = Element::from_name(dtype).unwrap();
    let mut values = vec![0.0; bytes.len() / element.size()];
    element.decode_f64(bytes, &mut values);
    values
}

fn write(path: &Path, metadata: &[(&str, String)], tensors: &Tensors) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let metadata = metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    safetensors::write(&mut File::create(path).unwrap(), &metadata, tensors).unwrap();
}

/// A golden checkpoint in the folder `quantized`, its weights in F32 in `plain`, and activations for all modules but the last.
struct Case {
    small: Small,
    weights: Tensors,
    /// The weight that gets no adapter.
    left: Option<String>,
}

impl Case {
    fn new(name: &str) -> Self {
        let small = Small::new();
        let weights = read(&golden(name).join("expected.safetensors"));
        fs::create_dir(small.path("quantized")).unwrap();
        for file in ["model.safetensors", "config.json"] {
            fs::copy(golden(name).join(file), small.path("quantized").join(file)).unwrap();
        }
        write(&small.path("plain/model.safetensors"), &[], &weights);
        let mut config = config(&small.path("quantized"));
        config.as_object_mut().unwrap().remove("quantization_config");
        fs::write(small.path("plain/config.json"), config.to_string()).unwrap();
        let modules: Vec<&str> =
            weights.keys().map(|name| name.strip_suffix(".weight").unwrap_or(name)).collect();
        let left = (modules.len() > 1).then(|| weights.keys().next_back().unwrap().clone());
        let recorded = &modules[..modules.len() - usize::from(left.is_some())];
        let sites: BTreeMap<&str, [&str; 1]> = recorded.iter().map(|module| (*module, [*module])).collect();
        let metadata = serde_json::json!({"format": "activations", "version": 1, "sites": sites});
        let rows = weights.iter().zip(&modules).take(recorded.len()).map(|((_, (_, shape, _)), module)| {
            // The experts of gpt-oss are stored as [experts, inputs, outputs].
            let width = if name == "mxfp4" { shape[1] } else { *shape.last().unwrap() };
            let rows = gaussian::<f32>(150, width as usize, 3, module);
            let mut bytes = Vec::new();
            let values = (0..150).flat_map(|i| (0..width as usize).map(move |j| (i, j)));
            Element::F32.encode(values.map(|(i, j)| f64::from(rows[(i, j)])), &mut bytes);
            ((*module).to_owned(), ("F32".to_owned(), vec![150, width], bytes))
        });
        write(&small.path("rows.safetensors"), &[("cntlora", metadata.to_string())], &rows.collect());
        Self { small, weights, left }
    }

    fn init(&self, words: &str) {
        self.small.succeed(&format!("init {words} -a rows.safetensors --rank 2"));
    }
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// `s B A` of each layer, in the layout of its stored weight. The experts of gpt-oss are stored transposed.
fn updates(folder: &Path, transposed: bool) -> BTreeMap<String, Vec<f64>> {
    let adapter = PeftAdapter::open(folder).unwrap();
    let mut updates: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (name, layer) in adapter.layers() {
        let factors = adapter.factors(layer).unwrap();
        let wide = |factor: &Mat<f32>| {
            Mat::from_fn(factor.nrows(), factor.ncols(), |i, j| f64::from(factor[(i, j)]))
        };
        let product = wide(&factors.b) * wide(&factors.a) * faer::Scale(layer.scale);
        let product = if transposed { product.transpose().to_owned() } else { product };
        let values = (0..product.nrows()).flat_map(|i| (0..product.ncols()).map(move |j| (i, j)));
        // The experts of a parameter follow one another.
        let tensor =
            if name.block.is_some() { name.module.clone() } else { format!("{}.weight", name.module) };
        updates.entry(tensor).or_default().extend(values.map(|(i, j)| product[(i, j)]));
    }
    updates
}

#[track_caller]
fn check_close(what: &str, found: &[f64], expected: impl Iterator<Item = f64>, tolerance: f64) {
    let expected: Vec<f64> = expected.collect();
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(&expected) {
        assert!((found - expected).abs() <= tolerance * largest, "{what}: {found} {expected}");
    }
}

/// The adapter of a quantized base is that of its dequantized weights, and `verify` accepts it on both.
#[test]
fn adapters_are_those_of_the_dequantized_weights() {
    for name in CASES {
        let case = Case::new(name);
        for base in ["quantized", "plain"] {
            case.init(&format!("{base} --method pissa --residual anchor -o of-{base}"));
        }
        let [found, expected] =
            ["of-quantized", "of-plain"].map(|folder| updates(&case.small.path(folder), name == "mxfp4"));
        assert_eq!(found.len(), case.weights.len() - usize::from(case.left.is_some()), "{name}");
        assert!(found.keys().eq(expected.keys()), "{name}");
        for (tensor, found) in &found {
            check_close(&format!("{name} {tensor}"), found, expected[tensor].iter().copied(), 2e-4);
        }
        let verified = case.small.succeed("verify of-quantized --base quantized");
        let text = String::from_utf8(verified.stdout).unwrap();
        assert!(
            text.contains("of the base are quantized (") || text.contains("of the base is quantized ("),
            "{name}: {text}"
        );
        // The last bits of these weights depend on the order of the operations.
        if !["bitsandbytes-int8", "nf4", "fp4", "compressed-nvfp4"].contains(&name) {
            case.small.succeed("verify of-quantized --base plain");
        }
    }
}

/// A changed base in F32 has plain weights `W' = W − s B A`, so `W' x + s B A x` is `W x` with the dequantized `W`. It is a plain model:
/// nothing is left of the quantization, and weights without an adapter are dequantized too.
#[test]
fn changed_bases_are_plain_models() {
    for name in CASES {
        let case = Case::new(name);
        case.init("quantized --method pissa --base-dtype f32 -o out");
        let base = case.small.path("out/base");
        let new = read(&base.join("model.safetensors"));
        let old = read(&case.small.path("quantized/model.safetensors"));
        let updates = updates(&case.small.path("out"), name == "mxfp4");
        let is_bias = |name: &&String| name.ends_with("_bias");
        assert!(new.keys().filter(|name| !is_bias(name)).eq(case.weights.keys()), "{name}");
        for (tensor, weight) in &case.weights {
            let found = &new[tensor];
            assert_eq!(found.1, weight.1, "{name} {tensor}");
            let mut found = numbers(found);
            match updates.get(tensor) {
                Some(update) => found.iter_mut().zip(update).for_each(|(found, update)| *found += update),
                None => assert_eq!(Some(tensor), case.left.as_ref(), "{name}"),
            }
            check_close(&format!("{name} {tensor}"), &found, numbers(weight).into_iter(), 1e-6);
        }
        new.iter().filter(|(name, _)| is_bias(name)).for_each(|(name, bias)| assert_eq!(*bias, old[name]));
        let config = config(&base);
        assert_eq!(
            (config.get("quantization_config"), &config["torch_dtype"]),
            (None, &"float32".into()),
            "{name}"
        );
        case.small.succeed("verify out --base out/base");
        case.small.succeed("init out/base -a rows.safetensors --rank 2 -o again");
    }
}

/// In BF16, the changed base is rounded once, and the tool says so. The index and the other files of the base fit it.
#[test]
fn changed_bases_can_be_bf16() {
    let case = Case::new("fp8-blocks");
    let model = case.small.path("quantized");
    let tensors = read(&model.join("model.safetensors"));
    fs::remove_file(model.join("model.safetensors")).unwrap();
    let (first, second): (Tensors, Tensors) =
        tensors.into_iter().partition(|(name, _)| name.contains(".up."));
    let mut map = serde_json::Map::new();
    for (file, tensors) in [("a.safetensors", first), ("b.safetensors", second)] {
        map.extend(tensors.keys().map(|name| (name.clone(), file.into())));
        write(&model.join(file), &[], &tensors);
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(model.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(model.join("quantize_config.json"), "{}").unwrap();
    fs::write(model.join("tokenizer.json"), "{}").unwrap();
    let mut config_before = config(&model);
    config_before["torch_dtype"] = "float16".into();
    fs::write(model.join("config.json"), config_before.to_string()).unwrap();
    let done = case
        .small
        .succeed("init quantized -a rows.safetensors --rank 2 --method pissa --base-dtype bf16 -o out");
    let stderr = String::from_utf8(done.stderr).unwrap();
    let warnings: Vec<&str> = stderr.lines().filter(|line| line.contains("rounded")).collect();
    expect!["warning: the changed base is rounded: 4 quantized weights that are adapted are written in BF16, so each changed number is off by up to 0.4 % of its size, and the outputs before training differ from those of the model. Give --base-dtype f32 for a changed base in F32, or --start mirrored, which does not change the base"].assert_eq(&warnings.join("\n"));
    let base = case.small.path("out/base");
    let mut new = read(&base.join("a.safetensors"));
    new.extend(read(&base.join("b.safetensors")));
    let updates = updates(&case.small.path("out"), false);
    for (tensor, weight) in case.weights.iter().filter(|(name, _)| !name.contains("plain")) {
        assert_eq!(new[tensor].0, "BF16");
        let update = updates.get(tensor).cloned().unwrap_or_else(|| vec![0.0; numbers(weight).len()]);
        let expected = numbers(weight).into_iter().zip(update).map(|(weight, update)| weight - update);
        let found = numbers(&new[tensor]);
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() <= expected.abs() / 250.0 + 1e-6,
                "{tensor}: {found} {expected}"
            );
        }
    }
    let index: Value =
        serde_json::from_slice(&fs::read(base.join("model.safetensors.index.json")).unwrap()).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    assert!(map.keys().eq(new.keys()), "{map:?}");
    assert_eq!(map["layers.0.up.weight"], "a.safetensors");
    let total: usize = new.values().map(|(_, _, bytes)| bytes.len()).sum();
    assert_eq!(index["metadata"]["total_size"], total);
    assert_eq!(config(&base)["torch_dtype"], "bfloat16");
    assert!(base.join("tokenizer.json").exists() && !base.join("quantize_config.json").exists());
}

/// Starts that keep the base need no decision. A changed base does, before the work.
#[test]
fn a_quantized_base_stays_as_it_is_or_becomes_plain() {
    let case = Case::new("nf4");
    let before = fs::read(case.small.path("quantized/model.safetensors")).unwrap();
    for (number, start) in
        ["mirrored", "update", "zero", "residual --residual anchor"].into_iter().enumerate()
    {
        case.init(&format!("quantized --start {start} -o out-{number}"));
        case.small.succeed(&format!("verify out-{number} --base quantized"));
    }
    assert_eq!(fs::read(case.small.path("quantized/model.safetensors")).unwrap(), before);
    let rest = "-a rows.safetensors --rank 2 --start residual";
    let commands = [
        format!("plan quantized {rest}"),
        format!("init quantized {rest} -o out"),
        format!("init plain {rest} --base-dtype bf16 -o out"),
    ];
    case.small.all_refused(commands, 2, expect![[r#"
        $ cntlora plan quantized -a rows.safetensors --rank 2 --start residual
        error: quantized: tensor "layers.0.down.weight": the changed base cannot hold this weight: it is quantized (NF4), and a new quantization would round it again
          help: give --start mirrored or --residual anchor, which do not change the base, or --base-dtype bf16 for a base that is not quantized
        $ cntlora init quantized -a rows.safetensors --rank 2 --start residual -o out
        error: quantized: tensor "layers.0.down.weight": the changed base cannot hold this weight: it is quantized (NF4), and a new quantization would round it again
          help: give --start mirrored or --residual anchor, which do not change the base, or --base-dtype bf16 for a base that is not quantized
        $ cntlora init plain -a rows.safetensors --rank 2 --start residual --base-dtype bf16 -o out
        error: --base-dtype bf16 is for quantized weights, but the model has none
          help: remove --base-dtype: changed weights keep the format of the model
    "#]]);
    assert!(!case.small.path("out").exists());
}

/// A residual start that changes only plain weights of a quantized checkpoint copies the quantized ones byte by byte.
#[test]
fn plain_weights_of_a_quantized_checkpoint_can_change() {
    let case = Case::new("nf4");
    case.small.succeed("init quantized --target plain --method pissa --rank 2 -o out");
    let [old, new] =
        ["quantized", "out/base"].map(|folder| read(&case.small.path(folder).join("model.safetensors")));
    assert!(new.keys().eq(old.keys()));
    let changed: Vec<&String> = new.keys().filter(|name| new[*name] != old[*name]).collect();
    assert_eq!(changed, ["layers.0.plain.weight"]);
    assert_eq!(config(&case.small.path("out/base")), config(&case.small.path("quantized")));
}

#[test]
fn quantized_weights_are_named_by_their_formats() {
    let mut texts = String::new();
    for name in ["nf4", "fp8-blocks", "mxfp4", "compressed-integers", "gptq", "awq"] {
        let case = Case::new(name);
        let inspected = case.small.succeed("inspect quantized");
        texts += &String::from_utf8(inspected.stdout).unwrap();
        let planned = case.small.succeed("plan quantized -a rows.safetensors --rank 2");
        let planned = small::on_any_machine(&String::from_utf8(planned.stdout).unwrap());
        texts += &format!("\n{planned}\n");
    }
    expect![[r#"
        quantized: checkpoint of a llama model, 1 file of 14.6 kB, 20815 parameters, 5 tensors (1 F32, 4 NF4)

        tensor                 format   shape
        layers.0.down.weight   NF4     72×240
        layers.0.gate.weight   NF4      4×128
        layers.0.odd.weight    NF4        7×9
        layers.0.plain.weight  F32       5×16
        layers.0.up.weight     NF4      40×72

        module           shape  format  rank up to  rows
        layers.0.down   72×240  NF4              2   150
        layers.0.gate    4×128  NF4              2   150
        layers.0.odd       7×9  NF4              2   150
        layers.0.plain    5×16  F32              2   150

        4 layers at 4 sites, 235.8 kB of activations to read, about [size] of memory
        5.4e7 operations, adapter of at most 962 parameters in 3.8 kB

        quantized: checkpoint of a llama model, 1 file of 12.2 kB, 10880 parameters, 5 tensors (1 BF16; 4 FP8, blocks of 16 × 16)

        tensor                    format                    shape
        layers.0.down.weight      FP8, blocks of 16 × 16    40×72
        layers.0.experts.up_proj  FP8, blocks of 16 × 16  2×24×40
        layers.0.gate.weight      FP8, blocks of 16 × 16    40×72
        layers.0.plain.weight     BF16                       8×40
        layers.0.up.weight        FP8, blocks of 16 × 16    40×72

        module                      shape  format                  rank up to  rows
        layers.0.down               40×72  FP8, blocks of 16 × 16           2   150
        layers.0.experts.up_proj.0  24×40  FP8, blocks of 16 × 16           2   150
        layers.0.experts.up_proj.1  24×40  FP8, blocks of 16 × 16           2   150
        layers.0.gate               40×72  FP8, blocks of 16 × 16           2   150
        layers.0.plain               8×40  BF16                             2   150

        5 layers at 4 sites, 134.4 kB of activations to read, about [size] of memory
        1.1e7 operations, adapter of at most 800 parameters in 3.2 kB

        quantized: checkpoint of a gpt_oss model, 1 file of 9.7 kB, 16380 parameters, 4 tensors (2 BF16, 2 MXFP4)

        tensor                                        format    shape
        model.layers.0.mlp.experts.down_proj          MXFP4   3×64×64
        model.layers.0.mlp.experts.down_proj_bias     BF16       3×64
        model.layers.0.mlp.experts.gate_up_proj       MXFP4   3×64×20
        model.layers.0.mlp.experts.gate_up_proj_bias  BF16       3×20

        module                                  shape  format  rank up to  rows
        model.layers.0.mlp.experts.down_proj.0  64×64  MXFP4            2   150
        model.layers.0.mlp.experts.down_proj.1  64×64  MXFP4            2   150
        model.layers.0.mlp.experts.down_proj.2  64×64  MXFP4            2   150

        3 layers at 1 site, 38.4 kB of activations to read, about [size] of memory
        3.2e7 operations, adapter of at most 768 parameters in 3.1 kB

        quantized: checkpoint of a llama model, 1 file of 10.5 kB, 6120 parameters, 17 tensors (1 INT1, groups of 20; 1 INT2, groups of 20; 1 INT2, one scale per row; 1 INT3, groups of 20; 1 INT3, one scale per row; 1 INT4, groups of 10; 1 INT4, groups of 20; 1 INT4, one scale; 1 INT4, one scale per row; 1 INT5, groups of 20; 1 INT5, one scale per row; 1 INT6, groups of 20; 1 INT6, one scale per row; 1 INT7, groups of 20; 1 INT7, one scale per row; 1 INT8, groups of 20; 1 INT8, one scale per row)

        tensor                   format                   shape
        layers.0.ordered.weight  INT4, groups of 10        9×40
        layers.0.rows2.weight    INT2, one scale per row   9×40
        layers.0.rows3.weight    INT3, one scale per row   9×40
        layers.0.rows4.weight    INT4, one scale per row   9×40
        layers.0.rows5.weight    INT5, one scale per row   9×40
        layers.0.rows6.weight    INT6, one scale per row   9×40
        layers.0.rows7.weight    INT7, one scale per row   9×40
        layers.0.rows8.weight    INT8, one scale per row   9×40
        layers.0.whole.weight    INT4, one scale           9×40
        layers.0.zeros1.weight   INT1, groups of 20        9×40
        layers.0.zeros2.weight   INT2, groups of 20        9×40
        layers.0.zeros3.weight   INT3, groups of 20        9×40
        layers.0.zeros4.weight   INT4, groups of 20        9×40
        layers.0.zeros5.weight   INT5, groups of 20        9×40
        layers.0.zeros6.weight   INT6, groups of 20        9×40
        layers.0.zeros7.weight   INT7, groups of 20        9×40
        layers.0.zeros8.weight   INT8, groups of 20        9×40

        module            shape  format                   rank up to  rows
        layers.0.ordered   9×40  INT4, groups of 10                2   150
        layers.0.rows2     9×40  INT2, one scale per row           2   150
        layers.0.rows3     9×40  INT3, one scale per row           2   150
        layers.0.rows4     9×40  INT4, one scale per row           2   150
        layers.0.rows5     9×40  INT5, one scale per row           2   150
        layers.0.rows6     9×40  INT6, one scale per row           2   150
        layers.0.rows7     9×40  INT7, one scale per row           2   150
        layers.0.rows8     9×40  INT8, one scale per row           2   150
        layers.0.whole     9×40  INT4, one scale                   2   150
        layers.0.zeros1    9×40  INT1, groups of 20                2   150
        layers.0.zeros2    9×40  INT2, groups of 20                2   150
        layers.0.zeros3    9×40  INT3, groups of 20                2   150
        layers.0.zeros4    9×40  INT4, groups of 20                2   150
        layers.0.zeros5    9×40  INT5, groups of 20                2   150
        layers.0.zeros6    9×40  INT6, groups of 20                2   150
        layers.0.zeros7    9×40  INT7, groups of 20                2   150

        16 layers at 16 sites, 384.0 kB of activations to read, about [size] of memory
        6.0e6 operations, adapter of at most 1568 parameters in 6.3 kB

        quantized: checkpoint of a llama model, 1 file of 13.4 kB, 16384 parameters, 8 tensors (2 GPTQ, 2 bits; 2 GPTQ, 3 bits; 2 GPTQ, 4 bits; 2 GPTQ, 8 bits)

        tensor                    format        shape
        layers.0.even2.weight     GPTQ, 2 bits  32×64
        layers.0.even3.weight     GPTQ, 3 bits  32×64
        layers.0.even4.weight     GPTQ, 4 bits  32×64
        layers.0.even8.weight     GPTQ, 8 bits  32×64
        layers.0.ordered2.weight  GPTQ, 2 bits  32×64
        layers.0.ordered3.weight  GPTQ, 3 bits  32×64
        layers.0.ordered4.weight  GPTQ, 4 bits  32×64
        layers.0.ordered8.weight  GPTQ, 8 bits  32×64

        module             shape  format        rank up to  rows
        layers.0.even2     32×64  GPTQ, 2 bits           2   150
        layers.0.even3     32×64  GPTQ, 3 bits           2   150
        layers.0.even4     32×64  GPTQ, 4 bits           2   150
        layers.0.even8     32×64  GPTQ, 8 bits           2   150
        layers.0.ordered2  32×64  GPTQ, 2 bits           2   150
        layers.0.ordered3  32×64  GPTQ, 3 bits           2   150
        layers.0.ordered4  32×64  GPTQ, 4 bits           2   150

        7 layers at 7 sites, 268.8 kB of activations to read, about [size] of memory
        1.9e7 operations, adapter of at most 1344 parameters in 5.4 kB

        quantized: checkpoint of a llama model, 1 file of 840 B, 960 parameters, 1 tensor (1 AWQ, 4 bits)

        tensor              format       shape
        layers.0.up.weight  AWQ, 4 bits  24×40

        module       shape  format       rank up to  rows
        layers.0.up  24×40  AWQ, 4 bits           2   150

        1 layer at 1 site, 24.0 kB of activations to read, about [size] of memory
        9.8e5 operations, adapter of at most 128 parameters in 512 B

    "#]].assert_eq(&texts);
}

/// Checkpoints whose weights cannot be known are refused, by name. The old tool refused all quantized checkpoints.
#[test]
fn checkpoints_that_cannot_be_read_are_refused() {
    let case = Case::new("fp8-blocks");
    let model = case.small.path("quantized");
    let path = model.join("model.safetensors");
    let sound = read(&path);
    let run = "plan quantized -a rows.safetensors --rank 2 --target down,gate".to_owned();
    let mut texts = String::new();
    let mut refused = |case: &Case, words: &str| {
        let output = case.small.run(words);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{words}: {stderr}");
        texts += &stderr;
    };
    let mut without = sound.clone();
    without.remove("layers.0.down.weight_scale_inv");
    write(&path, &[], &without);
    refused(&case, &run);
    refused(&case, "init quantized --target down --method pissa --rank 2 --base-dtype f32 -o out");
    // An adapter of another weight needs this one only if it is written.
    case.small.succeed("plan quantized -a rows.safetensors --rank 2 --target gate");
    refused(
        &case,
        "plan quantized -a rows.safetensors --rank 2 --target gate --start residual --base-dtype bf16",
    );
    case.small.succeed("inspect quantized");
    // The codes of another method.
    let mut other = sound.clone();
    let codes = other.remove("layers.0.down.weight").unwrap();
    other.remove("layers.0.down.weight_scale_inv");
    other.insert("layers.0.down.codes".into(), codes);
    write(&path, &[], &other);
    let text = fs::read_to_string(model.join("config.json")).unwrap().replace("\"fp8\"", "\"aqlm\"");
    fs::write(model.join("config.json"), text).unwrap();
    refused(&case, &run);
    let mut integers = sound.clone();
    let (_, shape, bytes) = integers.remove("layers.0.down.weight").unwrap();
    integers.insert("layers.0.down.weight".into(), ("U8".into(), shape, bytes));
    integers.remove("layers.0.down.weight_scale_inv");
    write(&path, &[], &integers);
    refused(&case, &run);
    // GGUF, as a file and as the only file of a folder.
    fs::write(case.small.path("model.gguf"), b"GGUF\x03\0\0\0").unwrap();
    fs::create_dir(case.small.path("gguf")).unwrap();
    fs::copy(case.small.path("model.gguf"), case.small.path("gguf/model.gguf")).unwrap();
    for name in ["model.gguf", "gguf"] {
        refused(&case, &format!("plan {name} -a rows.safetensors --rank 2"));
        refused(&case, &format!("inspect {name}"));
    }
    expect![[r#"
        error: quantized/model.safetensors: tensor "layers.0.down.weight": the scale of this FP8 weight is missing: "layers.0.down.weight_scale" or "layers.0.down.weight_scale_inv"
          help: download or convert the checkpoint again: without its scale, the weight is wrong
        error: quantized/model.safetensors: tensor "layers.0.down.weight": the scale of this FP8 weight is missing: "layers.0.down.weight_scale" or "layers.0.down.weight_scale_inv"
          help: download or convert the checkpoint again: without its scale, the weight is wrong
        error: quantized/model.safetensors: tensor "layers.0.down.weight": the scale of this FP8 weight is missing: "layers.0.down.weight_scale" or "layers.0.down.weight_scale_inv"
          help: download or convert the checkpoint again: without its scale, the weight is wrong
        error: quantized: tensor "layers.0.down": the checkpoint is quantized by the method "aqlm", which is not read
          help: give the checkpoint that it was made from
        error: quantized/model.safetensors: tensor "layers.0.down.weight": the checkpoint is quantized by the method "aqlm", which is not read
          help: give the checkpoint that it was made from
        error: model.gguf: a GGUF file is not read
          help: give the safetensors files that it was converted from
        error: model.gguf: a GGUF file is not read
          help: give the safetensors files that it was converted from
        error: gguf/model.gguf: a GGUF file is not read
          help: give the safetensors files that it was converted from
        error: gguf/model.gguf: a GGUF file is not read
          help: give the safetensors files that it was converted from
    "#]].assert_eq(&texts);
}
