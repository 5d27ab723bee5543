//! Everything that can be refused before heavy work, all at once.

use super::args::JobArgs;
use super::{effects, resolve};
use cntlora::adapter::{self, Format};
use cntlora::factors::LayerShape;
use cntlora::plan::{self, Inputs, Plan, Request};
use cntlora::run::{Output, PartialRun, progress_folder};
use cntlora::storage::{Problem, Problems, quoted};
use std::fs;
use std::path::{Path, PathBuf};

/// Checks the options and the output folders, if they are known, and plans.
pub fn prepare(output: Option<&Output>, job: &JobArgs) -> Result<(Plan, Inputs), Problems> {
    let mut problems = Problems::default();
    let request = resolve::request(job);
    problems.collect(effects::check(job));
    if let Some(output) = output {
        problems.collect(check_output(output, &request, job.output.force));
    }
    match problems.collect(plan::plan(&request)) {
        Some((plan, inputs)) => {
            if let Some(output) = output {
                check_layers(output, &plan, &inputs, &mut problems);
            }
            problems.or_ok((plan, inputs))
        }
        None => Err(problems),
    }
}

/// Refuses to take the updates of convolutions in groups from a base.
fn check_groups(output: &Output, plan: &Plan) -> Result<(), Problem> {
    if output.base.is_some()
        && let Some(layer) = plan.layers().find(|layer| matches!(layer.shape, LayerShape::Group { .. }))
    {
        let what = format!(
            "{}: the weight of a convolution in groups reads the channels of its group, but the update reads all: no base can \
             hold what is left",
            quoted(&layer.module)
        );
        return Err(Problem::usage(what).help("give --residual anchor, or leave it out with --exclude"));
    }
    Ok(())
}

/// Refuses layers that the output cannot have.
pub fn check_layers(output: &Output, plan: &Plan, inputs: &Inputs, problems: &mut Problems) {
    if let Format::SingleFile(..) = output.format {
        let shapes = plan.layers().map(|layer| (layer.module.as_str(), &layer.shape));
        problems.collect(adapter::refuse_shapes_without_place(shapes));
    }
    if output.base.is_some() {
        for layer in plan.layers().filter(|layer| layer.shape == LayerShape::Embedding) {
            problems.collect(plan::refuse_tied_embedding(&inputs.checkpoint, &layer.tensors()));
        }
    }
    problems.collect(check_groups(output, plan));
}

/// Refuses an output that would replace something, unless forced, and one that would mix with the inputs.
pub fn check_output(output: &Output, request: &Request, force: bool) -> Result<(), Problems> {
    let mut problems = Problems::default();
    match force {
        true => output.folders().into_iter().for_each(|folder| {
            problems.collect(refuse_file_in_place(folder));
        }),
        false => {
            problems.collect(refuse_occupied(output));
        }
    }
    let inputs = || {
        let Request { activations, moments, source, source_moments, .. } = request;
        [&request.model].into_iter().chain(activations).chain(moments).chain(source).chain(source_moments)
    };
    for folder in output.changed_folders() {
        problems.collect(refuse_input_folder(&folder, inputs()));
    }
    for folder in output.folders() {
        problems.collect(refuse_unwritable(folder));
    }
    if let Some(base) = &output.base
        && same_folder(&output.folder, base)
    {
        problems.push(
            Problem::usage("the adapter and the changed base would share this folder")
                .in_file(base)
                .help("give --base-out a folder of its own"),
        );
    }
    if let Some(page) = &output.page {
        // Whether it may be replaced is asked with the folders.
        problems.collect(check_page(page, true));
    }
    problems.or_ok(())
}

/// Refuses an output folder that is one of the inputs, by whatever name, or holds one.
pub fn refuse_input_folder<'a>(
    folder: &Path,
    mut inputs: impl Iterator<Item = &'a PathBuf>,
) -> Result<(), Problem> {
    match inputs.find(|input| same_folder(folder, input)) {
        None => Ok(()),
        Some(input) => Err(Problem::usage(format!(
            "this folder holds an input, {}",
            input.display().to_string().escape_debug()
        ))
        .in_file(folder)
        .help("write to a folder of its own")),
    }
}

/// Refuses output folders that hold an adapter or a model, and a page that is there, unless they are what an unfinished run began to
/// write.
pub fn refuse_occupied(output: &Output) -> Result<(), Problems> {
    let mut problems = Problems::default();
    for folder in output.folders() {
        if !is_being_written(output, folder) {
            problems.collect(adapter::refuse_occupied(folder));
        }
    }
    if let Some(page) = &output.page
        && !is_being_written(output, page)
    {
        problems.collect(refuse_page_in_place(page));
    }
    problems.or_ok(())
}

/// Whether an unfinished run into this output began to write one of its files or folders.
fn is_being_written(output: &Output, path: &Path) -> bool {
    PartialRun::is_writing(&progress_folder(&output.folder), path)
}

/// Refuses to replace a file by a folder, which no force does.
pub fn refuse_file_in_place(folder: &Path) -> Result<(), Problem> {
    if fs::metadata(folder).is_ok_and(|metadata| !metadata.is_dir()) {
        return Err(Problem::environment("expected a folder to write to, or nothing; found something else")
            .in_file(folder)
            .help("choose another name for the output"));
    }
    Ok(())
}

/// Refuses an output file that is there already, unless forced, that is one of the inputs, or that stands among them.
pub fn check_output_file(file: &Path, force: bool, inputs: &[PathBuf]) -> Result<(), Problems> {
    let mut problems = Problems::default();
    let folder = file.parent().map_or(Path::new("."), or_here);
    let real = |path: &Path| fs::canonicalize(path).ok();
    let input_file =
        |input: &&PathBuf| *input == file || (real(input).is_some() && real(input) == real(file));
    if inputs.iter().any(|input| input_file(&input)) {
        problems.push(
            Problem::usage("the output is one of the inputs").in_file(file).help("write to another file"),
        );
    } else if inputs.iter().any(|input| input.is_dir() && same_folder(folder, input)) {
        problems.push(
            Problem::usage("the output would be among the inputs, and be read with them the next time")
                .in_file(file)
                .help("write to another folder"),
        );
    } else {
        problems.collect(refuse_existing(file, force));
    }
    problems.collect(refuse_unwritable(folder));
    problems.or_ok(())
}

/// Refuses a part that is there already, unless forced.
pub fn refuse_existing_part(folder: &Path, force: bool) -> Result<(), Problem> {
    if folder.exists() && !force {
        return Err(Problem::usage("this part is there already")
            .in_file(folder)
            .help("choose another folder for the parts, or give --force to make it again"));
    }
    Ok(())
}

/// Refuses an output file that is there already, unless forced, and unless an interrupted run left it.
pub fn refuse_existing(file: &Path, force: bool) -> Result<(), Problem> {
    refuse_irregular(file)?;
    if file.exists() && !force && !PartialRun::is_writing(&progress_folder(file), file) {
        return Err(Problem::usage("is there already")
            .in_file(file)
            .help("choose another name, or give --force to replace it"));
    }
    Ok(())
}

/// Refuses to replace what is no file.
fn refuse_irregular(file: &Path) -> Result<(), Problem> {
    let found = match fs::metadata(file) {
        Ok(metadata) if metadata.is_dir() => "a folder",
        Ok(metadata) if !metadata.is_file() => "a pipe or a device",
        _ => return Ok(()),
    };
    Err(Problem::usage(format!("expected the name of a file to write, found {found}"))
        .in_file(file)
        .help("give the name of a file"))
}

/// Refuses a page that would replace something, unless forced, and one whose name is that of something else.
pub fn check_page(path: &Path, force: bool) -> Result<(), Problem> {
    let page = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("html"));
    if !page {
        return Err(Problem::usage("expected the name of a page to write, which ends in .html")
            .in_file(path)
            .help("give a name such as report.html"));
    }
    refuse_irregular(path)?;
    if !force {
        refuse_page_in_place(path)?;
    }
    path.parent().map_or(Ok(()), |folder| refuse_unwritable(or_here(folder)))
}

fn refuse_page_in_place(path: &Path) -> Result<(), Problem> {
    if path.exists() {
        return Err(Problem::usage("there is a page of this name")
            .in_file(path)
            .help("choose another name, or give --force to replace it"));
    }
    Ok(())
}

/// Refuses a folder that cannot be written to, or made, before the work rather than after it.
fn refuse_unwritable(folder: &Path) -> Result<(), Problem> {
    // Of a file in the folder's place another complaint speaks.
    let Some(existing) = folder.ancestors().map(or_here).find(|path| path.exists()) else { return Ok(()) };
    if existing == folder && !existing.is_dir() {
        return Ok(());
    }
    tempfile::tempfile_in(existing).map(drop).map_err(|error| {
        Problem::io("cannot write here", &error)
            .in_file(existing)
            .help("give a folder that can be written to")
    })
}

/// Whether `input` is the folder, by whatever name, or a file directly in it.
fn same_folder(folder: &Path, input: &Path) -> bool {
    let holder = if input.is_file() { input.parent().map(or_here) } else { Some(input) };
    if holder == Some(folder) {
        return true;
    }
    let real = |path: &Path| fs::canonicalize(path).ok();
    real(folder).is_some_and(|folder| holder.and_then(real) == Some(folder))
}

/// The parent of a bare file name is the current folder.
fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Makes the folder that holds `path`, and those above it.
pub fn create_parent(path: &Path) -> Result<(), Problem> {
    path.parent().map_or(Ok(()), |parent| create_folder(or_here(parent)))
}

/// Makes a folder and those above it, unless it is there.
pub fn create_folder(folder: &Path) -> Result<(), Problem> {
    fs::create_dir_all(folder).map_err(|error| Problem::io("cannot make the folder", &error).in_file(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What cannot be written is refused before the run, also where folders would have to be made first.
    #[test]
    fn unwritable_outputs_are_refused_early() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refuse_unwritable(&folder.path().join("new/deep")).is_ok());
        assert!(refuse_unwritable(Path::new("new")).is_ok());
        let problem = refuse_unwritable(&file.join("below")).unwrap_err();
        assert!(
            problem.to_string().ends_with("file: cannot write here: Not a directory (os error 20)"),
            "{problem}"
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    /// An output file is no input, not among inputs, and takes no place but by force.
    #[test]
    fn output_files_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("activations")).unwrap();
        fs::write(path("activations/a.npy"), "").unwrap();
        fs::write(path("old"), "").unwrap();
        let inputs = [path("activations"), path("old")];
        let refusal = |out: &str, force| {
            check_output_file(&path(out), force, &inputs).map_err(|problems| problems.to_string())
        };
        assert_eq!(refusal("new", false), Ok(()));
        for force in [false, true] {
            assert!(refusal("old", force).unwrap_err().ends_with("the output is one of the inputs"));
            assert!(refusal("activations/m", force).unwrap_err().contains("would be among the inputs"));
            assert!(refusal("activations", force).unwrap_err().contains("is one of the inputs"));
        }
        let inputs = [path("elsewhere")];
        let refusal = |force| check_output_file(&path("old"), force, &inputs);
        assert!(refusal(false).unwrap_err().to_string().ends_with("old: is there already"));
        assert!(refusal(true).is_ok());
        let problem = refuse_existing(folder.path(), true).unwrap_err();
        assert!(problem.to_string().ends_with("found a folder"), "{problem}");
    }

    /// A page replaces a page when forced, and never a file of another kind.
    #[test]
    fn pages_do_not_replace_by_accident() {
        let folder = tempfile::tempdir().unwrap();
        let (page, weights) = (folder.path().join("a.html"), folder.path().join("model.safetensors"));
        assert!(check_page(&page, false).is_ok());
        fs::write(&page, "").unwrap();
        let problem = check_page(&page, false).unwrap_err();
        assert!(problem.next_step().unwrap().contains("--force"), "{problem}");
        assert!(check_page(&page, true).is_ok());
        let problem = check_page(&weights, true).unwrap_err();
        assert!(problem.to_string().contains("ends in .html"), "{problem}");
    }

    /// An output never goes where an input is, whatever the folder is called.
    #[test]
    fn inputs_are_recognized_by_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        fs::create_dir(&model).unwrap();
        let file = model.join("model.safetensors");
        fs::write(&file, "").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&model, &link).unwrap();
        assert!(same_folder(&model, &model));
        assert!(same_folder(&link, &model));
        assert!(same_folder(&link, &file));
        assert!(same_folder(&model.join("../model"), &file));
        assert!(!same_folder(folder.path(), &model));
        assert!(!same_folder(&folder.path().join("new"), &file));
        assert!(same_folder(Path::new("new"), Path::new("new")));
    }
}
