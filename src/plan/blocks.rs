//! From where a weight is stored to the layers that it gives: one, or one for each of its blocks.
//!
//! A block is an expert, or a group of a convolution: a matrix with factors of its own, whose rank is that of its siblings.

use super::recording::RecordedSite;
use super::stored::Stored;
use super::unfit::Unfit;
use super::{PlannedLayer, embeddings, weights};
use crate::activations::Part;
use crate::element::Element;
use crate::factors::{LayerShape, block_name};
use crate::method::Options;
use crate::rank::Policy;
use crate::storage::{Checkpoint, Piece, Problem, quoted};

/// A module, and what its weight is read with.
pub(super) struct Module<'a> {
    pub name: &'a str,
    pub checkpoint: &'a Checkpoint,
    pub site: &'a RecordedSite<'a>,
    pub options: &'a Options,
}

impl Module<'_> {
    /// Its layers.
    pub(super) fn layers(&self, stored: &Stored<'_>) -> Result<Vec<PlannedLayer>, Unfit> {
        match stored {
            Stored::Own(tensor) => self.of_tensor(tensor),
            _ if self.site.is_of_tokens() => {
                Err(Unfit::Kind("tokens were counted, and its weight is no table of an embedding".into()))
            }
            Stored::Share { tensor, index, of } => self.of_share(tensor, *index, *of),
            Stored::Parameter(tensor) => self.of_parameter(tensor),
            Stored::Experts(experts) => self.of_experts(experts),
        }
    }

    fn width(&self) -> u64 {
        self.site.width as u64
    }

    /// A tensor, its shape and its number format.
    fn tensor(&self, name: &str) -> Result<(Piece, &[u64], Element), Unfit> {
        let gone = || Unfit::Kind(format!("its weight {} has too many numbers", quoted(name)));
        let piece = self.checkpoint.whole(name).ok_or_else(gone)?;
        let stored = &self.checkpoint.get(name).ok_or_else(gone)?.tensor;
        let element = Element::from_name(&stored.dtype).ok_or_else(|| {
            Unfit::Kind(format!(
                "its weight holds {} and not F64, F32, F16 or BF16 numbers",
                quoted(&stored.dtype)
            ))
        })?;
        Ok((piece, &stored.shape, element))
    }

    /// What to say of a weight that reads another number of inputs than the site has.
    fn wrong_width(&self, tensor: &str, shape: &[u64], expected: u64, why: &str) -> Unfit {
        let what = format!(
            "module {} has a weight of shape {shape:?}: expected {expected} numbers in each row of site {}, {why}found {}",
            quoted(self.name),
            quoted(self.site.name),
            self.width()
        );
        let problem = Problem::data(what).help(
            "give the checkpoint that the activations were recorded from, or correct the names with --rename",
        );
        self.wrong(tensor, problem)
    }

    fn wrong(&self, tensor: &str, problem: Problem) -> Unfit {
        let path = self.checkpoint.get(tensor).map(|stored| self.checkpoint.source(stored).path());
        Unfit::Wrong(problem.in_file(path.unwrap_or(self.checkpoint.path())).in_tensor(tensor))
    }

    fn of_tensor(&self, tensor: &str) -> Result<Vec<PlannedLayer>, Unfit> {
        let (piece, shape, element) = self.tensor(tensor)?;
        if self.site.is_of_tokens() {
            let (outputs, shape) = embeddings::shape_of(self.name, shape, self.site, self.options)?;
            return Ok(vec![self.layer(self.name.into(), vec![piece], element, outputs, shape)?]);
        }
        let width = self.width();
        let one = |outputs: u64, shape: LayerShape| {
            let layer = self.layer(self.name.into(), vec![piece.clone()], element, outputs, shape)?;
            Ok(vec![layer])
        };
        match *shape {
            [inputs, outputs]
                if inputs == width
                    && (outputs != width || weights::is_transposed(self.checkpoint, self.name)) =>
            {
                one(outputs, LayerShape::Transposed)
            }
            [outputs, inputs] if inputs == width => one(outputs, LayerShape::Linear),
            [_, inputs] => Err(self.wrong_width(tensor, shape, inputs, "")),
            // The user's renames may lead to any tensor.
            [_, _, _] if !tensor.ends_with(".weight") => self.of_parameter(tensor),
            [_, middle, inputs] if inputs == width && middle != 1 => {
                Err(Unfit::Kind("it holds several matrices, and is no parameter of fused experts".into()))
            }
            [outputs, channels, ref kernel @ ..] if (1..=3).contains(&kernel.len()) => {
                let inputs = kernel.iter().try_fold(channels, |product, &axis| product.checked_mul(axis));
                match inputs {
                    Some(inputs) if inputs == width => {
                        self.check_convolution(tensor, shape, kernel, 1)?;
                        one(outputs, LayerShape::Convolution(kernel.to_vec()))
                    }
                    Some(inputs) if inputs > 0 && width > inputs && width.is_multiple_of(inputs) => {
                        let count = (width / inputs) as usize;
                        self.check_convolution(tensor, shape, kernel, count as u64)?;
                        self.blocks(
                            &piece,
                            element,
                            outputs,
                            LayerShape::Group { count, kernel: kernel.into() },
                        )
                    }
                    Some(inputs) => Err(self.wrong_width(tensor, shape, inputs, "one unfolded patch, ")),
                    None => Err(Unfit::Kind(format!("its weight has the shape {shape:?}"))),
                }
            }
            _ => Err(Unfit::Kind(format!(
                "its weight has the shape {shape:?}, and is none of a linear layer or a convolution"
            ))),
        }
    }

    /// Compares what the metadata of its activations say of a convolution with its weight: another kernel may be as large.
    fn check_convolution(
        &self,
        tensor: &str,
        shape: &[u64],
        kernel: &[u64],
        groups: u64,
    ) -> Result<(), Unfit> {
        for (told, told_groups) in self.site.parts().iter().filter_map(Part::convolution) {
            let (expected, found) = match told_groups {
                _ if told != kernel => (format!("the kernel {kernel:?}"), format!("{told:?}")),
                Some(told) if told != groups => (format!("the number of groups {groups}"), told.to_string()),
                _ => continue,
            };
            let what = format!(
                "module {} has a weight of shape {shape:?}: expected {expected} in the metadata of site {}, found {found}",
                quoted(self.name),
                quoted(self.site.name)
            );
            let help =
                "give the checkpoint that the activations were recorded from, or correct their metadata";
            return Err(self.wrong(tensor, Problem::data(what).help(help)));
        }
        Ok(())
    }

    fn of_share(&self, tensor: &str, index: u64, of: u64) -> Result<Vec<PlannedLayer>, Unfit> {
        let (piece, shape, element) = self.tensor(tensor)?;
        match *shape {
            [rows, inputs] if inputs == self.width() && rows.is_multiple_of(of) => {
                let outputs = rows / of;
                let first = index * outputs * inputs;
                let share = Piece::of(piece.tensor, first..first + outputs * inputs);
                let layer =
                    self.layer(self.name.into(), vec![share], element, outputs, LayerShape::Linear)?;
                Ok(vec![layer])
            }
            [rows, inputs] if rows.is_multiple_of(of) => Err(self.wrong_width(tensor, shape, inputs, "")),
            _ => Err(Unfit::Kind(format!("it is one of {of} shares of a weight of the shape {shape:?}"))),
        }
    }

    /// A parameter of the experts `[count, m, d]`, or `[count, d, m]` in the models that PEFT knows to store it so.
    fn of_parameter(&self, tensor: &str) -> Result<Vec<PlannedLayer>, Unfit> {
        const TRANSPOSED: [&str; 3] = ["aria", "gpt_oss", "openai_privacy_filter"];
        let (piece, shape, element) = self.tensor(tensor)?;
        let [count, rows, columns] = *shape else {
            return Err(Unfit::Kind(format!(
                "it is a parameter of shape {shape:?}, and not of fused experts: [experts, outputs, inputs]"
            )));
        };
        let config = self.checkpoint.config();
        let model_type = config.and_then(|config| config.get("model_type")?.as_str());
        let transposed = model_type.is_some_and(|model_type| TRANSPOSED.contains(&model_type));
        let (outputs, inputs) = if transposed { (columns, rows) } else { (rows, columns) };
        if inputs != self.width() {
            if outputs == self.width() {
                return Err(Unfit::Kind(
                    "its experts are stored as [inputs, outputs], which PEFT takes for [outputs, inputs] in this model".into(),
                ));
            }
            return Err(self.wrong_width(tensor, shape, inputs, ""));
        }
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let all = outputs.saturating_mul(count as u64);
        self.blocks(&piece, element, all, LayerShape::Expert { count, transposed })
    }

    fn of_experts(&self, experts: &[Vec<&str>]) -> Result<Vec<PlannedLayer>, Unfit> {
        let mut layers: Vec<PlannedLayer> = Vec::new();
        for (number, tensors) in experts.iter().enumerate() {
            let mut weight = Vec::new();
            let (mut outputs, mut elements) = (0, Vec::new());
            for tensor in tensors {
                let (piece, shape, element) = self.tensor(tensor)?;
                match *shape {
                    [rows, inputs] if inputs == self.width() => outputs += rows,
                    [_, inputs] => return Err(self.wrong_width(tensor, shape, inputs, "")),
                    _ => return Err(Unfit::Kind(format!("an expert has a weight of the shape {shape:?}"))),
                }
                elements.push(element);
                weight.push(piece);
            }
            let shape = LayerShape::Expert { count: experts.len(), transposed: false };
            let layer = self.layer(block_name(self.name, number), weight, elements[0], outputs, shape)?;
            let first = layers.first().unwrap_or(&layer);
            if layer.outputs != first.outputs || elements.iter().any(|element| *element != first.element) {
                return Err(Unfit::Kind("its experts differ in shape or number format".into()));
            }
            layers.push(layer);
        }
        Ok(layers)
    }

    /// The blocks of a tensor that follow one another in it, and have `outputs` together.
    fn blocks(
        &self,
        whole: &Piece,
        element: Element,
        outputs: u64,
        shape: LayerShape,
    ) -> Result<Vec<PlannedLayer>, Unfit> {
        let count = shape.blocks().unwrap_or(1) as u64;
        if count == 0 || !outputs.is_multiple_of(count) {
            return Err(Unfit::Kind(format!("its {outputs} outputs are not those of {count} blocks")));
        }
        let length = whole.count / count;
        let block = |number: u64| {
            let piece = Piece::of(whole.tensor.clone(), number * length..(number + 1) * length);
            let name = block_name(self.name, number as usize);
            self.layer(name, vec![piece], element, outputs / count, shape.clone())
        };
        (0..count).map(block).collect()
    }

    fn layer(
        &self,
        module: String,
        weight: Vec<Piece>,
        element: Element,
        outputs: u64,
        shape: LayerShape,
    ) -> Result<PlannedLayer, Unfit> {
        let outputs = usize::try_from(outputs)
            .ok()
            .filter(|&outputs| outputs > 0)
            .ok_or_else(|| Unfit::Kind(format!("its weight has {outputs} outputs")))?;
        let parts = shape.parts();
        let full_rank = self.options.largest_rank(outputs.min(self.site.width)).saturating_mul(parts);
        let step = self.options.rank_step(parts);
        let max_rank = full_rank.min(self.options.limits.max) / step * step;
        let in_pairs = self.options.has_pairs();
        if parts > 1 {
            let fixed = matches!(self.options.ranks, Policy::Fixed(rank) if !rank.is_multiple_of(step));
            if fixed || max_rank == 0 {
                let even = if in_pairs { ", because each group needs an even rank" } else { "" };
                return Err(Unfit::Kind(format!(
                    "it is a convolution in {parts} groups, whose rank must be a multiple of {step} and at most \
                     {full_rank}{even}"
                )));
            }
        } else if in_pairs && full_rank < 2 {
            return Err(Unfit::Kind(
                "its largest rank is 1, and the method orthogonal needs an even rank".into(),
            ));
        }
        Ok(PlannedLayer { module, weight, shape, element, outputs, inputs: self.site.width, max_rank })
    }
}
