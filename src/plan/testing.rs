//! Small checkpoints and activations in a temporary folder, with the names of all-MiniLM-L6-v2, and their plans.

use super::*;
use crate::factors::LayerShape;
use crate::method::Options;
use crate::rank::{Limits, Policy};
use crate::storage::{Problems, safetensors, shown};
use expect_test::Expect;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

pub(super) const WIDTH: u64 = 6;
pub(super) const INNER: u64 = 10;
pub(super) const QUERY: &str = "encoder.layer.0.attention.self.query";
pub(super) const INTERMEDIATE: &str = "encoder.layer.0.intermediate.dense";

/// A safetensors file of zeros.
pub(super) fn write<'a>(
    path: &Path,
    metadata: Option<&str>,
    tensors: impl IntoIterator<Item = (&'a str, &'a str, &'a [u64])>,
) {
    let tensors = tensors
        .into_iter()
        .map(|(name, dtype, shape)| {
            let length = safetensors::byte_length(dtype, shape).unwrap();
            (name.to_owned(), (dtype.to_owned(), shape.to_vec(), vec![0; length as usize]))
        })
        .collect();
    let metadata = metadata.map(|text| ("cntlora".to_owned(), text.to_owned())).into_iter().collect();
    safetensors::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

pub(super) fn sites(of: &[(&str, &[&str])]) -> String {
    let sites: BTreeMap<_, _> = of.iter().copied().collect();
    serde_json::json!({ "format": "activations", "version": 1, "sites": sites }).to_string()
}

/// A model, its activations, and a request with default options.
pub(super) struct Fixture {
    pub(super) folder: tempfile::TempDir,
    pub(super) request: Request,
}

impl Fixture {
    /// One layer of BERT: query, key and value share a site.
    pub(super) fn bert() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fixture = Self { request: request(folder.path()), folder };
        let [query, key, value] = ["query", "key", "value"]
            .map(|part| format!("bert.encoder.layer.0.attention.self.{part}.weight"));
        fixture.model(&[
            ("bert.embeddings.LayerNorm.weight", "F32", &[WIDTH]),
            ("bert.embeddings.position_ids", "I64", &[1, 4]),
            (&query, "F32", &[WIDTH, WIDTH]),
            (&key, "F32", &[WIDTH, WIDTH]),
            (&value, "BF16", &[WIDTH, WIDTH]),
            ("bert.encoder.layer.0.intermediate.dense.weight", "F32", &[INNER, WIDTH]),
        ]);
        fixture.activations("target", 8, WIDTH);
        fixture
    }

    pub(super) fn model(&self, tensors: &[(&str, &str, &[u64])]) {
        write(&self.request.model, None, tensors.iter().copied());
    }

    pub(super) fn activations(&self, name: &str, rows: u64, width: u64) -> PathBuf {
        let modules = ["query", "key", "value"].map(|part| format!("encoder.layer.0.attention.self.{part}"));
        let modules = modules.each_ref().map(String::as_str);
        let path = self.folder.path().join(name).with_extension("safetensors");
        write(
            &path,
            Some(&sites(&[(QUERY, &modules)])),
            [(QUERY, "BF16", [rows, width].as_slice()), (INTERMEDIATE, "F32", &[2, rows, width])],
        );
        path
    }

    #[track_caller]
    pub(super) fn plan(&self) -> Plan {
        plan(&self.request).map(|(plan, _)| plan).unwrap_or_else(|problems| panic!("{problems}"))
    }

    /// The problems of the plan.
    #[track_caller]
    pub(super) fn refused(&self) -> Problems {
        plan(&self.request).map(|(plan, _)| plan).expect_err("must be refused")
    }

    /// Compares all problems and their help with a snapshot.
    #[track_caller]
    pub(super) fn check_refusal(&self, expected: &Expect) {
        expected.assert_eq(&shown(&self.refused(), self.folder.path()));
    }
}

pub(super) fn request(folder: &Path) -> Request {
    let method = Options {
        ranks: Policy::Fixed(4),
        limits: Limits { min: 0, max: 4, multiple: 1 },
        ..Options::default()
    };
    let activations = vec![folder.join("target.safetensors")];
    Request { method, ..Request::new(folder.join("model.safetensors"), activations) }
}

/// A model with these tensors, and activations of 8 rows for these sites.
pub(super) fn experts(tensors: &[(&str, &[u64])], sites: &[(&str, u64)], config: Option<&str>) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("model")).unwrap();
    let mut request = request(folder.path());
    request.model = folder.path().join("model");
    write(
        &request.model.join("model.safetensors"),
        None,
        tensors.iter().map(|&(name, shape)| (name, "F32", shape)),
    );
    if let Some(model_type) = config {
        let config = serde_json::json!({ "model_type": model_type }).to_string();
        std::fs::write(request.model.join("config.json"), config).unwrap();
    }
    let shapes: Vec<(&str, [u64; 2])> = sites.iter().map(|&(name, width)| (name, [8, width])).collect();
    write(&request.activations[0], None, shapes.iter().map(|(name, shape)| (*name, "F32", shape.as_slice())));
    Fixture { folder, request }
}

pub(super) fn shapes(plan: &Plan) -> Vec<(String, usize, usize, &LayerShape)> {
    plan.layers().map(|layer| (layer.name.to_string(), layer.outputs, layer.inputs, &layer.shape)).collect()
}
