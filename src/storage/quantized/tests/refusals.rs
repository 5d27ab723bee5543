//! Tensors that do not fit each other are refused, with the tensor and the reason.

use super::*;

/// Each of these checkpoints would give wrong weights, such as weights without their scales.
#[test]
fn fp8_that_does_not_fit_is_refused() {
    let (up, scale) = ("layers.0.up.weight", "layers.0.up.weight_scale_inv");
    let new = || Changed::new("fp8-blocks");
    let experts = "layers.0.experts.up_proj";
    let texts = [
        new().without(scale).refused(up),
        new().without(&format!("{experts}_scale_inv")).refused(experts),
        new().with(scale, "F32", &[3, 4]).refused(up),
        new().config("16,\n   16", "14,\n   16").with(scale, "F32", &[3, 4]).refused(up),
        new().with(scale, "I32", &[3, 5]).refused(up),
        new().with(up, "F8_E4M3", &[40, 72, 1, 1]).refused(up),
        new().with(&format!("{experts}_scale_inv"), "F32", &[3, 2, 3]).refused(experts),
        Changed::new("compressed-int8")
            .with("layers.0.zeros.weight_zero_point", "I8", &[3])
            .refused("layers.0.zeros.weight"),
    ];
    expect![[r#"
        Data: model.safetensors: tensor "layers.0.up.weight": the scale of this FP8 weight is missing: "layers.0.up.weight_scale" or "layers.0.up.weight_scale_inv"
            help: download or convert the checkpoint again: without its scale, the weight is wrong
        Data: model.safetensors: tensor "layers.0.experts.up_proj": the scale of this FP8 weight is missing: "layers.0.experts.up_proj_scale" or "layers.0.experts.up_proj_scale_inv"
            help: download or convert the checkpoint again: without its scale, the weight is wrong
        Data: model.safetensors: tensor "layers.0.up.weight_scale_inv": expected the shape [3, 5], one scale for each block of 16 × 16 of a weight of 40 × 72, found [3, 4]
            help: weight_block_size in config.json tells the size of the blocks: use the config.json of this checkpoint
        Data: model.safetensors: tensor "layers.0.up.weight_scale_inv": expected the shape [3, 5], one scale for each block of 14 × 16 of a weight of 40 × 72, found [3, 4]
            help: weight_block_size in config.json tells the size of the blocks: use the config.json of this checkpoint
        Data: model.safetensors: tensor "layers.0.up.weight_scale_inv": expected scales in F64, F32, F16, BF16, F8_E4M3, F8_E8M0 or U8, found "I32"
        Data: model.safetensors: tensor "layers.0.up.weight": expected the shape [outputs, inputs], found [40, 72, 1, 1]
        Data: model.safetensors: tensor "layers.0.experts.up_proj_scale_inv": expected the shape [2, …], one grid for each expert, found [3, 2, 3]
        Data: model.safetensors: tensor "layers.0.zeros.weight_zero_point": expected the shape [9, 1] of I8, found [3]
    "#]].assert_eq(&texts.concat());
}

#[test]
fn bitsandbytes_that_does_not_fit_is_refused() {
    let (up, down) = ("layers.0.up.weight", "layers.0.down.weight");
    let new = || Changed::new("nf4");
    let state = |weight: &str| format!("{weight}.quant_state.bitsandbytes__nf4");
    let with_state = |weight: &str, text: &str| {
        let mut changed = new();
        changed.tensors.insert(state(weight), ("U8".into(), vec![text.len() as u64], text.into()));
        changed
    };
    let eight = || Changed::new("bitsandbytes-int8");
    let texts = [
        new().without(&state(up)).refused(up),
        new().without(&format!("{up}.absmax")).refused(up),
        new().without(&format!("{up}.quant_map")).refused(up),
        new().with(&format!("{up}.absmax"), "F32", &[44]).refused(up),
        new().with(&format!("{up}.absmax"), "F16", &[45]).refused(up),
        new().with(&format!("{up}.quant_map"), "F32", &[15]).refused(up),
        new().with(up, "U8", &[1439, 1]).refused(up),
        with_state(up, "{").refused(up),
        with_state(up, r#"{"blocksize":0,"shape":[40,72]}"#).refused(up),
        with_state(up, r#"{"blocksize":64,"shape":[2880]}"#).refused(up),
        with_state(down, r#"{"blocksize":64,"shape":[72,240]}"#).refused(down),
        new().without(&format!("{down}.nested_absmax")).refused(down),
        new().with(&format!("{down}.nested_absmax"), "F32", &[3]).refused(down),
        new().with(&format!("{down}.nested_quant_map"), "F32", &[255]).refused(down),
        eight().without("layers.0.up.SCB").refused(up),
        eight().with("layers.0.up.SCB", "F32", &[39]).refused(up),
        eight().with("layers.0.up.SCB", "F16", &[40]).refused(up),
        eight().with(up, "I8", &[960]).refused(up),
        eight().edit("layers.0.up.weight_format", |bytes| bytes[0] = 2).refused(up),
    ];
    expect![[r#"
        Data: model.safetensors: tensor "layers.0.up.weight": the quantization state of this weight of bitsandbytes is missing
            help: save the checkpoint again with bitsandbytes 0.43 or newer: older versions do not save it
        Data: model.safetensors: tensor "layers.0.up.weight": "layers.0.up.weight.absmax", which a weight in 4 bits needs, is missing
            help: download or save the checkpoint again
        Data: model.safetensors: tensor "layers.0.up.weight": "layers.0.up.weight.quant_map", which a weight in 4 bits needs, is missing
            help: download or save the checkpoint again
        Data: model.safetensors: tensor "layers.0.up.weight.absmax": expected the shape [45], one scale for each 64 numbers, found [44]
        Data: model.safetensors: tensor "layers.0.up.weight.absmax": expected F32 numbers, found "F16"
        Data: model.safetensors: tensor "layers.0.up.weight.quant_map": expected the shape [16], found [15]
        Data: model.safetensors: tensor "layers.0.up.weight": expected the codes of a weight of 40 × 72 in 1440 bytes, found 1439
            help: download or save the checkpoint again
        Data: model.safetensors: tensor "layers.0.up.weight.quant_state.bitsandbytes__nf4": invalid quantization state: EOF while parsing an object at line 1 column 1
            help: download or save the checkpoint again
        Data: model.safetensors: tensor "layers.0.up.weight.quant_state.bitsandbytes__nf4": the size of the blocks is 0
        Data: model.safetensors: tensor "layers.0.up.weight.quant_state.bitsandbytes__nf4": expected a weight of two axes, found [2880]
        Data: model.safetensors: tensor "layers.0.down.weight.quant_state.bitsandbytes__nf4": its scales are nested, but it does not tell their blocks and offset
            help: download or save the checkpoint again
        Data: model.safetensors: tensor "layers.0.down.weight": "layers.0.down.weight.nested_absmax", which a weight in 4 bits needs, is missing
            help: download or save the checkpoint again
        Data: model.safetensors: tensor "layers.0.down.weight.nested_absmax": expected the shape [2], one scale for each 256 scales, found [3]
        Data: model.safetensors: tensor "layers.0.down.weight.nested_quant_map": expected the shape [256], found [255]
        Data: model.safetensors: tensor "layers.0.up.weight": the scales of this INT8 weight are missing: "layers.0.up.SCB"
            help: download or save the checkpoint again
        Data: model.safetensors: tensor "layers.0.up.SCB": expected the shape [40], one scale for each row, found [39]
        Data: model.safetensors: tensor "layers.0.up.SCB": expected F32 numbers, found "F16"
        Data: model.safetensors: tensor "layers.0.up.weight": expected the shape [outputs, inputs], found [960]
        Data: model.safetensors: tensor "layers.0.up.weight_format": the codes have the layout of a graphics processor, which is not read
            help: save the checkpoint again with bitsandbytes 0.43 or newer
    "#]].assert_eq(&texts.concat());
}

#[test]
fn mxfp4_and_compressed_tensors_that_do_not_fit_are_refused() {
    let experts = "model.layers.0.mlp.experts.down_proj";
    let scales = format!("{experts}_scales");
    let mxfp4 = || Changed::new("mxfp4");
    let integers = || Changed::new("compressed-integers");
    let (zeros, weight) = ("layers.0.zeros4", "layers.0.zeros4.weight");
    let packed = format!("{zeros}.weight_packed");
    let of = |end: &str| format!("{zeros}.{end}");
    let ordered = "layers.0.ordered";
    let (nvfp4, small) = (|| Changed::new("compressed-nvfp4"), || Changed::new("compressed-mxfp4"));
    let up = "layers.0.up.weight";
    let texts = [
        mxfp4().without(&scales).refused(experts),
        mxfp4().with(&scales, "U8", &[3, 64, 1]).refused(experts),
        mxfp4().with(&scales, "F32", &[3, 64, 2]).refused(experts),
        mxfp4().with(&format!("{experts}_blocks"), "U8", &[3, 64, 2, 8]).refused(experts),
        integers().without(&of("weight_scale")).refused(weight),
        integers().without(&of("weight_shape")).refused(weight),
        integers().with(&of("weight_shape"), "I64", &[3]).refused(weight),
        integers().with(&of("weight_shape"), "F32", &[2]).refused(weight),
        integers().with(&of("weight_scale"), "F32", &[9, 3]).refused(weight),
        integers().with(&of("weight_zero_point"), "I32", &[1, 2]).refused(weight),
        integers().with(&of("weight_zero_point"), "I8", &[2, 2]).refused(weight),
        integers().with(&packed, "I32", &[9, 11]).refused(weight),
        integers().with(&packed, "I32", &[8, 5]).refused(weight),
        integers().with(&packed, "F32", &[9, 5]).refused(weight),
        integers().with(&of("bitmask"), "U8", &[9, 5]).refused(weight),
        integers().with(weight, "F32", &[9, 40]).refused(weight),
        integers()
            .with(&format!("{ordered}.weight_g_idx"), "I32", &[39])
            .refused(&format!("{ordered}.weight")),
        integers()
            .edit(&format!("{ordered}.weight_g_idx"), |bytes| bytes[0] = 4)
            .refused(&format!("{ordered}.weight")),
        nvfp4().without("layers.0.up.weight_global_scale").refused(up),
        nvfp4().with("layers.0.up.weight_global_scale", "F32", &[2]).refused(up),
        nvfp4().with("layers.0.up.weight_global_scale", "I8", &[1]).refused(up),
        nvfp4().with("layers.0.up.weight_scale", "F8_E4M3", &[9, 2]).refused(up),
        nvfp4().with("layers.0.up.weight_scale", "I64", &[9, 3]).refused(up),
        small().with("layers.0.up.weight_global_scale", "F32", &[1]).refused(up),
        small().without("layers.0.up.weight_scale").refused(up),
    ];
    expect![[r#"
        Data: model.safetensors: tensor "model.layers.0.mlp.experts.down_proj_blocks": the scales of these MXFP4 experts are missing: "model.layers.0.mlp.experts.down_proj_scales"
            help: download the checkpoint again: without its scales, the weight is wrong
        Data: model.safetensors: tensor "model.layers.0.mlp.experts.down_proj_scales": expected the shape [3, 64, 2], one scale for each block, found [3, 64, 1]
        Data: model.safetensors: tensor "model.layers.0.mlp.experts.down_proj_scales": expected U8 numbers, found "F32"
        Data: model.safetensors: tensor "model.layers.0.mlp.experts.down_proj_blocks": expected the shape [experts, outputs, groups, 16], found [3, 64, 2, 8]
        Data: model.safetensors: tensor "layers.0.zeros4.weight_packed": the scale of this packed weight is missing: "layers.0.zeros4.weight_scale"
            help: download or convert the checkpoint again
        Data: model.safetensors: tensor "layers.0.zeros4.weight_packed": the shape of this packed weight is missing: "layers.0.zeros4.weight_shape"
        Data: model.safetensors: tensor "layers.0.zeros4.weight_shape": expected the outputs and the inputs of a weight, as I64 or I32
        Data: model.safetensors: tensor "layers.0.zeros4.weight_shape": expected the outputs and the inputs of a weight, as I64 or I32
        Data: model.safetensors: tensor "layers.0.zeros4.weight_scale": expected the shape [1], [9, 1] or [9, groups], with groups of equal size of 40 inputs, found [9, 3]
        Data: model.safetensors: tensor "layers.0.zeros4.weight_zero_point": expected the shape [2, 2], the zero points of 9 outputs in 4 bits, found [1, 2]
        Data: model.safetensors: tensor "layers.0.zeros4.weight_zero_point": expected I32 numbers, found "I8"
        Data: model.safetensors: tensor "layers.0.zeros4.weight_packed": expected the shape [9, words], with the words of 40 numbers of 1 to 8 bits, as config_groups in config.json says, found [9, 11]
        Data: model.safetensors: tensor "layers.0.zeros4.weight_packed": expected the shape [9, words], with the words of 40 numbers of 1 to 8 bits, as config_groups in config.json says, found [8, 5]
        Data: model.safetensors: tensor "layers.0.zeros4.weight_packed": packed codes are I32 for integers, or U8 for NVFP4 and MXFP4
        Data: model.safetensors: tensor "layers.0.zeros4.weight_packed": sparse weights are not read
            help: give the checkpoint that it was compressed from
        Data: model.safetensors: tensor "layers.0.zeros4.weight_packed": the weight "layers.0.zeros4.weight" is in the checkpoint twice, in different formats
            help: download or convert the checkpoint again
        Data: model.safetensors: tensor "layers.0.ordered.weight_g_idx": expected the shape [40], the group of each input, found [39]
        Data: model.safetensors: tensor "layers.0.ordered.weight_g_idx": the group 4 of an input does not exist: there are 4 groups
        Data: model.safetensors: tensor "layers.0.up.weight_packed": the scale of the scales of this NVFP4 weight is missing: "layers.0.up.weight_global_scale"
            help: download or convert the checkpoint again
        Data: model.safetensors: tensor "layers.0.up.weight_global_scale": expected the shape [1], found [2]
        Data: model.safetensors: tensor "layers.0.up.weight_global_scale": expected scales in F64, F32, F16, BF16, F8_E4M3, F8_E8M0 or U8, found "I8"
        Data: model.safetensors: tensor "layers.0.up.weight_scale": expected the shape [6, 3], one scale for each 16 of 48 inputs, found [9, 2]
        Data: model.safetensors: tensor "layers.0.up.weight_scale": expected scales in F64, F32, F16, BF16, F8_E4M3, F8_E8M0 or U8, found "I64"
        Data: model.safetensors: tensor "layers.0.up.weight_global_scale": MXFP4 has no global scale
        Data: model.safetensors: tensor "layers.0.up.weight_packed": the scale of this packed weight is missing: "layers.0.up.weight_scale"
            help: download or convert the checkpoint again
    "#]].assert_eq(&texts.concat());
}

#[test]
fn gptq_and_awq_that_do_not_fit_are_refused() {
    let (even, ordered) = ("layers.0.even4.weight", "layers.0.ordered4.weight");
    let gptq = || Changed::new("gptq");
    let awq = || Changed::new("awq");
    let up = "layers.0.up.weight";
    let texts = [
        gptq().without("layers.0.even4.scales").refused(even),
        gptq().without("layers.0.even4.qzeros").refused(even),
        gptq().with("layers.0.even4.scales", "F16", &[3, 32]).refused(even),
        gptq().with("layers.0.even4.scales", "F16", &[2, 31]).refused(even),
        gptq().with("layers.0.even4.qzeros", "I32", &[2, 5]).refused(even),
        gptq().with("layers.0.even4.qzeros", "U32", &[2, 4]).refused(even),
        gptq().with("layers.0.even4.qweight", "I64", &[8, 32]).refused(even),
        gptq()
            .with("layers.0.even4.qweight", "I32", &[10, 32])
            .with("layers.0.even4.qzeros", "I32", &[2, 5])
            .refused(even),
        gptq().with("layers.0.ordered4.g_idx", "I32", &[50]).refused(ordered),
        gptq().with("layers.0.ordered4.g_idx", "I64", &[64]).refused(ordered),
        gptq().edit("layers.0.ordered4.g_idx", |bytes| bytes[3] = 0xff).refused(ordered),
        gptq().edit("layers.0.ordered4.g_idx", |bytes| bytes[0] = 2).refused(ordered),
        gptq().config("\"checkpoint_format\": \"gptq\"", "\"checkpoint_format\": \"marlin\"").refused(even),
        gptq().config("\"quant_method\": \"gptq\"", "\"quant_method\": \"auto-round\"").refused(even),
        awq().without("layers.0.up.qzeros").refused(up),
        awq().with("layers.0.up.qzeros", "I32", &[2, 4]).refused(up),
        awq()
            .with("layers.0.up.scales", "F16", &[3, 24])
            .with("layers.0.up.qzeros", "I32", &[3, 3])
            .refused(up),
        awq().config("\"bits\": 4", "\"bits\": 8").refused(up),
        awq().config("\"version\": \"gemm\"", "\"version\": \"gemv\"").refused(up),
    ];
    expect![[r#"
        Data: model.safetensors: tensor "layers.0.even4.qweight": "layers.0.even4.scales", which a weight in GPTQ or AWQ needs, is missing
            help: download or convert the checkpoint again
        Data: model.safetensors: tensor "layers.0.even4.qweight": "layers.0.even4.qzeros", which a weight in GPTQ or AWQ needs, is missing
            help: download or convert the checkpoint again
        Data: model.safetensors: tensor "layers.0.even4.qweight": expected the shapes of GPTQ with 2, 3, 4 or 8 bits, found qweight [8, 32], qzeros [2, 4], scales [3, 32]
        Data: model.safetensors: tensor "layers.0.even4.qweight": qweight [8, 32] and scales [2, 31] are neither in the layout of GPTQ nor in that of AWQ for the kernel GEMM
            help: give the checkpoint in one of these layouts
        Data: model.safetensors: tensor "layers.0.even4.qweight": expected the shapes of GPTQ with 2, 3, 4 or 8 bits, found qweight [8, 32], qzeros [2, 5], scales [2, 32]
        Data: model.safetensors: tensor "layers.0.even4.qzeros": expected I32 numbers, found "U32"
        Data: model.safetensors: tensor "layers.0.even4.qweight": expected I32 numbers, found "I64"
        Data: model.safetensors: tensor "layers.0.even4.qweight": expected the shapes of GPTQ with 2, 3, 4 or 8 bits, found qweight [10, 32], qzeros [2, 5], scales [2, 32]
        Data: model.safetensors: tensor "layers.0.ordered4.qweight": expected the shapes of GPTQ with 2, 3, 4 or 8 bits, found qweight [8, 32], qzeros [2, 4], scales [2, 32], g_idx [50]
        Data: model.safetensors: tensor "layers.0.ordered4.g_idx": expected I32 numbers, found "I64"
        Data: model.safetensors: tensor "layers.0.ordered4.g_idx": the group -16777215 of an input does not exist: there are 2 groups
        Data: model.safetensors: tensor "layers.0.ordered4.g_idx": the group 2 of an input does not exist: there are 2 groups
        Data: model.safetensors: tensor "layers.0.even4.qweight": the GPTQ format "marlin" is not read, only "gptq" and "gptq_v2"
        Data: model.safetensors: tensor "layers.0.even4.qweight": the convention of its zero points is not known: no quantization_config for GPTQ in config.json
            help: put the config.json of the checkpoint beside the weights
        Data: model.safetensors: tensor "layers.0.up.qweight": "layers.0.up.qzeros", which a weight in GPTQ or AWQ needs, is missing
            help: download or convert the checkpoint again
        Data: model.safetensors: tensor "layers.0.up.qzeros": expected the shape [2, 3], the zero points of 2 groups, found [2, 4]
        Data: model.safetensors: tensor "layers.0.up.scales": expected the shape [groups, outputs], with groups of equal size of 40 inputs, found [3, 24]
        Data: model.safetensors: tensor "layers.0.up.qweight": AWQ with 8 bits is not read, only with 4
        Data: model.safetensors: tensor "layers.0.up.qweight": the AWQ layout "gemv" is not read, only "gemm"
    "#]].assert_eq(&texts.concat());
}
