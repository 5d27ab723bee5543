//! The options of the commands that read, convert or make files.

use super::{DryRunArgs, WritingArgs};
use crate::plan::Rename;
use clap::Args;
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// File or folder
    pub(crate) file: PathBuf,

    /// Also read the numbers of a file: norms, largest values, zeros, NaN and infinity
    #[arg(long)]
    pub(crate) values: bool,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// Adapter: a folder, or a .safetensors file
    pub(crate) adapter: PathBuf,

    /// Checkpoint of the adapter, to check the factors against its weights
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Adapter folder, or a report.json
    pub(crate) report: PathBuf,

    /// Page to write
    #[arg(short, long, value_name = "FILE.html")]
    pub(crate) out: PathBuf,

    /// Replace an existing page
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// Adapter: a folder, or a .safetensors file
    pub(crate) adapter: PathBuf,

    /// Adapter that the training started from, written by init with --start residual
    #[arg(long, value_name = "DIR")]
    pub(crate) init: Option<PathBuf>,

    /// Largest rank of a layer
    #[arg(long, value_name = "R")]
    pub(crate) rank: Option<NonZeroUsize>,

    /// Model whose modules resolve the names of kohya's format, in which `_` stands for `.`
    ///
    /// The folder of one component, or of a pipeline of diffusers.
    #[arg(long, value_name = "MODEL")]
    pub(crate) base: Option<PathBuf>,

    /// Folder to write the adapter to
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: PathBuf,

    #[command(flatten)]
    pub(crate) writing: WritingArgs,

    /// Replacement in the names of modules in the adapter; repeatable
    ///
    /// For adapters whose names PEFT does not find in the model. Parts of known wrappers, such as `_orig_mod.` and `module.`, are removed
    /// without this option.
    #[arg(long, value_name = "REGEX=TEXT")]
    pub(crate) adapter_name_rename: Vec<Rename>,

    /// Replace an existing adapter
    #[arg(long)]
    pub(crate) force: bool,

    #[command(flatten)]
    pub(crate) dry: DryRunArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Folder to make
    #[arg(value_name = "DIR", default_value = "cntlora-demo")]
    pub(crate) folder: PathBuf,

    /// Write into a folder that is not empty
    #[arg(long)]
    pub(crate) force: bool,
}
