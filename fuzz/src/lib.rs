//! The fuzz targets. The tests of the project run the same functions on the corpus.
//!
//! Each function must return for every input. Errors of the library are expected. A panic is a bug.

use cntlora::activations::ActivationSet;
use cntlora::adapter::{
    CONFIG_FILE, Component, Contents, Format, PeftAdapter, PeftContents, RECORD_FILE, SingleFile,
    TENSORS_FILE, convert, verify, write_adapter,
};
use cntlora::element::Element;
use cntlora::method::{Draft, Options};
use cntlora::moments_file::MomentsFile;
use cntlora::plan::{self, Recording, Rename, Request};
use cntlora::rank::{Limits, Policy};
use cntlora::run::{Job, Part, SavedLayers};
use cntlora::storage::{Access, Checkpoint, Source, npy, safetensors};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;

/// Reads a `.npy` file. The numbers of an accepted header fill the file exactly.
pub fn npy_header(bytes: &[u8]) {
    let source = Source::from_bytes("fuzz.npy", bytes.to_vec());
    if let Ok(header) = npy::Header::read(&source) {
        let numbers: u64 = header.shape.iter().product();
        assert_eq!(header.offset + numbers * header.number.size() as u64, source.length());
    }
}

/// Reads a safetensors file. The tensors of an accepted header fill the file without gaps.
pub fn safetensors_header(bytes: &[u8]) {
    let source = Source::from_bytes("fuzz.safetensors", bytes.to_vec());
    if let Ok(header) = safetensors::Header::read(&source) {
        let end = header.in_file_order().iter().fold(header.data_start, |end, (name, tensor)| {
            assert_eq!(tensor.offset, end, "{name}");
            end + tensor.length
        });
        assert_eq!(end, source.length());
    }
}

/// Reads the index of a checkpoint with two shards. All tensors of an accepted folder can be read.
pub fn checkpoint_index(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join("1.safetensors"), &[("a", &[2, 2]), ("b", &[0])]);
    write(&folder.path().join("2.safetensors"), &[("c", &[1])]);
    fs::write(folder.path().join("model.safetensors.index.json"), bytes).unwrap();
    if let Ok(checkpoint) = Checkpoint::open(folder.path(), Access::Read) {
        for name in checkpoint.names() {
            checkpoint.read(name).unwrap();
        }
    }
}

/// Reads the weights of a quantized checkpoint: the length of its configuration in two bytes, the configuration, and the tensors.
pub fn quantized_checkpoint(bytes: &[u8]) {
    let [low, high, rest @ ..] = bytes else { return };
    let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let (config, tensors) = rest.split_at(length);
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.json"), config).unwrap();
    fs::write(folder.path().join("model.safetensors"), tensors).unwrap();
    if let Ok(checkpoint) = Checkpoint::open(folder.path(), Access::Read) {
        for name in checkpoint.names() {
            let _ = checkpoint.read(name);
        }
    }
}

/// Applies rename rules, one per line, to the names of a small model.
pub fn rename_rules(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let renames: Vec<Rename> = text.lines().filter_map(|line| line.parse().ok()).collect();
    let folder = tempfile::tempdir().unwrap();
    let activations = folder.path().join("activations.safetensors");
    write(&activations, &[("layers.0.query", &[3, 2]), ("layers.10.mlp.up", &[3, 2])]);
    let _ = plan::plan(&Request { renames, ..request(folder.path(), &activations) });
}

/// Reads a set of activation files. Each file has one byte for its kind, two bytes for its length, and its content.
///
/// The rows of an accepted set can be read. The number of rows or tokens matches the headers.
pub fn activation_set(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let activations = folder.path().join("activations");
    fs::create_dir(&activations).unwrap();
    let mut rest = bytes;
    for number in 0..4 {
        let [kind, low, high, content @ ..] = rest else { break };
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(content.len());
        let (content, others) = content.split_at(length);
        let name = match kind % 4 {
            0 => format!("{number}.safetensors"),
            1 => "layers.0.query.npy".into(),
            kind => format!("layers.0.query.{}.npy", number * usize::from(kind)),
        };
        fs::write(activations.join(name), content).unwrap();
        rest = others;
    }
    if let Ok((plan, inputs)) = plan::plan(&request(folder.path(), &activations)) {
        assert!(!plan.sites.is_empty());
        for site in &plan.sites {
            let Some(Recording::Activations(set)) = &inputs.target else {
                panic!("the request has no moments")
            };
            assert_eq!(rows_of(set, &site.name), site.rows);
        }
    }
}

/// Reads a moments file. Each site of an accepted file can be read, or is refused as damaged.
pub fn moments_file(bytes: &[u8]) {
    if let Ok(file) = MomentsFile::from_source(Source::from_bytes("fuzz.safetensors", bytes.to_vec())) {
        for (name, site) in &file.content().sites {
            if let Ok(sums) = file.read(name) {
                assert_eq!(sums.width(), site.width, "{name}");
            }
        }
    }
}

/// Reads the files of an unfinished run (layers of a site, job), and the description of a part of a divided run.
pub fn saved_run(bytes: &[u8]) {
    let source = Source::from_bytes("fuzz", bytes.to_vec());
    let _ = Job::read(&source);
    let _ = Part::read(&source);
    if let Ok(saved) = SavedLayers::read(&source) {
        for (module, (layer, _)) in &saved.layers {
            let rank = match layer {
                Draft::Update(update) => update.components.u.ncols(),
                Draft::Nested(nested) => nested.factors.a.nrows(),
            };
            assert_eq!(layer.spectrum().len(), rank, "{module}");
        }
    }
}

/// The tensors of a small PEFT adapter: two linear layers, a convolution, an embedding, and two parameters of fused experts.
const PEFT: [(&str, &[u64]); 12] = [
    ("base_model.model.layers.0.q.lora_A.weight", &[2, 3]),
    ("base_model.model.layers.0.q.lora_B.weight", &[4, 2]),
    ("base_model.model.layers.1.q.lora_A.weight", &[1, 3]),
    ("base_model.model.layers.1.q.lora_B.weight", &[4, 1]),
    ("base_model.model.conv.lora_A.weight", &[4, 3, 2, 2]),
    ("base_model.model.conv.lora_B.weight", &[4, 2, 1, 1]),
    ("base_model.model.embed.lora_embedding_A", &[2, 5]),
    ("base_model.model.embed.lora_embedding_B", &[3, 2]),
    ("base_model.model.experts.lora_A.weight", &[6, 3]),
    ("base_model.model.experts.lora_B.weight", &[4, 6]),
    ("base_model.model.experts.base_layer.lora_A.weight", &[6, 3]),
    ("base_model.model.experts.base_layer.lora_B.weight", &[4, 6]),
];

/// Reads the configuration of a PEFT adapter, and verifies and converts the adapter.
pub fn adapter_config(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join(TENSORS_FILE), &PEFT);
    fs::write(folder.path().join(CONFIG_FILE), bytes).unwrap();
    check_adapter(folder.path());
}

/// Reads the record of an adapter, and verifies the adapter on the base that the record describes.
pub fn adapter_record(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    write(&folder.path().join(TENSORS_FILE), &PEFT[..4]);
    let config = r#"{"peft_type":"LORA","r":2,"target_modules":["q"],"rank_pattern":{"layers.1.q":1}}"#;
    fs::write(folder.path().join(CONFIG_FILE), config).unwrap();
    fs::write(folder.path().join(RECORD_FILE), bytes).unwrap();
    let base = folder.path().join("base.safetensors");
    write(&base, &[("layers.0.q.weight", &[4, 3]), ("layers.1.q.weight", &[4, 3]), ("w", &[30])]);
    let base = Checkpoint::open(&base, Access::Read).unwrap();
    let _ = verify(folder.path(), Some(&base), &BTreeMap::new());
}

/// Reads a single-file adapter. The first byte chooses between the formats of kohya and diffusers.
pub fn single_file_adapter(bytes: &[u8]) {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let format = SingleFile::ALL[usize::from(*choice) % SingleFile::ALL.len()];
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(format.file_name()), bytes).unwrap();
    check_adapter(folder.path());
}

/// Reads a PEFT adapter, converts it to another rank and format, and reads the result.
///
/// The first byte chooses the rank, the format and the number format, the next two are the length of the configuration. The
/// configuration and the tensors follow.
pub fn converted_adapter(bytes: &[u8]) {
    let [choice, low, high, rest @ ..] = bytes else { return };
    let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let (config, tensors) = rest.split_at(length);
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("trained");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(CONFIG_FILE), config).unwrap();
    fs::write(folder.join(TENSORS_FILE), tensors).unwrap();
    let Ok(trained) = PeftAdapter::open(&folder) else { return };
    let choice = usize::from(*choice);
    let rank = Some(choice % 4).filter(|rank| *rank > 0);
    let Ok(conversion) = convert(&trained, Some(&trained).filter(|_| choice & 4 > 0), rank) else { return };
    let component = Component::ALL[choice / 8 % 4];
    let format = match choice / 32 % 4 {
        0 => Format::Peft,
        1 => Format::Mlx,
        single => Format::SingleFile(SingleFile::ALL[single - 2], component),
    };
    let (record, other_modules) = (cntlora::adapter::record_heading(), BTreeSet::new());
    let contents = Contents {
        adapter: &conversion.adapter,
        element: [Element::F32, Element::Bf16][choice / 128],
        provenance: &record,
        other_modules: &other_modules,
        beside: &[],
        peft: PeftContents::default(),
    };
    let out = parent.path().join("converted");
    if write_adapter(&out, &contents, format).is_ok() {
        let read = PeftAdapter::open(&out).unwrap();
        assert_eq!(read.layers().len(), conversion.adapter.layers.len());
        assert!(read.layers().values().all(|layer| read.factors(layer).is_ok()));
    }
}

/// Reads an adapter, with its factors, and verifies it.
fn check_adapter(folder: &Path) {
    let opened = PeftAdapter::open(folder);
    if let Ok(adapter) = &opened {
        for layer in adapter.layers().values() {
            let factors = adapter.factors(layer).unwrap();
            assert_eq!((factors.b.nrows(), factors.a.ncols()), (layer.outputs, layer.inputs));
        }
        let _ = convert(adapter, Some(adapter), None);
    }
    assert!(verify(folder, None, &BTreeMap::new()).is_err() || opened.is_ok());
}

/// Reads a site completely, and counts its rows or tokens.
fn rows_of(set: &ActivationSet, site: &str) -> u64 {
    let site = set.site(site).expect("the sites of a plan are in the set");
    if let Some(counts) = site.counts() {
        return counts.counts().iter().sum();
    }
    let mut blocks = set.blocks(site, site.spans(0..site.rows(), 7, Vec::new()));
    let mut count = 0;
    while let Some(block) = blocks.next().unwrap() {
        count += block.rows.rows as u64;
    }
    count
}

/// Writes a small model. Returns a request for this model and these activations.
fn request(folder: &Path, activations: &Path) -> Request {
    let model = folder.join("model.safetensors");
    write(
        &model,
        &[
            ("model.layers.0.query.weight", &[3, 2]),
            ("model.layers.10.mlp.up.weight", &[4, 2]),
            ("model.norm.weight", &[2]),
        ],
    );
    let method = Options {
        ranks: Policy::Fixed(1),
        limits: Limits { min: 0, max: 1, multiple: 1 },
        ..Options::default()
    };
    Request { method, access: Access::Read, ..Request::new(model, vec![activations.into()]) }
}

/// Writes a safetensors file of zeros.
fn write(path: &Path, tensors: &[(&str, &[u64])]) {
    let tensors = tensors.iter().map(|(name, shape)| {
        let length = shape.iter().product::<u64>() as usize * size_of::<f32>();
        ((*name).to_owned(), ("F32".to_owned(), shape.to_vec(), vec![0; length]))
    });
    safetensors::write(&mut File::create(path).unwrap(), &BTreeMap::new(), &tensors.collect()).unwrap();
}
