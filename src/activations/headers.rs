//! The content of one file of activations, from its header.

use super::Part;
use super::unfold::{Convolution, Unfolding};
use crate::element::Element;
use crate::moments::{Counts, RowsOrTokens};
use crate::storage::json::UniqueKeys;
use crate::storage::{Number, Problem, Problems, Schema, Source, npy, quoted, safetensors};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The metadata entry `cntlora`.
const SCHEMA: Schema = Schema {
    format: "activations",
    newest: 1,
    name: "activation metadata",
    help: r#"write the metadata entry "cntlora" as {"format":"activations","version":1,"sites":{"<site>":["<module>", ...]}}"#,
};

/// The content of a file.
pub(super) struct FileContent {
    /// Its tensors, sorted by name.
    pub tensors: Vec<Stored>,
    /// The modules that read each site, from the metadata.
    pub sites: BTreeMap<String, BTreeSet<String>>,
}

/// The content of a tensor.
pub(super) type Stored = RowsOrTokens<StoredRows, StoredCounts>;

/// The rows of a site in one file.
pub(super) struct StoredRows {
    /// Name of the site.
    pub site: String,
    /// Numbers per row.
    pub width: usize,
    /// The place of the rows. The caller sets the index of the file.
    pub part: Part,
}

/// The token counts of a site in one file, and their place.
pub(super) struct StoredCounts {
    /// Name of the site.
    pub site: String,
    /// Name of the tensor in the file, or the stem of the `.npy` file.
    pub tensor: String,
    /// Number of tokens in the vocabulary.
    pub tokens: u64,
    /// Format of the counts.
    pub number: Number,
    /// Offset of the first count, in bytes from the start of the file.
    pub offset: u64,
    /// True if counts are stored with the most significant byte first.
    pub big_endian: bool,
}

impl StoredCounts {
    /// Bytes of the counts in the file.
    pub(super) fn bytes(&self) -> u64 {
        self.tokens * self.number.size() as u64
    }
}

impl FileContent {
    /// Reads and checks the header of a file.
    pub(super) fn read(source: &Source) -> Result<Self, Problems> {
        if source.path().extension().is_some_and(|extension| extension == "npy") {
            let tensors = vec![npy_tensor(source)?];
            return Ok(Self { tensors, sites: BTreeMap::new() });
        }
        let mut problems = Problems::default();
        let header = safetensors::Header::read(source)?;
        let named = match header.metadata.get("cntlora") {
            Some(text) => problems.collect(named_sites(text).map_err(|p| p.in_file(source.path()))),
            None => None,
        };
        let NamedSites { sites, convolutions } = named.unwrap_or_default();
        if let Some(site) = convolutions.keys().find(|site| !header.tensors.contains_key(*site)) {
            let what = format!(
                "the metadata contains the convolution {}, but the file has no tensor with this name",
                quoted(site)
            );
            problems.push(Problem::data(what).in_file(source.path()));
        }
        let tensors = header
            .tensors
            .iter()
            .filter_map(|(name, tensor)| {
                let convolution = convolutions.get(name);
                let stored = match tensor.shape.as_slice() {
                    &[tokens] if tokens > 0 && convolution.is_none() => {
                        safetensors_counts(name, tensor, tokens).map(RowsOrTokens::Tokens)
                    }
                    _ => safetensors_rows(name, tensor, convolution).map(RowsOrTokens::Rows),
                };
                problems.collect(stored.map_err(|p| p.in_file(source.path()).in_tensor(name)))
            })
            .collect();
        problems.or_ok(Self { tensors, sites })
    }
}

fn safetensors_rows(
    name: &str,
    tensor: &safetensors::Tensor,
    convolution: Option<&Convolution>,
) -> Result<StoredRows, Problem> {
    let element = Element::from_name(&tensor.dtype).ok_or_else(|| {
        Problem::data(format!("expected F64, F32, F16 or BF16 numbers, found {}", quoted(&tensor.dtype)))
            .help("record activations as floating-point numbers, and keep other tensors in another file")
    })?;
    let (rows, width, unfolding) = match convolution {
        None => {
            let (rows, width) = flatten(&tensor.shape)?;
            (rows, width, None)
        }
        Some(convolution) => {
            let (rows, width, unfolding) = patches(convolution, &tensor.shape)?;
            (rows, width, Some(unfolding))
        }
    };
    let part = Part {
        file: 0,
        rows,
        element,
        tensor: name.into(),
        offset: tensor.offset,
        big_endian: false,
        fortran_order: false,
        unfolding,
    };
    Ok(StoredRows { site: name.into(), width, part })
}

fn safetensors_counts(
    name: &str,
    tensor: &safetensors::Tensor,
    tokens: u64,
) -> Result<StoredCounts, Problem> {
    check_tokens(tokens)?;
    let number = Number::from_name(&tensor.dtype).ok_or_else(|| {
        let found = quoted(&tensor.dtype);
        Problem::data(format!(
            "a tensor with one axis contains token counts: expected a format of numbers, found {found}"
        ))
        .help("record them as I64, and keep other tensors in another file")
    })?;
    let offset = tensor.offset;
    Ok(StoredCounts { site: name.into(), tensor: name.into(), tokens, number, offset, big_endian: false })
}

fn check_tokens(tokens: u64) -> Result<(), Problem> {
    if tokens <= Counts::MOST as u64 {
        return Ok(());
    }
    let what = format!(
        "a tensor with one axis contains token counts: expected at most {} tokens, found {tokens}",
        Counts::MOST
    );
    Err(Problem::data(what).help("record rows as [rows, width], and keep other tensors in another file"))
}

fn npy_tensor(source: &Source) -> Result<Stored, Problem> {
    let path = source.path();
    let (module, _) = npy_name(path).ok_or_else(|| {
        Problem::data("the file name is not valid UTF-8, but it must be the name of the module")
            .in_file(path)
            .help("rename it to <module>.npy or <module>.<part>.npy")
    })?;
    let tensor = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let header = npy::Header::read(source)?;
    let element = match (header.number, header.shape.as_slice()) {
        (number, &[tokens]) if tokens > 0 => {
            check_tokens(tokens).map_err(|problem| problem.in_file(path))?;
            let (offset, big_endian) = (header.offset, header.big_endian);
            let site = module.into();
            return Ok(RowsOrTokens::Tokens(StoredCounts {
                site,
                tensor,
                tokens,
                number,
                offset,
                big_endian,
            }));
        }
        (Number::Float(element), _) => element,
        (Number::Integer { .. }, shape) => {
            return Err(Problem::data(format!(
                "expected floating-point numbers, found integers of shape {shape:?}"
            ))
            .in_file(path));
        }
    };
    let (rows, width) = flatten(&header.shape).map_err(|problem| problem.in_file(path))?;
    if header.fortran_order && header.shape.len() > 2 {
        let what = format!("expected two axes in Fortran order, found the shape {:?}", header.shape);
        return Err(Problem::data(what).in_file(path).help("save numpy.ascontiguousarray of it"));
    }
    let part = Part {
        file: 0,
        rows,
        element,
        tensor,
        offset: header.offset,
        big_endian: header.big_endian,
        fortran_order: header.fortran_order,
        unfolding: None,
    };
    Ok(RowsOrTokens::Rows(StoredRows { site: module.into(), width, part }))
}

/// The module and the part number in the name of a `.npy` file. `None` for other files, and for names that are not UTF-8.
pub(super) fn npy_name(path: &Path) -> Option<(&str, Option<&str>)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".npy")?;
    Some(match stem.rsplit_once('.') {
        Some((module, part)) if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) => {
            (module, Some(part))
        }
        _ => (stem, None),
    })
}

/// Rows and width of a tensor: all axes except the last are rows.
fn flatten(shape: &[u64]) -> Result<(u64, usize), Problem> {
    let expected = |found: String| {
        Problem::data(format!("expected the shape [rows, width] or [..., width], found {found}"))
            .help("the last axis must be the input features of the module")
    };
    let [leading @ .., width] = shape else { return Err(expected("a single number".into())) };
    if leading.is_empty() || *width == 0 {
        return Err(expected(format!("{shape:?}")));
    }
    let rows = leading.iter().try_fold(1_u64, |product, &axis| product.checked_mul(axis));
    let size = rows.and_then(|rows| rows.checked_mul(*width)?.checked_mul(size_of::<f64>() as u64));
    match (rows, size, usize::try_from(*width)) {
        (Some(rows), Some(_), Ok(width)) => Ok((rows, width)),
        _ => Err(expected(format!("{shape:?}, which is too large for any file"))),
    }
}

/// Rows, width and unfolding of the patches of a convolution's inputs.
fn patches(convolution: &Convolution, shape: &[u64]) -> Result<(u64, usize, Unfolding), Problem> {
    convolution.check()?;
    let (images, unfolding) = convolution.unfolding(shape)?;
    let rows = unfolding.patches().and_then(|patches| patches.checked_mul(images));
    let numbers = rows.zip(unfolding.width()).and_then(|(rows, width)| rows.checked_mul(width as u64));
    let size = numbers.and_then(|numbers| numbers.checked_mul(size_of::<f64>() as u64));
    match (rows, unfolding.width(), size) {
        (Some(rows), Some(width), Some(_)) => Ok((rows, width, unfolding)),
        _ => Err(Problem::data(format!("the shape {shape:?} has too many patches"))),
    }
}

/// The metadata of an activation file.
#[derive(Default)]
struct NamedSites {
    /// Modules by site.
    sites: BTreeMap<String, BTreeSet<String>>,
    /// The sites with inputs of convolutions.
    convolutions: BTreeMap<String, Convolution>,
}

/// The `cntlora` metadata of an activation file.
fn named_sites(text: &str) -> Result<NamedSites, Problem> {
    #[derive(serde::Deserialize)]
    struct Content {
        sites: UniqueKeys<BTreeSet<String>>,
        convolutions: Option<UniqueKeys<Convolution>>,
    }
    let content: Content = SCHEMA.parse(text.as_bytes())?;
    let sites = content.sites.0;
    match sites.iter().find(|(_, modules)| modules.is_empty()) {
        Some((site, _)) => {
            Err(Problem::data(format!("the metadata has no module for site {}", quoted(site)))
                .help("list the modules that read it, or remove the site from the metadata"))
        }
        None => {
            let convolutions = content.convolutions.map(|keys| keys.0).unwrap_or_default();
            Ok(NamedSites { sites, convolutions })
        }
    }
}
