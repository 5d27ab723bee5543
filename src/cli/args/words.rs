//! The words that options take: each with its value and a line of explanation.

use crate::adapter::{BaseFormat, Component, Format, SingleFile, TASKS};
use crate::constraint::{ChannelScale, Coupling, Norm, Shrinkage};
use crate::element::Element;
use crate::factors::Start;
use crate::method::Method;
use crate::plan::Nonfinite;
use crate::simd::Precision;
use crate::storage::Access;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::Error;
use clap::{Arg, Command, ValueEnum};
use std::ffi::OsStr;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressStyle {
    /// A bar on a terminal, lines elsewhere and with --verbose
    #[default]
    Auto,
    /// A bar
    Bar,
    /// A line every few seconds
    Plain,
    /// Nothing
    None,
}

/// Parses one of a few words as its value.
#[derive(Clone)]
pub(crate) struct OneOf<T>(Vec<(&'static str, T, &'static str)>);

impl<T: Clone + Send + Sync + 'static> TypedValueParser for OneOf<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, text: &OsStr) -> Result<T, Error> {
        let words = self.0.iter().map(|(word, ..)| *word);
        let found = PossibleValuesParser::new(words).parse_ref(command, arg, text)?;
        let value = self.0.iter().find(|(word, ..)| *word == found).map(|(_, value, _)| value.clone());
        value.ok_or_else(|| Error::new(clap::error::ErrorKind::InvalidValue))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let described = |(word, _, help): &(&'static str, T, &'static str)| match *help {
            "" => PossibleValue::new(word),
            help => PossibleValue::new(word).help(help),
        };
        Some(Box::new(self.0.iter().map(described)))
    }
}

/// The words are the names of the values.
fn named<T: Copy>(all: &[T], name: fn(T) -> &'static str, help: fn(T) -> &'static str) -> OneOf<T> {
    OneOf(all.iter().map(|value| (name(*value), *value, help(*value))).collect())
}

pub(crate) fn access() -> OneOf<Access> {
    OneOf(vec![
        ("auto", Access::Auto, "The same as `read`, which is as fast as a memory mapping"),
        (
            "read",
            Access::Read,
            "Reads into a buffer. If the file is truncated meanwhile, the run ends with an error",
        ),
        (
            "mmap",
            Access::Mmap,
            "A memory mapping. If the file is truncated meanwhile, the process is killed; its pages stay in memory beyond --max-memory \
             until the system needs them",
        ),
    ])
}

pub(crate) fn nonfinite() -> OneOf<Nonfinite> {
    OneOf(vec![
        ("refuse", Nonfinite::Refuse, "Stop, and name file, tensor, row and column"),
        ("skip-rows", Nonfinite::SkipRows, "Skip these rows, and count them in the report"),
    ])
}

pub(crate) fn precision() -> OneOf<Precision> {
    let help = |precision| match precision {
        Precision::F32 => "Fused multiply-adds: the same bits on every processor",
        Precision::Bf16 => {
            "Rows of bf16 are multiplied as bf16, in the fastest way of the processor: matrix tiles (AMX), dot products (AVX-512 BF16), \
             or as f32. As accurate as f32, but the bits depend on the processor"
        }
    };
    named(&Precision::ALL, Precision::name, help)
}

pub(crate) fn method() -> OneOf<Method> {
    named(&Method::ALL, Method::name, Method::description)
}

pub(crate) fn coupling() -> OneOf<Coupling> {
    let help = |coupling| match coupling {
        Coupling::Uncorrelated => "Only their means align. Needs no pre-training activations",
        Coupling::Transport => {
            "By the linear map between their statistics that moves activations least. For measured pre-training activations"
        }
        Coupling::Paired => "Row by row: row i of both is the same input",
    };
    named(&Coupling::ALL, Coupling::name, help)
}

pub(crate) fn channel_scale() -> OneOf<ChannelScale> {
    let help = |scale| match scale {
        ChannelScale::Mean => "The mean over all channels, which a few loud channels dominate",
        ChannelScale::Median => "The median over the channels that are not silent",
    };
    named(&ChannelScale::ALL, ChannelScale::name, help)
}

pub(crate) fn shrinkage() -> OneOf<Shrinkage> {
    let help = |shrinkage| match shrinkage {
        Shrinkage::None => "Covariances as measured",
        Shrinkage::Oas => {
            "Oracle Approximating Shrinkage: correlations between channels become smaller, the fewer rows there are"
        }
    };
    named(&Shrinkage::ALL, Shrinkage::name, help)
}

pub(crate) fn norm() -> OneOf<Norm> {
    let help = |norm| match norm {
        Norm::Activations => "The norm of the layer's outputs on the activations",
        Norm::Weights => "The Frobenius norm of the update",
    };
    named(&Norm::ALL, Norm::name, help)
}

pub(crate) fn start() -> OneOf<Start> {
    let help = |start| match start {
        Start::Mirrored => {
            "The pre-trained model: rows of the factors cancel in pairs, and the base stays as it is. Needs even ranks. Use it if both \
             factors should be trained from the first step on"
        }
        Start::Residual => {
            "The pre-trained model: the update is taken out of the base. Use it if both factors should be trained from the first step \
             on, each unit of rank should have a direction of its own, and a second copy of the base is acceptable"
        }
        Start::Zero => "The pre-trained model: B is zero, and the base stays as it is. Try this one first",
        Start::Update => {
            "The pre-trained model plus the update, limited by --max-shift; the base stays as it is. Use it if the update should have \
             effect before training, as with measured pre-training activations"
        }
    };
    named(&Start::ALL, Start::name, help)
}

pub(crate) fn format() -> OneOf<Format> {
    let single_file = |format| Format::SingleFile(format, Component::Unet);
    OneOf(vec![
        ("peft", Format::Peft, "A PEFT folder"),
        ("diffusers", single_file(SingleFile::Diffusers), "pytorch_lora_weights.safetensors of diffusers"),
        ("kohya", single_file(SingleFile::Kohya), "lora.safetensors, as kohya's scripts read it"),
        ("mlx", Format::Mlx, "A folder for mlx-lm, with one rank and one scale for all layers"),
    ])
}

pub(crate) fn component() -> OneOf<Component> {
    let help = |component| match component {
        Component::Unet => "The UNet",
        Component::Transformer => "The transformer in place of a UNet",
        Component::TextEncoder => "The text encoder, or the first of two",
        Component::TextEncoder2 => "The second text encoder",
    };
    named(&Component::ALL, Component::name, help)
}

/// The tasks of PEFT, by name.
pub(crate) fn task() -> OneOf<String> {
    OneOf(TASKS.iter().map(|task| (task.name, task.name.to_owned(), task.model)).collect())
}

/// The number format of a changed base.
pub(crate) fn base_format() -> OneOf<BaseFormat> {
    OneOf(vec![
        (
            "model",
            BaseFormat::Model,
            "That of the model. Changed weights in BF16 and F16 are rounded, which moves the outputs of the model a little",
        ),
        (
            "f32",
            BaseFormat::F32,
            "F32 in place of BF16 and F16, without this rounding, and in place of all quantized weights. Its config.json says float32, so \
             that programs load it like this",
        ),
        (
            "bf16",
            BaseFormat::Bf16,
            "BF16 in place of all quantized weights, so that the changed base is a plain model",
        ),
    ])
}

/// True if a second adapter takes the update away, in place of a changed base.
pub(crate) fn anchored() -> OneOf<bool> {
    OneOf(vec![
        ("checkpoint", false, "In a copy of the base, written without the update"),
        (
            "anchor",
            true,
            "In a second adapter, DIR/anchor, that takes the update away. Load it beside the first one and freeze it; the base stays \
             as it is",
        ),
    ])
}

pub(crate) fn element() -> OneOf<Element> {
    OneOf(vec![("f32", Element::F32, ""), ("bf16", Element::Bf16, ""), ("f16", Element::F16, "")])
}
