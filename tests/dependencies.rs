//! Tests that the default build is pure Rust: no crate in its dependency tree compiles or links C or C++.

use std::process::Command;

/// Crates that compile C or C++, generate bindings to it, or find it on the system.
const COMPILE_C: [&str; 6] = ["cc", "cmake", "bindgen", "pkg-config", "autotools", "vcpkg"];

#[test]
fn the_default_build_compiles_no_c_or_cpp() {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("crate names are UTF-8");
    let crates: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(crates.contains(&"faer") && crates.contains(&"clap"), "{tree}");
    // `linux-raw-sys` contains only Rust declarations of the kernel interface.
    let offenders: Vec<_> = crates
        .iter()
        .filter(|name| COMPILE_C.contains(name) || (name.ends_with("-sys") && **name != "linux-raw-sys"))
        .collect();
    assert!(offenders.is_empty(), "{offenders:?}");
}
