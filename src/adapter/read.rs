//! Reads adapters. Opening one reads the headers; factors are read layer by layer, on demand.

use super::format::{Component, SingleFile};
use super::further::{self, Carried, FurtherTensor};
use super::keys::{Further, Key};
use super::layer::{PeftLayer, Renaming, layers_of};
use super::location::{Location, open_tensors};
use super::mlx;
use super::modules::Parameters;
use super::names::{MLX_FILE, PREFIX};
use super::sorting::{
    EMPTY, Sorted, count_of, further_config, module_names, sorted, stored_config, unwrapped,
};
use super::{CONFIG_FILE, Config, TENSORS_FILE};
use crate::element::Element;
use crate::factors::{Factors, LayerName, LayerShape};
use crate::storage::safetensors::Tensor;
use crate::storage::wrappers::Wrapped;
use crate::storage::{Access, Problem, Problems, Source, is_missing, quoted, read_json, zeros};
use faer::Mat;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// An opened adapter of linear layers, convolutions, embeddings and fused experts: a PEFT folder or a single file.
#[derive(Debug)]
pub struct PeftAdapter {
    config: Option<Config>,
    further_config: Map<String, Value>,
    single_file: Option<SingleFile>,
    layers: BTreeMap<LayerName, PeftLayer>,
    further: Vec<FurtherTensor>,
    wrapped: Wrapped,
    adapter_names: Wrapped,
    /// The names of modules in the file, where they differ.
    stored_names: BTreeMap<String, String>,
    source: Source,
    /// The up matrix of fused experts that was read last, with its offset. The experts of a module share it.
    shared: Mutex<Option<(u64, Arc<Mat<f32>>)>>,
}

impl PeftAdapter {
    /// Opens the adapter in a folder, or in a file with tensors. Its factors are not read.
    ///
    /// Names of modules lose the parts of known wrappers: see [`notes`](Self::notes).
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

    /// As [`open`](Self::open), with replacements in the names of modules, after the parts of wrappers are removed.
    ///
    /// # Errors
    /// As [`open`](Self::open); a usage problem for a replacement that makes a name empty or too long.
    pub(crate) fn open_renamed(path: &Path, renames: &Renaming<'_>) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        match Self::open_sound(path, renames, &mut problems) {
            Some(adapter) => problems.or_ok(adapter),
            None => Err(problems),
        }
    }

    /// Opens the valid layers of an adapter. Each invalid layer adds to `problems`.
    pub(super) fn open_sound_layers(path: &Path, problems: &mut Problems) -> Option<Self> {
        Self::open_sound(path, &|name| Ok(name.to_owned()), problems)
    }

    fn open_sound(path: &Path, renames: &Renaming<'_>, problems: &mut Problems) -> Option<Self> {
        let location = problems.collect(Location::of(path))?;
        if location.file_name() == MLX_FILE && location.config.is_some() {
            let (layers, source) = mlx::open(location.folder(), renames, problems)?;
            return Some(Self {
                config: None,
                further_config: Map::new(),
                single_file: None,
                layers,
                further: Vec::new(),
                wrapped: Wrapped::default(),
                adapter_names: Wrapped::default(),
                stored_names: BTreeMap::new(),
                source,
                shared: Mutex::default(),
            });
        }
        let config = match &location.config {
            Some(config) => problems.collect(read_config(config)).map(Some),
            None => Some(None),
        };
        let tensors = problems.collect(open_tensors(&location.tensors));
        let (config, (source, header)) = (config?, tensors?);
        let single_file = config.is_none().then(|| SingleFile::of(&header, location.file_name()));
        if single_file.is_some() && header.tensors.keys().any(|key| key.starts_with(PREFIX)) {
            let what = format!(
                "the tensors have the names of a PEFT adapter, but there is no {CONFIG_FILE} with its scale"
            );
            let help =
                format!("put {CONFIG_FILE} beside it, name the file {TENSORS_FILE}, and give the folder");
            problems.push(Problem::data(what).in_file(source.path()).help(help));
            return None;
        }
        let names =
            problems.collect(module_names(&header).map_err(|problem| problem.in_file(source.path())))?;
        let stored =
            problems.collect(stored_config(&header, single_file).map_err(|p| p.in_file(source.path())))?;
        let further_config = problems.collect(further_config(&location))?;
        let parameters =
            Parameters::new(config.as_ref().and_then(|config| config.target_parameters.as_ref()));
        let known = problems.0.len();
        let Sorted { pairs, further: others, wrapped, adapter_names } =
            sorted(header, single_file, &parameters, &source, problems);
        if pairs.is_empty() {
            if problems.0.len() == known {
                let problem = Problem::data("the adapter has no factors").in_file(source.path());
                problems.push(if others.is_empty() { problem.help(EMPTY) } else { problem });
            }
            return None;
        }
        let components: BTreeSet<Option<Component>> = pairs
            .keys()
            .map(|(name, _)| single_file.and_then(|format| Some(format.component_of(name)?.0)))
            .collect();
        let has_several = components.len() > 1;
        let mut stored_names = BTreeMap::new();
        let mut layers = BTreeMap::new();
        for ((name, is_embedding), pair) in pairs {
            let known = names.get(&name);
            let found = single_file.and_then(|format| format.component_of(&name));
            let (component, inner_name) = found.map_or((None, &*name), |(one, rest)| (Some(one), rest));
            // The names of several components stay apart.
            let prefix = component.filter(|_| has_several);
            let prefix = prefix.map_or("", |component| component.prefix(SingleFile::Diffusers));
            let is_flattened = single_file == Some(SingleFile::Kohya) && known.is_none();
            let module = known.cloned().unwrap_or_else(|| format!("{prefix}{inner_name}"));
            let read = parameters.named(&module).and_then(|parameter| {
                let is_parameter = parameter.is_some();
                let module = parameter.unwrap_or(module);
                let inner = unwrapped(&module, single_file, is_parameter);
                let in_adapter = renames(&inner)?;
                let layers = layers_of(
                    pair,
                    (&name, is_embedding),
                    (if component.is_some() { inner_name } else { &module }, &in_adapter),
                    is_parameter,
                    (config.as_ref().or_else(|| stored.get(&component)), single_file, &source),
                )?;
                if in_adapter != module {
                    stored_names.insert(in_adapter, module);
                }
                Ok(layers)
            });
            let read = problems.collect(read.map_err(|problem| problem.in_file(source.path())));
            for (layer_name, layer) in read.into_iter().flatten() {
                let layer = PeftLayer { component, is_flattened, ..layer };
                if layers.insert(layer_name.clone(), layer).is_some() {
                    let what = match stored_names.contains_key(&layer_name.module) {
                        true => {
                            "another module has the same name without the parts of wrappers, or after the renames"
                        }
                        false => "the module has factors of an embedding and of another layer",
                    };
                    problems.push(Problem::data(what).in_file(source.path()).in_tensor(&name));
                }
            }
        }
        let mut further = Vec::new();
        for (Key { module, end, kind: _ }, kind, tensor) in others {
            let inner = unwrapped(&module, single_file, false);
            let Some(module) = problems.collect(renames(&inner)) else { continue };
            let tensor = FurtherTensor::new(kind, module, &end, tensor);
            if further.iter().any(|other: &FurtherTensor| other.key == tensor.key) {
                let what =
                    "another tensor has the same name without the parts of wrappers, or after the renames";
                problems.push(Problem::data(what).in_file(source.path()).in_tensor(&tensor.key));
            }
            further.push(tensor);
        }
        let shared = Mutex::default();
        Some(Self {
            config,
            further_config,
            single_file,
            layers,
            further,
            wrapped,
            adapter_names,
            stored_names,
            source,
            shared,
        })
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

    /// Notes for the user: wrappers in the names, and tensors that are not factors.
    pub fn notes(&self) -> Vec<String> {
        let wrapped = self.wrapped.note(["tensor", "tensors"]);
        let adapter_names = self.adapter_names.found().map(|(count, before, after)| {
            let [before, after] = [before, after].map(quoted);
            format!(
                "the name of the adapter, default, is left out of the names of {}: {before} is {after} here; PEFT reads both",
                count_of(count)
            )
        });
        wrapped.into_iter().chain(adapter_names).chain(further::notes(&self.further)).collect()
    }

    /// True if the names in the file have parts of wrappers, or the name of the adapter.
    pub fn has_other_names(&self) -> bool {
        self.wrapped.found().is_some() || self.adapter_names.found().is_some()
    }

    /// The names that had parts of wrappers.
    pub(super) fn wrapped(&self) -> &Wrapped {
        &self.wrapped
    }

    /// True if there are copies of base weights.
    pub fn has_base_copies(&self) -> bool {
        self.further.iter().any(|tensor| tensor.kind == Further::BaseCopy)
    }

    /// The tensors that are not factors.
    pub(super) fn further(&self) -> &[FurtherTensor] {
        &self.further
    }

    /// The tensors that a converted adapter gets unchanged.
    pub(super) fn carried(&self, without_copies: bool, factor: impl Fn(&LayerName) -> f64) -> Carried<'_> {
        further::carried(&self.further, &self.source, &self.further_config, without_copies, factor)
    }

    /// The name of a module in the file.
    pub(super) fn stored_name<'a>(&'a self, module: &'a str) -> &'a str {
        self.stored_names.get(module).map_or(module, String::as_str)
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

#[cfg(test)]
mod tests;
