//! A small model with fine-tuning and pre-training activations in a temporary folder, and functions that run the tool there.

use cntlora::element::Element;
use cntlora::random::gaussian;
use cntlora::storage::safetensors;
use expect_test::Expect;
use faer::Mat;
use regex::Regex;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

pub const WIDTH: usize = 24;

/// Rows of each of the three files of fine-tuning activations. No file ends at the end of a block.
pub const ROWS: [usize; 3] = [1500, 700, 1900];

/// A folder with `model.safetensors`, `target/{0,1,2}.safetensors` and `source/0.safetensors`. The model has three linear layers. Two
/// of them read the same input.
pub struct Small {
    folder: TempDir,
}

impl Small {
    pub fn new() -> Self {
        let small = Self { folder: tempfile::tempdir().unwrap() };
        let weights = [("block.query", 20), ("block.value", 12), ("block.mlp", 40)];
        let weights = weights
            .map(|(name, outputs)| (format!("{name}.weight"), gaussian::<f32>(outputs, WIDTH, 5, name)));
        write(&small.path("model.safetensors"), weights);
        fs::create_dir(small.path("target")).unwrap();
        fs::create_dir(small.path("source")).unwrap();
        for (index, rows) in ROWS.into_iter().enumerate() {
            write_sites(&small.path(&format!("target/{index}.safetensors")), rows, index as u64);
        }
        write_sites(&small.path("source/0.safetensors"), ROWS.iter().sum(), 9);
        small
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Returns a command that runs the tool with these arguments in the folder.
    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cntlora"));
        command.current_dir(self.folder.path()).env("NO_COLOR", "1").args(words.split_whitespace());
        command
    }

    pub fn run(&self, words: &str) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs the tool, which must succeed.
    #[track_caller]
    pub fn succeed(&self, words: &str) -> Output {
        let output = self.run(words);
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Runs the tool, which must exit with this code and print exactly this message on stderr. Returns the text of stderr.
    #[allow(dead_code, reason = "not every test uses it")]
    #[track_caller]
    pub fn refused(&self, words: &str, code: i32, message: Expect) -> String {
        let output = self.run(words);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words}: {stderr}");
        message.assert_eq(&on_any_machine(&stderr));
        stderr
    }

    /// Runs several commands. Each command must exit with this code. Together they must print exactly these messages on stderr.
    #[allow(dead_code, reason = "not every test uses it")]
    #[track_caller]
    pub fn all_refused<W: AsRef<str>>(
        &self,
        commands: impl IntoIterator<Item = W>,
        code: i32,
        messages: Expect,
    ) {
        let mut all = String::new();
        for words in commands {
            let words = words.as_ref();
            let output = self.run(words);
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(code), "{words}: {stderr}");
            all += &format!("$ cntlora {words}\n{}", on_any_machine(&stderr));
        }
        messages.assert_eq(&all);
    }

    /// Returns the files of an output by name, but only the files with reproducible bytes. The output is a file or a folder.
    #[allow(dead_code, reason = "not every test uses it")]
    pub fn bytes(&self, output: &str) -> BTreeMap<String, Vec<u8>> {
        let path = self.path(output);
        if path.is_file() {
            return BTreeMap::from([(String::new(), fs::read(path).unwrap())]);
        }
        let promised = [
            "adapter_config.json",
            "adapter_model.safetensors",
            "cntlora.json",
            "base/model.safetensors",
            "lora.safetensors",
            "anchor/lora.safetensors",
        ];
        let files = promised.iter().filter(|name| path.join(name).is_file());
        files.map(|name| ((*name).to_owned(), fs::read(path.join(name)).unwrap())).collect()
    }
}

/// Removes the differences between machines and between runs. For example, memory estimates depend on the number of threads, factors
/// on the instruction set, and the order of warnings on the order in which threads end.
pub fn on_any_machine(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, replacement) in [
        (r"about \S+ \S+ of memory", "about [size] of memory"),
        (r"--max-memory \S+ or more", "--max-memory [size] or more"),
        (r#"modified was "\d+""#, r#"modified was "[time]""#),
        (r": \S+ is too large for", ": [number] is too large for"),
        // It depends on the order in which threads end whether there is progress when a run is refused.
        (r"(?m)^The progress is kept in .*\n", ""),
        (r"but \d{3,} follow the header", "but [number] follow the header"),
    ] {
        text = Regex::new(pattern).unwrap().replace_all(&text, replacement).into_owned();
    }
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    for run in lines.chunk_by_mut(|a, b| [a, b].iter().all(|line| line.starts_with("warning: left out: "))) {
        run.sort_unstable();
    }
    lines.concat()
}

#[allow(dead_code, reason = "not every test uses it")]
pub fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

fn write_sites(path: &Path, rows: usize, seed: u64) {
    let sites = ["block.attention", "block.mlp"].map(|name| {
        let mixing = gaussian::<f32>(WIDTH, WIDTH, 1, name) * faer::Scale(0.4);
        let rows = gaussian::<f32>(rows, WIDTH, seed, name) * (mixing + Mat::<f32>::identity(WIDTH, WIDTH));
        (name.to_owned(), rows)
    });
    write(path, sites);
}

fn write<const N: usize>(path: &Path, matrices: [(String, Mat<f32>); N]) {
    let is_model = matrices.iter().any(|(name, _)| name.ends_with(".weight"));
    let tensors = matrices.into_iter().map(|(name, matrix)| {
        let mut bytes = Vec::new();
        let rows = (0..matrix.nrows()).flat_map(|i| (0..matrix.ncols()).map(move |j| (i, j)));
        Element::F32.encode(rows.map(|(i, j)| f64::from(matrix[(i, j)])), &mut bytes);
        (name, ("F32".to_owned(), vec![matrix.nrows() as u64, matrix.ncols() as u64], bytes))
    });
    let sites = r#"{"format":"activations","version":1,"sites":
        {"block.attention":["block.query","block.value"],"block.mlp":["block.mlp"]}}"#;
    let metadata = (!is_model).then(|| ("cntlora".to_owned(), sites.to_owned())).into_iter().collect();
    safetensors::write(&mut File::create(path).unwrap(), &metadata, &tensors.collect()).unwrap();
}
