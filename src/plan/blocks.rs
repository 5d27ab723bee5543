//! The layers of a stored weight: one layer, or one for each block.
//!
//! A block is an expert, or a group of a convolution. Each block has its own factors. All blocks of a module have the same rank.

use super::recording::RecordedSite;
use super::stored::Stored;
use super::unfit::Unfit;
use super::{PlannedLayer, embeddings, weights};
use crate::activations::Part;
use crate::element::Element;
use crate::factors::{LayerName, LayerShape, MOST_BLOCKS};
use crate::method::Options;
use crate::rank::Policy;
use crate::storage::{Checkpoint, Piece, Problem, Quantized, quoted};

/// A module, and the context of its weight.
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
            _ if self.site.recorded.is_tokens() => Err(Unfit::Kind(
                "token counts were recorded, but its weight is not an embedding table".into(),
            )),
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
        let gone = || Unfit::Kind(format!("its weight {} is too large", quoted(name)));
        self.checkpoint.check_quantized(name).map_err(Unfit::Wrong)?;
        let piece = self.checkpoint.whole(name).ok_or_else(gone)?;
        let stored = &self.checkpoint.get(name).ok_or_else(gone)?.tensor;
        let element =
            Element::from_name(&stored.dtype).ok_or_else(|| match self.checkpoint.unread_quantization() {
                Some(method) => self.wrong(name, unread_quantization(&method)),
                None => Unfit::Kind(format!(
                    "its weight has the format {}, not F64, F32, F16 or BF16",
                    quoted(&stored.dtype)
                )),
            })?;
        Ok((piece, &stored.shape, element))
    }

    /// The problem of a weight whose number of inputs differs from the width of the site.
    fn wrong_width(&self, tensor: &str, shape: &[u64], expected: u64, why: &str) -> Unfit {
        let what = format!(
            "module {} has a weight of shape {shape:?}: expected {expected} numbers in each row of site {}, {why}found {}",
            quoted(self.name),
            quoted(self.site.name),
            self.width()
        );
        let problem = Problem::data(what).help(
            "use the checkpoint that the activations were recorded from, or correct the names with --rename",
        );
        self.wrong(tensor, problem)
    }

    fn wrong(&self, tensor: &str, problem: Problem) -> Unfit {
        let path = self.checkpoint.get(tensor).map(|stored| self.checkpoint.source(stored).path());
        Unfit::Wrong(problem.in_file(path.unwrap_or(self.checkpoint.path())).in_tensor(tensor))
    }

    fn of_tensor(&self, tensor: &str) -> Result<Vec<PlannedLayer>, Unfit> {
        let (piece, shape, element) = self.tensor(tensor)?;
        if self.site.recorded.is_tokens() {
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
                    && !self.checkpoint.is_in_memory()
                    // Programs that quantize a layer of this kind make it a linear one.
                    && self.checkpoint.quantized(tensor).is_none()
                    && (outputs != width || weights::is_transposed(self.checkpoint, self.name)) =>
            {
                one(outputs, LayerShape::Transposed)
            }
            [outputs, inputs] if inputs == width => one(outputs, LayerShape::Linear),
            [_, inputs] => Err(self.wrong_width(tensor, shape, inputs, "")),
            // The renames of the user can lead to any tensor.
            [_, _, _] if !tensor.ends_with(".weight") => self.of_parameter(tensor),
            [_, middle, inputs] if inputs == width && middle != 1 => Err(Unfit::Kind(
                "its weight has several matrices, but is not a parameter of fused experts".into(),
            )),
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
                "its weight has the shape {shape:?}, which is neither a linear layer nor a convolution"
            ))),
        }
    }

    /// Compares the convolution in the metadata of the activations with the weight. Two kernels of different shapes can have the same size.
    fn check_convolution(
        &self,
        tensor: &str,
        shape: &[u64],
        kernel: &[u64],
        groups: u64,
    ) -> Result<(), Unfit> {
        for (told, told_groups) in
            self.site.recorded.rows().into_iter().flatten().filter_map(Part::convolution)
        {
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
                "use the checkpoint that the activations were recorded from, or correct their metadata";
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
            _ => Err(Unfit::Kind(format!("it is one of {of} shares of a weight with the shape {shape:?}"))),
        }
    }

    /// A parameter of fused experts: `[count, m, d]`, or `[count, d, m]` in the models for which PEFT expects this.
    fn of_parameter(&self, tensor: &str) -> Result<Vec<PlannedLayer>, Unfit> {
        const TRANSPOSED: [&str; 3] = ["aria", "gpt_oss", "openai_privacy_filter"];
        let (piece, shape, element) = self.tensor(tensor)?;
        let [count, rows, columns] = *shape else {
            return Err(Unfit::Kind(format!(
                "it is a parameter of shape {shape:?}, but fused experts have the shape [experts, outputs, inputs]"
            )));
        };
        let config = self.checkpoint.config();
        let model_type = config.and_then(|config| config.get("model_type")?.as_str());
        let quantized = self.checkpoint.quantized(tensor);
        let transposed = model_type.is_some_and(|model_type| TRANSPOSED.contains(&model_type))
            || quantized.is_some_and(Quantized::is_transposed_parameter);
        let (outputs, inputs) = if transposed { (columns, rows) } else { (rows, columns) };
        if inputs != self.width() {
            if outputs == self.width() {
                return Err(Unfit::Kind(
                    "its experts are stored as [inputs, outputs], but PEFT expects [outputs, inputs] for this model".into(),
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
                    _ => {
                        return Err(Unfit::Kind(format!(
                            "one of its experts has a weight of shape {shape:?}"
                        )));
                    }
                }
                elements.push(element);
                weight.push(piece);
            }
            let shape = LayerShape::Expert { count: experts.len(), transposed: false };
            let name = LayerName::of_block(self.name, number);
            let layer = self.layer(name, weight, elements[0], outputs, shape)?;
            let first = layers.first().unwrap_or(&layer);
            if layer.outputs != first.outputs || elements.iter().any(|element| *element != first.element) {
                return Err(Unfit::Kind("its experts have different shapes or number formats".into()));
            }
            layers.push(layer);
        }
        Ok(layers)
    }

    /// Consecutive blocks of one tensor. `outputs` is the sum over all blocks.
    fn blocks(
        &self,
        whole: &Piece,
        element: Element,
        outputs: u64,
        shape: LayerShape,
    ) -> Result<Vec<PlannedLayer>, Unfit> {
        let count = shape.blocks().unwrap_or(1) as u64;
        if count > MOST_BLOCKS as u64 {
            return Err(Unfit::Kind(format!("it has {count} blocks; at most {MOST_BLOCKS} are supported")));
        }
        if count == 0 || !outputs.is_multiple_of(count) {
            return Err(Unfit::Kind(format!("its {outputs} outputs cannot be divided into {count} blocks")));
        }
        let length = whole.count / count;
        let block = |number: u64| {
            let piece = Piece::of(whole.tensor.clone(), number * length..(number + 1) * length);
            let name = LayerName::of_block(self.name, number as usize);
            self.layer(name, vec![piece], element, outputs / count, shape.clone())
        };
        (0..count).map(block).collect()
    }

    fn layer(
        &self,
        name: LayerName,
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
                    "it is a convolution in {parts} groups: its rank must be a multiple of {step} and at most {full_rank}{even}"
                )));
            }
        } else if in_pairs && full_rank < 2 {
            return Err(Unfit::Kind(
                "its largest rank is 1, but the method orthogonal needs an even rank".into(),
            ));
        }
        let quantization = weight.first().and_then(|piece| self.checkpoint.quantization(&piece.tensor));
        let quantization = quantization.map(str::to_owned);
        let inputs = self.site.width;
        Ok(PlannedLayer { name, weight, shape, element, quantization, outputs, inputs, max_rank })
    }
}

/// The problem of a checkpoint that is quantized by a method that is not read.
pub(super) fn unread_quantization(method: &str) -> Problem {
    Problem::data(format!("the checkpoint is quantized by the method {}, which is not read", quoted(method)))
        .help("give the checkpoint that it was made from")
}

#[cfg(test)]
mod tests {
    use super::super::Plan;
    use super::super::testing::{Fixture, WIDTH, experts, shapes, sites, write};
    use super::*;
    use crate::factors::Start;
    use expect_test::expect;

    /// The layout of a weight follows from its shape and the width of its site; for square weights, from the family of the model.
    #[test]
    fn shapes_determine_the_kinds_of_layers() {
        let fixture = Fixture::bert();
        fixture.model(&[
            ("encoder.layer.0.attention.self.query.weight", "F32", &[WIDTH, 3 * WIDTH]),
            ("encoder.layer.0.attention.self.key.weight", "F32", &[7, WIDTH]),
            ("encoder.layer.0.attention.self.value.weight", "F32", &[4, WIDTH / 2, 2]),
            ("encoder.layer.0.intermediate.dense.weight", "F32", &[5, 1, 3, 2]),
        ]);
        let shapes: Vec<_> =
            fixture.plan().layers().map(|layer| (layer.outputs, layer.inputs, layer.shape.clone())).collect();
        assert_eq!(
            shapes,
            [
                (7, 6, LayerShape::Linear),
                (18, 6, LayerShape::Transposed),
                (4, 6, LayerShape::Convolution(vec![2])),
                (5, 6, LayerShape::Convolution(vec![3, 2])),
            ]
        );
    }

    #[test]
    fn square_weights_of_gpt2_are_transposed() {
        let mut fixture = Fixture::bert();
        fixture.request.model = fixture.folder.path().join("gpt2.safetensors");
        fixture.model(&[
            ("h.0.attn.c_attn.weight", "F32", &[WIDTH, 3 * WIDTH]),
            ("h.0.attn.c_proj.weight", "F32", &[WIDTH, WIDTH]),
            ("h.0.mlp.dense.weight", "F32", &[WIDTH, WIDTH]),
        ]);
        let metadata = sites(&[("x", &["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.dense"])]);
        write(&fixture.request.activations[0], Some(&metadata), [("x", "F32", [3, WIDTH].as_slice())]);
        let transposed = |fixture: &Fixture| -> Vec<bool> {
            fixture.plan().layers().map(|layer| layer.shape == LayerShape::Transposed).collect()
        };
        fixture.check_refusal(&expect![[r#"
            Data: gpt2.safetensors: tensor "h.0.attn.c_proj.weight": module "h.0.attn.c_proj": no config.json beside the weights, and the layout of this square weight is ambiguous, because other weights are stored as [inputs, outputs]
                help: put the config.json of the model there, or exclude this layer with --exclude
            Data: gpt2.safetensors: tensor "h.0.mlp.dense.weight": module "h.0.mlp.dense": no config.json beside the weights, and the layout of this square weight is ambiguous, because other weights are stored as [inputs, outputs]
                help: put the config.json of the model there, or exclude this layer with --exclude
        "#]]);
        std::fs::write(fixture.folder.path().join("config.json"), r#"{"model_type":"gpt2"}"#).unwrap();
        assert_eq!(transposed(&fixture), [true, true, false]);
    }

    /// A quantized layer of GPT-2 is a linear one. Its square weight is not transposed, whatever the model type says.
    #[test]
    fn quantized_weights_of_gpt2_are_not_transposed() {
        let weights: [(&str, &str, &[u64]); 3] = [
            ("h.0.attn.c_proj.weight", "F8_E4M3", &[WIDTH, WIDTH]),
            ("h.0.attn.c_proj.weight_scale", "F32", &[]),
            ("h.0.mlp.c_fc.weight", "F32", &[WIDTH, WIDTH]),
        ];
        let mut fixture = Fixture::bert();
        fixture.model(&weights);
        std::fs::write(fixture.folder.path().join("config.json"), r#"{"model_type":"gpt2"}"#).unwrap();
        let metadata = sites(&[("x", &["h.0.attn.c_proj", "h.0.mlp.c_fc"])]);
        write(&fixture.request.activations[0], Some(&metadata), [("x", "F32", [3, WIDTH].as_slice())]);
        let shapes = |fixture: &Fixture| -> Vec<_> {
            let layers = fixture.plan().layers().cloned().collect::<Vec<_>>();
            layers.into_iter().map(|layer| (layer.shape, layer.quantization)).collect()
        };
        let expected =
            [(LayerShape::Linear, Some("FP8, one scale".to_owned())), (LayerShape::Transposed, None)];
        assert_eq!(shapes(&fixture), expected);
        // Without activations, the inputs come from the weights.
        fixture.model(&[("h.0.attn.c_proj.weight", "F8_E4M3", &[4, WIDTH]), weights[1], weights[2]]);
        fixture.request.activations = vec![];
        fixture.request.method = Options {
            method: crate::method::Method::Pissa,
            start: Start::Residual,
            ..fixture.request.method
        };
        fixture.request.selection.targets = vec!["c_proj".into()];
        let plan = fixture.plan();
        let layer = plan.layers().next().unwrap();
        assert_eq!((layer.outputs, layer.inputs, &layer.shape), (4, WIDTH as usize, &LayerShape::Linear));
    }

    /// Experts in MXFP4 have the layout of gpt-oss, also if no configuration names the model: the matrices can be square.
    #[test]
    fn mxfp4_experts_are_transposed() {
        let name = "layers.0.mlp.experts.down_proj";
        let tensors: [(&str, &str, &[u64]); 2] = [
            (&format!("{name}_blocks"), "U8", &[3, 64, 2, 16]),
            (&format!("{name}_scales"), "U8", &[3, 64, 2]),
        ];
        let mut fixture = experts(&[], &[(name, 64)], None);
        fixture.request.model = fixture.folder.path().join("mxfp4.safetensors");
        write(&fixture.request.model, None, tensors);
        let plan = fixture.plan();
        let shape = LayerShape::Expert { count: 3, transposed: true };
        assert!(
            plan.layers().all(|layer| layer.shape == shape && layer.quantization.as_deref() == Some("MXFP4"))
        );
        assert_eq!(plan.layers().count(), 3);
    }

    #[test]
    fn each_expert_is_a_layer() {
        const DOWN: &str = "layers.0.mlp.experts.down_proj";
        let fixture = experts(&[("model.layers.0.mlp.experts.down_proj", &[3, 6, 10])], &[(DOWN, 10)], None);
        let expert = |transposed| LayerShape::Expert { count: 3, transposed };
        let plan = fixture.plan();
        let wanted: Vec<_> = (0..3).map(|number| (LayerName::of_block(DOWN, number), 6, 10)).collect();
        let found: Vec<_> =
            plan.layers().map(|layer| (layer.name.clone(), layer.outputs, layer.inputs)).collect();
        assert_eq!(found, wanted);
        let pieces: Vec<_> =
            plan.layers().map(|layer| (layer.weight[0].first, layer.weight[0].count)).collect();
        assert_eq!(pieces, [(0, 60), (60, 60), (120, 60)]);
        let mut json = serde_json::to_value(&plan).unwrap();
        assert_eq!(serde_json::from_value::<Plan>(json.clone()).unwrap(), plan);
        // Older plans have the number of a block at the end of the module.
        let layer = &mut json["sites"][0]["layers"][2];
        assert_eq!(layer.as_object_mut().unwrap().remove("block"), Some(2.into()));
        layer["module"] = format!("{DOWN}.2").into();
        let older: Plan = serde_json::from_value(json).unwrap();
        assert_eq!(shapes(&older), shapes(&plan));
        assert!(plan.layers().all(|layer| layer.shape == expert(false)));

        // PEFT expects [inputs, outputs] for some models only.
        let stored = [("layers.0.mlp.experts.down_proj", [3_u64, 10, 6].as_slice())];
        let transposed = experts(&stored, &[(DOWN, 10)], Some("gpt_oss")).plan();
        assert!(transposed.layers().all(|layer| layer.shape == expert(true) && layer.outputs == 6));
        let mut other = experts(&stored, &[(DOWN, 10)], Some("llama4"));
        other.request.selection.targets = vec!["down_proj".into()];
        other.check_refusal(&expect![[r#"
            Data: model: module "layers.0.mlp.experts.down_proj" cannot be adapted: its experts are stored as [inputs, outputs], but PEFT expects [outputs, inputs] for this model
                help: remove it from --target, or add it to --exclude
        "#]]);
        experts(&stored, &[(DOWN, 9)], None).check_refusal(&expect![[r#"
            Data: model/model.safetensors: tensor "layers.0.mlp.experts.down_proj": module "layers.0.mlp.experts.down_proj" has a weight of shape [3, 10, 6]: expected 6 numbers in each row of site "layers.0.mlp.experts.down_proj", found 9
                help: use the checkpoint that the activations were recorded from, or correct the names with --rename
        "#]]);
    }

    #[test]
    fn shares_of_a_tensor_are_layers() {
        let tensors: [(&str, &[u64]); 1] = [("dinov2.encoder.layer.0.mlp.weights_in.weight", &[10, 6])];
        let sites = [("encoder.layer.0.mlp.gate_proj", 6), ("encoder.layer.0.mlp.up_proj", 6)];
        let plan = experts(&tensors, &sites, None).plan();
        let pieces: Vec<_> = plan.layers().map(|layer| (layer.outputs, layer.weight[0].first)).collect();
        assert_eq!(pieces, [(5, 0), (5, 30)]);
        experts(&tensors, &[(sites[0].0, 5)], None).check_refusal(&expect![[r#"
            Data: model/model.safetensors: tensor "dinov2.encoder.layer.0.mlp.weights_in.weight": module "encoder.layer.0.mlp.gate_proj" has a weight of shape [10, 6]: expected 6 numbers in each row of site "encoder.layer.0.mlp.gate_proj", found 5
                help: use the checkpoint that the activations were recorded from, or correct the names with --rename
        "#]]);
        let odd: [(&str, &[u64]); 1] = [("encoder.layer.0.mlp.weights_in.weight", &[9, 6])];
        experts(&odd, &sites[..1], None).check_refusal(&expect![[r#"
            Data: tensor "encoder.layer.0.mlp.gate_proj": no selected module has a weight that can be adapted: it is one of 2 shares of a weight with the shape [9, 6]
        "#]]);
    }

    /// Kernel and groups in the metadata must be those of the weight. A kernel of another shape can have the same size.
    #[test]
    fn convolutions_in_metadata_must_match_the_weight() {
        let told = |kernel: [u64; 2], channels: u64, groups: Option<u64>| {
            let fixture = experts(&[("patches.weight", &[8, 2, 3, 2])], &[], None);
            let mut convolution =
                serde_json::json!({ "kernel": kernel, "stride": [1, 1], "padding": [0, 0] });
            if let Some(groups) = groups {
                convolution["groups"] = groups.into();
            }
            let metadata = serde_json::json!({
                "format": "activations", "version": 1, "sites": {}, "convolutions": { "patches": convolution }
            });
            let images = [2, channels, 5, 5];
            let tensors = [("patches", "F32", images.as_slice())];
            write(&fixture.request.activations[0], Some(&metadata.to_string()), tensors);
            fixture
        };
        for (channels, groups, layers) in [(2, None, 1), (2, Some(1), 1), (4, None, 2), (4, Some(2), 2)] {
            assert_eq!(told([3, 2], channels, groups).plan().layers().count(), layers);
        }
        told([2, 3], 2, None).check_refusal(&expect![[r#"
            Data: model/model.safetensors: tensor "patches.weight": module "patches" has a weight of shape [8, 2, 3, 2]: expected the kernel [3, 2] in the metadata of site "patches", found [2, 3]
                help: use the checkpoint that the activations were recorded from, or correct their metadata
        "#]]);
        told([3, 2], 4, Some(4)).check_refusal(&expect![[r#"
            Data: model/model.safetensors: tensor "patches.weight": module "patches" has a weight of shape [8, 2, 3, 2]: expected the number of groups 2 in the metadata of site "patches", found 4
                help: use the checkpoint that the activations were recorded from, or correct their metadata
        "#]]);
    }

    /// The rank of a convolution is divided among its groups.
    #[test]
    fn groups_of_a_convolution_share_its_rank() {
        let mut fixture = experts(&[("patches.weight", &[8, 2, 3])], &[("patches", 12)], None);
        let plan = fixture.plan();
        let group = LayerShape::Group { count: 2, kernel: vec![3] };
        assert_eq!(shapes(&plan), ["patches.0", "patches.1"].map(|name| (name.to_owned(), 4, 12, &group)));
        assert!(plan.layers().all(|layer| layer.max_rank == 4));
        fixture.request.method.start = Start::Mirrored;
        fixture.request.method.ranks = Policy::Fixed(6);
        fixture.request.method.limits.max = 6;
        fixture.request.selection.targets = vec!["patches".into()];
        fixture.check_refusal(&expect![[r#"
            Data: model: module "patches" cannot be adapted: it is a convolution in 2 groups: its rank must be a multiple of 4 and at most 8, because each group needs an even rank
                help: remove it from --target, or add it to --exclude
        "#]]);
        fixture.request.method.start = Start::Residual;
        fixture.request.method.ranks = Policy::Fixed(3);
        fixture.check_refusal(&expect![[r#"
            Data: model: module "patches" cannot be adapted: it is a convolution in 2 groups: its rank must be a multiple of 2 and at most 8
                help: remove it from --target, or add it to --exclude
        "#]]);
    }
}
