//! Sites whose activations cannot be used. They are left out and named, or the run is refused.

mod small;

use cntlora::element::Element;
use cntlora::storage::safetensors;
use expect_test::{Expect, expect};
use serde_json::Value;
use small::{Small, WIDTH, names};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::process::Output;

const INIT: &str = "init model.safetensors -a acts.safetensors --rank 4 -o out";

/// Writes the given rows for the site of `block.mlp`, and good rows for the other site, which two layers read.
fn write(small: &Small, file: &str, rows: usize, mlp: &dyn Fn(usize, usize) -> f64) {
    let tensor = |rows: usize, value: &dyn Fn(usize, usize) -> f64| {
        let mut bytes = Vec::new();
        Element::F32.encode((0..rows * WIDTH).map(|i| value(i / WIDTH, i % WIDTH)), &mut bytes);
        ("F32".to_owned(), vec![rows as u64, WIDTH as u64], bytes)
    };
    let tensors = BTreeMap::from([
        ("block.attention".to_owned(), tensor(rows.max(100), &number)),
        ("block.mlp".to_owned(), tensor(rows, mlp)),
    ]);
    let sites = r#"{"format":"activations","version":1,"sites":
        {"block.attention":["block.query","block.value"],"block.mlp":["block.mlp"]}}"#;
    let metadata = BTreeMap::from([("cntlora".to_owned(), sites.to_owned())]);
    safetensors::write(&mut File::create(small.path(file)).unwrap(), &metadata, &tensors).unwrap();
}

/// Returns a number that looks random but is always the same.
fn number(row: usize, column: usize) -> f64 {
    let state = ((row * WIDTH + column) as u32).wrapping_mul(2_654_435_761).wrapping_add(12345);
    f64::from((state ^ (state >> 15)).wrapping_mul(2_246_822_519) >> 8) / f64::from(1 << 23) - 1.0
}

fn zeros(_: usize, _: usize) -> f64 {
    0.0
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn report(small: &Small, out: &str) -> Value {
    serde_json::from_slice(&fs::read(small.path(&format!("{out}/report.json"))).unwrap()).unwrap()
}

/// Tests each reason why activations cannot be used, and the message for it.
#[test]
fn a_site_that_cannot_be_used_is_left_out_with_its_reason() {
    type Case = (usize, fn(usize, usize) -> f64, &'static str, Expect);
    let cases: [Case; 5] = [
        (
            100,
            |_, column| column as f64,
            "all rows of activations are equal",
            expect![[r#"
                3 layers at 2 sites, 19.2 kB of activations to read, about [size] of memory
                error: tensor "block.mlp": all rows of activations are equal: there is nothing to initialize from
                  help: remove --strict to continue without this site, or record more and different inputs
            "#]],
        ),
        (
            100,
            zeros,
            "all activations are zero",
            expect![[r#"
                3 layers at 2 sites, 19.2 kB of activations to read, about [size] of memory
                error: tensor "block.mlp": all activations are zero: there is nothing to initialize from
                  help: remove --strict to continue without this site, or record more and different inputs
            "#]],
        ),
        (
            100,
            |row, column| 1e-25 * number(row, column),
            "the squares of the activations are too small",
            expect![[r#"
                3 layers at 2 sites, 19.2 kB of activations to read, about [size] of memory
                error: tensor "block.mlp": the squares of the activations are too small for f32: there is nothing to initialize from
                  help: remove --strict to continue without this site, or record more and different inputs
            "#]],
        ),
        (
            100,
            |row, column| 1e25 * number(row, column),
            "second moment of the activations holds a value that is not finite",
            expect![[r#"
                3 layers at 2 sites, 19.2 kB of activations to read, about [size] of memory
                error: tensor "block.mlp": second moment of the activations holds a value that is not finite
                  help: remove --strict to continue without this site, or inspect the recorded numbers with `cntlora inspect FILE --values`
            "#]],
        ),
        (
            0,
            zeros,
            "there are no rows",
            expect![[r#"
                error: tensor "block.mlp": this site has no rows
                  help: remove --strict to continue without this site
            "#]],
        ),
    ];
    for (rows, values, reason, refused) in cases {
        let small = Small::new();
        write(&small, "acts.safetensors", rows, &values);
        let words = format!("{INIT} --coupling transport");
        let output = small.succeed(&format!("{words} --events log.jsonl --report page.html"));
        let said = stderr(&output);
        let line = format!("block.mlp: site block.mlp: {reason}");
        assert!(said.contains(&format!("warning: left out: {line}")), "{said}");
        let end =
            said.rsplit("warning: 1 site left out, because the activations cannot be used; 1 module").next();
        assert!(end.is_some_and(|end| end.contains(&line)), "{said}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("left out: {line}")));

        let report = report(&small, "out");
        let [site] = report["unusable"].as_array().unwrap().as_slice() else { panic!("{report}") };
        assert_eq!((&site["name"], &site["modules"][0]), (&"block.mlp".into(), &"block.mlp".into()));
        assert!(site["reason"].as_str().unwrap().contains(reason), "{site}");
        assert_eq!(
            (report["layers"].as_array().unwrap().len(), report["sites"].as_array().unwrap().len()),
            (2, 1)
        );
        assert!(
            fs::read_to_string(small.path("page.html")).unwrap().contains("<bdi>block.mlp</bdi>: site <bdi>")
        );
        let log = fs::read_to_string(small.path("log.jsonl")).unwrap();
        let mut events = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let event = events.find(|event| event["event"] == "site-left-out").unwrap();
        assert_eq!(
            (&event["site"], &event["modules"][0], &event["reason"]),
            (&site["name"], &site["modules"][0], &site["reason"])
        );

        // The other layers are the same as in a run that excludes this layer, and no other layer is adapted.
        small.succeed("verify out --base model.safetensors");
        small.succeed(&format!("{words} -o without --exclude mlp").replace("-o out ", ""));
        let weights = |out: &str| small.bytes(out).remove("adapter_model.safetensors").unwrap();
        assert!(weights("out") == weights("without"), "{reason}");

        // A site without rows is found in the header, before the run starts.
        small.refused(&format!("{words} --strict --force"), 1, refused);
    }
}

/// With `--strict`, a plan refuses sites without rows, because the headers already show them.
#[test]
fn strict_plans_refuse_sites_without_rows() {
    let small = Small::new();
    write(&small, "acts.safetensors", 0, &zeros);
    let words = "plan model.safetensors -a acts.safetensors --rank 4";
    small.succeed(words);
    small.refused(
        &format!("{words} --strict"),
        1,
        expect![[r#"
            error: tensor "block.mlp": this site has no rows
              help: remove --strict to continue without this site
        "#]],
    );
    small.succeed(&format!("{words} --strict --method pissa"));
    let said = stderr(&small.succeed("moments acts.safetensors -o m.moments.safetensors"));
    assert!(said.contains("warning: site \"block.mlp\" is left out, because it has no rows"), "{said}");
    small.succeed("init model.safetensors --moments m.moments.safetensors --rank 4 -o out --strict");
    small.refused(
        "moments acts.safetensors -o n.moments.safetensors --include mlp",
        1,
        expect![[r#"
            error: the selected sites have no rows
              help: select other sites with --include and --exclude
        "#]],
    );
}

/// A run is refused if it can use no site. The message names every site and its reason.
#[test]
fn a_run_without_a_usable_site_is_refused() {
    let small = Small::new();
    let bad = |_: usize, _: usize| 1.0;
    write(&small, "acts.safetensors", 50, &bad);
    let words = format!("{INIT} --coupling transport");
    small.refused(&format!("{words} --include mlp"), 1, expect![[r#"
        1 layer at 1 site, 4.8 kB of activations to read, about [size] of memory
        warning: left out: block.mlp: site block.mlp: all rows of activations are equal: there is nothing to initialize from
        error: tensor "block.mlp": all rows of activations are equal: there is nothing to initialize from
          help: record more and different inputs
    "#]]);
    let moments = "moments acts.safetensors --nonfinite skip-rows -o m.moments.safetensors";
    small.succeed(moments);
    // Now every row of both sites is skipped.
    let mut bytes = fs::read(small.path("acts.safetensors")).unwrap();
    let data = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    for row in bytes[data..].chunks_mut(4 * WIDTH) {
        row[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    }
    fs::write(small.path("acts.safetensors"), bytes).unwrap();
    let said = small.refused(&format!("{INIT} --nonfinite skip-rows --restart"), 1, expect![[r#"
        3 layers at 2 sites, 14.4 kB of activations to read, about [size] of memory
        warning: left out: block.mlp: site block.mlp: there are no rows to take statistics of
        warning: left out: block.query, block.value: site block.attention: there are no rows to take statistics of
        error: tensor "block.attention": there are no rows to take statistics of
          help: record more and different inputs
        error: tensor "block.mlp": there are no rows to take statistics of
          help: record more and different inputs
        2 problems were found
    "#]]);
    for site in ["block.attention", "block.mlp"] {
        assert!(
            said.contains(&format!("tensor \"{site}\": there are no rows to take statistics of")),
            "{said}"
        );
    }
    assert!(!small.path("out/adapter_config.json").exists());
}

/// A method that does not read activations leaves out no layer. All methods that read them leave out the same site.
#[test]
fn only_methods_that_use_activations_leave_out_sites() {
    let small = Small::new();
    write(&small, "acts.safetensors", 100, &zeros);
    for method in ["pissa", "milora", "olora", "lora", "gaussian", "orthogonal"] {
        let said = stderr(&small.succeed(&format!("{INIT} --method {method} --force --strict")));
        assert!(!said.contains("left out"), "{method}: {said}");
        assert_eq!(report(&small, "out")["layers"].as_array().unwrap().len(), 3, "{method}");
    }
    write(&small, "source.safetensors", 100, &|row, column| number(row + 1000, column));
    let paired = "cntlora --coupling paired --source source.safetensors";
    let swapped = "--source acts.safetensors";
    let methods = ["eva", "corda-ipm", "corda-kpm", "cntlora --coupling uncorrelated", paired];
    for method in methods {
        small.succeed(&format!("{INIT} --method {method} --force"));
        let report = report(&small, "out");
        assert_eq!(report["unusable"][0]["name"], "block.mlp", "{method}");
    }
    let commands = methods.map(|method| format!("{INIT} --method {method} --force --strict --restart"));
    small.all_refused(commands, 1, expect![[r#"
        $ cntlora init model.safetensors -a acts.safetensors --rank 4 -o out --method eva --force --strict --restart
        3 layers at 2 sites, 19.2 kB of activations to read, about [size] of memory
        error: tensor "block.mlp": all rows of activations are equal: there is nothing to initialize from
          help: remove --strict to continue without this site, or record more and different inputs
        $ cntlora init model.safetensors -a acts.safetensors --rank 4 -o out --method corda-ipm --force --strict --restart
        3 layers at 2 sites, 19.2 kB of activations to read, about [size] of memory
        error: tensor "block.mlp": all activations are zero: there is nothing to initialize from
          help: remove --strict to continue without this site, or record more and different inputs
        $ cntlora init model.safetensors -a acts.safetensors --rank 4 -o out --method corda-kpm --force --strict --restart
        3 layers at 2 sites, 19.2 kB of activations to read, about [size] of memory
        error: tensor "block.mlp": all activations are zero: there is nothing to initialize from
          help: remove --strict to continue without this site, or record more and different inputs
        $ cntlora init model.safetensors -a acts.safetensors --rank 4 -o out --method cntlora --coupling uncorrelated --force --strict --restart
        3 layers at 2 sites, 19.2 kB of activations to read, about [size] of memory
        error: tensor "block.mlp": all activations are zero: there is nothing to initialize from
          help: remove --strict to continue without this site, or record more and different inputs
        $ cntlora init model.safetensors -a acts.safetensors --rank 4 -o out --method cntlora --coupling paired --source source.safetensors --force --strict --restart
        3 layers at 2 sites, 38.4 kB of activations to read, about [size] of memory
        error: tensor "block.mlp": all activations are zero: there is nothing to initialize from
          help: remove --strict to continue without this site, or record more and different inputs
    "#]]);
    fs::remove_dir_all(small.path("out.partial")).unwrap();
    // The source activations can also be unusable: here they are all zero, and then they have no rows.
    write(&small, "empty.safetensors", 0, &zeros);
    let words = "init model.safetensors -a source.safetensors --rank 4 -o out --force";
    small.succeed(&format!("{words} --coupling uncorrelated {swapped}"));
    small.succeed(&format!("{words} --coupling transport --source empty.safetensors"));
    let site = &report(&small, "out")["unusable"][0];
    assert_eq!(site["reason"], "pre-training activations: there are no rows to take statistics of");
}

/// A run that ended before its output was written remembers the unusable site. The resumed run gives the same bytes and report as an
/// uninterrupted run.
#[test]
fn unusable_sites_are_remembered() {
    let options = "--coupling transport --start update --strength 1e12";
    let words = format!("{INIT} {options} --events log.jsonl");
    let whole = Small::new();
    write(&whole, "acts.safetensors", 100, &zeros);
    whole.succeed(&words);
    let small = Small::new();
    write(&small, "acts.safetensors", 100, &zeros);
    small.refused(&format!("{words} --dtype f16"), 1, expect![[r#"
        3 layers at 2 sites, 19.2 kB of activations to read, about [size] of memory
        warning: left out: block.mlp: site block.mlp: all activations are zero: there is nothing to initialize from
        error: tensor "base_model.model.block.query.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.query.lora_B.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_B.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        4 problems were found
    "#]]);
    let said = stderr(&small.succeed(&words));
    assert!(said.contains("Continuing from the progress in \"out.partial\""), "{said}");
    assert_eq!(said.matches("block.mlp: site block.mlp: all activations are zero").count(), 2, "{said}");
    let log = fs::read_to_string(small.path("log.jsonl")).unwrap();
    assert!(log.contains("site-left-out") && !log.contains("rows-added"), "{log}");
    let promised = |small: &Small| small.bytes("out")["adapter_model.safetensors"].clone();
    assert!(promised(&small) == promised(&whole));
    assert_eq!(report(&small, "out")["unusable"], report(&whole, "out")["unusable"]);

    // With `--strict`, the resumed run refuses the remembered site.
    small.refused(&format!("{words} --dtype f16 --force"), 1, expect![[r#"
        3 layers at 2 sites, 19.2 kB of activations to read, about [size] of memory
        warning: left out: block.mlp: site block.mlp: all activations are zero: there is nothing to initialize from
        error: tensor "base_model.model.block.query.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.query.lora_B.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_A.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        error: tensor "base_model.model.block.value.lora_B.weight": row 0, column 0: [number] is too large for F16
          help: write the factors as f32 or bf16
        4 problems were found
    "#]]);
    let said = small.refused(
        &format!("{words} --force --strict"),
        1,
        expect![[r#"
        3 layers at 2 sites, 19.2 kB of activations to read, about [size] of memory
        Continuing from the progress in "out.partial"; --restart starts again
        error: tensor "block.mlp": all activations are zero: there is nothing to initialize from
          help: remove --strict to continue without this site, or record more and different inputs
    "#]],
    );
    assert!(said.contains("Continuing from the progress"), "{said}");
    small.succeed(&format!("{words} --force"));
}

/// The part with the unusable site reports it, and so does the merge of the parts.
#[test]
fn parts_name_unusable_sites() {
    let small = Small::new();
    write(&small, "acts.safetensors", 100, &zeros);
    let words = "init model.safetensors -a acts.safetensors --rank 4 --coupling transport";
    small.succeed(&format!("{words} -o out"));
    let mut told = 0;
    for index in 0..2 {
        let output = small.succeed(&format!("{words} --shard {index}/2 -o parts --json"));
        let part: Value = serde_json::from_slice(&output.stdout).unwrap();
        let unusable = part["unusable"].as_array().unwrap();
        told += unusable.len();
        assert_eq!(
            stderr(&output).matches("site block.mlp: all activations are zero").count(),
            2 * unusable.len()
        );
        assert_eq!(part["layers"].as_array().unwrap().len(), if unusable.is_empty() { 2 } else { 0 });
    }
    assert_eq!(told, 1);
    assert_eq!(names(&small.path("parts")).len(), 2);
    let said = stderr(&small.succeed("merge parts -o joined --report page.html"));
    assert!(said.contains("1 site left out"), "{said}");
    assert!(small.bytes("joined") == small.bytes("out"));
    assert_eq!(report(&small, "joined")["unusable"], report(&small, "out")["unusable"]);
    assert_eq!(report(&small, "joined")["trust_region"], report(&small, "out")["trust_region"]);
    let codes =
        [0, 1].map(|index| small.run(&format!("{words} --shard {index}/2 -o strict --strict")).status.code());
    assert!(codes.contains(&Some(0)) && codes.contains(&Some(1)), "{codes:?}");
}

/// An embedding that saw only one token has no covariance. It is left out, but the other layer is not.
#[test]
fn an_embedding_of_one_token_is_left_out() {
    let small = Small::new();
    let floats = |count: usize| {
        let mut bytes = Vec::new();
        Element::F32.encode((0..count).map(|i| number(i, 7)), &mut bytes);
        bytes
    };
    let model = BTreeMap::from([
        ("wte.weight".to_owned(), ("F32".to_owned(), vec![9, 5], floats(45))),
        ("head.weight".to_owned(), ("F32".to_owned(), vec![6, 5], floats(30))),
    ]);
    let mut counts = vec![0u8; 9];
    counts[4] = 20;
    let acts = BTreeMap::from([
        ("wte".to_owned(), ("U8".to_owned(), vec![9], counts)),
        ("head".to_owned(), ("F32".to_owned(), vec![40, 5], floats(200))),
    ]);
    for (file, tensors) in [("m.safetensors", model), ("a.safetensors", acts)] {
        let mut file = File::create(small.path(file)).unwrap();
        safetensors::write(&mut file, &BTreeMap::new(), &tensors).unwrap();
    }
    let words = "init m.safetensors -a a.safetensors --rank 2 --coupling transport -o out";
    let said = stderr(&small.succeed(words));
    assert!(said.contains("left out: wte: site wte: all rows of activations are equal"), "{said}");
    let report = report(&small, "out");
    assert_eq!(
        (&report["layers"][0]["module"], &report["unusable"][0]["name"]),
        (&"head".into(), &"wte".into())
    );
    small.refused(
        &format!("{words} --force --strict"),
        1,
        expect![[r#"
            2 layers at 2 sites, 809 B of activations to read, about [size] of memory
            error: tensor "wte": all rows of activations are equal: there is nothing to initialize from
              help: remove --strict to continue without this site, or record more and different inputs
        "#]],
    );
}

/// PEFT also matches the name of a target module with the end of longer names. A layer that is left out must not get an adapter this way.
#[test]
fn a_layer_that_is_left_out_is_no_target() {
    let small = Small::new();
    let matrix = |shape: &[u64], scale: f64| {
        let mut bytes = Vec::new();
        Element::F32
            .encode((0..shape.iter().product::<u64>() as usize).map(|i| scale * number(i, 1)), &mut bytes);
        ("F32".to_owned(), shape.to_vec(), bytes)
    };
    let model = ["q.weight", "block.q.weight"].map(|name| (name.to_owned(), matrix(&[6, 5], 1.0)));
    let acts = [("q", 1.0), ("block.q", 0.0)].map(|(name, scale)| (name.to_owned(), matrix(&[40, 5], scale)));
    for (file, tensors) in [("m.safetensors", model), ("a.safetensors", acts)] {
        let mut file = File::create(small.path(file)).unwrap();
        safetensors::write(&mut file, &BTreeMap::new(), &BTreeMap::from(tensors)).unwrap();
    }
    small.succeed("init m.safetensors -a a.safetensors --rank 2 -o out");
    let config = fs::read(small.path("out/adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["target_modules"], "^(?:q)$");
}

/// PEFT adapts all experts of a layer or none. If no token reached one expert, all experts of its layer are left out.
#[test]
fn an_expert_without_rows_leaves_out_its_siblings() {
    let small = Small::new();
    let floats = |count: usize, seed: usize| {
        let mut bytes = Vec::new();
        Element::F32.encode((0..count).map(|i| number(i, seed)), &mut bytes);
        bytes
    };
    let matrix = |shape: &[u64], seed| {
        ("F32".to_owned(), shape.to_vec(), floats(shape.iter().product::<u64>() as usize, seed))
    };
    let model = BTreeMap::from([
        ("mlp.experts.down_proj".to_owned(), matrix(&[2, 6, 4], 1)),
        ("head.weight".to_owned(), matrix(&[6, 5], 2)),
    ]);
    let acts = BTreeMap::from([
        ("mlp.experts.down_proj.0".to_owned(), matrix(&[40, 4], 3)),
        ("mlp.experts.down_proj.1".to_owned(), matrix(&[0, 4], 4)),
        ("head".to_owned(), matrix(&[40, 5], 5)),
    ]);
    for (file, tensors) in [("m.safetensors", model), ("a.safetensors", acts)] {
        let mut file = File::create(small.path(file)).unwrap();
        safetensors::write(&mut file, &BTreeMap::new(), &tensors).unwrap();
    }
    let said = stderr(&small.succeed("init m.safetensors -a a.safetensors --rank 2 -o out"));
    assert!(
        said.contains("mlp.experts.down_proj: site mlp.experts.down_proj.1: there are no rows"),
        "{said}"
    );
    let report = report(&small, "out");
    assert_eq!(report["layers"].as_array().unwrap().len(), 1, "{report}");
    small.succeed("verify out --base m.safetensors");
    let said =
        small.refused("init m.safetensors -a a.safetensors --rank 2 --exclude head -o none", 1, expect![[r#"
            2 layers at 2 sites, 640 B of activations to read, about [size] of memory
            warning: left out: mlp.experts.down_proj: site mlp.experts.down_proj.1: there are no rows to take statistics of
            error: tensor "mlp.experts.down_proj.1": there are no rows to take statistics of
              help: record more and different inputs
        "#]]);
    assert!(said.contains("record more and different inputs"), "{said}");
}
