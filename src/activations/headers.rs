//! What one file of activations holds, from its header.

use super::Part;
use crate::element::Element;
use crate::storage::json::UniqueKeys;
use crate::storage::{Problem, Problems, Source, npy, quoted, safetensors};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Version of the metadata that this program writes and reads.
const VERSION: u64 = 1;

/// What a file holds.
pub(super) struct FileContent {
    /// Its tensors, in order of name.
    pub tensors: Vec<StoredRows>,
    /// What its metadata says of sites: the modules that read each.
    pub sites: BTreeMap<String, BTreeSet<String>>,
}

/// The rows of a site in one file.
pub(super) struct StoredRows {
    /// Name of the site.
    pub site: String,
    /// Numbers per row.
    pub width: usize,
    /// Where they are. Its file is for the caller to set.
    pub part: Part,
}

impl FileContent {
    /// Reads and checks the header of a file.
    pub(super) fn read(source: &Source) -> Result<Self, Problems> {
        if source.path().extension().is_some_and(|extension| extension == "npy") {
            let tensors = vec![npy_rows(source)?];
            return Ok(Self { tensors, sites: BTreeMap::new() });
        }
        let mut problems = Problems::default();
        let header = safetensors::Header::read(source)?;
        let sites = match header.metadata.get("cntlora") {
            Some(text) => problems.collect(named_sites(text).map_err(|p| p.in_file(source.path()))),
            None => None,
        };
        let tensors = header
            .tensors
            .iter()
            .filter_map(|(name, tensor)| {
                let rows = safetensors_rows(name, tensor);
                problems.collect(rows.map_err(|p| p.in_file(source.path()).in_tensor(name)))
            })
            .collect();
        problems.or_ok(Self { tensors, sites: sites.unwrap_or_default() })
    }
}

fn safetensors_rows(name: &str, tensor: &safetensors::Tensor) -> Result<StoredRows, Problem> {
    let element = Element::from_name(&tensor.dtype).ok_or_else(|| {
        Problem::data(format!("expected F64, F32, F16 or BF16 numbers, found {}", quoted(&tensor.dtype)))
            .help("record activations as floating-point numbers, and keep other tensors in another file")
    })?;
    let (rows, width) = flatten(&tensor.shape)?;
    let part = Part {
        file: 0,
        rows,
        element,
        tensor: name.into(),
        offset: tensor.offset,
        big_endian: false,
        fortran_order: false,
    };
    Ok(StoredRows { site: name.into(), width, part })
}

fn npy_rows(source: &Source) -> Result<StoredRows, Problem> {
    let path = source.path();
    let (module, _) = npy_name(path).ok_or_else(|| {
        Problem::data("expected a file name of UTF-8 text, since it names the module")
            .in_file(path)
            .help("rename it to <module>.npy or <module>.<part>.npy")
    })?;
    let header = npy::Header::read(source)?;
    let (rows, width) = flatten(&header.shape).map_err(|problem| problem.in_file(path))?;
    if header.fortran_order && header.shape.len() > 2 {
        let what = format!("expected two axes in Fortran order, found the shape {:?}", header.shape);
        return Err(Problem::data(what).in_file(path).help("save numpy.ascontiguousarray of it"));
    }
    let part = Part {
        file: 0,
        rows,
        element: header.element,
        tensor: path.file_stem().unwrap_or_default().to_string_lossy().into(),
        offset: header.offset,
        big_endian: header.big_endian,
        fortran_order: header.fortran_order,
    };
    Ok(StoredRows { site: module.into(), width, part })
}

/// The module and the part number that the name of a `.npy` file says; `None` for other files and for names that are not UTF-8.
pub(super) fn npy_name(path: &Path) -> Option<(&str, Option<&str>)> {
    let stem = path.file_name()?.to_str()?.strip_suffix(".npy")?;
    Some(match stem.rsplit_once('.') {
        Some((module, part)) if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) => {
            (module, Some(part))
        }
        _ => (stem, None),
    })
}

/// Rows and width of a tensor: all axes but the last are rows.
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

/// The `cntlora` metadata of an activation file: modules by site.
fn named_sites(text: &str) -> Result<BTreeMap<String, BTreeSet<String>>, Problem> {
    let invalid = |error: serde_json::Error| {
        Problem::data(format!("the metadata entry \"cntlora\" cannot be understood: {error}"))
            .help(r#"expected {"format":"activations","version":1,"sites":{"<site>":["<module>", ...]}}"#)
    };
    #[derive(serde::Deserialize)]
    struct Kind {
        format: String,
        version: u64,
    }
    let kind: Kind = serde_json::from_str(text).map_err(invalid)?;
    if kind.format != "activations" {
        let what = format!("expected a file of activations, found one of {}", quoted(&kind.format));
        return Err(Problem::data(what));
    }
    if kind.version != VERSION {
        let what = format!("expected version {VERSION} of the activation metadata, found {}", kind.version);
        return Err(if kind.version > VERSION {
            Problem::data(format!("{what}: it was written by a newer version")).help("update cntlora")
        } else {
            Problem::data(what)
        });
    }
    #[derive(serde::Deserialize)]
    struct Content {
        sites: UniqueKeys<BTreeSet<String>>,
    }
    let content: Content = serde_json::from_str(text).map_err(invalid)?;
    let sites = content.sites.0;
    match sites.iter().find(|(_, modules)| modules.is_empty()) {
        Some((site, _)) => {
            Err(Problem::data(format!("the metadata names no module for site {}", quoted(site)))
                .help("name the modules that read it, or leave the site out of the metadata"))
        }
        None => Ok(sites),
    }
}
