//! Saved layers of a finished site: a safetensors file.
//!
//! | layer | tensors |
//! |---|---|
//! | components of an update | `<layer>/u` and `<layer>/a` (F32), `<layer>/sigma` and `<layer>/activation_energy` (F64), `<layer>/figures` (F64): energy, residual, output energy, seconds |
//! | known factors | `<layer>/b` and `<layer>/a` (F32), `<layer>/spectrum` (F64), `<layer>/figures` (F64): energy, seconds, and the effective rank if there is one |
//!
//! The metadata entry `cntlora` is JSON: the identity of the job, the report of the site, and the other data of each layer. The entry
//! `sha256` is the hash of this text and of the data of all tensors, sorted by name. The file of an unusable site has no layers, and the
//! reason in place of the report.

use crate::factors::{Components, Factors};
use crate::method::{Decomposition, Draft, Nested};
use crate::report::{SiteReport, UnusableSite};
use crate::storage::safetensors::{Header, write};
use crate::storage::{AtomicFile, Hashing, Problem, Schema, Source};
use faer::{Mat, MatRef};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const METADATA: &str = "cntlora";
const HASH: &str = "sha256";
const SCHEMA: Schema =
    Schema { format: "decomposed-site", newest: 1, name: "saved layers", help: "run again with --restart" };

/// The saved result of a site.
#[derive(Debug)]
pub struct SavedLayers {
    /// Identifies the inputs and options that the layers depend on.
    pub job: String,
    /// The report of the site, or the reason why it cannot be used.
    pub found: Result<SiteReport, UnusableSite>,
    /// The layers by the text of their names, each with its time in seconds.
    pub layers: BTreeMap<String, (Draft, f64)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: String,
    version: u64,
    job: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    report: Option<SiteReport>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unusable: Option<UnusableSite>,
    /// For each update, whether its energy is exact.
    energy_exact: BTreeMap<String, bool>,
    /// The layers with known factors.
    #[serde(default)]
    nested: BTreeSet<String>,
}

type Tensors = BTreeMap<String, (String, Vec<u64>, Vec<u8>)>;

impl SavedLayers {
    /// Writes a file, atomically.
    ///
    /// # Errors
    /// I/O problems of writing.
    pub fn write(&self, path: &Path) -> Result<(), Problem> {
        let mut text = Text {
            format: SCHEMA.format.into(),
            version: SCHEMA.newest,
            job: self.job.clone(),
            report: self.found.as_ref().ok().cloned(),
            unusable: self.found.as_ref().err().cloned(),
            energy_exact: BTreeMap::new(),
            nested: BTreeSet::new(),
        };
        let mut tensors = Tensors::new();
        for (module, (layer, seconds)) in &self.layers {
            let mut put = |name: &str, tensor| tensors.insert(format!("{module}/{name}"), tensor);
            match layer {
                Draft::Update(Decomposition { components, energy, energy_exact, residual }) => {
                    text.energy_exact.insert(module.clone(), *energy_exact);
                    let Components { u, sigma, a, activation_energy, output_energy } = components;
                    put("u", matrix(u.as_ref()));
                    put("a", matrix(a.as_ref()));
                    put("sigma", vector(sigma));
                    put("activation_energy", vector(activation_energy));
                    put("figures", vector(&[*energy, *residual, *output_energy, *seconds]));
                }
                Draft::Nested(Nested { factors, spectrum, energy, effective_rank }) => {
                    text.nested.insert(module.clone());
                    put("b", matrix(factors.b.as_ref()));
                    put("a", matrix(factors.a.as_ref()));
                    put("spectrum", vector(spectrum));
                    let figures = [*energy, *seconds].into_iter().chain(*effective_rank);
                    put("figures", vector(&figures.collect::<Vec<_>>()));
                }
            }
        }
        let text = serde_json::to_string(&text)
            .map_err(|error| Problem::environment(error.to_string()).in_file(path))?;
        let data = tensors.values().map(|(_, _, data)| data.as_slice());
        let metadata = BTreeMap::from([(HASH.to_owned(), hash(&text, data)), (METADATA.to_owned(), text)]);
        let mut file = AtomicFile::create(path)?;
        write(&mut file, &metadata, &tensors)
            .map_err(|error| Problem::io("cannot write", &error).in_file(path))?;
        file.commit()
    }

    /// Reads a file and verifies its checksum.
    ///
    /// # Errors
    /// An I/O problem if it cannot be read; a data problem for another kind of file, or a checksum mismatch.
    pub fn read(source: &Source) -> Result<Self, Problem> {
        let header = Header::read(source)?;
        let refused = |what: String| Problem::data(what).in_file(source.path());
        let (Some(text), Some(expected)) = (header.metadata.get(METADATA), header.metadata.get(HASH)) else {
            return Err(refused("not a file of saved layers".into()));
        };
        let mut data = BTreeMap::new();
        for (name, tensor) in &header.tensors {
            data.insert(name.as_str(), source.read_vec(tensor.offset, tensor.length)?);
        }
        if hash(text, data.values().map(Vec::as_slice)) != *expected {
            return Err(refused("checksum mismatch: the file is damaged".into()));
        }
        let text: Text = SCHEMA.parse(text.as_bytes()).map_err(|problem| problem.in_file(source.path()))?;
        let stored = Stored { header: &header, data: &data };
        let mut layers = BTreeMap::new();
        let misfit = |module: &str, tensors: &str| {
            refused(format!("expected the {tensors} tensors of a layer, with matching shapes"))
                .in_tensor(module)
        };
        for (module, energy_exact) in text.energy_exact {
            let layer = stored.update(&module, energy_exact).ok_or_else(|| misfit(&module, "five"))?;
            layers.insert(module, layer);
        }
        for module in text.nested {
            let layer = stored.nested(&module).ok_or_else(|| misfit(&module, "four"))?;
            layers.insert(module, layer);
        }
        let found = match (text.report, text.unusable) {
            (Some(report), None) => Ok(report),
            (None, Some(unusable)) if layers.is_empty() => Err(unusable),
            _ => {
                return Err(refused(
                    "expected either the report of a site, or the reason why it cannot be used".into(),
                ));
            }
        };
        Ok(Self { job: text.job, found, layers })
    }
}

struct Stored<'a> {
    header: &'a Header,
    data: &'a BTreeMap<&'a str, Vec<u8>>,
}

impl Stored<'_> {
    /// `None` if tensors are missing or have wrong shapes.
    fn update(&self, module: &str, energy_exact: bool) -> Option<(Draft, f64)> {
        let [u, a] = ["u", "a"].map(|name| self.matrix(&format!("{module}/{name}")));
        let [sigma, activation_energy, figures] =
            ["sigma", "activation_energy", "figures"].map(|name| self.vector(&format!("{module}/{name}")));
        let (u, a, sigma, activation_energy) = (u?, a?, sigma?, activation_energy?);
        let [energy, residual, output_energy, seconds] = figures?.try_into().ok()?;
        let components = sigma.len();
        // Methods that take the whole update do not need the energies.
        let energies = [0, components].contains(&activation_energy.len());
        if [u.ncols(), a.ncols()] != [components; 2] || !energies {
            return None;
        }
        let components = Components { u, sigma, a, activation_energy, output_energy };
        Some((Draft::Update(Decomposition { components, energy, energy_exact, residual }), seconds))
    }

    /// `None` if tensors are missing or have wrong shapes.
    fn nested(&self, module: &str) -> Option<(Draft, f64)> {
        let [b, a] = ["b", "a"].map(|name| self.matrix(&format!("{module}/{name}")));
        let [spectrum, figures] =
            ["spectrum", "figures"].map(|name| self.vector(&format!("{module}/{name}")));
        let (b, a, spectrum) = (b?, a?, spectrum?);
        let (energy, seconds, effective_rank) = match figures?[..] {
            [energy, seconds] => (energy, seconds, None),
            [energy, seconds, effective_rank] => (energy, seconds, Some(effective_rank)),
            _ => return None,
        };
        if [b.ncols(), a.nrows()] != [spectrum.len(); 2] {
            return None;
        }
        let factors = Factors { a, b };
        Some((Draft::Nested(Nested { factors, spectrum, energy, effective_rank }), seconds))
    }

    fn numbers<const N: usize>(&self, name: &str, dtype: &str) -> Option<&[[u8; N]]> {
        let tensor = self.header.tensors.get(name).filter(|tensor| tensor.dtype == dtype)?;
        debug_assert_eq!(tensor.length, self.data[name].len() as u64);
        let (numbers, []) = self.data.get(name)?.as_chunks::<N>() else { return None };
        Some(numbers)
    }

    fn matrix(&self, name: &str) -> Option<Mat<f32>> {
        let numbers = self.numbers(name, "F32")?;
        let &[rows, columns] = self.header.tensors.get(name)?.shape.as_slice() else { return None };
        // The header was checked, so the number of values is right. If one side is zero, the other can be arbitrary.
        let (rows, columns) = (usize::try_from(rows).ok()?, usize::try_from(columns).ok()?);
        if numbers.is_empty() {
            return None;
        }
        Some(Mat::from_fn(rows, columns, |i, j| f32::from_le_bytes(numbers[i * columns + j])))
    }

    fn vector(&self, name: &str) -> Option<Vec<f64>> {
        let numbers = self.numbers(name, "F64")?;
        Some(numbers.iter().copied().map(f64::from_le_bytes).collect())
    }
}

fn matrix(matrix: MatRef<'_, f32>) -> (String, Vec<u64>, Vec<u8>) {
    let rows = (0..matrix.nrows()).flat_map(|i| (0..matrix.ncols()).map(move |j| (i, j)));
    let data = rows.flat_map(|(i, j)| matrix[(i, j)].to_le_bytes()).collect();
    ("F32".into(), vec![matrix.nrows() as u64, matrix.ncols() as u64], data)
}

fn vector(numbers: &[f64]) -> (String, Vec<u64>, Vec<u8>) {
    let data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    ("F64".into(), vec![numbers.len() as u64], data)
}

fn hash<'a>(text: &str, data: impl Iterator<Item = &'a [u8]>) -> String {
    let mut hashing = Hashing::default();
    hashing.update(text.as_bytes());
    data.for_each(|bytes| hashing.update(bytes));
    hashing.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::gaussian;
    use crate::spread::Spread;
    use crate::storage::shown;
    use expect_test::{Expect, expect};
    use quickcheck::quickcheck;
    use std::fs;

    fn example(seed: u64) -> SavedLayers {
        let layer = |name: &str, outputs, inputs, rank: usize| {
            let figures: Vec<f64> = (0..rank).map(|i| 1.0 / (seed % 1000 + i as u64 + 3) as f64).collect();
            let components = Components {
                u: gaussian(outputs, rank, seed, name),
                sigma: figures.clone(),
                a: gaussian(inputs, rank, seed, name),
                activation_energy: figures,
                output_energy: 0.1 + 0.2,
            };
            let update =
                Decomposition { components, energy: 1.0 / 3.0, energy_exact: rank == 2, residual: 1e-300 };
            (Draft::Update(update), 0.5)
        };
        let nested = Nested {
            factors: Factors { a: gaussian(2, 5, seed, "o"), b: gaussian(6, 2, seed, "o") },
            spectrum: vec![1.0 / 3.0, 0.1 + 0.2],
            energy: 1e-300,
            effective_rank: None,
        };
        let ranked = Nested { effective_rank: Some(0.1 + 0.2), ..nested.clone() };
        let report = SiteReport {
            name: "site".into(),
            embedding: false,
            width: 5,
            rows: 10,
            source_rows: Some(7),
            skipped_rows: 1,
            zero_rows: 2,
            source_zero_rows: 3,
            damping: 0.01,
            moments_seconds: 1.5,
            constraint_seconds: 2.5,
            spread: Some(Spread { mean_square: 3.0, variance: 2.0, effective_rank: 1.5, top_share: 0.75 }),
            source_spread: None,
            frechet_distance: Some(0.5),
        };
        let [nested, ranked] = [nested, ranked].map(|nested| (Draft::Nested(nested), 0.25));
        let layers = [("q", layer("q", 3, 5, 2)), ("v/u", layer("v", 4, 5, 3)), ("o", nested), ("p", ranked)];
        let layers = layers.into_iter().map(|(name, layer)| (name.to_owned(), layer)).collect();
        SavedLayers { job: "job".into(), found: Ok(report), layers }
    }

    fn unusable() -> SavedLayers {
        let site = UnusableSite {
            name: "site\n".into(),
            modules: vec!["q".into(), "v".into()],
            reason: "all activations are zero".into(),
            remedy: "record more".into(),
        };
        SavedLayers { job: "job".into(), found: Err(site), layers: BTreeMap::new() }
    }

    fn written(layers: &SavedLayers) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        layers.write(&folder.path().join("x")).unwrap();
        fs::read(folder.path().join("x")).unwrap()
    }

    fn read(bytes: Vec<u8>) -> Result<SavedLayers, Problem> {
        SavedLayers::read(&Source::from_bytes("x.safetensors", bytes))
    }

    quickcheck! {
        /// All bits read back.
        fn written_layers_read_back(seed: u64) -> bool {
            let (saved, read) = (example(seed), read(written(&example(seed))).unwrap());
            saved.job == read.job && saved.found == read.found && saved.layers.len() == read.layers.len()
                && saved.layers.iter().zip(&read.layers).all(|((m, (a, s)), (n, (b, t)))| {
                    (m, s) == (n, t) && match (a, b) {
                        (Draft::Update(a), Draft::Update(b)) => {
                            (a.energy, a.energy_exact, a.residual) == (b.energy, b.energy_exact, b.residual)
                                && a.components.u == b.components.u
                                && a.components.a == b.components.a
                                && a.components.sigma == b.components.sigma
                                && a.components.activation_energy == b.components.activation_energy
                                && a.components.output_energy == b.components.output_energy
                        }
                        (Draft::Nested(a), Draft::Nested(b)) => {
                            (a.energy, &a.spectrum, a.effective_rank) == (b.energy, &b.spectrum, b.effective_rank)
                                && a.factors.a == b.factors.a
                                && a.factors.b == b.factors.b
                        }
                        _ => false,
                    }
                })
        }

        /// Every change of the data is detected. A change of the header can be harmless. No change causes a panic.
        fn damage_is_detected(at: usize, bit: u8) -> bool {
            let mut bytes = written(&if bit < 128 { example(0) } else { unusable() });
            let data = Header::read(&Source::from_bytes("x", bytes.clone())).unwrap().data_start as usize;
            let at = at % bytes.len();
            bytes[at] ^= 1 << (bit % 8);
            read(bytes).is_err() || at < data
        }
    }

    #[test]
    fn reason_of_an_unusable_site_reads_back() {
        let read = read(written(&unusable())).unwrap();
        assert_eq!((read.found, read.layers.len()), (unusable().found, 0));
    }

    #[test]
    fn other_files_are_refused() {
        let refused = |bytes: Vec<u8>, expected: &Expect| {
            let problem = read(bytes).map(|_| ()).unwrap_err();
            expected.assert_eq(&shown(&problem.into(), Path::new("-")));
        };
        let file = |text: &str, tensors: Tensors| {
            let data = tensors.values().map(|(_, _, data)| data.as_slice());
            let metadata =
                BTreeMap::from([(HASH.to_owned(), hash(text, data)), (METADATA.to_owned(), text.to_owned())]);
            let mut bytes = Vec::new();
            write(&mut bytes, &metadata, &tensors).unwrap();
            bytes
        };
        let mut bytes = Vec::new();
        write(&mut bytes, &BTreeMap::new(), &Tensors::new()).unwrap();
        refused(
            bytes,
            &expect![[r#"
                Data: x.safetensors: not a file of saved layers
            "#]],
        );
        refused(
            file("{}", Tensors::new()),
            &expect![[r#"
                Data: x.safetensors: invalid saved layers: missing field `format` at line 1 column 2
                    help: run again with --restart
            "#]],
        );
        let text = |version: u64, layers: &str| {
            let report = serde_json::to_string(&example(0).found.unwrap()).unwrap();
            format!(
                r#"{{"format":"decomposed-site","version":{version},"job":"","report":{report},"energy_exact":{layers}}}"#
            )
        };
        refused(
            file(&text(2, "{}"), Tensors::new()),
            &expect![[r#"
                Data: x.safetensors: unsupported version 2 of the saved layers: the newest known version is 1
                    help: use the version of cntlora that wrote it, or a newer one
            "#]],
        );
        refused(
            file(&text(1, r#"{"q":true}"#), Tensors::new()),
            &expect![[r#"
                Data: x.safetensors: tensor "q": expected the five tensors of a layer, with matching shapes
            "#]],
        );
        let matrix = matrix(Mat::<f32>::zeros(2, 2).as_ref());
        let tensors = |sigma: &[f64]| {
            let vectors = [
                ("q/sigma", vector(sigma)),
                ("q/activation_energy", vector(&[1.0; 2])),
                ("q/figures", vector(&[1.0; 4])),
            ];
            let all = [("q/u", matrix.clone()), ("q/a", matrix.clone())].into_iter().chain(vectors);
            all.map(|(name, tensor)| (name.to_owned(), tensor)).collect::<Tensors>()
        };
        let text = text(1, r#"{"q":true}"#);
        assert!(read(file(&text, tensors(&[1.0; 2]))).is_ok());
        refused(
            file(&text, tensors(&[1.0; 3])),
            &expect![[r#"
                Data: x.safetensors: tensor "q": expected the five tensors of a layer, with matching shapes
            "#]],
        );
        let reason = serde_json::to_string(&unusable().found.unwrap_err()).unwrap();
        let both = text.replace(r#""energy_exact""#, &format!(r#""unusable":{reason},"energy_exact""#));
        refused(
            file(&both, tensors(&[1.0; 2])),
            &expect![[r#"
                Data: x.safetensors: expected either the report of a site, or the reason why it cannot be used
            "#]],
        );

        let nested = text.replace(r#"{"q":true}"#, r#"{},"nested":["q"]"#);
        refused(
            file(&nested, Tensors::new()),
            &expect![[r#"
                Data: x.safetensors: tensor "q": expected the four tensors of a layer, with matching shapes
            "#]],
        );
        let tensors = |spectrum: &[f64]| {
            let vectors = [("q/spectrum", vector(spectrum)), ("q/figures", vector(&[1.0; 2]))];
            let all = [("q/b", matrix.clone()), ("q/a", matrix.clone())].into_iter().chain(vectors);
            all.map(|(name, tensor)| (name.to_owned(), tensor)).collect::<Tensors>()
        };
        assert!(read(file(&nested, tensors(&[1.0; 2]))).is_ok());
        refused(
            file(&nested, tensors(&[1.0; 3])),
            &expect![[r#"
                Data: x.safetensors: tensor "q": expected the four tensors of a layer, with matching shapes
            "#]],
        );
    }
}
