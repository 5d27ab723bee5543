//! Tests with the real binary that no name in a file reaches a terminal as it is: control characters, marks that change the direction of
//! writing, and very long names. Every file format gets such names, and every command reads them.

mod small;

use serde_json::{Value, json};
use small::Small;
use std::fs;
use std::path::Path;
use std::process::Output;

/// Control characters, sequences that colour or move the cursor, and marks that change the direction of writing.
const HOSTILE: &str = "a\u{1b}[31m\u{1b}]0;t\u{7}\u{8}\r\n\tb\u{7f}\u{85}\u{9b}2J\u{202a}\u{202e}\u{2066}\u{2069}\u{200e}\u{200f}\u{feff}z";

/// The names that every format gets.
fn hostile_names() -> [String; 3] {
    [HOSTILE.to_owned(), "l".repeat(65_536), HOSTILE.repeat(65_536 / HOSTILE.chars().count())]
}

/// The longest line of a message, in characters, with room for a label.
const LONGEST: usize = 4200;

/// True for characters that a terminal obeys or does not show.
fn is_hostile(character: char) -> bool {
    matches!(character,
        '\0'..='\u{9}' | '\u{b}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
}

#[track_caller]
fn check(words: &str, output: &Output) {
    for (stream, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        let text = std::str::from_utf8(bytes).expect("output is UTF-8");
        let found = text.chars().find(|character| is_hostile(*character));
        assert_eq!(found, None, "{words}: {stream}: {}", text.escape_debug());
        let longest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(
            stream == "stdout" || longest <= LONGEST,
            "{words}: a line of {stream} has {longest} characters"
        );
    }
    let code = output.status.code();
    assert!(
        matches!(code, Some(0..=3)),
        "{words}: exit code {code:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs commands in the usual way, with JSON on stdout, and with a detailed log. `NAME` in the words stands for `path`.
fn all_are_safe(small: &Small, path: &str, commands: &[&str]) {
    for words in commands {
        for options in ["", " --json", " -vv"] {
            let words = format!("{words}{options}");
            let mut command = small.command("");
            command.args(words.split_whitespace().map(|word| if word == "NAME" { path } else { word }));
            let output = command.output().unwrap();
            check(&words, &output);
            if options == " --json" && output.status.success() && !output.stdout.is_empty() {
                serde_json::from_slice::<Value>(&output.stdout).expect("stdout is JSON");
            }
            for out in ["out", "out.moments.safetensors", "out.html"] {
                let out = small.path(out);
                let _ = fs::remove_dir_all(&out).or_else(|_| fs::remove_file(&out));
            }
        }
    }
}

/// A safetensors file of zeros.
fn safetensors(path: &Path, metadata: Value, tensors: &[(String, &[u64])]) {
    let mut header = serde_json::Map::new();
    if !metadata.is_null() {
        header.insert("__metadata__".into(), metadata);
    }
    let mut end = 0;
    for (name, shape) in tensors {
        let begin = end;
        end += 4 * shape.iter().product::<u64>();
        header.insert(name.clone(), json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] }));
    }
    let header = Value::from(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; end as usize]].concat();
    fs::write(path, bytes).unwrap();
}

/// A folder of JSON files, each with its content.
fn folder(small: &Small, name: &str, files: &[(&str, Value)]) {
    let _ = fs::remove_dir_all(small.path(name));
    fs::create_dir(small.path(name)).unwrap();
    for (file, content) in files {
        fs::write(small.path(name).join(file), content.to_string()).unwrap();
    }
}

const JOBS: [&str; 3] = [
    "plan model.safetensors -a x.safetensors --rank 4",
    "init model.safetensors -a x.safetensors --rank 4 -o out",
    "moments x.safetensors -o out.moments.safetensors",
];

#[test]
fn names_and_metadata_of_safetensors_files() {
    let small = Small::new();
    for name in hostile_names() {
        let file = small.path("x.safetensors");
        let tensors = [(name.clone(), &[3, 24][..]), (format!("{name}.weight"), &[24, 24][..])];
        for metadata in [
            Value::Null,
            json!({ name.clone(): name }),
            json!({ "cntlora": name }),
            json!({ "cntlora": json!({ "format": name, "version": 1 }).to_string() }),
            json!({ "cntlora": json!({ "format": "activations", "version": 1, "sites": { name.clone(): [name] } }).to_string() }),
            json!({ "cntlora": json!({ "format": "activations", "version": 1, "sites": { "s": [name] } }).to_string() }),
            json!({ "cntlora": json!({ "format": "activations", "version": 1, "sites": { name.clone(): [name] },
                "convolutions": { name.clone(): { name.clone(): 1 } } }).to_string() }),
            json!({ "cntlora": json!({ "format": "moments", "version": 1, "precision": name }).to_string() }),
            json!({ "cntlora": json!({ "format": "moments", "version": 1, "tool_version": name, "precision": "f32", "sources": [],
                "sites": { name.clone(): { name.clone(): 1 } } }).to_string() }),
        ] {
            safetensors(&file, metadata, &tensors);
            all_are_safe(&small, "", &JOBS);
            all_are_safe(
                &small,
                "",
                &["inspect x.safetensors --values", "merge x.safetensors -o out.moments.safetensors"],
            );
            all_are_safe(
                &small,
                "",
                &["init x.safetensors --method pissa --target all-linear --rank 4 -o out"],
            );
        }
        let header = json!({ "t": { "dtype": name, "shape": [], "data_offsets": [0, 0] } }).to_string();
        let unknown = json!({ "t": { name.clone(): [], "shape": [], "data_offsets": [0, 0] } }).to_string();
        for header in [header, unknown] {
            fs::write(&file, [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat()).unwrap();
            all_are_safe(&small, "", &[JOBS[0], "inspect x.safetensors"]);
        }
    }
}

#[test]
fn names_of_files_and_arguments() {
    let small = Small::new();
    // A file name has at most 255 bytes.
    for name in [HOSTILE.to_owned(), "l".repeat(240)] {
        let dictionary = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 24), }\n";
        let length = (dictionary.len() as u16).to_le_bytes();
        let bytes = [b"\x93NUMPY\x01\0", &length[..], dictionary.as_bytes(), &[0; 4 * 72]].concat();
        fs::create_dir_all(small.path("npy")).unwrap();
        let path = format!("npy/{name}.npy");
        for bytes in [&bytes[..], b"other"] {
            fs::write(small.path(&path), bytes).unwrap();
            all_are_safe(
                &small,
                &path,
                &[
                    "inspect NAME --values",
                    "inspect npy",
                    "plan model.safetensors -a npy --rank 4",
                    "moments npy -o out.moments.safetensors",
                    "verify NAME",
                    "report NAME -o out.html",
                    "merge NAME -o out.moments.safetensors",
                    "convert NAME -o out",
                ],
            );
        }
        fs::remove_file(small.path(&path)).unwrap();
    }
    // The third name is longer than the system allows for an argument.
    for name in &hostile_names()[..2] {
        all_are_safe(
            &small,
            name,
            &[
                "NAME",
                "inspect NAME",
                "inspect --NAME",
                "init NAME -a target --rank NAME -o out",
                "plan model.safetensors -a target --rank 4 --target NAME",
                "plan model.safetensors -a target --rank 4 --include NAME",
                "plan model.safetensors -a target --rank 4 --method NAME",
                "plan model.safetensors -a target --rank 4 --rename NAME",
            ],
        );
    }
}

#[test]
fn configurations_and_indexes_of_models() {
    let small = Small::new();
    for name in hostile_names() {
        let config = json!({ "model_type": name, "architectures": [name], "tie_word_embeddings": name });
        for index in [
            json!({ "weight_map": { name.clone(): "1.safetensors" } }),
            json!({ "weight_map": { "block.query.weight": name } }),
            json!({ "weight_map": { "block.query.weight": { name.clone(): 1 } } }),
            json!({ "weight_map": name }),
        ] {
            folder(&small, "m", &[("config.json", config.clone()), ("model.safetensors.index.json", index)]);
            safetensors(
                &small.path("m/1.safetensors"),
                Value::Null,
                &[(format!("{name}.weight"), &[24, 24][..])],
            );
            all_are_safe(
                &small,
                "",
                &["inspect m", "plan m -a target --rank 4", "init m -a target --rank 4 -o out"],
            );
        }
        folder(&small, "m", &[("config.json", config)]);
        safetensors(&small.path("m/model.safetensors"), Value::Null, &[(name.clone(), &[24, 24][..])]);
        all_are_safe(&small, "", &["inspect m", "plan m -a target --rank 4"]);
        fs::write(small.path("m/config.json"), format!("{{\"{HOSTILE}\": 1}}")).unwrap();
        all_are_safe(&small, "", &["inspect m", "plan m -a target --rank 4"]);
    }
}

const ADAPTER: [&str; 3] = ["inspect x", "verify x --base model.safetensors", "convert x -o out --rank 1"];

#[test]
fn adapters_of_all_formats() {
    let small = Small::new();
    for name in hostile_names() {
        let escaped = regex::escape(&name);
        let configs = [
            json!({ "peft_type": name }),
            json!({ "peft_type": "LORA", "r": 1, "base_model_name_or_path": name, "target_modules": [name] }),
            json!({ "peft_type": "LORA", "r": name }),
            json!({ "peft_type": "LORA", "r": 1, "target_modules": format!("({name}") }),
            json!({ "peft_type": "LORA", "r": 1, "rank_pattern": { format!("({name}"): 1 } }),
            json!({ "peft_type": "LORA", "r": 2, "rank_pattern": { escaped: 1 }, "target_modules": ["other", name] }),
            json!({ "peft_type": "LORA", "r": 2, "target_parameters": [name.clone(), format!("{name}.{name}")] }),
        ];
        let records = [
            json!({ "format": name, "version": 1 }),
            json!({ "format": "cntlora-adapter", "version": 1, "method": { "method": name, "start": "update" } }),
            json!({ "format": "cntlora-adapter", "version": 1, "method": { "start": name } }),
            json!({ "format": "cntlora-adapter", "version": 1, "model": name, "residual": name,
                "layers": [{ "module": name, "tensor": name, "weight": [{ name.clone(): 1 }] }] }),
            json!({ "format": "cntlora-adapter", "version": 1, "model": name, "layers": [{ "module": name, "tensor": name }],
                "files": { "adapter_model.safetensors": { "bytes": 1, "sha256": name } } }),
        ];
        let prefix = format!("base_model.model.{name}");
        let pairs = [
            vec![
                (format!("{prefix}.lora_A.weight"), &[1, 24][..]),
                (format!("{prefix}.lora_B.weight"), &[20, 1][..]),
            ],
            vec![(format!("{prefix}.lora_A.weight"), &[1, 24][..])],
            vec![(name.clone(), &[1, 24][..])],
        ];
        for config in &configs {
            folder(&small, "x", &[("adapter_config.json", config.clone())]);
            safetensors(&small.path("x/adapter_model.safetensors"), Value::Null, &pairs[0]);
            all_are_safe(&small, "", &ADAPTER);
        }
        for (record, pair) in records
            .iter()
            .map(|record| (record, &pairs[0]))
            .chain(pairs.iter().map(|pair| (&records[0], pair)))
        {
            folder(
                &small,
                "x",
                &[("adapter_config.json", configs[1].clone()), ("cntlora.json", record.clone())],
            );
            safetensors(&small.path("x/adapter_model.safetensors"), json!({ name.clone(): name }), pair);
            all_are_safe(&small, "", &ADAPTER);
        }
        let single = [
            ("lora.safetensors", [".lora_down.weight", ".lora_up.weight"]),
            ("pytorch_lora_weights.safetensors", [".lora_A.weight", ".lora_B.weight"]),
        ];
        for (file, [down, up]) in single {
            for metadata in [
                Value::Null,
                json!({ "cntlora_modules": json!({ name.clone(): name }).to_string() }),
                json!({ "cntlora_modules": name }),
            ] {
                folder(&small, "x", &[]);
                let tensors =
                    [(format!("{name}{down}"), &[1, 24][..]), (format!("{name}{up}"), &[20, 1][..])];
                safetensors(&small.path("x").join(file), metadata, &tensors);
                all_are_safe(&small, "", &ADAPTER);
                all_are_safe(&small, "", &["convert x -o out --format kohya --component unet"]);
            }
        }
    }
}

/// The report of a run with this name at every place of a text, one after the other.
fn reports(report: &Value, name: &str) -> Vec<Value> {
    fn texts(value: &Value, at: String, found: &mut Vec<String>) {
        match value {
            Value::String(_) => found.push(at),
            Value::Array(items) => {
                items
                    .iter()
                    .take(1)
                    .enumerate()
                    .for_each(|(i, item)| texts(item, format!("{at}/{i}"), found));
            }
            Value::Object(entries) => {
                entries.iter().for_each(|(key, item)| texts(item, format!("{at}/{key}"), found));
            }
            _ => {}
        }
    }
    let mut places = Vec::new();
    texts(report, String::new(), &mut places);
    let changed = places.iter().map(|place| {
        let mut report = report.clone();
        *report.pointer_mut(place).unwrap() = json!(name);
        report
    });
    let mut unknown = report.clone();
    unknown.as_object_mut().unwrap().insert(name.into(), json!(1));
    changed.chain([unknown]).collect()
}

#[test]
fn reports_plans_and_parts() {
    let small = Small::new();
    let run = small.succeed("init model.safetensors -a target --rank 4 -o adapter --json");
    let plan = small.succeed("plan model.safetensors -a target --rank 4 --json");
    small.succeed("init model.safetensors -a target --rank 4 -o parts --shard 0/1");
    let part = fs::read_dir(small.path("parts"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir());
    let part = part.unwrap_or(small.path("parts")).join("part.json");
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let (report, plan, described) = (read(&run.stdout), read(&plan.stdout), read(&fs::read(&part).unwrap()));
    for name in [&hostile_names()[0], &hostile_names()[2]] {
        for changed in reports(&report, name) {
            fs::write(small.path("x.json"), changed.to_string()).unwrap();
            all_are_safe(&small, "", &["inspect x.json", "report x.json -o out.html"]);
        }
        for changed in reports(&plan, name) {
            fs::write(small.path("x.json"), changed.to_string()).unwrap();
            all_are_safe(&small, "", &["inspect x.json"]);
        }
        for changed in reports(&described, name) {
            fs::write(&part, changed.to_string()).unwrap();
            all_are_safe(&small, "", &["merge parts -o out"]);
        }
    }
}
