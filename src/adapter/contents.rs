//! Output shared by all adapter formats.

use super::folder::OutputFolder;
use super::loading::{Loading, StoredWholes};
use super::numbers::finite_bytes;
use super::{Adapter, FileRecord, RECORD_FILE};
use crate::element::Element;
use crate::storage::safetensors::Layout;
use crate::storage::{Hashing, NewFile, Problem, Problems};
use faer::Mat;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// An adapter, and the other contents of its folder.
#[derive(Clone, Copy)]
pub struct Contents<'a> {
    /// The adapter.
    pub adapter: &'a Adapter,
    /// The number format of the factors: F32, F16 or BF16. They are rounded to nearest even.
    pub element: Element,
    /// The content of `cntlora.json`, without the hashes of files.
    pub provenance: &'a Map<String, Value>,
    /// The modules of the model that are not adapted, as far as they are known (see [`other_modules`](super::other_modules)). PEFT's
    /// `target_modules` are written so that they do not match them.
    pub other_modules: &'a BTreeSet<String>,
    /// Further files of the folder, by name.
    pub beside: &'a [(&'a str, &'a [u8])],
    /// What only PEFT folders hold.
    pub peft: PeftContents<'a>,
}

/// What only PEFT folders hold.
#[derive(Clone, Copy, Default)]
pub struct PeftContents<'a> {
    /// What loaders are told about the model.
    pub loading: Option<&'a Loading>,
    /// The tensors of modules that are trained whole.
    pub wholes: Option<&'a StoredWholes<'a>>,
    /// The text of the model card, in Markdown. A `README.md` of the user stays in its place.
    pub card: Option<&'a str>,
}

/// A tensor of the file.
pub(super) struct Entry<'a> {
    pub(super) shape: Vec<u64>,
    /// The name of its number format.
    pub(super) dtype: String,
    /// Computes or reads the bytes when they are written, to save memory.
    pub(super) bytes: Box<dyn Fn() -> Result<Vec<u8>, Problem> + 'a>,
}

impl<'a> Entry<'a> {
    /// A factor, computed when it is written.
    pub(super) fn factor(shape: Vec<u64>, element: Element, values: impl Fn() -> Mat<f32> + 'a) -> Self {
        let bytes = move || finite_bytes(values().as_ref(), element);
        Self { shape, dtype: element.name().to_owned(), bytes: Box::new(bytes) }
    }
}

/// The tensors of the file, by name.
pub(super) type Entries<'a> = BTreeMap<String, Entry<'a>>;

impl Contents<'_> {
    /// Writes the file with the tensors, the record with its hash, and the files beside it. Returns the files, with the tensors first,
    /// and the hash.
    ///
    /// # Errors
    /// The data problems of all tensors, together; I/O problems.
    pub(super) fn write(
        &self,
        output: &OutputFolder<'_>,
        name: &str,
        mut metadata: BTreeMap<String, String>,
        entries: &Entries<'_>,
    ) -> Result<(Vec<NewFile>, FileRecord), Problems> {
        metadata.insert("format".to_owned(), "pt".to_owned());
        let shape = |entry: &Entry<'_>| (entry.dtype.clone(), entry.shape.clone());
        let shapes = entries.iter().map(|(key, entry)| (key.clone(), shape(entry))).collect();
        let layout = Layout::new(&metadata, &shapes);
        let mut file = output.create(name)?;
        let mut hashing = Hashing::default();
        hashing.update(layout.header());
        file.put(layout.header())?;
        let mut problems = Problems::default();
        for key in layout.in_file_order() {
            let bytes = (entries[key].bytes)();
            if let Some(bytes) = problems.collect(bytes.map_err(|problem| problem.in_tensor(key))) {
                hashing.update(&bytes);
                file.put(&bytes)?;
            }
        }
        problems.or_ok(())?;

        let mut record = self.provenance.clone();
        let hash = FileRecord::from(hashing);
        record.insert("files".into(), json!({ name: hash }));
        let record = pretty(&Value::Object(record));
        let mut files = vec![file];
        for (name, bytes) in [(RECORD_FILE, record.as_bytes())].iter().chain(self.beside) {
            files.push(output.write(name, bytes)?);
        }
        Ok((files, hash))
    }
}

/// A value as indented text, with a line break at its end.
pub(super) fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
