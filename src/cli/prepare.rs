//! Checks before the computation: all problems with options and outputs are found at once.

use super::resolve::{self, Job};
use super::terminal::Terminal;
use crate::adapter::{self, BaseFormat, Format, UniformRank};
use crate::element::Element;
use crate::factors::LayerShape;
use crate::plan::{self, Inputs, Plan, Request};
use crate::rank::Policy;
use crate::report::format::count;
use crate::run::{Output, PartialRun, progress_folder};
use crate::storage::{Problem, Problems, is_same_file, quoted, visible};
use std::fs;
use std::path::{Path, PathBuf};

/// Plans a job, and checks its output if it is known. Refused options are among the problems, and layers that the output cannot hold.
/// Warns of a changed base that is rounded.
pub(crate) fn prepare(
    job: &Job,
    output: Option<&Output>,
    terminal: &Terminal,
) -> Result<(Plan, Inputs), Problems> {
    let mut problems = job.refused.clone();
    if let Some(output) = output {
        problems.collect(check_output(output, &job.request, job.force));
    }
    match problems.collect(plan::plan(&job.request)) {
        Some((plan, inputs)) => {
            // Where the output goes does not matter to the layers.
            let anywhere = resolve::output(Path::new(""), job.request.method.start, &job.writing);
            let output = output.unwrap_or(&anywhere);
            check_layers(output, &plan, &inputs, &mut problems);
            problems.or_ok(())?;
            if let Some(warning) = rounding(output, &plan) {
                terminal.warning(&warning);
            }
            Ok((plan, inputs))
        }
        None => Err(problems),
    }
}

/// Refuses a changed base for convolutions in groups.
fn check_groups(output: &Output, plan: &Plan) -> Result<(), Problem> {
    if output.base.is_some()
        && let Some(layer) = plan.layers().find(|layer| matches!(layer.shape, LayerShape::Group { .. }))
    {
        let what = format!(
            "{}: a changed base cannot hold the update of a convolution in groups, because the update reads the channels of all groups",
            quoted(&layer.name.to_string())
        );
        return Err(
            Problem::usage(what).help("give --residual anchor, or leave the layer out with --exclude")
        );
    }
    Ok(())
}

/// The warning about a changed base that is rounded, if it is: the size of the effect, and the ways without it.
pub(crate) fn rounding(output: &Output, plan: &Plan) -> Option<String> {
    const FORMATS: [(Element, &str); 2] = [(Element::Bf16, "0.4 %"), (Element::F16, "0.05 %")];
    if output.base.is_none() || output.base_format == BaseFormat::F32 {
        return None;
    }
    let quantized = plan.layers().filter(|layer| layer.quantization.is_some()).count();
    let (weights, (element, share)) = if output.base_format == BaseFormat::Bf16 && quantized > 0 {
        let weights = match quantized {
            1 => "1 quantized weight that is adapted is written".to_owned(),
            many => format!("{many} quantized weights that are adapted are written"),
        };
        (weights, FORMATS[0])
    } else {
        let format =
            FORMATS.into_iter().find(|(element, _)| plan.layers().any(|layer| layer.element == *element))?;
        let rounded = plan.layers().filter(|layer| layer.element == format.0).count();
        (format!("the model stores {}", count(rounded as u64, "adapted weight")), format)
    };
    Some(format!(
        "the changed base is rounded: {weights} in {}, so each changed number is off by up to {share} of its size, and the outputs before \
         training differ from those of the model. Give --base-dtype f32 for a changed base in F32, or --start mirrored, which does \
         not change the base",
        element.name()
    ))
}

/// Refuses a changed base that cannot hold the quantized weights of the model, and a format for quantized weights if there are none.
fn check_base_format(output: &Output, plan: &Plan, inputs: &Inputs) -> Result<(), Problem> {
    if output.base.is_none() {
        return Ok(());
    }
    let checkpoint = &inputs.checkpoint;
    let mut quantized = checkpoint.quantized_names().peekable();
    match output.base_format {
        BaseFormat::Model => {
            let pieces = plan.layers().flat_map(|layer| &layer.weight);
            adapter::refuse_quantized(checkpoint, pieces.map(|piece| piece.tensor.as_str()))
        }
        BaseFormat::Bf16 if quantized.peek().is_none() => {
            let what = "--base-dtype bf16 is for quantized weights, but the model has none";
            Err(Problem::usage(what)
                .help("remove --base-dtype: changed weights keep the format of the model"))
        }
        // All of them are written, not only the adapted ones.
        _ => quantized.try_for_each(|name| checkpoint.check_quantized(name)),
    }
}

/// Refuses ranks that the output cannot hold, as far as they are known before the computation.
fn check_ranks(output: &Output, plan: &Plan) -> Result<(), Problem> {
    let fixed = match plan.method.ranks {
        Policy::Fixed(rank) => Some(rank),
        _ => None,
    };
    let Some(uniform) = output.uniform else {
        if output.format == Format::Mlx && fixed.is_none() {
            let what =
                "mlx-lm takes one rank for all layers, but these options give layers ranks of their own";
            return Err(Problem::usage(what).help("give --uniform-rank"));
        }
        return Ok(());
    };
    let Some(layer) = plan.layers().max_by_key(|layer| layer.max_rank) else { return Ok(()) };
    match (fixed, uniform) {
        (Some(rank), _) => uniform.check(&layer.name, rank),
        // The ranks are known after the computation, which must not be in vain.
        (None, UniformRank::Of(rank)) if rank < layer.max_rank => {
            let (name, most) = (quoted(&layer.name.module), layer.max_rank);
            let what = format!("--uniform-rank is {rank}, but module {name} can get a rank of up to {most}");
            let limit = match plan.method.ranks {
                Policy::Shared(_) | Policy::Proportional(_) => "a smaller --rho",
                _ => "--max-rank",
            };
            Err(Problem::usage(what)
                .help(format!("give --uniform-rank={most}, or limit the ranks with {limit}")))
        }
        _ => Ok(()),
    }
}

/// Refuses layers that the output cannot hold.
pub(crate) fn check_layers(output: &Output, plan: &Plan, inputs: &Inputs, problems: &mut Problems) {
    let shapes = plan.layers().map(|layer| (&layer.name, &layer.shape));
    problems.collect(adapter::refuse_shapes_without_place(output.format, shapes));
    problems.collect(check_ranks(output, plan));
    problems.collect(output.loading.of_checkpoint(&inputs.checkpoint));
    if output.base.is_some() {
        problems.collect(plan::refuse_shared_weights(plan, &inputs.checkpoint));
    }
    problems.collect(check_groups(output, plan));
    problems.collect(check_base_format(output, plan, inputs));
}

/// Refuses outputs that exist, unless forced, and outputs among the inputs.
pub(crate) fn check_output(output: &Output, request: &Request, force: bool) -> Result<(), Problems> {
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
            Problem::usage("the adapter and the changed base need different folders")
                .in_file(base)
                .help("give --base-out another folder"),
        );
    }
    if let Some(page) = &output.page {
        // `refuse_occupied` above refuses an existing page.
        problems.collect(check_page(page, true));
    }
    problems.or_ok(())
}

/// Refuses an output folder that is one of the inputs, or that holds one.
pub(crate) fn refuse_input_folder<'a>(
    folder: &Path,
    mut inputs: impl Iterator<Item = &'a PathBuf>,
) -> Result<(), Problem> {
    match inputs.find(|input| same_folder(folder, input)) {
        None => Ok(()),
        Some(input) => Err(Problem::usage(format!(
            "this folder is or holds an input, {}",
            visible(&input.to_string_lossy())
        ))
        .in_file(folder)
        .help("write to another folder")),
    }
}

/// Refuses output folders that hold an adapter or a model, and an existing page, unless an unfinished run began to write them.
pub(crate) fn refuse_occupied(output: &Output) -> Result<(), Problems> {
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

/// Returns whether an unfinished run into this output began to write one of its files or folders.
fn is_being_written(output: &Output, path: &Path) -> bool {
    PartialRun::is_writing(&progress_folder(&output.folder), path)
}

/// Refuses to replace a file by a folder, even if forced.
pub(crate) fn refuse_file_in_place(folder: &Path) -> Result<(), Problem> {
    if fs::metadata(folder).is_ok_and(|metadata| !metadata.is_dir()) {
        return Err(Problem::environment("the output folder exists and is not a folder")
            .in_file(folder)
            .help("choose another name"));
    }
    Ok(())
}

/// Refuses an output file that exists, unless forced, that is one of the inputs, or that lies in a folder of inputs.
pub(crate) fn check_output_file(file: &Path, force: bool, inputs: &[PathBuf]) -> Result<(), Problems> {
    let mut problems = Problems::default();
    let folder = file.parent().map_or(Path::new("."), or_here);
    // A hard link to an input is replaced, and the input stays. So the paths are compared, not the files.
    let real = |path: &Path| fs::canonicalize(path).ok();
    if inputs.iter().any(|input| input == file || real(input).is_some_and(|input| Some(input) == real(file)))
    {
        problems
            .push(Problem::usage("the output file is an input").in_file(file).help("write to another file"));
    } else if inputs.iter().any(|input| input.is_dir() && same_folder(folder, input)) {
        problems.push(
            Problem::usage(
                "the output file is in a folder of inputs: the next run would read it as an input",
            )
            .in_file(file)
            .help("write to another folder"),
        );
    } else {
        problems.collect(refuse_existing(file, force));
    }
    problems.collect(refuse_unwritable(folder));
    problems.or_ok(())
}

/// Refuses a part that exists, unless forced.
pub(crate) fn refuse_existing_part(folder: &Path, force: bool) -> Result<(), Problem> {
    if folder.exists() && !force {
        return Err(Problem::usage("this part exists")
            .in_file(folder)
            .help("choose another folder for the parts, or give --force to replace it"));
    }
    Ok(())
}

/// Refuses an output file that exists, unless forced, and unless an unfinished run began to write it.
pub(crate) fn refuse_existing(file: &Path, force: bool) -> Result<(), Problem> {
    refuse_irregular(file)?;
    if file.exists() && !force && !PartialRun::is_writing(&progress_folder(file), file) {
        return Err(Problem::usage("this file exists")
            .in_file(file)
            .help("choose another name, or give --force to replace it"));
    }
    Ok(())
}

/// Refuses to replace a folder, a pipe or a device.
fn refuse_irregular(file: &Path) -> Result<(), Problem> {
    let found = match fs::metadata(file) {
        Ok(metadata) if metadata.is_dir() => "a folder",
        Ok(metadata) if !metadata.is_file() => "a pipe or a device",
        _ => return Ok(()),
    };
    Err(Problem::usage(format!("the output file is {found}")).in_file(file).help("choose another name"))
}

/// Refuses a page that exists, unless forced, and a name that does not end in .html.
pub(crate) fn check_page(path: &Path, force: bool) -> Result<(), Problem> {
    let page = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("html"));
    if !page {
        return Err(Problem::usage("the name of a page must end in .html")
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
        return Err(Problem::usage("this page exists")
            .in_file(path)
            .help("choose another name, or give --force to replace it"));
    }
    Ok(())
}

/// Refuses a folder that cannot be written to, or made.
fn refuse_unwritable(folder: &Path) -> Result<(), Problem> {
    // `refuse_file_in_place` refuses a file in place of the folder.
    let Some(existing) = folder.ancestors().map(or_here).find(|path| path.exists()) else { return Ok(()) };
    if existing == folder && !existing.is_dir() {
        return Ok(());
    }
    tempfile::tempfile_in(existing).map(drop).map_err(|error| {
        Problem::io("cannot write here", &error)
            .in_file(existing)
            .help("choose a folder that you can write to")
    })
}

/// Returns whether `input` is the folder, or a file directly in it.
fn same_folder(folder: &Path, input: &Path) -> bool {
    let holder = if input.is_file() { input.parent().map(or_here) } else { Some(input) };
    holder.is_some_and(|holder| holder == folder || is_same_file(holder, folder))
}

/// The current folder in place of the empty parent of a bare file name.
fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// Makes the parent folder of `path`, and the folders above it.
pub(crate) fn create_parent(path: &Path) -> Result<(), Problem> {
    path.parent().map_or(Ok(()), |parent| create_folder(or_here(parent)))
}

/// Makes a folder, and the folders above it, unless it exists.
pub(crate) fn create_folder(folder: &Path) -> Result<(), Problem> {
    fs::create_dir_all(folder).map_err(|error| Problem::io("cannot make the folder", &error).in_file(folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::plan::testing::plan_of;
    use crate::rank::Policy;
    use expect_test::expect;

    /// The refusal with its help, without the name of the test's folder.
    fn refusal<T>(folder: &tempfile::TempDir, result: Result<T, impl Into<Problems>>) -> String {
        let Problems(problems) = result.err().expect("it is refused").into();
        let line = |problem: &Problem| format!("{problem}; help: {}", problem.next_step().unwrap());
        let lines: Vec<String> = problems.iter().map(line).collect();
        lines.join("\n").replace(folder.path().to_str().unwrap(), "FOLDER")
    }

    #[test]
    fn unwritable_folders_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(refuse_unwritable(&folder.path().join("new/deep")).is_ok());
        assert!(refuse_unwritable(Path::new("new")).is_ok());
        expect!["FOLDER/file: cannot write here: Not a directory (os error 20); help: choose a folder that you can write to"].assert_eq(&refusal(&folder, refuse_unwritable(&file.join("below"))));
        expect!["FOLDER/file: the output folder exists and is not a folder; help: choose another name"]
            .assert_eq(&refusal(&folder, refuse_file_in_place(&file)));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no folder was made");
        let problem = create_folder(&file.join("below")).unwrap_err().to_string();
        expect!["FOLDER/file/below: cannot make the folder: Not a directory (os error 20)"]
            .assert_eq(&problem.replace(folder.path().to_str().unwrap(), "FOLDER"));
    }

    #[test]
    fn output_files_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("activations")).unwrap();
        fs::write(path("activations/a.npy"), "").unwrap();
        fs::write(path("old"), "").unwrap();
        let inputs = [path("activations"), path("old")];
        assert!(check_output_file(&path("new"), false, &inputs).is_ok());
        for force in [false, true] {
            let refused = |out| refusal(&folder, check_output_file(&path(out), force, &inputs));
            let refusals = ["old", "activations/m", "activations"].map(refused).join("\n");
            expect![[r#"
                FOLDER/old: the output file is an input; help: write to another file
                FOLDER/activations/m: the output file is in a folder of inputs: the next run would read it as an input; help: write to another folder
                FOLDER/activations: the output file is an input; help: write to another file"#]]
            .assert_eq(&refusals);
        }
        let inputs = [path("elsewhere")];
        expect!["FOLDER/old: this file exists; help: choose another name, or give --force to replace it"]
            .assert_eq(&refusal(&folder, check_output_file(&path("old"), false, &inputs)));
        assert!(check_output_file(&path("old"), true, &inputs).is_ok());
        expect!["FOLDER: the output file is a folder; help: choose another name"]
            .assert_eq(&refusal(&folder, refuse_existing(folder.path(), true)));
        assert!(refuse_existing_part(&path("activations"), true).is_ok());
        expect!["FOLDER/activations: this part exists; help: choose another folder for the parts, or give --force to replace it"].assert_eq(&refusal(&folder, refuse_existing_part(&path("activations"), false)));
    }

    #[test]
    fn outputs_of_a_job_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("model")).unwrap();
        fs::create_dir(path("used")).unwrap();
        fs::write(path("used/adapter_config.json"), "{}").unwrap();
        fs::write(path("page.html"), "").unwrap();
        let request = Request::new(path("model"), Vec::new());
        let output = |folder: &str, base: Option<&str>, page: Option<&str>| Output {
            folder: path(folder),
            base: base.map(path),
            base_format: BaseFormat::Model,
            anchor: None,
            page: page.map(path),
            ..Output::default()
        };
        let refused = |output, force| refusal(&folder, check_output(&output, &request, force));
        expect![[r#"
            FOLDER/page.html: this page exists; help: choose another name, or give --force to replace it
            FOLDER/model: this folder is or holds an input, FOLDER/model; help: write to another folder
            FOLDER/model: the adapter and the changed base need different folders; help: give --base-out another folder"#]].assert_eq(&refused(output("model", Some("model"), Some("page.html")), false));
        expect![[r#"
            FOLDER/page.html: the output folder exists and is not a folder; help: choose another name
            FOLDER/page.txt: the name of a page must end in .html; help: give a name such as report.html"#]]
        .assert_eq(&refused(output("page.html", None, Some("page.txt")), true));
        assert!(check_output(&output("used", None, None), &request, false).is_err());
        assert!(check_output(&output("used", None, Some("page.html")), &request, true).is_ok());
    }

    /// The old code rounded the base without a word.
    #[test]
    fn a_rounded_base_is_told_with_the_ways_without_it() {
        let output = |base: Option<&str>, base_format| Output {
            folder: "out".into(),
            base: base.map(Into::into),
            base_format,
            ..Output::default()
        };
        let mut plan = plan_of(Policy::Fixed(3));
        let base = output(Some("base"), BaseFormat::Model);
        let of_bf16 = rounding(&base, &plan).unwrap();
        for unchanged in [output(None, BaseFormat::Model), output(Some("base"), BaseFormat::F32)] {
            assert_eq!(rounding(&unchanged, &plan), None);
        }
        let set = |plan: &mut Plan, element| {
            plan.sites.iter_mut().flat_map(|site| &mut site.layers).for_each(|layer| layer.element = element);
        };
        set(&mut plan, Element::F16);
        let of_f16 = rounding(&base, &plan).unwrap();
        set(&mut plan, Element::F32);
        assert_eq!(rounding(&base, &plan), None);
        expect![[r#"
            the changed base is rounded: the model stores 2 adapted weights in BF16, so each changed number is off by up to 0.4 % of its size, and the outputs before training differ from those of the model. Give --base-dtype f32 for a changed base in F32, or --start mirrored, which does not change the base
            the changed base is rounded: the model stores 2 adapted weights in F16, so each changed number is off by up to 0.05 % of its size, and the outputs before training differ from those of the model. Give --base-dtype f32 for a changed base in F32, or --start mirrored, which does not change the base"#]].assert_eq(&[of_bf16, of_f16].join("\n"));
    }

    #[test]
    fn pages_replace_only_pages_and_only_if_forced() {
        let folder = tempfile::tempdir().unwrap();
        let (page, weights) = (folder.path().join("a.html"), folder.path().join("model.safetensors"));
        assert!(check_page(&page, false).is_ok());
        fs::write(&page, "").unwrap();
        assert!(check_page(&page, true).is_ok());
        expect!["FOLDER/a.html: this page exists; help: choose another name, or give --force to replace it"]
            .assert_eq(&refusal(&folder, check_page(&page, false)));
        expect!["FOLDER/model.safetensors: the name of a page must end in .html; help: give a name such as report.html"].assert_eq(&refusal(&folder, check_page(&weights, true)));
    }

    #[test]
    fn inputs_are_recognized_under_other_names() {
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
