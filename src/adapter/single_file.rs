//! Adapters of one file, as image models have them: those of diffusers, and those of kohya's scripts.
//!
//! | | diffusers | kohya |
//! |---|---|---|
//! | file | `pytorch_lora_weights.safetensors` | any name; here `lora.safetensors` |
//! | names | `unet.MODULE.lora_A.weight`, `.lora_B.weight` | `lora_unet_MODULE.lora_down.weight`, `.lora_up.weight`, with `_` for `.` |
//! | scale | 1, since no rank is told but by the shapes: each factor holds `√s` | `.alpha`, a single number: `s · r` |
//!
//! The text encoders of CLIP have `text_model.` before their `encoder.layers` in either format, as they had it in transformers until
//! 5.6. Which modules such names, and those of kohya, stand for cannot be seen from them, so it is told in the metadata.

use super::contents::{Contents, write_tensors_file};
use super::folder::OutputFolder;
use super::peft::{check, finite_bytes};
use super::staged::StagedAdapter;
use super::{A_SUFFIX, Adapter, B_SUFFIX};
use crate::element::Element;
use crate::factors::{Factors, LayerShape};
use crate::storage::safetensors::Layout;
use crate::storage::{Problem, Problems, quoted};
use faer::Mat;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

pub(super) const DOWN_SUFFIX: &str = ".lora_down.weight";
pub(super) const UP_SUFFIX: &str = ".lora_up.weight";
pub(super) const ALPHA_SUFFIX: &str = ".alpha";

/// The metadata entry that says which modules names stand for.
pub(super) const MODULES_KEY: &str = "cntlora_modules";

/// How an adapter of one file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SingleFile {
    /// As diffusers reads it.
    Diffusers,
    /// As kohya's scripts and the interfaces that follow them read it.
    Kohya,
}

/// The part of a pipeline that the modules belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Component {
    /// The UNet.
    Unet,
    /// The transformer in its place.
    Transformer,
    /// The text encoder, or the first of two.
    TextEncoder,
    /// The second text encoder.
    TextEncoder2,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Unet, Self::Transformer, Self::TextEncoder, Self::TextEncoder2];

    /// What a module is called behind the prefix.
    fn name_of(self, module: &str) -> String {
        let is_text_encoder = matches!(self, Self::TextEncoder | Self::TextEncoder2);
        let inner = if is_text_encoder && module.starts_with("encoder.layers.") { "text_model." } else { "" };
        format!("{inner}{module}")
    }

    /// What stands before the name of a module.
    pub(super) fn prefix(self, format: SingleFile) -> &'static str {
        match (format, self) {
            (SingleFile::Diffusers, Self::Unet) => "unet.",
            (SingleFile::Diffusers, Self::Transformer) => "transformer.",
            (SingleFile::Diffusers, Self::TextEncoder) => "text_encoder.",
            (SingleFile::Diffusers, Self::TextEncoder2) => "text_encoder_2.",
            (SingleFile::Kohya, Self::Unet | Self::Transformer) => "lora_unet_",
            (SingleFile::Kohya, Self::TextEncoder) => "lora_te_",
            (SingleFile::Kohya, Self::TextEncoder2) => "lora_te2_",
        }
    }
}

impl SingleFile {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::Diffusers, Self::Kohya];

    /// The name of the file.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Diffusers => "pytorch_lora_weights.safetensors",
            Self::Kohya => "lora.safetensors",
        }
    }

    fn prefixes(self) -> impl Iterator<Item = &'static str> {
        Component::ALL.into_iter().map(move |component| component.prefix(self)).chain(match self {
            Self::Diffusers => None,
            // The first text encoder where there are two.
            Self::Kohya => Some("lora_te1_"),
        })
    }

    /// The prefix that all names begin with, if they do: the modules are then those of one component.
    pub(super) fn common_prefix<'a>(self, names: impl Iterator<Item = &'a str> + Clone) -> &'static str {
        self.prefixes().find(|prefix| names.clone().all(|name| name.starts_with(prefix))).unwrap_or("")
    }
}

/// A tensor of the file.
struct Entry {
    values: Mat<f32>,
    shape: Vec<u64>,
    element: Element,
}

/// The tensors of the file, by name.
type Entries = BTreeMap<String, Entry>;

/// Writes an adapter of one file into a folder, and `cntlora.json` and what else is beside it, up to the point where old files change.
pub(super) fn stage<'a>(
    folder: &'a Path,
    contents: &Contents<'_>,
    (format, component): (SingleFile, Component),
) -> Result<StagedAdapter<'a>, Problems> {
    let Contents { adapter, element, .. } = *contents;
    check(adapter, element)?;
    refuse_shapes_without_place(adapter.shapes.iter().map(|(module, shape)| (module.as_str(), shape)))?;
    let (entries, metadata) = match format {
        SingleFile::Diffusers => diffusers_entries(adapter, element, component),
        SingleFile::Kohya => kohya_entries(adapter, element, component)?,
    };
    let output = OutputFolder::open(folder)?;
    let metadata = metadata.into_iter().chain([("format".to_owned(), "pt".to_owned())]).collect();
    let shapes = entries
        .iter()
        .map(|(key, entry)| (key.clone(), (entry.element.name().to_owned(), entry.shape.clone())));
    let layout = Layout::new(&metadata, &shapes.collect());
    let bytes = entries.iter().map(|(key, entry)| (key, finite_bytes(entry.values.as_ref(), entry.element)));
    let (file, hashing) = write_tensors_file(&output, format.file_name(), &layout, bytes)?;
    let mut files = contents.write_beside(&output, format.file_name(), hashing)?;
    files.push(file);
    Ok(StagedAdapter::new(files, output)?)
}

/// Refuses layers that have no place in these formats: embeddings, fused experts, and convolutions in groups.
///
/// # Errors
/// A usage problem with the first of each kind.
pub fn refuse_shapes_without_place<'a>(
    shapes: impl Iterator<Item = (&'a str, &'a LayerShape)>,
) -> Result<(), Problems> {
    let mut first = BTreeMap::new();
    for (module, shape) in shapes {
        let what = match shape {
            LayerShape::Embedding => "an embedding, for which this format has no names",
            LayerShape::Expert { .. } => "one of fused experts, which have no place in this format",
            LayerShape::Group { .. } => {
                "one of the groups of a convolution, which have no place in this format"
            }
            LayerShape::Linear | LayerShape::Transposed | LayerShape::Convolution(_) => continue,
        };
        first.entry(what).or_insert(module);
    }
    let mut problems = Problems::default();
    for (what, module) in first {
        let problem = Problem::usage(format!("module {} is {what}", quoted(module)));
        problems.push(problem.help("give --format peft, or make the adapter without it, with --exclude"));
    }
    problems.or_ok(())
}

/// The tensors, and the metadata that tell the modules of names.
type Content = (Entries, BTreeMap<String, String>);

fn diffusers_entries(adapter: &Adapter, element: Element, component: Component) -> Content {
    let root = faer::Scale(adapter.scale.sqrt() as f32);
    let prefix = component.prefix(SingleFile::Diffusers);
    let (mut entries, mut modules) = (BTreeMap::new(), BTreeMap::new());
    for (module, Factors { a, b }) in &adapter.layers {
        let [down, up] = shapes(adapter, module);
        let name = format!("{prefix}{}", component.name_of(module));
        entries.insert(format!("{name}{A_SUFFIX}"), Entry { values: a * root, shape: down, element });
        entries.insert(format!("{name}{B_SUFFIX}"), Entry { values: b * root, shape: up, element });
        if name != format!("{prefix}{module}") {
            modules.insert(name, module.as_str());
        }
    }
    (entries, if modules.is_empty() { BTreeMap::new() } else { names_in_metadata(&modules) })
}

/// Which modules names stand for.
fn names_in_metadata(modules: &BTreeMap<String, &str>) -> BTreeMap<String, String> {
    BTreeMap::from([(MODULES_KEY.to_owned(), json!(modules).to_string())])
}

fn kohya_entries(adapter: &Adapter, element: Element, component: Component) -> Result<Content, Problem> {
    let prefix = component.prefix(SingleFile::Kohya);
    let mut modules: BTreeMap<String, &str> = BTreeMap::new();
    let mut entries = BTreeMap::new();
    for (module, Factors { a, b }) in &adapter.layers {
        let name = format!("{prefix}{}", component.name_of(module).replace('.', "_"));
        if let Some(other) = modules.insert(name.clone(), module) {
            let what = format!(
                "expected modules that have names of their own, found that {} and {} are both {}",
                quoted(other),
                quoted(module),
                quoted(&name)
            );
            return Err(
                Problem::data(what).help("write it for diffusers, or leave one of them out with --exclude")
            );
        }
        let [down, up] = shapes(adapter, module);
        let alpha = Mat::full(1, 1, (adapter.scale * a.nrows() as f64) as f32);
        let alpha = Entry { values: alpha, shape: vec![], element: Element::F32 };
        entries.insert(format!("{name}{DOWN_SUFFIX}"), Entry { values: a.clone(), shape: down, element });
        entries.insert(format!("{name}{UP_SUFFIX}"), Entry { values: b.clone(), shape: up, element });
        entries.insert(format!("{name}{ALPHA_SUFFIX}"), alpha);
    }
    let mut metadata = names_in_metadata(&modules);
    metadata.insert("ss_network_module".to_owned(), "networks.lora".to_owned());
    Ok((entries, metadata))
}

/// The shapes of the factors of a module.
fn shapes(adapter: &Adapter, module: &str) -> [Vec<u64>; 2] {
    let Factors { a, b } = &adapter.layers[module];
    let shape = adapter.shape(module);
    let (rank, inputs, outputs) = (a.nrows() as u64, a.ncols() as u64, b.nrows() as u64);
    [shape.of_down(rank, inputs), shape.of_up(outputs, rank)]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{AnyLayers, adapter, factors, provenance, try_write};
    use super::super::{Format, PeftAdapter, verify};
    use super::*;
    use crate::factors::block_name;
    use quickcheck::quickcheck;
    use safetensors::SafeTensors;
    use serde_json::Map;
    use std::fs;

    /// The first of each kind is refused by name, and nothing is written.
    #[test]
    fn layers_without_a_place_are_refused() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("adapter");
        let names = ["e", "q", "experts.w.0", "experts.w.1", "c.0", "c.1"];
        let mut adapter = adapter(names.map(|name| (name, factors(5, 12, 2))));
        adapter.shapes.insert("e".into(), LayerShape::Embedding);
        for (module, shape) in [
            ("experts.w", LayerShape::Expert { count: 2, transposed: false }),
            ("c", LayerShape::Group { count: 2, kernel: vec![3] }),
        ] {
            adapter.shapes.extend([0, 1].map(|block| (block_name(module, block), shape.clone())));
        }
        for format in SingleFile::ALL {
            let format = Format::SingleFile(format, Component::TextEncoder);
            let refused = try_write(&folder, &adapter, Element::F32, &Map::new(), format).unwrap_err();
            let what = "module \"e\" is an embedding, for which this format has no names";
            assert!(refused.to_string().contains(what), "{refused}");
            assert_eq!(refused.0.len(), 3, "{refused}");
            assert!(!folder.exists());
        }
    }

    fn written(adapter: &Adapter, format: SingleFile, component: Component) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let record = provenance("update", &[]);
        try_write(folder.path(), adapter, Element::F32, &record, Format::SingleFile(format, component))
            .unwrap();
        folder
    }

    fn product(factors: &Factors, scale: f64) -> Mat<f32> {
        &factors.b * &factors.a * faer::Scale(scale as f32)
    }

    quickcheck! {
        /// Whatever the names and ranks, what is read back adds the same update to the same modules.
        fn what_was_written_is_read_back(layers: AnyLayers, component: u8) -> bool {
            let adapter = layers.adapter();
            let component = Component::ALL[usize::from(component) % 4];
            [SingleFile::Diffusers, SingleFile::Kohya].into_iter().all(|format| {
                let names: Vec<String> = adapter.layers.keys().map(|module| module.replace('.', "_")).collect();
                let distinct: std::collections::BTreeSet<_> = names.iter().collect();
                if format == SingleFile::Kohya && distinct.len() < names.len() {
                    return true;
                }
                let folder = written(&adapter, format, component);
                let read = PeftAdapter::open(folder.path()).unwrap();
                read.layers().keys().eq(adapter.layers.keys())
                    && read.layers().iter().all(|(module, layer)| {
                        let wanted = product(&adapter.layers[module], adapter.scale);
                        let found = product(&read.factors(layer).unwrap(), layer.scale);
                        (found - &wanted).norm_max() <= 1e-5 * (1.0 + wanted.norm_max())
                    })
            })
        }
    }

    /// The keys that either world looks for, by the parser of the safetensors project.
    #[test]
    fn names_and_shapes_are_those_of_either_world() {
        let mut adapter = adapter([("down.0.to_q", factors(4, 3, 2)), ("conv", factors(4, 18, 2))]);
        adapter.shapes.insert("conv".into(), LayerShape::Convolution(vec![3, 3]));
        let shapes = |format, component| {
            let folder = written(&adapter, format, component);
            let bytes = fs::read(folder.path().join(SingleFile::file_name(format))).unwrap();
            let read = SafeTensors::deserialize(&bytes).unwrap();
            let tensors = read.tensors().into_iter();
            tensors.map(|(name, tensor)| (name, tensor.shape().to_vec())).collect::<BTreeMap<_, _>>()
        };
        let expected = |entries: &[(&str, &[usize])]| -> BTreeMap<String, Vec<usize>> {
            entries.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
        };
        assert_eq!(
            shapes(SingleFile::Diffusers, Component::Unet),
            expected(&[
                ("unet.conv.lora_A.weight", &[2, 2, 3, 3]),
                ("unet.conv.lora_B.weight", &[4, 2, 1, 1]),
                ("unet.down.0.to_q.lora_A.weight", &[2, 3]),
                ("unet.down.0.to_q.lora_B.weight", &[4, 2]),
            ])
        );
        assert_eq!(
            shapes(SingleFile::Kohya, Component::TextEncoder),
            expected(&[
                ("lora_te_conv.alpha", &[]),
                ("lora_te_conv.lora_down.weight", &[2, 2, 3, 3]),
                ("lora_te_conv.lora_up.weight", &[4, 2, 1, 1]),
                ("lora_te_down_0_to_q.alpha", &[]),
                ("lora_te_down_0_to_q.lora_down.weight", &[2, 3]),
                ("lora_te_down_0_to_q.lora_up.weight", &[4, 2]),
            ])
        );
    }

    /// As the text encoders of CLIP were called before transformers 5.6, by which either world knows them, and by the names of
    /// today in what is read back.
    #[test]
    fn text_encoders_have_the_names_that_they_used_to_have() {
        let names = ["encoder.layers.0.mlp.fc1", "text_projection"];
        let adapter = adapter(names.map(|name| (name, factors(4, 3, 2))));
        for (format, component, expected) in [
            (SingleFile::Kohya, Component::TextEncoder, "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"),
            (
                SingleFile::Kohya,
                Component::TextEncoder2,
                "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha",
            ),
            (SingleFile::Kohya, Component::Transformer, "lora_unet_encoder_layers_0_mlp_fc1.alpha"),
            (
                SingleFile::Diffusers,
                Component::TextEncoder,
                "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
            ),
            (
                SingleFile::Diffusers,
                Component::TextEncoder2,
                "text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight",
            ),
            (SingleFile::Diffusers, Component::Unet, "unet.encoder.layers.0.mlp.fc1.lora_A.weight"),
        ] {
            let folder = written(&adapter, format, component);
            let bytes = fs::read(folder.path().join(format.file_name())).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            assert!(tensors.names().contains(&expected), "{:?}", tensors.names());
            let read = PeftAdapter::open(folder.path()).unwrap();
            assert!(read.layers().keys().eq(names), "{:?}", read.layers().keys());
        }
    }

    #[test]
    fn they_are_verified_and_changes_are_found() {
        let unit = |rows, columns| Mat::from_fn(rows, columns, |i, j| if i == j { 1.0 } else { 0.0 });
        let adapter = adapter([("q", Factors { a: unit(2, 3), b: unit(4, 2) })]);
        for format in [SingleFile::Diffusers, SingleFile::Kohya] {
            let folder = written(&adapter, format, Component::Unet);
            let found = verify(folder.path(), None, &BTreeMap::new()).unwrap();
            assert_eq!((found.layers, found.min_rank), (1, 2));
            let path = folder.path().join(format.file_name());
            let mut bytes = fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(&path, bytes).unwrap();
            let problems = verify(folder.path(), None, &BTreeMap::new()).unwrap_err();
            assert!(problems.to_string().contains("with the SHA-256"), "{problems}");
        }
    }

    #[test]
    fn names_that_kohya_cannot_tell_apart_are_refused() {
        let adapter = adapter([("a.b", factors(4, 3, 2)), ("a_b", factors(4, 3, 2))]);
        let folder = tempfile::tempdir().unwrap();
        let format = Format::SingleFile(SingleFile::Kohya, Component::Unet);
        let problems = try_write(folder.path(), &adapter, Element::F32, &Map::new(), format).unwrap_err();
        assert!(problems.to_string().contains(r#""a.b" and "a_b" are both "lora_unet_a_b""#), "{problems}");
        assert!(problems.0[0].next_step().is_some());
    }
}
