//! The arguments of the commands that look at files, change them or make small ones.

use super::{Component, Dtype, Format};
use clap::Args;
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct InspectArgs {
    /// File or folder
    pub file: PathBuf,

    /// Read the numbers of a file too: norms, largest values, zeros, NaN and infinity
    #[arg(long)]
    pub values: bool,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Adapter folder
    pub adapter: PathBuf,

    /// Checkpoint that the adapter belongs to: its weights are checked against the factors
    #[arg(long, value_name = "MODEL")]
    pub base: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Adapter folder, or a report.json
    pub report: PathBuf,

    /// Page to write
    #[arg(short, long, value_name = "FILE.html")]
    pub out: PathBuf,

    /// Replace a page that is already there
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// Adapter folder
    pub adapter: PathBuf,

    /// The adapter that the training started from, as init wrote it with --start residual
    #[arg(long, value_name = "DIR")]
    pub init: Option<PathBuf>,

    /// Largest rank of a layer
    #[arg(long, value_name = "R")]
    pub rank: Option<NonZeroUsize>,

    /// Folder to write the adapter to
    #[arg(short, long, value_name = "DIR")]
    pub out: PathBuf,

    /// Number format of the factors
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub dtype: Dtype,

    /// How the adapter is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    pub format: Format,

    /// With --format diffusers or kohya: the part of the pipeline that the model is [default: unet]
    #[arg(long, value_enum, value_name = "PART")]
    pub component: Option<Component>,

    /// Replace an adapter that is already there
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Folder to make
    #[arg(value_name = "DIR", default_value = "cntlora-demo")]
    pub folder: PathBuf,

    /// Write into a folder that already holds something
    #[arg(long)]
    pub force: bool,
}
