//! The words that options take, with what is said of them in the help.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum When {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ProgressStyle {
    /// A bar on a terminal, plain lines elsewhere
    #[default]
    Auto,
    /// A bar
    Bar,
    /// A line every few seconds
    Plain,
    /// Nothing
    None,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Io {
    /// As `read`, which is as fast as a mapping
    #[default]
    Auto,
    /// Reads into a buffer: a file that is truncated meanwhile ends the run with an error
    Read,
    /// A memory mapping: a file that is truncated meanwhile kills the process, and its pages stay resident beyond --max-memory,
    /// until the system needs them
    Mmap,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Nonfinite {
    /// Stop, and name file, tensor, row and column
    #[default]
    Refuse,
    /// Leave them out, and count them in the report
    SkipRows,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Precision {
    /// Fused multiply-adds: the same bits on every processor
    #[default]
    F32,
    /// The processor's bf16 dot product for bf16 activations: faster, rounds differently, needs AVX-512 BF16. It is not accurate for
    /// channels with means of more than 10 standard deviations: the run warns of them, and refuses rows that it cannot tell apart
    Bf16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ChannelScale {
    /// The mean over all channels, which a few loud channels decide
    Mean,
    /// The median over the channels that are not silent
    Median,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shrinkage {
    /// Covariances as they were measured
    None,
    /// Oracle Approximating Shrinkage: correlations between channels become smaller, the fewer rows there are
    Oas,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// Constraints between pre-training and fine-tuning activations; variable ranks
    #[default]
    Cntlora,
    /// The principal singular triplets of the weight; the base keeps the rest
    Pissa,
    /// The minor singular triplets of the weight; the base keeps the rest
    Milora,
    /// The first columns of an orthonormal basis of the weight; the base keeps the rest
    Olora,
    /// The part of the weight that answers the activations most; the base keeps the rest
    CordaIpm,
    /// The part of the weight that answers the activations least; the base keeps the rest
    CordaKpm,
    /// The directions in which the activations vary most, with ranks by explained variance
    Eva,
    /// Kaiming's uniform A, and B = 0: the default of PEFT
    Lora,
    /// A normally distributed A, and B = 0
    Gaussian,
    /// Random factors whose product is zero
    Orthogonal,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Coupling {
    /// Not at all: only their means align. Needs no pre-training activations
    Uncorrelated,
    /// By the linear map between their statistics that moves activations least. Made for measured pre-training activations
    Transport,
    /// Row by row: row i of both is the same input
    Paired,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Norm {
    /// The norm of the layer's outputs on the activations
    Activations,
    /// The Frobenius norm of the update
    Weights,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Start {
    /// The pre-trained model: rows of the factors cancel in pairs, and the base is untouched. Needs even ranks. Use it first
    Mirrored,
    /// The pre-trained model: the base is rewritten without the update. Use it where each unit of rank should have a direction of
    /// its own and a second copy of the base is no obstacle
    Residual,
    /// The pre-trained model: B is zero. Use it where a training recipe expects what plain LoRA starts from
    Zero,
    /// The pre-trained model plus the update, cut by --max-shift; the base is untouched. Use it where the update itself should act
    /// before training, as with measured pre-training activations
    Update,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A folder of PEFT
    #[default]
    Peft,
    /// pytorch_lora_weights.safetensors of diffusers
    Diffusers,
    /// lora.safetensors, as kohya's scripts read it
    Kohya,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Component {
    /// The UNet
    Unet,
    /// The transformer in place of a UNet
    Transformer,
    /// The text encoder, or the first of two
    TextEncoder,
    /// The second text encoder
    #[value(name = "text-encoder-2")]
    TextEncoder2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Residual {
    /// The base is written again, without the update
    Checkpoint,
    /// The base stays, and a second adapter, DIR/anchor, takes the update away: to be loaded beside the first, and frozen
    Anchor,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Dtype {
    #[default]
    F32,
    Bf16,
    F16,
}
