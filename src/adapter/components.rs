//! Names for another format: components of a pipeline stay apart, and names in which kohya's format writes `_` for `.` are resolved with the
//! modules of a base.

use super::format::{Component, Format, SingleFile};
use super::{Adapter, PeftAdapter};
use crate::factors::LayerName;
use crate::storage::{Access, Checkpoint, Problem, Problems, quoted};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The number of names in a message.
const SHOWN: usize = 3;

/// How the layers of an adapter are named in another format.
#[derive(Clone, Copy, Debug)]
pub struct Naming<'a> {
    /// The format to write.
    pub format: Format,
    /// The component that the user named.
    pub component: Option<Component>,
    /// The model whose modules resolve names: of one component, or the folder of a pipeline.
    pub base: Option<&'a Path>,
}

/// The names that were given.
#[derive(Debug)]
pub struct Named {
    /// The format with its component.
    pub format: Format,
    /// The number of layers that are left out, because they belong to other components.
    pub left_out: usize,
    /// The old name of each layer by its new name.
    pub old: BTreeMap<LayerName, LayerName>,
}

/// Gives the layers of `adapter`, which was made from `read`, the names of a format.
///
/// # Errors
/// - Usage: a component that the adapter does not have, several components for a format of one, a base that resolves nothing.
/// - Data: layers of no known component beside others, names that the base does not resolve.
/// - The problems of opening the base.
pub fn named(adapter: &mut Adapter, read: &PeftAdapter, naming: Naming<'_>) -> Result<Named, Problems> {
    let own: BTreeMap<LayerName, Option<Component>> =
        read.layers().iter().map(|(name, layer)| (name.clone(), layer.component)).collect();
    let found: BTreeSet<Component> = own.values().flatten().copied().collect();
    let has_several = own.values().collect::<BTreeSet<_>>().len() > 1;
    let chosen = choose(read, &found, has_several, naming)?;
    let mut old = adapter.layers.keys().map(|name| (name.clone(), name.clone())).collect();
    if let Some(chosen) = chosen.filter(|_| has_several) {
        keep((adapter, &mut old), &own, chosen);
    } else if has_several {
        adapter.components = own.into_iter().filter_map(|(name, one)| Some((name, one?))).collect();
    }
    resolve((adapter, &mut old), read, chosen, naming)?;
    let format = match naming.format {
        Format::SingleFile(format, _) => Format::SingleFile(format, chosen.unwrap_or(Component::Unet)),
        other => other,
    };
    Ok(Named { format, left_out: read.layers().len() - old.len(), old })
}

/// The component to write, if it is one. `has_several` tells that there are several, or layers of no known component.
fn choose(
    read: &PeftAdapter,
    found: &BTreeSet<Component>,
    has_several: bool,
    naming: Naming<'_>,
) -> Result<Option<Component>, Problem> {
    let names = || found.iter().map(|component| component.name()).collect::<Vec<_>>().join(", ");
    let is_single_file = matches!(naming.format, Format::SingleFile(..));
    let without: Vec<&LayerName> = match found.is_empty() {
        true => Vec::new(),
        false => read
            .layers()
            .iter()
            .filter(|(_, layer)| layer.component.is_none())
            .map(|(name, _)| name)
            .collect(),
    };
    if !without.is_empty() && naming.component.is_none() {
        let what = format!(
            "{} to none of the components that can be named, beside layers of {}",
            belong(&without),
            names()
        );
        return Err(Problem::data(what)
            .in_file(read.source().path())
            .help("choose a component with --component: the others are left out"));
    }
    match naming.component {
        Some(component) if found.is_empty() => {
            if !is_single_file {
                let what =
                    "--component has no effect: this format holds one component, and so does the adapter";
                return Err(Problem::usage(what).help("remove --component"));
            }
            Ok(Some(component))
        }
        Some(component) if found.contains(&component) => {
            if !has_several && !is_single_file {
                let what =
                    format!("--component has no effect: the adapter has only the {}", component.name());
                return Err(Problem::usage(what).help("remove --component"));
            }
            Ok(Some(component))
        }
        // Kohya's format has one prefix for both.
        Some(Component::Transformer)
            if read.single_file() == Some(SingleFile::Kohya)
                && found.contains(&Component::Unet)
                && !has_several =>
        {
            Ok(Some(Component::Transformer))
        }
        Some(component) => {
            let what = format!("the adapter has no layer of the {}: it has {}", component.name(), names());
            Err(Problem::usage(what).in_file(read.source().path()).help("give one of these with --component"))
        }
        None if has_several && !is_single_file => {
            let what =
                format!("this format holds one component of a pipeline, but the adapter has {}", names());
            Err(Problem::usage(what)
                .in_file(read.source().path())
                .help("choose one with --component, and convert the others in further commands"))
        }
        None if has_several => Ok(None),
        None => Ok(found.first().copied()),
    }
}

fn belong(layers: &[&LayerName]) -> String {
    let verb = if layers.len() == 1 { "belongs" } else { "belong" };
    format!("{} {verb}", listed(layers.iter().map(|name| name.to_string())))
}

/// The first names, and the number of the others.
fn listed(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| quoted(name)).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Keeps the layers of one of several components, without its prefix.
fn keep(layers: Layers<'_>, own: &BTreeMap<LayerName, Option<Component>>, chosen: Component) {
    let prefix = chosen.prefix(SingleFile::Diffusers);
    rename(layers, |name| {
        if own.get(name) != Some(&Some(chosen)) {
            return None;
        }
        let module = name.module.strip_prefix(prefix).unwrap_or(&name.module);
        Some(LayerName { module: module.to_owned(), ..name.clone() })
    });
}

/// An adapter, and the old names of its layers.
type Layers<'a> = (&'a mut Adapter, &'a mut BTreeMap<LayerName, LayerName>);

/// Renames layers, and removes those without a new name.
fn rename((adapter, old): Layers<'_>, new: impl Fn(&LayerName) -> Option<LayerName>) {
    fn renamed<T>(map: &mut BTreeMap<LayerName, T>, new: &impl Fn(&LayerName) -> Option<LayerName>) {
        let old = std::mem::take(map).into_iter();
        *map = old.filter_map(|(name, value)| Some((new(&name)?, value))).collect();
    }
    renamed(&mut adapter.layers, &new);
    renamed(&mut adapter.shapes, &new);
    renamed(&mut adapter.components, &new);
    renamed(old, &new);
}

/// Resolves the names in which `_` stands for `.`, unless the format writes them so itself.
fn resolve(
    (adapter, old): Layers<'_>,
    read: &PeftAdapter,
    chosen: Option<Component>,
    naming: Naming<'_>,
) -> Result<(), Problems> {
    let writes_flattened = matches!(naming.format, Format::SingleFile(SingleFile::Kohya, _));
    let has_flattened = read.layers().values().any(|layer| layer.is_flattened);
    let Some(path) = naming.base else {
        if writes_flattened || !has_flattened {
            return Ok(());
        }
        let names = adapter.layers.keys().map(|name| name.to_string());
        let what = format!(
            "kohya's format writes `_` for `.` in the names of modules, and nothing tells the names in the model: {}",
            listed(names)
        );
        return Err(Problem::data(what)
            .in_file(read.source().path())
            .help("give the model with --base: its modules resolve these names")
            .into());
    };
    if writes_flattened || !has_flattened {
        let why =
            if writes_flattened { "kohya's format needs no other names" } else { "all names are known" };
        let problem = Problem::usage(format!("--base has no effect: {why}")).help("remove --base");
        return Err(problem.into());
    }
    let components: BTreeSet<Option<Component>> =
        adapter.layers.keys().map(|name| adapter.component_of(name).map(|(one, _)| one).or(chosen)).collect();
    let mut problems = Problems::default();
    let mut modules = BTreeMap::new();
    let mut opened = Vec::new();
    for component in components {
        let folder = folder_of(path, component, chosen.is_some() || component.is_none());
        let Some(folder) = problems.collect(folder) else { continue };
        if let Some(checkpoint) = problems.collect(Checkpoint::open(&folder, Access::Auto)) {
            modules.insert(component, Modules::of(&checkpoint, component));
            opened.push(folder);
        }
    }
    problems.or_ok(())?;

    let mut names = BTreeMap::new();
    let (mut missing, mut ambiguous) = (Vec::new(), Vec::new());
    for name in adapter.layers.keys() {
        let (component, inner) = match adapter.component_of(name) {
            Some((component, inner)) => (Some(component), inner),
            None => (chosen, name.module.as_str()),
        };
        let found = modules.get(&component).map_or(&[][..], |modules| modules.named(inner));
        match found {
            [module] => {
                let prefix = &name.module[..name.module.len() - inner.len()];
                names.insert(name.clone(), LayerName { module: format!("{prefix}{module}"), ..name.clone() });
            }
            [] => missing.push(name.to_string()),
            several => ambiguous.push(format!("{name} ({})", several.join(" or "))),
        }
    }
    let complain = |what: &str, names: Vec<String>| {
        (!names.is_empty()).then(|| {
            Problem::data(format!("{what} {}", listed(names.into_iter()))).in_file(path).help(
                "give the model that the adapter was trained on, in the layout of diffusers or transformers",
            )
        })
    };
    let missing = complain("the base has no module for these names:", missing);
    let ambiguous = complain("the base has several modules for these names:", ambiguous);
    Problems(missing.into_iter().chain(ambiguous).collect()).or_ok(())?;
    rename((&mut *adapter, old), |name| names.get(name).cloned());
    if let (true, [folder]) = (adapter.base.is_empty(), &opened[..]) {
        adapter.base = folder.display().to_string();
    }
    Ok(())
}

/// The folder of a component: in the folder of a pipeline, or the base itself if the adapter has only this component.
fn folder_of(path: &Path, component: Option<Component>, is_only: bool) -> Result<PathBuf, Problem> {
    let in_pipeline = component.map(|component| path.join(component.folder()));
    match in_pipeline.filter(|folder| folder.is_dir()) {
        Some(folder) => Ok(folder),
        None if is_only => Ok(path.to_owned()),
        None => {
            let name = component.map_or("", Component::folder);
            let what =
                format!("the adapter has several components, and this folder has no folder {}", quoted(name));
            Err(Problem::usage(what)
                .in_file(path)
                .help("give the folder of the pipeline, or choose one component with --component"))
        }
    }
}

/// The modules of a checkpoint, by their names with `_` for `.`.
struct Modules(BTreeMap<String, Vec<String>>);

impl Modules {
    fn of(checkpoint: &Checkpoint, component: Option<Component>) -> Self {
        let mut modules: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for module in checkpoint.names().filter_map(|name| name.strip_suffix(".weight")) {
            let in_file = component.map_or_else(|| module.to_owned(), |component| component.name_of(module));
            let flattened: BTreeSet<String> =
                [module.to_owned(), in_file].map(|name| name.replace('.', "_")).into();
            for name in flattened {
                modules.entry(name).or_default().push(module.to_owned());
            }
        }
        Self(modules)
    }

    fn named(&self, flattened: &str) -> &[String] {
        self.0.get(flattened).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests;
