//! The demo: makes a small model and its activations, and computes an adapter for them.

use super::args::{Cli, Command, DemoArgs};
use super::command_line;
use super::demo_model::{HEIGHT, Model, pre_training_inputs, tuning_inputs};
use super::init;
use super::interrupt::Interruption;
use super::prepare::create_folder;
use super::resolve;
use super::terminal::Terminal;
use crate::element::Element;
use crate::storage::{AtomicFile, Problem, quoted, safetensors, write_atomically};
use clap::Parser;
use faer::{Mat, MatRef};
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

/// Rows of each of the two fine-tuning shards, and of the pre-training file.
const ROWS: usize = 1024;

/// `model_type` in the configuration of the demo's model, which identifies it in a later run.
const MODEL_TYPE: &str = "cntlora-demo";

/// Makes the files, computes an adapter, and prints a command to try next.
pub(crate) fn run(args: &DemoArgs, terminal: &Terminal) -> anyhow::Result<()> {
    refuse_used(args)?;
    let folder = |name| args.folder.join(name);
    let (model, activations, source, adapter) =
        (folder("model"), folder("activations"), folder("activations-source"), folder("adapter"));
    let interruption = Interruption::handle(terminal)?;
    make(&model, &activations, &source)?;
    terminal.note(&format!(
        "Made a model of {HEIGHT} blocks, {} rows of fine-tuning activations and {ROWS} rows of pre-training activations in {}",
        2 * ROWS,
        quoted(&args.folder.display().to_string())
    ));

    let job = |ranks: &[&str], out: &Path| {
        let mut words: Vec<OsString> = ["cntlora", "init"].map(Into::into).into();
        words.extend([model.clone().into(), "--activations".into(), activations.clone().into()]);
        words.extend(ranks.iter().map(Into::into));
        words.extend(["--out".into(), out.into()]);
        words
    };
    let mut words = job(&["--rank", "8"], &adapter);
    words.extend(["--report".into(), folder("report.html").into()]);
    if args.force {
        words.extend(["--force".into(), "--restart".into()]);
    }
    let line = command_line::join(&words);
    terminal.note(&format!("\n    {line}\n"));
    let Command::Init(init) = Cli::try_parse_from(&words)?.command else {
        unreachable!("the words begin with cntlora init")
    };
    let mut task = resolve::init(*init, terminal.json())?;
    task.job.limit(terminal);
    init::execute(&task, &line, terminal, &interruption)?;

    let next = job(&["--rank", "8", "--budget"], &folder("adapter-budget"));
    terminal.note(&format!(
        "\nNext, spend the same number of parameters where they keep most of the update:\n\n    {}",
        command_line::join(next)
    ));
    Ok(())
}

/// Refuses a folder that is not empty, unless forced, and always one with a model that the demo did not make.
fn refuse_used(args: &DemoArgs) -> Result<(), Problem> {
    let used = fs::read_dir(&args.folder).is_ok_and(|mut entries| entries.next().is_some());
    if used && !args.force {
        return Err(Problem::usage("the folder is not empty")
            .in_file(&args.folder)
            .help("choose another folder, or give --force to write into this one"));
    }
    let model = args.folder.join("model");
    let holds = |name: &str| model.join(name).exists();
    let is_ours =
        || fs::read_to_string(model.join("config.json")).is_ok_and(|text| text.contains(MODEL_TYPE));
    if (holds("config.json") || holds("model.safetensors")) && !is_ours() {
        return Err(Problem::usage("the demo did not make this model, and does not replace it")
            .in_file(&model)
            .help("choose another folder"));
    }
    Ok(())
}

fn make(model_folder: &Path, activations: &Path, source: &Path) -> Result<(), Problem> {
    for folder in [model_folder, activations, source] {
        create_folder(folder)?;
    }
    let model = Model::new();
    let config = json!({ "model_type": MODEL_TYPE, "_name_or_path": MODEL_TYPE });
    write_atomically(&model_folder.join("config.json"), format!("{config:#}\n").as_bytes())?;
    let weights = model.weights.iter().map(|(module, weight)| (format!("{module}.weight"), weight.as_ref()));
    write_matrices(&model_folder.join("model.safetensors"), &BTreeMap::new(), Element::F32, weights)?;

    let metadata = BTreeMap::from([("cntlora".to_owned(), Model::sites_metadata().to_string())]);
    let write_sites = |path: &Path, inputs: &Mat<f32>| {
        let sites = model.record(inputs);
        let sites = sites.iter().map(|(site, rows)| (site.clone(), rows.as_ref()));
        write_matrices(path, &metadata, Element::Bf16, sites)
    };
    for (shard, inputs) in (1..).zip(tuning_inputs::<2>(ROWS)) {
        write_sites(&activations.join(format!("target-{shard:05}-of-00002.safetensors")), &inputs)?;
    }
    write_sites(&source.join("source.safetensors"), &pre_training_inputs(ROWS))
}

fn write_matrices<'a>(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    element: Element,
    matrices: impl Iterator<Item = (String, MatRef<'a, f32>)>,
) -> Result<(), Problem> {
    let tensors = matrices
        .map(|(name, matrix)| {
            let mut bytes = Vec::new();
            for row in 0..matrix.nrows() {
                element
                    .encode((0..matrix.ncols()).map(|column| f64::from(matrix[(row, column)])), &mut bytes);
            }
            let shape = vec![matrix.nrows() as u64, matrix.ncols() as u64];
            (name, (element.name().to_owned(), shape, bytes))
        })
        .collect();
    let mut file = AtomicFile::create(path)?;
    safetensors::write(&mut file, metadata, &tensors)
        .map_err(|error| Problem::io("cannot write", &error).in_file(path))?;
    file.commit()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn used_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = |force| {
            refuse_used(&DemoArgs { folder: folder.path().into(), force }).err().map(|problem| {
                let text = format!("{problem}; help: {}", problem.next_step().unwrap());
                text.replace(folder.path().to_str().unwrap(), "FOLDER")
            })
        };
        assert_eq!(refusal(false), None);
        assert!(refuse_used(&DemoArgs { folder: folder.path().join("new"), force: false }).is_ok());
        fs::create_dir(folder.path().join("model")).unwrap();
        expect!["FOLDER: the folder is not empty; help: choose another folder, or give --force to write into this one"].assert_eq(&refusal(false).unwrap());
        assert_eq!(refusal(true), None);
        let config = folder.path().join("model/config.json");
        fs::write(&config, "{\"model_type\":\"bert\"}").unwrap();
        expect!["FOLDER/model: the demo did not make this model, and does not replace it; help: choose another folder"].assert_eq(&refusal(true).unwrap());
        fs::write(&config, "{\"model_type\":\"cntlora-demo\"}").unwrap();
        assert_eq!(refusal(true), None);
    }
}
