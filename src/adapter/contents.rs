//! Output shared by all adapter formats.

use super::folder::OutputFolder;
use super::loading::{Loading, StoredWholes};
use super::numbers::finite_bytes;
use super::{Adapter, Carried, FileRecord, RECORD_FILE};
use crate::element::Element;
use crate::storage::safetensors::{Layout, Tensor};
use crate::storage::{Category, Hashing, NewFile, Problem, Problems, Source};
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
    /// The parts that only PEFT folders hold.
    pub peft: PeftContents<'a>,
}

/// The parts that only PEFT folders hold.
#[derive(Clone, Copy, Default)]
pub struct PeftContents<'a> {
    /// The facts about the model for loaders.
    pub loading: Option<&'a Loading>,
    /// The tensors of modules that are trained whole.
    pub wholes: Option<&'a StoredWholes<'a>>,
    /// The text of the model card, in Markdown. A `README.md` of the user stays in its place.
    pub card: Option<&'a str>,
    /// The tensors of another adapter that are not factors.
    pub carried: Option<&'a Carried<'a>>,
}

/// A tensor of the file.
pub(super) struct Entry<'a> {
    pub(super) shape: Vec<u64>,
    pub(super) values: Values<'a>,
}

impl<'a> Entry<'a> {
    /// A factor, computed when it is written.
    pub(super) fn factor(shape: Vec<u64>, element: Element, values: impl Fn() -> Mat<f32> + 'a) -> Self {
        Self { shape, values: Values::Computed(element, Box::new(values)) }
    }
}

/// The numbers of a tensor. They are computed or read when they are written, to save memory.
pub(super) enum Values<'a> {
    /// Numbers to round to a format.
    Computed(Element, Box<dyn Fn() -> Mat<f32> + 'a>),
    /// The bytes of a tensor of a file.
    Copied(&'a Source, &'a Tensor),
}

impl Values<'_> {
    fn dtype(&self) -> &str {
        match self {
            Self::Computed(element, _) => element.name(),
            Self::Copied(_, tensor) => &tensor.dtype,
        }
    }

    /// Passes all bytes to `put`, block by block.
    fn write(&self, put: &mut dyn FnMut(&[u8]) -> Result<(), Problem>) -> Result<(), Problem> {
        match self {
            Self::Computed(element, values) => put(&finite_bytes(values().as_ref(), *element)?),
            Self::Copied(source, tensor) => {
                source.for_each_block(tensor.offset..tensor.offset + tensor.length, |bytes| put(&bytes))
            }
        }
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
        let shape = |entry: &Entry<'_>| (entry.values.dtype().to_owned(), entry.shape.clone());
        let shapes = entries.iter().map(|(key, entry)| (key.clone(), shape(entry))).collect();
        let layout = Layout::new(&metadata, &shapes);
        let mut file = output.create(name)?;
        let mut hashing = Hashing::default();
        hashing.update(layout.header());
        file.put(layout.header())?;
        let mut problems = Problems::default();
        for key in layout.in_file_order() {
            let written = entries[key].values.write(&mut |bytes| {
                hashing.update(bytes);
                file.put(bytes)
            });
            match written {
                // Problems of writing concern the file, and no tensor.
                Err(problem) if problem.category() != Category::Data => return Err(problem.into()),
                written => problems.collect(written.map_err(|problem| problem.in_tensor(key))),
            };
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
