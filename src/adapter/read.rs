//! Reads adapters. Opening one reads the headers; factors are read layer by layer, on demand.

use super::format::{Component, SingleFile};
use super::mlx;
use super::modules::Parameters;
use super::names::{ALPHA_SUFFIX, MLX_FILE, affixes, suffixes};
use super::numbers::{decode, element_of};
use super::single_file::MODULES_KEY;
use super::{CONFIG_FILE, Config, TENSORS_FILE};
use crate::element::Element;
use crate::factors::{Factors, LayerName, LayerShape, MOST_BLOCKS};
use crate::storage::json::{UniqueKeys, parse_json};
use crate::storage::safetensors::{Header, Tensor};
use crate::storage::{
    Access, Problem, Problems, Source, interrupted_replacement, is_missing, product, quoted, read_json, zeros,
};
use faer::Mat;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// An opened adapter of linear layers, convolutions, embeddings and fused experts: a PEFT folder or a single file.
#[derive(Debug)]
pub struct PeftAdapter {
    config: Option<Config>,
    single_file: Option<SingleFile>,
    layers: BTreeMap<LayerName, PeftLayer>,
    source: Source,
    /// The up matrix of fused experts that was read last, with its offset. The experts of a module share it.
    shared: Mutex<Option<(u64, Arc<Mat<f32>>)>>,
}

/// A layer of an adapter, without its numbers.
#[derive(Clone, Debug)]
pub struct PeftLayer {
    /// Rank `r`, at least 1.
    pub rank: usize,
    /// Input features `d`.
    pub inputs: usize,
    /// Output features `m`.
    pub outputs: usize,
    /// How the weight is stored. Without a configuration, linear and transposed layers cannot be distinguished: both are linear here.
    pub shape: LayerShape,
    /// Scale `s`.
    pub scale: f64,
    /// Number format of both factors.
    pub element: Element,
    /// The component of a pipeline that the layer belongs to, if the names of a single file tell it.
    pub component: Option<Component>,
    /// True if the name of its module has `_` for `.`, as in kohya's format, and nothing tells the name itself.
    pub is_flattened: bool,
    a: Tensor,
    b: Tensor,
    /// True if both factors are stored transposed.
    is_transposed: bool,
    /// Which block of its module this is. The tensors contain all blocks.
    block: usize,
}

impl PeftAdapter {
    /// Opens the adapter in a folder. Its factors are not read.
    ///
    /// # Errors
    /// All problems, together: missing files, a configuration that is not for LoRA, tensors that are not `A` or `B` of a supported
    /// layer, an `A` without `B` or the reverse, shapes that do not fit each other or the configuration.
    pub fn open(folder: &Path) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        match Self::open_sound_layers(folder, &mut problems) {
            Some(adapter) => problems.or_ok(adapter),
            None => Err(problems),
        }
    }

    /// Opens the valid layers of an adapter. Each invalid layer adds to `problems`.
    pub(super) fn open_sound_layers(folder: &Path, problems: &mut Problems) -> Option<Self> {
        if let Err(problem) = check_folder(folder) {
            problems.push(problem);
            return None;
        }
        if mlx::is_in(folder) {
            return mlx::open(folder, problems);
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
        let found: BTreeSet<_> =
            pairs.keys().map(|(name, _)| component_of(single_file, name).map(|(found, _)| found)).collect();
        let has_several = found.len() > 1;
        let parameters =
            Parameters::new(config.as_ref().and_then(|config| config.target_parameters.as_ref()));
        let mut layers = BTreeMap::new();
        for ((name, is_embedding), pair) in pairs {
            let known = names.get(&name);
            let found = component_of(single_file, &name);
            let (component, inner) = found.map_or((None, &*name), |(one, inner)| (Some(one), inner));
            // The names of several components stay apart.
            let prefix = component.filter(|_| has_several);
            let prefix = prefix.map_or("", |component| component.prefix(SingleFile::Diffusers));
            let is_flattened = single_file == Some(SingleFile::Kohya) && known.is_none();
            let module = known.cloned().unwrap_or_else(|| format!("{prefix}{inner}"));
            let read = parameters.named(&module).and_then(|parameter| {
                let is_parameter = parameter.is_some();
                let module = parameter.unwrap_or(module);
                layers_of(
                    pair,
                    (&name, is_embedding),
                    &module,
                    is_parameter,
                    (config.as_ref(), single_file, &source),
                )
            });
            let read = problems.collect(read.map_err(|problem| problem.in_file(source.path())));
            for (layer_name, layer) in read.into_iter().flatten() {
                let layer = PeftLayer { component, is_flattened, ..layer };
                if layers.insert(layer_name, layer).is_some() {
                    let what = "the module has factors of an embedding and of another layer";
                    problems.push(Problem::data(what).in_file(source.path()).in_tensor(&name));
                }
            }
        }
        Some(Self { config, single_file, layers, source, shared: Mutex::default() })
    }

    /// An adapter without a configuration of PEFT.
    pub(super) fn of_layers(layers: BTreeMap<LayerName, PeftLayer>, source: Source) -> Self {
        Self { config: None, single_file: None, layers, source, shared: Mutex::default() }
    }

    /// The configuration of a PEFT adapter.
    pub fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    /// The format of a single-file adapter.
    pub fn single_file(&self) -> Option<SingleFile> {
        self.single_file
    }

    /// The layers by name.
    pub fn layers(&self) -> &BTreeMap<LayerName, PeftLayer> {
        &self.layers
    }

    /// The scale of all layers, if they have the same one. `tolerance` is the accepted relative difference.
    pub(super) fn common_scale(&self, tolerance: f64) -> Option<f64> {
        let mut scales = self.layers.values().map(|layer| layer.scale);
        let first = scales.next()?;
        scales.all(|scale| (scale - first).abs() <= tolerance * first.abs()).then_some(first)
    }

    /// The modules, with true for parameters of fused experts.
    pub(super) fn modules(&self) -> BTreeMap<&str, bool> {
        let is_parameter = |layer: &PeftLayer| matches!(layer.shape, LayerShape::Expert { .. });
        self.layers.iter().map(|(name, layer)| (name.module.as_str(), is_parameter(layer))).collect()
    }

    /// The file with the tensors.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Reads the factors of a layer. F64 is rounded to f32. The values can be NaN or infinite.
    ///
    /// # Errors
    /// An I/O problem if the tensors cannot be read.
    pub fn factors(&self, layer: &PeftLayer) -> Result<Factors, Problem> {
        let PeftLayer { rank, inputs, outputs, element, block, .. } = *layer;
        if layer.is_transposed {
            let a = self.rows(&layer.a, element, 0, inputs, rank)?;
            let b = self.rows(&layer.b, element, 0, rank, outputs)?;
            return Ok(Factors { a: a.transpose().to_owned(), b: b.transpose().to_owned() });
        }
        let a = self.rows(&layer.a, element, block * rank, rank, inputs)?;
        let b = match layer.shape {
            LayerShape::Expert { count, .. } => {
                let all = self.shared_rows(&layer.b, element, outputs, rank * count)?;
                Mat::from_fn(outputs, rank, |i, j| all[(i, j * count + block)])
            }
            _ => self.rows(&layer.b, element, block * outputs, outputs, rank)?,
        };
        Ok(Factors { a, b })
    }

    /// Reads all rows of a factor that several layers share, or returns them if they were read last.
    fn shared_rows(
        &self,
        tensor: &Tensor,
        element: Element,
        rows: usize,
        columns: usize,
    ) -> Result<Arc<Mat<f32>>, Problem> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((offset, all)) = &*shared
            && *offset == tensor.offset
        {
            return Ok(Arc::clone(all));
        }
        let all = Arc::new(self.rows(tensor, element, 0, rows, columns)?);
        *shared = Some((tensor.offset, Arc::clone(&all)));
        Ok(all)
    }

    /// Reads rows of a factor, from row `first` on.
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
        let mut values =
            zeros((rows * columns) as u64).map_err(|problem| problem.in_file(self.source.path()))?;
        element.decode_f32(&bytes, &mut values);
        Ok(Mat::from_fn(rows, columns, |i, j| values[i * columns + j]))
    }
}

impl PeftLayer {
    /// A layer whose factors are stored transposed, as `[inputs, rank]` and `[rank, outputs]`.
    pub(super) fn transposed(
        rank: usize,
        (inputs, outputs): (usize, usize),
        shape: LayerShape,
        scale: f64,
        element: Element,
        [a, b]: [Tensor; 2],
    ) -> Self {
        let (component, is_flattened, is_transposed, block) = (None, false, true, 0);
        Self {
            rank,
            inputs,
            outputs,
            shape,
            scale,
            element,
            component,
            is_flattened,
            a,
            b,
            is_transposed,
            block,
        }
    }
}

/// The component in a name of a single file, and the rest of the name.
fn component_of(format: Option<SingleFile>, name: &str) -> Option<(Component, &str)> {
    format?.component_of(name)
}

fn check_folder(folder: &Path) -> Result<(), Problem> {
    let metadata = fs::metadata(folder).map_err(|error| {
        let problem = Problem::io("cannot open the folder", &error).in_file(folder);
        match interrupted_replacement(folder) {
            Some(old) => problem.help(format!(
                "a run was killed while it replaced this folder: give its command again, or rename {} to get the old folder back",
                quoted(&old.display().to_string())
            )),
            None => problem,
        }
    })?;
    if metadata.is_dir() {
        return Ok(());
    }
    Err(Problem::environment("the path of an adapter must be a folder")
        .in_file(folder)
        .help(format!("give the folder that contains {CONFIG_FILE}")))
}

fn read_config(path: &Path) -> Result<Config, Problem> {
    if is_missing(path) {
        return Err(Problem::data("the configuration of the PEFT adapter is missing").in_file(path).help(
            "this file is written last: if the other files are present, writing was interrupted, so write the adapter again",
        ));
    }
    let config: Config = read_json(&Source::open(path, Access::Read)?, "configuration of a PEFT adapter")?;
    if config.peft_type != "LORA" {
        let found = quoted(&config.peft_type);
        return Err(Problem::data(format!("unsupported peft_type {found}: expected \"LORA\"")).in_file(path));
    }
    Ok(config)
}

pub(super) fn open_tensors(path: &Path) -> Result<(Source, Header), Problem> {
    if is_missing(path) {
        let problem = Problem::data("the tensors of the PEFT adapter are missing").in_file(path);
        return Err(if path.with_file_name("adapter_model.bin").exists() {
            problem
                .help("adapter_model.bin is not read, because it can run arbitrary code: save the adapter as safetensors")
        } else {
            problem
        });
    }
    let source = Source::open(path, Access::Auto)?;
    let header = Header::read(&source)?;
    Ok((source, header))
}

/// The format of the adapter in a folder, if it is a single file.
fn single_file_in(folder: &Path) -> Option<SingleFile> {
    let holds = |name: &str| !is_missing(&folder.join(name));
    SingleFile::ALL
        .into_iter()
        .find(|format| holds(format.file_name()) && !holds(CONFIG_FILE) && !holds(TENSORS_FILE))
}

/// The name of the file with the tensors of the adapter in a folder.
pub(super) fn tensors_file(folder: &Path) -> &'static str {
    match single_file_in(folder) {
        Some(single_file) => single_file.file_name(),
        None if mlx::is_in(folder) => MLX_FILE,
        None => TENSORS_FILE,
    }
}

/// The modules by the names of their tensors, as far as the metadata has them.
fn module_names(header: &Header) -> Result<BTreeMap<String, String>, Problem> {
    let Some(text) = header.metadata.get(MODULES_KEY) else { return Ok(BTreeMap::new()) };
    let names = parse_json(text.as_bytes(), &format!("metadata entry {}", quoted(MODULES_KEY)));
    names.map(|UniqueKeys(names)| names).map_err(|problem| problem.help("write the adapter again"))
}

/// The tensors `A`, `B` and `alpha` of a module, as far as they are present.
type Tensors = [Option<Tensor>; 3];

/// The tensors by module. A module with the tensor names of an embedding (`true`) and of another layer (`false`) occurs twice.
type Pairs = BTreeMap<(String, bool), Tensors>;

fn pairs(header: Header, format: Option<SingleFile>, source: &Source, problems: &mut Problems) -> Pairs {
    let (prefix, [down, up]) = affixes(format);
    let [embedding_down, embedding_up] = suffixes(&LayerShape::Embedding);
    // Suffix, whether it is that of an embedding, and index into `Tensors`.
    let mut kinds = vec![(down, false, 0), (up, false, 1)];
    match format {
        None => kinds.extend([(embedding_down, true, 0), (embedding_up, true, 1)]),
        Some(SingleFile::Kohya) => kinds.push((ALPHA_SUFFIX, false, 2)),
        Some(SingleFile::Diffusers) => {}
    }
    let mut pairs = Pairs::new();
    let mut others = Vec::new();
    for (key, tensor) in header.tensors {
        let name = key.strip_prefix(prefix);
        let found = name.and_then(|name| {
            kinds.iter().find_map(|&(suffix, kind, index)| Some((name.strip_suffix(suffix)?, kind, index)))
        });
        match found {
            Some((module, kind, index)) => {
                pairs.entry((module.into(), kind)).or_default()[index] = Some(tensor);
            }
            None => others.push(key),
        }
    }
    let is_copy = |key: &str| {
        let module = key.strip_prefix(prefix).filter(|_| format.is_none()).and_then(module_of_copy);
        module.is_some_and(|module| {
            [true, false].iter().any(|&kind| pairs.contains_key(&(module.into(), kind)))
        })
    };
    for key in others.iter().filter(|key| !is_copy(key)) {
        problems.push(
            Problem::data(format!(
                "unsupported tensor name: expected {prefix}MODULE{down} or {prefix}MODULE{up} of a linear layer, convolution \
                 or embedding"
            ))
            .in_file(source.path())
            .in_tensor(key),
        );
    }
    pairs
}

/// The module of a copy of a base weight. PEFT saves such copies for adapted embeddings and output heads; training does not change
/// them.
fn module_of_copy(name: &str) -> Option<&str> {
    [".base_layer.weight", ".base_layer.bias"].iter().find_map(|end| name.strip_suffix(end))
}

/// The layers of a module: one, or one per block.
fn layers_of(
    [a, b, alpha]: Tensors,
    (name, is_embedding): (&str, bool),
    module: &str,
    is_parameter: bool,
    (config, format, source): (Option<&Config>, Option<SingleFile>, &Source),
) -> Result<Vec<(LayerName, PeftLayer)>, Problem> {
    let (prefix, affixes) = affixes(format);
    let [down, up] = if is_embedding { suffixes(&LayerShape::Embedding) } else { affixes };
    let (a_key, b_key) = (format!("{prefix}{name}{down}"), format!("{prefix}{name}{up}"));
    let missing = |key: &str| {
        Problem::data("the tensor is missing, but others of the same layer are present").in_tensor(key)
    };
    let a = a.ok_or_else(|| missing(&a_key))?;
    let b = b.ok_or_else(|| missing(&b_key))?;
    let (rows, inputs) =
        matrix_shape(&a, "A must have shape [rank, inputs]").map_err(|p| p.in_tensor(&a_key))?;
    let (outputs, columns) =
        matrix_shape(&b, "B must have shape [outputs, rank]").map_err(|p| p.in_tensor(&b_key))?;
    let kernel = a.shape.get(2..).unwrap_or_default();
    if b.shape.get(2..) != Some(&vec![1; kernel.len()][..]) {
        let ones = ", 1".repeat(kernel.len());
        let what = format!("B must have shape [outputs, rank{ones}], found {:?}", b.shape);
        return Err(Problem::data(what).in_tensor(&b_key));
    }
    if is_embedding && !kernel.is_empty() {
        let what = format!("A of an embedding must have shape [rank, tokens], found {:?}", a.shape);
        return Err(Problem::data(what).in_tensor(&a_key));
    }
    let expected = config.map(|config| config.rank(module) as usize);
    // The groups of a convolution share the rows of A.
    let groups = rows / columns.min(rows).max(1);
    let (rank, outputs, shape) = match kernel {
        [] if is_parameter => {
            let rank = expected.filter(|&rank| rank > 0 && rows.is_multiple_of(rank)).unwrap_or(rows);
            (rank, outputs, LayerShape::Expert { count: rows / rank, transposed: false })
        }
        [] if is_embedding => (rows, outputs, LayerShape::Embedding),
        [] if config.is_some_and(|config| config.fan_in_fan_out) => (rows, outputs, LayerShape::Transposed),
        [] => (rows, outputs, LayerShape::Linear),
        kernel if groups > 1 && rows == groups * columns && outputs.is_multiple_of(groups) => {
            (columns, outputs / groups, LayerShape::Group { count: groups, kernel: kernel.into() })
        }
        kernel => (rows, outputs, LayerShape::Convolution(kernel.into())),
    };
    if !matches!(shape, LayerShape::Group { .. }) && columns != rows {
        return Err(
            Problem::data(format!("A has rank {rows}, but B has {columns} columns")).in_tensor(&b_key)
        );
    }
    if let Some(expected) = expected.filter(|&expected| expected != rank * shape.parts()) {
        return Err(
            Problem::data(format!("A has rank {rows}, but {CONFIG_FILE} says {expected}")).in_tensor(&a_key)
        );
    }
    if a.dtype != b.dtype {
        let (a, b) = (quoted(&a.dtype), quoted(&b.dtype));
        return Err(Problem::data(format!("B has number format {b}, but A has {a}")).in_tensor(&b_key));
    }
    let element = element_of(&a.dtype).map_err(|p| p.in_tensor(&a_key))?;
    let scale = match (config, &alpha) {
        (Some(config), _) => config.scale(module),
        (None, Some(alpha)) => read_number(alpha, source).map_err(|p| p.in_tensor(name))? / rows as f64,
        (None, None) => 1.0,
    };
    let count = shape.blocks();
    if let Some(count) = count.filter(|&count| count > MOST_BLOCKS) {
        let what = format!("A has {count} blocks of rank {rank}, but at most {MOST_BLOCKS} are supported");
        return Err(Problem::data(what).in_tensor(&a_key));
    }
    let layer = PeftLayer {
        rank,
        inputs,
        outputs,
        shape,
        scale,
        element,
        component: None,
        is_flattened: false,
        a,
        b,
        is_transposed: false,
        block: 0,
    };
    Ok(match count {
        None => vec![(LayerName::of_module(module), layer)],
        Some(count) => (0..count)
            .map(|block| (LayerName::of_block(module, block), PeftLayer { block, ..layer.clone() }))
            .collect(),
    })
}

/// Reads a tensor with a single number.
fn read_number(tensor: &Tensor, source: &Source) -> Result<f64, Problem> {
    let element = element_of(&tensor.dtype)?;
    match product(&tensor.shape) {
        Some(1) => Ok(decode(&source.read_vec(tensor.offset, tensor.length)?, element)?[0]),
        _ => Err(Problem::data(format!("alpha must be a single number, found shape {:?}", tensor.shape))),
    }
}

/// Rows and columns. The axes of a kernel count as columns.
pub(super) fn matrix_shape(tensor: &Tensor, rule: &str) -> Result<(usize, usize), Problem> {
    let positive = |count: u64| usize::try_from(count).ok().filter(|&count| count > 0);
    match tensor.shape.as_slice() {
        [rows, rest @ ..] if (1..=4).contains(&rest.len()) => {
            positive(*rows).zip(product(rest).and_then(positive))
        }
        _ => None,
    }
    .ok_or_else(|| Problem::data(format!("{rule}, found {:?}", tensor.shape)))
}

#[cfg(test)]
mod tests;
