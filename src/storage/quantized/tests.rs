//! The golden files of all formats.

mod refusals;

use super::super::{Access, Checkpoint, Piece, ReadAt, Source, StoredTensor, safetensors, shown};
use crate::element::Element;
use expect_test::expect;
use quickcheck::quickcheck;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The tensors of a file: number format, shape and bytes.
type Tensors = BTreeMap<String, (String, Vec<u64>, Vec<u8>)>;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/quantized").join(name)
}

fn cases() -> Vec<String> {
    let folders = fs::read_dir(golden("")).unwrap();
    let mut names: Vec<String> =
        folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn tensors(path: &Path) -> Tensors {
    let source = Source::open(path, Access::Read).unwrap();
    let header = safetensors::Header::read(&source).unwrap();
    let read = |(name, tensor): (String, safetensors::Tensor)| {
        let bytes = source.read_vec(tensor.offset, tensor.length).unwrap();
        (name, (tensor.dtype, tensor.shape, bytes))
    };
    header.tensors.into_iter().map(read).collect()
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The weights of a golden checkpoint.
fn expected(name: &str) -> BTreeMap<String, (Vec<u64>, Vec<f32>)> {
    let tensors = tensors(&golden(name).join("expected.safetensors"));
    tensors.into_iter().map(|(name, (_, shape, bytes))| (name, (shape, numbers(&bytes)))).collect()
}

/// Every weight of every format is that of the public implementation, under its plain name; the tensors that it consists of have no
/// names. The references round in another order, so the last bit can differ.
#[test]
fn weights_are_those_of_the_public_implementations() {
    let mut formats = String::new();
    for case in cases() {
        let checkpoint = Checkpoint::open(&golden(&case), Access::Auto).unwrap();
        let expected = expected(&case);
        let names: Vec<&str> = checkpoint.names().filter(|name| !name.ends_with("_bias")).collect();
        assert_eq!(names, expected.keys().map(String::as_str).collect::<Vec<_>>(), "{case}");
        for (name, (shape, expected)) in &expected {
            checkpoint.check_quantized(name).unwrap_or_else(|problem| panic!("{case} {name}: {problem}"));
            let stored = checkpoint.get(name).unwrap();
            assert_eq!(stored.tensor.shape, *shape, "{case} {name}");
            let element = Element::from_name(&stored.tensor.dtype).unwrap();
            let mut found = vec![0.0; expected.len()];
            element.decode_f32(&checkpoint.read(name).unwrap(), &mut found);
            let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
                let error = (found - expected).abs();
                assert!(error <= 3e-7 * largest, "{case} {name} {index}: {found} {expected}");
            }
            let format = checkpoint.quantization(name).unwrap_or("plain");
            formats += &format!("{case}: {name}: {format}\n");
        }
    }
    expect![[r#"
        awq: layers.0.up.weight: AWQ, 4 bits
        bitsandbytes-int8: layers.0.up.weight: INT8 of bitsandbytes
        compressed-float8: layers.0.blocks.weight: FP8, blocks of 16 × 16
        compressed-float8: layers.0.groups.weight: FP8, groups of 10
        compressed-float8: layers.0.rows.weight: FP8, one scale per row
        compressed-float8: layers.0.whole.weight: FP8, one scale
        compressed-int8: layers.0.rows.weight: INT8, one scale per row
        compressed-int8: layers.0.whole.weight: INT8, one scale
        compressed-int8: layers.0.zeros.weight: INT8, one scale per row
        compressed-integers: layers.0.ordered.weight: INT4, groups of 10
        compressed-integers: layers.0.rows2.weight: INT2, one scale per row
        compressed-integers: layers.0.rows3.weight: INT3, one scale per row
        compressed-integers: layers.0.rows4.weight: INT4, one scale per row
        compressed-integers: layers.0.rows5.weight: INT5, one scale per row
        compressed-integers: layers.0.rows6.weight: INT6, one scale per row
        compressed-integers: layers.0.rows7.weight: INT7, one scale per row
        compressed-integers: layers.0.rows8.weight: INT8, one scale per row
        compressed-integers: layers.0.whole.weight: INT4, one scale
        compressed-integers: layers.0.zeros1.weight: INT1, groups of 20
        compressed-integers: layers.0.zeros2.weight: INT2, groups of 20
        compressed-integers: layers.0.zeros3.weight: INT3, groups of 20
        compressed-integers: layers.0.zeros4.weight: INT4, groups of 20
        compressed-integers: layers.0.zeros5.weight: INT5, groups of 20
        compressed-integers: layers.0.zeros6.weight: INT6, groups of 20
        compressed-integers: layers.0.zeros7.weight: INT7, groups of 20
        compressed-integers: layers.0.zeros8.weight: INT8, groups of 20
        compressed-mxfp4: layers.0.up.weight: MXFP4
        compressed-nvfp4: layers.0.up.weight: NVFP4
        fp4: layers.0.down.weight: FP4
        fp4: layers.0.gate.weight: FP4
        fp4: layers.0.odd.weight: FP4
        fp4: layers.0.plain.weight: plain
        fp4: layers.0.up.weight: FP4
        fp8-blocks: layers.0.down.weight: FP8, blocks of 16 × 16
        fp8-blocks: layers.0.experts.up_proj: FP8, blocks of 16 × 16
        fp8-blocks: layers.0.gate.weight: FP8, blocks of 16 × 16
        fp8-blocks: layers.0.plain.weight: plain
        fp8-blocks: layers.0.up.weight: FP8, blocks of 16 × 16
        gptq: layers.0.even2.weight: GPTQ, 2 bits
        gptq: layers.0.even3.weight: GPTQ, 3 bits
        gptq: layers.0.even4.weight: GPTQ, 4 bits
        gptq: layers.0.even8.weight: GPTQ, 8 bits
        gptq: layers.0.ordered2.weight: GPTQ, 2 bits
        gptq: layers.0.ordered3.weight: GPTQ, 3 bits
        gptq: layers.0.ordered4.weight: GPTQ, 4 bits
        gptq: layers.0.ordered8.weight: GPTQ, 8 bits
        gptq-v2: layers.0.even2.weight: GPTQ, 2 bits
        gptq-v2: layers.0.even3.weight: GPTQ, 3 bits
        gptq-v2: layers.0.even4.weight: GPTQ, 4 bits
        gptq-v2: layers.0.even8.weight: GPTQ, 8 bits
        gptq-v2: layers.0.ordered2.weight: GPTQ, 2 bits
        gptq-v2: layers.0.ordered3.weight: GPTQ, 3 bits
        gptq-v2: layers.0.ordered4.weight: GPTQ, 4 bits
        gptq-v2: layers.0.ordered8.weight: GPTQ, 8 bits
        mxfp4: model.layers.0.mlp.experts.down_proj: MXFP4
        mxfp4: model.layers.0.mlp.experts.gate_up_proj: MXFP4
        nf4: layers.0.down.weight: NF4
        nf4: layers.0.gate.weight: NF4
        nf4: layers.0.odd.weight: NF4
        nf4: layers.0.plain.weight: plain
        nf4: layers.0.up.weight: NF4
    "#]]
    .assert_eq(&formats);
}

quickcheck! {
    /// A weight is read in pieces of any size. The pieces have the numbers of the whole.
    fn pieces_are_parts_of_the_whole(pick: u16, first: u64, count: u64) -> bool {
        let all: Vec<(String, String)> = cases()
            .into_iter()
            .flat_map(|case| expected(&case).into_keys().map(move |name| (case.clone(), name)))
            .collect();
        let (case, name) = &all[usize::from(pick) % all.len()];
        let checkpoint = Checkpoint::open(&golden(case), Access::Auto).unwrap();
        let whole = checkpoint.whole(name).unwrap();
        let first = first % (whole.count + 1);
        let end = first + count % (whole.count - first + 1);
        let bytes = checkpoint.read(name).unwrap();
        let size = bytes.len() / whole.count as usize;
        let beyond = checkpoint.read_piece(&Piece::of(name.clone(), first..whole.count + 1));
        checkpoint.read_piece(&Piece::of(name.clone(), first..end)).unwrap() == bytes[first as usize * size..end as usize * size]
            && beyond.is_err()
    }
}

quickcheck! {
    /// No shape and no number format of any tensor makes opening or reading panic.
    fn tensors_of_any_shape_never_panic(pick: (u16, u16), format: u8, shape: Vec<u8>) -> bool {
        const FORMATS: [&str; 9] = ["U8", "I8", "I32", "I64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F16", "F32"];
        let cases = cases();
        let mut changed = Changed::new(&cases[usize::from(pick.0) % cases.len()]);
        let names: Vec<String> = changed.tensors.keys().cloned().collect();
        let name = &names[usize::from(pick.1) % names.len()];
        let shape: Vec<u64> = shape.iter().take(4).map(|length| u64::from(length % 17)).collect();
        changed = changed.with(name, FORMATS[usize::from(format) % FORMATS.len()], &shape);
        let folder = folder_of(&changed.tensors, &changed.config);
        let checkpoint = Checkpoint::open(folder.path(), Access::Auto).unwrap();
        let mut names = checkpoint.names();
        names.all(|name| checkpoint.read(name).is_ok() || checkpoint.check_quantized(name).is_err())
    }
}

/// A weight of 576 × 7168 in blocks of 128, as DeepSeek has it: the grid has 5 × 56 scales, from which blocks of 115.2 rows would follow.
/// The block comes from the configuration, and the usual one if there is none.
#[test]
fn ragged_blocks_have_the_size_in_the_configuration() {
    let (rows, columns) = (576_u64, 7168_u64);
    // 0x38 is 1 in E4M3.
    let codes = ("F8_E4M3".to_owned(), vec![rows, columns], vec![0x38; (rows * columns) as usize]);
    let grid: Vec<u8> = (0..5 * 56).flat_map(|index| (index as f32).to_le_bytes()).collect();
    let scales = ("F32".to_owned(), vec![5, 56], grid);
    let name = "layers.0.kv_a_proj_with_mqa.weight";
    let tensors = BTreeMap::from([(name.to_owned(), codes), (format!("{name}_scale_inv"), scales)]);
    for config in [r#"{"quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}}"#, "{}"] {
        let folder = folder_of(&tensors, config);
        let checkpoint = Checkpoint::open(folder.path(), Access::Auto).unwrap();
        assert_eq!(checkpoint.quantization(name), Some("FP8, blocks of 128 × 128"));
        let read = numbers(&checkpoint.read(name).unwrap());
        for (index, found) in read.into_iter().enumerate() {
            let (row, column) = (index / 7168, index % 7168);
            assert_eq!(found, (row / 128 * 56 + column / 128) as f32, "{row} {column}");
        }
    }
}

fn folder_of(tensors: &Tensors, config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut file = File::create(folder.path().join("model.safetensors")).unwrap();
    safetensors::write(&mut file, &BTreeMap::new(), tensors).unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    folder
}

/// A changed copy of a golden checkpoint, and the problem with one of its weights.
struct Changed {
    tensors: Tensors,
    config: String,
}

impl Changed {
    fn new(case: &str) -> Self {
        let config = fs::read_to_string(golden(case).join("config.json")).unwrap();
        Self { tensors: tensors(&golden(case).join("model.safetensors")), config }
    }

    fn without(mut self, name: &str) -> Self {
        assert!(self.tensors.remove(name).is_some(), "{name}");
        self
    }

    /// Gives a tensor another number format and shape, with zeros.
    fn with(mut self, name: &str, dtype: &str, shape: &[u64]) -> Self {
        let length = safetensors::byte_length(dtype, shape).unwrap() as usize;
        self.tensors.insert(name.into(), (dtype.into(), shape.into(), vec![0; length]));
        self
    }

    fn edit(mut self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) -> Self {
        edit(&mut self.tensors.get_mut(name).unwrap().2);
        self
    }

    fn config(mut self, from: &str, to: &str) -> Self {
        assert!(self.config.contains(from), "{from} in {}", self.config);
        self.config = self.config.replace(from, to);
        self
    }

    /// The refusal of a weight, when it is opened.
    fn refused(&self, weight: &str) -> String {
        let folder = folder_of(&self.tensors, &self.config);
        let checkpoint = Checkpoint::open(folder.path(), Access::Auto).unwrap();
        let problem = checkpoint.check_quantized(weight).expect_err(weight);
        assert!(checkpoint.whole(weight).is_none_or(|piece| {
            checkpoint.dequantize(&piece, &mut vec![0.0; piece.count as usize]).is_err()
        }));
        shown(&problem.into(), folder.path())
    }
}

/// Scales of each layout of FP8, also of fused experts. All codes are 1, so the weights are the scales.
#[test]
fn scales_belong_to_rows_tensors_and_experts() {
    let ones = |dtype: &str, shape: &[u64]| {
        let one = if dtype == "F8_E5M2" { 0x3c } else { 0x38 };
        (dtype.to_owned(), shape.to_vec(), vec![one; shape.iter().product::<u64>() as usize])
    };
    let floats = |shape: &[u64]| {
        let count = shape.iter().product::<u64>();
        let bytes = (0..count).flat_map(|index| (index as f32 + 2.0).to_le_bytes()).collect();
        ("F32".to_owned(), shape.to_vec(), bytes)
    };
    let mut tensors = Tensors::new();
    // The name, the shapes of codes and scales, and the index of the scale of each number.
    type Layout = (&'static str, &'static [u64], &'static [u64], fn(usize) -> usize);
    let layouts: [Layout; 8] = [
        ("whole", &[3, 4], &[], |_| 0),
        ("one", &[3, 4], &[1], |_| 0),
        ("rows", &[3, 4], &[3], |index| index / 4),
        ("columns", &[3, 4], &[3, 1], |index| index / 4),
        ("all", &[2, 3, 4], &[1], |_| 0),
        ("experts", &[2, 3, 4], &[2], |index| index / 12),
        ("matrices", &[2, 3, 4], &[2, 1, 1], |index| index / 12),
        ("lines", &[2, 3, 4], &[2, 3, 1], |index| index / 4),
    ];
    for (name, codes, scales, _) in layouts {
        for (dtype, end) in [("F8_E4M3", "_scale_inv"), ("F8_E5M2", "_scale")] {
            tensors.insert(format!("{name}.{dtype}"), ones(dtype, codes));
            tensors.insert(format!("{name}.{dtype}{end}"), floats(scales));
        }
    }
    let bytes = ("U8".to_owned(), vec![3], vec![126, 127, 129]);
    tensors.insert("powers".into(), ones("F8_E4M3", &[3, 4]));
    tensors.insert("powers_scale_inv".into(), bytes);
    let folder = folder_of(&tensors, "{}");
    let checkpoint = Checkpoint::open(folder.path(), Access::Auto).unwrap();
    let read = |name: &str| numbers(&checkpoint.read(name).unwrap());
    for (name, codes, _, scale) in layouts {
        let count = codes.iter().product::<u64>() as usize;
        let expected: Vec<f32> = (0..count).map(|index| scale(index) as f32 + 2.0).collect();
        for dtype in ["F8_E4M3", "F8_E5M2"] {
            assert_eq!(read(&format!("{name}.{dtype}")), expected, "{name} {dtype}");
        }
    }
    let expected: Vec<f32> = [0.5, 1.0, 4.0].into_iter().flat_map(|scale| [scale; 4]).collect();
    assert_eq!(read("powers"), expected);
    let formats: Vec<&str> = ["rows", "all", "experts", "lines"]
        .map(|name| checkpoint.quantization(&format!("{name}.F8_E4M3")).unwrap())
        .into();
    assert_eq!(
        formats,
        ["FP8, one scale per row", "FP8, one scale", "FP8, one scale per expert", "FP8, one scale per row"]
    );
}

/// Bytes in memory that remember the longest reading.
struct Watched {
    bytes: Vec<u8>,
    longest: Arc<AtomicUsize>,
}

impl ReadAt for Watched {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.longest.fetch_max(buffer.len(), Ordering::Relaxed);
        buffer.copy_from_slice(&self.bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }
}

/// A weight is dequantized while it is read, some rows at a time: its codes are never in memory as a whole.
#[test]
fn weights_are_read_in_tiles() {
    const LONGEST: usize = 1 << 18;
    let zeros = |dtype: &str, shape: &[u64]| {
        let length = safetensors::byte_length(dtype, shape).unwrap() as usize;
        (dtype.to_owned(), shape.to_vec(), vec![0; length])
    };
    let tensors = Tensors::from([
        ("fp8.weight".into(), zeros("F8_E4M3", &[1024, 1024])),
        ("fp8.weight_scale_inv".into(), zeros("F32", &[8, 8])),
        ("experts_blocks".into(), zeros("U8", &[2, 1024, 32, 16])),
        ("experts_scales".into(), zeros("U8", &[2, 1024, 32])),
        ("gptq.qweight".into(), zeros("I32", &[128, 2048])),
        ("gptq.qzeros".into(), zeros("I32", &[8, 256])),
        ("gptq.scales".into(), zeros("F16", &[8, 2048])),
        ("awq.qweight".into(), zeros("I32", &[1024, 256])),
        ("awq.qzeros".into(), zeros("I32", &[8, 256])),
        ("awq.scales".into(), zeros("F16", &[8, 2048])),
    ]);
    let mut bytes = Vec::new();
    safetensors::write(&mut bytes, &BTreeMap::new(), &tensors).unwrap();
    let longest = Arc::new(AtomicUsize::new(0));
    let watched = Box::new(Watched { bytes, longest: longest.clone() });
    let source = Source::from_reader("m.safetensors".into(), watched);
    let header = safetensors::Header::read(&source).unwrap();
    let stored = header.tensors.iter();
    let stored =
        stored.map(|(name, tensor)| (name.clone(), StoredTensor { file: 0, tensor: tensor.clone() }));
    let config = serde_json::json!({"quantization_config": {"quant_method": "gptq", "bits": 4}});
    let (stored, files) = (stored.collect(), [(source, header)]);
    let found = super::recognize(&files, &stored, &super::Config::of(Some(&config)));
    assert_eq!(found.weights.len(), 4);
    for (name, (codes, weight)) in &found.weights {
        longest.store(0, Ordering::Relaxed);
        let weight = weight.as_ref().unwrap();
        let count: u64 = weight.shape().iter().product();
        weight.read(&files, 0, &mut vec![0.0; count as usize]).unwrap();
        let read = longest.load(Ordering::Relaxed);
        let whole = stored[codes].tensor.length as usize;
        assert!(read > 0 && read <= LONGEST && LONGEST * 3 < whole, "{name}: {read} of {whole} bytes");
    }
}

/// Plain weights of a quantized checkpoint stay as they are. Float8 without a scale and without a configuration is not quantized.
#[test]
fn modules_that_were_not_converted_stay_plain() {
    let checkpoint = Checkpoint::open(&golden("fp8-blocks"), Access::Auto).unwrap();
    let plain = "layers.0.plain.weight";
    assert_eq!(
        (checkpoint.quantization(plain), checkpoint.get(plain).unwrap().tensor.dtype.as_str()),
        (None, "BF16")
    );
    let mut lone = Changed::new("fp8-blocks").without("layers.0.up.weight_scale_inv");
    lone.config = "{}".into();
    let folder = folder_of(&lone.tensors, &lone.config);
    let checkpoint = Checkpoint::open(folder.path(), Access::Auto).unwrap();
    let up = "layers.0.up.weight";
    assert_eq!(
        (checkpoint.quantization(up), checkpoint.get(up).unwrap().tensor.dtype.as_str()),
        (None, "F8_E4M3")
    );
    checkpoint.check_quantized(up).unwrap();
}

/// Weights of one shape in several shards: the scales can be in another file than the codes.
#[test]
fn scales_can_be_in_another_shard() {
    let all = tensors(&golden("fp8-blocks").join("model.safetensors"));
    let (scales, rest): (Tensors, Tensors) =
        all.into_iter().partition(|(name, _)| name.ends_with("_scale_inv"));
    let folder = tempfile::tempdir().unwrap();
    for (number, tensors) in [(1, rest), (2, scales)] {
        let path = folder.path().join(format!("model-0000{number}-of-00002.safetensors"));
        safetensors::write(&mut File::create(path).unwrap(), &BTreeMap::new(), &tensors).unwrap();
    }
    fs::copy(golden("fp8-blocks").join("config.json"), folder.path().join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(folder.path(), Access::Auto).unwrap();
    let whole = Checkpoint::open(&golden("fp8-blocks"), Access::Auto).unwrap();
    assert!(whole.names().eq(checkpoint.names()));
    assert!(whole.names().all(|name| whole.read(name).unwrap() == checkpoint.read(name).unwrap()));
}
