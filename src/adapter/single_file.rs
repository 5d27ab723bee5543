//! Single-file adapters of image models, in the formats of diffusers and of kohya's scripts.
//!
//! | | diffusers | kohya |
//! |---|---|---|
//! | file | `pytorch_lora_weights.safetensors` | any name; here `lora.safetensors` |
//! | names | `unet.MODULE.lora_A.weight`, `.lora_B.weight` | `lora_unet_MODULE.lora_down.weight`, `.lora_up.weight`, with `_` for `.` |
//! | scale | 1: readers take `alpha` equal to the rank, so each factor is multiplied by `√s` | `.alpha`, a single number: `s · r` |
//!
//! In both formats, the text encoders of CLIP have `text_model.` before `encoder.layers`, as in transformers before 5.6. Modules cannot
//! be derived from these names and from those of kohya, so the metadata contains the modules by name.

use super::contents::{Contents, Entries, Entry};
use super::folder::OutputFolder;
use super::format::{Component, FIRST_OF_TWO, SingleFile};
use super::names::{ALPHA_SUFFIX, affixes};
use super::peft::check;
use super::{Adapter, Carried, FileRecord, Format};
use crate::element::Element;
use crate::factors::{Factors, LayerName, LayerShape};
use crate::storage::{NewFile, Problem, Problems, quoted};
use faer::Mat;
use serde_json::json;
use std::collections::BTreeMap;

/// The metadata entry with the modules by the names of their tensors.
pub(super) const MODULES_KEY: &str = "cntlora_modules";

/// Writes a single-file adapter, with `cntlora.json` and the files beside it. Returns the files and the hash of the tensors. The file with
/// the tensors comes last, because it completes the adapter.
pub(super) fn write(
    output: &OutputFolder<'_>,
    contents: &Contents<'_>,
    (format, component): (SingleFile, Component),
) -> Result<(Vec<NewFile>, FileRecord), Problems> {
    let Contents { adapter, element, peft, .. } = *contents;
    check(adapter, element)?;
    peft.carried.map_or(Ok(()), Carried::refuse)?;
    refuse_shapes_without_place(Format::SingleFile(format, component), adapter.shapes.iter())?;
    let (entries, metadata) = content(adapter, element, (format, component))?;
    let (mut files, hash) = contents.write(output, format.file_name(), metadata, &entries)?;
    files.rotate_left(1);
    Ok((files, hash))
}

/// Refuses layers that a format does not support. PEFT supports all of them. The others do not support fused experts and convolutions in
/// groups; single files no embeddings, and mlx-lm no convolutions.
///
/// # Errors
/// A usage problem for the first layer of each kind.
pub fn refuse_shapes_without_place<'a>(
    format: Format,
    shapes: impl Iterator<Item = (&'a LayerName, &'a LayerShape)>,
) -> Result<(), Problems> {
    let mut first = BTreeMap::new();
    for (name, shape) in shapes {
        let what = match (shape, format) {
            (_, Format::Peft) => continue,
            (LayerShape::Embedding, Format::SingleFile(..)) => "an embedding",
            (LayerShape::Expert { .. }, _) => "one of several fused experts",
            (LayerShape::Group { .. }, _) => "a group of a convolution",
            (LayerShape::Convolution(_), Format::Mlx) => "a convolution",
            (
                LayerShape::Linear
                | LayerShape::Transposed
                | LayerShape::Embedding
                | LayerShape::Convolution(_),
                _,
            ) => continue,
        };
        first.entry(what).or_insert(name);
    }
    let mut problems = Problems::default();
    for (what, name) in first {
        let problem = Problem::usage(format!(
            "this format does not support module {}: it is {what}",
            quoted(&name.to_string())
        ));
        problems.push(problem.help("give --format peft, or leave the module out with --exclude"));
    }
    problems.or_ok(())
}

/// The tensors and the metadata of a format.
///
/// # Errors
/// A data problem for modules with equal names in the format.
fn content(
    adapter: &Adapter,
    element: Element,
    (format, component): (SingleFile, Component),
) -> Result<(Entries<'_>, BTreeMap<String, String>), Problem> {
    let is_kohya = format == SingleFile::Kohya;
    let root = faer::Scale(if is_kohya { 1.0 } else { adapter.scale.sqrt() as f32 });
    // Without a second text encoder, the first one is the only one.
    let is_first_of_two = is_kohya && adapter.components.values().any(|one| *one == Component::TextEncoder2);
    let prefix_of = |component: Component| match component {
        Component::TextEncoder if is_first_of_two => FIRST_OF_TWO,
        component => component.prefix(format),
    };
    let (_, [down_suffix, up_suffix]) = affixes(Some(format));
    let mut modules: BTreeMap<String, &str> = BTreeMap::new();
    let mut entries = Entries::new();
    for (layer, factors @ Factors { a, b }) in &adapter.layers {
        let module = &layer.module;
        let (component, inner) = adapter.component_of(layer).unwrap_or((component, module));
        let mut name = component.name_of(inner);
        if is_kohya {
            name = name.replace('.', "_");
        }
        let name = format!("{}{name}", prefix_of(component));
        if let Some(other) = modules.insert(name.clone(), module) {
            let [other, module, name] = [other, module, &name].map(quoted);
            let what = format!("modules {other} and {module} have the same name {name} in this format");
            return Err(Problem::data(what)
                .help("give another --format, or leave one of the modules out with --exclude"));
        }
        let [down, up] = shapes(adapter.shape(layer), factors);
        let mut add = |suffix: &str, entry| entries.insert(format!("{name}{suffix}"), entry);
        add(down_suffix, Entry::factor(down, element, move || a * root));
        add(up_suffix, Entry::factor(up, element, move || b * root));
        if is_kohya {
            let alpha = (adapter.scale * a.nrows() as f64) as f32;
            add(ALPHA_SUFFIX, Entry::factor(vec![], Element::F32, move || Mat::full(1, 1, alpha)));
        }
    }
    let mut metadata = BTreeMap::new();
    if is_kohya {
        metadata.insert("ss_network_module".to_owned(), "networks.lora".to_owned());
    } else {
        // Readers derive the other names.
        let prefix = if adapter.components.is_empty() { component.prefix(format) } else { "" };
        modules.retain(|name, module| *name != format!("{prefix}{module}"));
    }
    if !modules.is_empty() {
        metadata.insert(MODULES_KEY.to_owned(), json!(modules).to_string());
    }
    Ok((entries, metadata))
}

/// The shapes of the factors of a layer whose weight has this shape.
fn shapes(shape: &LayerShape, Factors { a, b }: &Factors) -> [Vec<u64>; 2] {
    let (rank, inputs, outputs) = (a.nrows() as u64, a.ncols() as u64, b.nrows() as u64);
    [shape.of_down(rank, inputs), shape.of_up(outputs, rank)]
}

#[cfg(test)]
mod tests {
    use super::super::testing::{AnyLayers, adapter, factors, provenance, try_write};
    use super::super::{Format, PeftAdapter, verify};
    use super::*;
    use crate::storage::snapshot;
    use expect_test::expect;
    use quickcheck::quickcheck;
    use safetensors::SafeTensors;
    use serde_json::Map;
    use std::fs;

    #[test]
    fn unsupported_layers_are_refused_before_writing() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("adapter");
        let mut adapter = adapter(["e", "q"].map(|name| (name, factors(5, 12, 2))));
        adapter.shapes.insert("e".into(), LayerShape::Embedding);
        for (module, shape) in [
            ("experts.w", LayerShape::Expert { count: 2, transposed: false }),
            ("c", LayerShape::Group { count: 2, kernel: vec![3] }),
        ] {
            for block in [0, 1].map(|block| LayerName::of_block(module, block)) {
                adapter.layers.insert(block.clone(), factors(5, 12, 2));
                adapter.shapes.insert(block, shape.clone());
            }
        }
        let [diffusers, kohya] = SingleFile::ALL.map(|format| {
            let format = Format::SingleFile(format, Component::TextEncoder);
            let refused = try_write(&folder, &adapter, Element::F32, &Map::new(), format).unwrap_err();
            assert!(!folder.exists());
            snapshot(refused)
        });
        assert_eq!(diffusers, kohya);
        expect![[r#"
            this format does not support module "c.0": it is a group of a convolution; help: give --format peft, or leave the module out with --exclude
            this format does not support module "e": it is an embedding; help: give --format peft, or leave the module out with --exclude
            this format does not support module "experts.w.0": it is one of several fused experts; help: give --format peft, or leave the module out with --exclude
        "#]].assert_eq(&kohya);
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
        /// For all names and ranks, the adapter that is read back has the same updates for the same modules.
        fn written_adapters_are_read_back(layers: AnyLayers, component: u8) -> bool {
            let adapter = layers.adapter();
            let component = Component::ALL[usize::from(component) % 4];
            [SingleFile::Diffusers, SingleFile::Kohya].into_iter().all(|format| {
                let names: Vec<String> = adapter.layers.keys().map(|name| name.module.replace('.', "_")).collect();
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

    /// The scales of kohya's format are F32, also beside narrower factors, so tensors are not sorted by name in the file.
    #[test]
    fn factors_of_every_number_format_are_read_back() {
        let mut adapter = adapter([("a", factors(4, 3, 2)), ("b", factors(5, 6, 1))]);
        adapter.scale = 4.0;
        for element in [Element::F32, Element::F16, Element::Bf16] {
            for format in SingleFile::ALL {
                let folder = tempfile::tempdir().unwrap();
                let written = Format::SingleFile(format, Component::Unet);
                try_write(folder.path(), &adapter, element, &provenance("update", &[]), written).unwrap();
                let read = PeftAdapter::open(folder.path()).unwrap();
                for (name, layer) in read.layers() {
                    let found = product(&read.factors(layer).unwrap(), layer.scale);
                    assert_eq!(found, product(&adapter.layers[name], 4.0), "{name} {element:?} {format:?}");
                }
            }
        }
    }

    /// The oracle is the parser of the safetensors project.
    #[test]
    fn names_and_shapes_are_those_of_the_formats() {
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

    /// The tensors have the names of transformers before 5.6; reading gives the names of today.
    #[test]
    fn text_encoders_have_their_old_names_in_files() {
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
            assert!(read.layers().keys().eq(&names.map(LayerName::of_module)), "{:?}", read.layers().keys());
        }
    }

    #[test]
    fn single_files_are_verified_and_changes_are_found() {
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
            assert!(problems.to_string().contains("checksum mismatch"), "{problems}");
        }
    }

    #[test]
    fn modules_with_equal_names_in_kohyas_format_are_refused() {
        let adapter = adapter([("a.b", factors(4, 3, 2)), ("a_b", factors(4, 3, 2))]);
        let folder = tempfile::tempdir().unwrap();
        let format = Format::SingleFile(SingleFile::Kohya, Component::Unet);
        let problems = try_write(folder.path(), &adapter, Element::F32, &Map::new(), format).unwrap_err();
        expect![[r#"
            modules "a.b" and "a_b" have the same name "lora_unet_a_b" in this format; help: give another --format, or leave one of the modules out with --exclude
        "#]].assert_eq(&snapshot(problems));
    }
}
