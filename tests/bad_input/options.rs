//! Options that cannot be carried out.

use crate::small::Small;

/// Each is answered with what is legal, or with names that are similar.
#[test]
fn options_out_of_range_are_answered_with_what_is_legal() {
    let small = Small::new();
    for (options, message) in [
        ("--rank 13", "give --rank 12, or leave layers out with"),
        ("--rank 5 --rank-multiple 4", "give --rank 4, or change the limits"),
        ("--rank 0", "the rank is 0, but must be at least 1"),
        ("--budget=1", "give --budget 36 or more"),
        ("--rank 4 --scale NaN", "the scale is NaN, but must be a positive number"),
        ("--rank 4 --scale -1", "the scale is -1, but must be a positive number"),
        ("--rank 4 --ridge NaN", "the ridge is NaN, but must be above 0 and at most 1"),
        ("--energy 1.5", "the energy share is 1.5, but must be above 0 and at most 1"),
        ("--rank 4 --target mpl", r#"no module is named "mpl"; the nearest names are "mlp""#),
        ("--rank 4 --include nothing", "together leave out all 3"),
        ("--rank 4 --include (", r#"--include: "(" is no regular expression"#),
        ("--rank 4 --coupling paired", "give them with --source, or choose --coupling transport"),
        ("--rank 4 --max-memory 1MiB", "MiB or more; --coupling uncorrelated"),
        ("--rank 4 --threads 0", "invalid value '0' for '--threads <N>'"),
    ] {
        small.refused(&format!("plan model.safetensors -a target {options}"), 2, message);
    }
}

/// No inputs at all, and one that is given twice.
#[test]
fn inputs_must_be_there_once() {
    let small = Small::new();
    std::fs::create_dir(small.path("empty")).unwrap();
    std::fs::hard_link(small.path("target/0.safetensors"), small.path("again.safetensors")).unwrap();
    for (words, message) in [
        ("plan model.safetensors", "--activations"),
        ("plan model.safetensors -a empty", "expected .safetensors or .npy files in the folder, found none"),
        ("plan model.safetensors -a target target", "the same file is given twice"),
        ("plan model.safetensors -a target again.safetensors", "the same file is given twice"),
    ] {
        small.refused(words, 2, message);
    }
}

/// More threads than processors, and than sites, change no bit.
#[test]
fn many_threads_change_nothing() {
    let small = Small::new();
    let words = "init model.safetensors -a target --rank 4";
    small.succeed(&format!("{words} --threads 1 -o one"));
    small.succeed(&format!("{words} --threads 64 -o many"));
    assert!(small.bytes("one") == small.bytes("many"));
}
