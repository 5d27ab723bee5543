//! The reader of PEFT folders: headers first, factors of one layer on demand.

use super::modules::parameter;
use super::single_file::{ALPHA_SUFFIX, DOWN_SUFFIX, MODULES_KEY, SingleFile, UP_SUFFIX};
use super::{A_SUFFIX, B_SUFFIX, CONFIG_FILE, Config, PREFIX, TENSORS_FILE, suffixes};
use crate::element::Element;
use crate::factors::{Factors, LayerShape, block_name, module_and_block};
use crate::storage::json::UniqueKeys;
use crate::storage::safetensors::{Header, Tensor};
use crate::storage::{Access, Problem, Problems, Source, is_missing, quoted};
use faer::Mat;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// An opened adapter of linear layers, convolutions, embeddings and fused experts: of PEFT, or of one file.
#[derive(Debug)]
pub struct PeftAdapter {
    config: Option<Config>,
    single_file: Option<SingleFile>,
    layers: BTreeMap<String, PeftLayer>,
    source: Source,
}

/// A layer of an adapter: what the headers say of it.
#[derive(Clone, Debug)]
pub struct PeftLayer {
    /// Rank `r`, at least 1.
    pub rank: usize,
    /// Input features `d`.
    pub inputs: usize,
    /// Output features `m`.
    pub outputs: usize,
    /// How the weight is stored; of a linear layer as far as the configuration tells.
    pub shape: LayerShape,
    /// Scale `s`.
    pub scale: f64,
    /// Number format of both factors.
    pub element: Element,
    a: Tensor,
    b: Tensor,
    /// Which block of its module it is, whose tensors these are.
    block: usize,
}

impl PeftAdapter {
    /// Opens a folder with `adapter_config.json` and `adapter_model.safetensors`; no factor is read.
    ///
    /// # Errors
    /// All that is wrong, together: a missing file, a configuration that is not of LoRA, a tensor that is not the `A`
    /// or `B` of such a layer, a factor without its partner, shapes that do not fit each other or the configuration.
    pub fn open(folder: &Path) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        match Self::open_sound_layers(folder, &mut problems) {
            Some(adapter) => problems.or_ok(adapter),
            None => Err(problems),
        }
    }

    /// Opens what can be opened. Whatever is left out has a complaint among `problems`.
    pub(super) fn open_sound_layers(folder: &Path, problems: &mut Problems) -> Option<Self> {
        if let Err(problem) = check_folder(folder) {
            problems.push(problem);
            return None;
        }
        let single_file = single_file_in(folder);
        let config = match single_file {
            None => problems.collect(read_config(&folder.join(CONFIG_FILE))).map(Some),
            Some(_) => Some(None),
        };
        let tensors = problems.collect(open_tensors(&folder.join(tensors_file(folder))));
        let (config, (source, header)) = (config?, tensors?);
        let names =
            problems.collect(module_names(&header).map_err(|problem| problem.in_file(source.path())))?;
        let pairs = pairs(header, single_file, &source, problems);
        let prefix = single_file
            .map_or("", |format| format.common_prefix(pairs.keys().map(|(name, _)| name.as_str())));
        let mut layers = BTreeMap::new();
        for ((name, _), pair) in pairs {
            let known = names.get(&name).cloned();
            let module = known.unwrap_or_else(|| name.strip_prefix(prefix).unwrap_or(&name).to_owned());
            let targets = config.as_ref().and_then(|config| config.target_parameters.as_ref());
            let read = parameter(&module, targets).and_then(|parameter| {
                let is_parameter = parameter.is_some();
                let module = parameter.unwrap_or(module);
                pair.layers(&name, &module, is_parameter, (config.as_ref(), single_file, &source))
            });
            let read = problems.collect(read.map_err(|problem| problem.in_file(source.path())));
            for (layer_name, layer) in read.into_iter().flatten() {
                if layers.insert(layer_name, layer).is_some() {
                    let what = "expected one pair of factors, found those of an embedding and those of another layer";
                    problems.push(Problem::data(what).in_file(source.path()).in_tensor(&name));
                }
            }
        }
        Some(Self { config, single_file, layers, source })
    }

    /// The configuration of an adapter of PEFT.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// The format of an adapter of one file.
    pub fn single_file(&self) -> Option<SingleFile> {
        self.single_file
    }

    /// The layers, by runtime module name, with a number behind it for the blocks of a module.
    pub fn layers(&self) -> &BTreeMap<String, PeftLayer> {
        &self.layers
    }

    /// The modules, and whether they are parameters of fused experts.
    pub(super) fn modules(&self) -> BTreeMap<&str, bool> {
        let mut modules = BTreeMap::new();
        for (name, layer) in &self.layers {
            let block = layer.shape.blocks().and_then(|_| module_and_block(name));
            let module = block.map_or(name.as_str(), |(module, _)| module);
            modules.insert(module, matches!(layer.shape, LayerShape::Expert { .. }));
        }
        modules
    }

    /// The file that holds the tensors.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Reads the factors of a layer of this adapter, F64 rounded to f32. Values are not checked to be finite.
    ///
    /// # Errors
    /// An I/O problem if the tensors cannot be read.
    pub fn factors(&self, layer: &PeftLayer) -> Result<Factors, Problem> {
        let PeftLayer { rank, inputs, outputs, element, block, .. } = *layer;
        let a = self.rows(&layer.a, element, block * rank, rank, inputs)?;
        let b = match layer.shape {
            LayerShape::Expert { count, .. } => {
                let all = self.rows(&layer.b, element, 0, outputs, rank * count)?;
                Mat::from_fn(outputs, rank, |i, j| all[(i, j * count + block)])
            }
            _ => self.rows(&layer.b, element, block * outputs, outputs, rank)?,
        };
        Ok(Factors { a, b })
    }

    /// Rows of a factor, from `first` on.
    fn rows(
        &self,
        tensor: &Tensor,
        element: Element,
        first: usize,
        rows: usize,
        columns: usize,
    ) -> Result<Mat<f32>, Problem> {
        let row_bytes = (columns * element.size()) as u64;
        let bytes =
            self.source.read_vec(tensor.offset + first as u64 * row_bytes, rows as u64 * row_bytes)?;
        let mut values = vec![0.0; rows * columns];
        element.decode_f32(&bytes, &mut values);
        Ok(Mat::from_fn(rows, columns, |i, j| values[i * columns + j]))
    }
}

fn check_folder(folder: &Path) -> Result<(), Problem> {
    let metadata = fs::metadata(folder)
        .map_err(|error| Problem::io("cannot open this folder", &error).in_file(folder))?;
    if metadata.is_dir() {
        return Ok(());
    }
    Err(Problem::environment("expected the folder of a PEFT adapter, found something else")
        .in_file(folder)
        .help(format!("give the folder that holds {CONFIG_FILE}")))
}

fn read_config(path: &Path) -> Result<Config, Problem> {
    if is_missing(path) {
        return Err(Problem::data("expected the configuration of a PEFT adapter, found no file")
            .in_file(path)
            .help(
                "it is written last: if the rest is there, the adapter was not completed, so write it again",
            ));
    }
    let source = Source::open(path, Access::Read)?;
    let bytes = source.read_vec(0, source.length())?;
    let config: Config = serde_json::from_slice(&bytes).map_err(|error| {
        Problem::data(format!("expected the configuration of a PEFT adapter as JSON: {error}")).in_file(path)
    })?;
    if config.peft_type != "LORA" {
        let found = quoted(&config.peft_type);
        return Err(Problem::data(format!("expected peft_type \"LORA\", found {found}")).in_file(path));
    }
    Ok(config)
}

fn open_tensors(path: &Path) -> Result<(Source, Header), Problem> {
    if is_missing(path) {
        let problem = Problem::data("expected the tensors of a PEFT adapter, found no file").in_file(path);
        return Err(if path.with_file_name("adapter_model.bin").exists() {
            problem
                .help("adapter_model.bin is not read, because loading it runs code: save it as safetensors")
        } else {
            problem
        });
    }
    let source = Source::open(path, Access::Auto)?;
    let header = Header::read(&source)?;
    Ok((source, header))
}

/// The format of the adapter in a folder, if it is of one file.
fn single_file_in(folder: &Path) -> Option<SingleFile> {
    let holds = |name: &str| !is_missing(&folder.join(name));
    SingleFile::ALL
        .into_iter()
        .find(|format| holds(format.file_name()) && !holds(CONFIG_FILE) && !holds(TENSORS_FILE))
}

/// The file that holds the tensors of the adapter in a folder.
pub(super) fn tensors_file(folder: &Path) -> &'static str {
    single_file_in(folder).map_or(TENSORS_FILE, SingleFile::file_name)
}

/// What the metadata says of the modules that names stand for.
fn module_names(header: &Header) -> Result<BTreeMap<String, String>, Problem> {
    let Some(text) = header.metadata.get(MODULES_KEY) else { return Ok(BTreeMap::new()) };
    serde_json::from_str::<UniqueKeys<String>>(text).map(|names| names.0).map_err(|error| {
        Problem::data(format!("the metadata entry {} cannot be understood: {error}", quoted(MODULES_KEY)))
            .help("write the adapter again")
    })
}

/// The tensors of a module, as far as they are there.
#[derive(Default)]
struct Pair {
    a: Option<Tensor>,
    b: Option<Tensor>,
    alpha: Option<Tensor>,
    /// Whether they have the names of an embedding's.
    is_embedding: bool,
}

/// What stands before and after the name of a module, for `A`, for `B`, and for the number that kohya has.
fn affixes(format: Option<SingleFile>) -> (&'static str, [&'static str; 2]) {
    match format {
        None => (PREFIX, [A_SUFFIX, B_SUFFIX]),
        Some(SingleFile::Diffusers) => ("", [A_SUFFIX, B_SUFFIX]),
        Some(SingleFile::Kohya) => ("", [DOWN_SUFFIX, UP_SUFFIX]),
    }
}

fn pairs(
    header: Header,
    format: Option<SingleFile>,
    source: &Source,
    problems: &mut Problems,
) -> BTreeMap<(String, bool), Pair> {
    let (prefix, [down, up]) = affixes(format);
    let [embedding_down, embedding_up] = suffixes(&LayerShape::Embedding);
    // By module and by whether the names are those of an embedding's factors.
    let mut pairs: BTreeMap<(String, bool), Pair> = BTreeMap::new();
    let mut others = Vec::new();
    for (key, tensor) in header.tensors {
        let name = key.strip_prefix(prefix);
        let of_embedding = name.filter(|_| format.is_none());
        if let Some(module) = of_embedding.and_then(|name| name.strip_suffix(embedding_down)) {
            let pair = pairs.entry((module.into(), true)).or_default();
            (pair.a, pair.is_embedding) = (Some(tensor), true);
        } else if let Some(module) = of_embedding.and_then(|name| name.strip_suffix(embedding_up)) {
            let pair = pairs.entry((module.into(), true)).or_default();
            (pair.b, pair.is_embedding) = (Some(tensor), true);
        } else if let Some(module) = name.and_then(|name| name.strip_suffix(down)) {
            pairs.entry((module.into(), false)).or_default().a = Some(tensor);
        } else if let Some(module) = name.and_then(|name| name.strip_suffix(up)) {
            pairs.entry((module.into(), false)).or_default().b = Some(tensor);
        } else if let Some(module) = name.and_then(|name| name.strip_suffix(ALPHA_SUFFIX))
            && format == Some(SingleFile::Kohya)
        {
            pairs.entry((module.into(), false)).or_default().alpha = Some(tensor);
        } else {
            others.push(key);
        }
    }
    let is_copy = |key: &str| {
        let module = key.strip_prefix(prefix).filter(|_| format.is_none()).and_then(module_of_copy);
        module.is_some_and(|module| {
            [true, false].iter().any(|&kind| pairs.contains_key(&(module.into(), kind)))
        })
    };
    for key in others.iter().filter(|key| !is_copy(key)) {
        let expected = format!("expected a name like {prefix}MODULE{down} or {prefix}MODULE{up}");
        problems.push(
            Problem::data(format!(
                "{expected}: only adapters of linear layers, convolutions and embeddings are read"
            ))
            .in_file(source.path())
            .in_tensor(key),
        );
    }
    pairs
}

/// The module whose base weight this would be. PEFT saves copies of those of adapted embeddings and output heads, which training
/// leaves as they were.
fn module_of_copy(name: &str) -> Option<&str> {
    [".base_layer.weight", ".base_layer.bias"].iter().find_map(|end| name.strip_suffix(end))
}

impl Pair {
    /// The layers of a module: one, or one for each of its blocks.
    fn layers(
        self,
        name: &str,
        module: &str,
        is_parameter: bool,
        (config, format, source): (Option<&Config>, Option<SingleFile>, &Source),
    ) -> Result<Vec<(String, PeftLayer)>, Problem> {
        let (prefix, affixes) = affixes(format);
        let [down, up] = if self.is_embedding { suffixes(&LayerShape::Embedding) } else { affixes };
        let (a_key, b_key) = (format!("{prefix}{name}{down}"), format!("{prefix}{name}{up}"));
        let missing = |key: &str, partner: &str| {
            Problem::data(format!("expected this tensor beside {}, found none", quoted(partner)))
                .in_tensor(key)
        };
        let a = self.a.ok_or_else(|| missing(&a_key, &b_key))?;
        let b = self.b.ok_or_else(|| missing(&b_key, &a_key))?;
        let (rows, inputs) =
            matrix_shape(&a, "A, of shape [rank, inputs]").map_err(|p| p.in_tensor(&a_key))?;
        let (outputs, columns) =
            matrix_shape(&b, "B, of shape [outputs, rank]").map_err(|p| p.in_tensor(&b_key))?;
        let kernel = a.shape.get(2..).unwrap_or_default();
        if b.shape.get(2..) != Some(&vec![1; kernel.len()][..]) {
            return Err(Problem::data(format!(
                "expected {} further axes of length 1, as its A has that many of a kernel, found shape {:?}",
                kernel.len(),
                b.shape
            ))
            .in_tensor(&b_key));
        }
        if self.is_embedding && !kernel.is_empty() {
            let what = format!("expected A, of shape [rank, tokens], found shape {:?}", a.shape);
            return Err(Problem::data(what).in_tensor(&a_key));
        }
        let expected = config.map(|config| config.rank(module) as usize);
        // The groups of a convolution divide the rows of A among them.
        let groups = rows / columns.min(rows).max(1);
        let (rank, outputs, shape) = match kernel {
            [] if is_parameter => {
                let rank = expected.filter(|&rank| rank > 0 && rows.is_multiple_of(rank)).unwrap_or(rows);
                (rank, outputs, LayerShape::Expert { count: rows / rank, transposed: false })
            }
            [] if self.is_embedding => (rows, outputs, LayerShape::Embedding),
            [] if config.is_some_and(|config| config.fan_in_fan_out) => {
                (rows, outputs, LayerShape::Transposed)
            }
            [] => (rows, outputs, LayerShape::Linear),
            kernel if groups > 1 && rows == groups * columns && outputs.is_multiple_of(groups) => {
                (columns, outputs / groups, LayerShape::Group { count: groups, kernel: kernel.into() })
            }
            kernel => (rows, outputs, LayerShape::Convolution(kernel.into())),
        };
        if !matches!(shape, LayerShape::Group { .. }) && columns != rows {
            return Err(Problem::data(format!(
                "expected {rows} columns, one per row of its A, found {columns}"
            ))
            .in_tensor(&b_key));
        }
        if let Some(expected) = expected.filter(|&expected| expected != rank * shape.parts()) {
            return Err(Problem::data(format!(
                "expected rank {expected}, as {CONFIG_FILE} says, found {rows}"
            ))
            .in_tensor(&a_key));
        }
        if a.dtype != b.dtype {
            let (a, b) = (quoted(&a.dtype), quoted(&b.dtype));
            return Err(
                Problem::data(format!("expected the format of its A, {a}, found {b}")).in_tensor(&b_key)
            );
        }
        let element = Element::from_name(&a.dtype).ok_or_else(|| {
            Problem::data(format!("expected F32, F16, BF16 or F64, found {}", quoted(&a.dtype)))
                .in_tensor(&a_key)
        })?;
        let scale = match (config, &self.alpha) {
            (Some(config), _) => config.scale(module),
            (None, Some(alpha)) => read_number(alpha, source).map_err(|p| p.in_tensor(name))? / rows as f64,
            (None, None) => 1.0,
        };
        let count = shape.blocks();
        let layer = PeftLayer { rank, inputs, outputs, shape, scale, element, a, b, block: 0 };
        Ok(match count {
            None => vec![(module.to_owned(), layer)],
            Some(count) => (0..count)
                .map(|block| (block_name(module, block), PeftLayer { block, ..layer.clone() }))
                .collect(),
        })
    }
}

/// The one number of a tensor.
fn read_number(tensor: &Tensor, source: &Source) -> Result<f64, Problem> {
    let count: Option<u64> = tensor.shape.iter().try_fold(1_u64, |product, axis| product.checked_mul(*axis));
    let (Some(element), Some(1)) = (Element::from_name(&tensor.dtype), count) else {
        return Err(Problem::data(format!(
            "expected a single number as alpha, found shape {:?}",
            tensor.shape
        )));
    };
    let mut number = [0.0];
    element.decode_f64(&source.read_vec(tensor.offset, tensor.length)?, &mut number);
    Ok(number[0])
}

/// Rows and columns, where the axes of a kernel count as columns.
fn matrix_shape(tensor: &Tensor, expected: &str) -> Result<(usize, usize), Problem> {
    match tensor.shape.as_slice() {
        [rows, rest @ ..] if *rows > 0 && (1..=4).contains(&rest.len()) => {
            let columns = rest.iter().try_fold(1_u64, |product, axis| product.checked_mul(*axis));
            let columns = columns.filter(|&columns| columns > 0);
            usize::try_from(*rows).ok().zip(columns.and_then(|columns| usize::try_from(columns).ok()))
        }
        _ => None,
    }
    .ok_or_else(|| Problem::data(format!("expected {expected}, found shape {:?}", tensor.shape)))
}

#[cfg(test)]
mod tests;
