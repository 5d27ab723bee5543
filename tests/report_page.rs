//! Tests of the report page in a real browser, at the width of a screen and of a phone, in light and dark colours. These tests need
//! Chromium: the package `chromium` on Debian, or a program that the variable `CHROMIUM` names.
//!
//! ```text
//! cargo test --test report_page -- --ignored
//! ```
//!
//! The screenshots stay in `target/tmp`.

use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A script that checks the page after it has loaded, and sends the result to the page around it.
const CHECK: &str = r#"<script>
addEventListener("load", () => {
  const table = document.querySelector("table[data-what=layers]");
  const rows = () => [...table.tBodies[0].rows];
  const buttons = [...table.querySelectorAll("th button")];
  const column = buttons.findIndex((button) => button.textContent === "rank");
  const button = buttons[column];
  const ranks = () => rows().map((row) => Number(row.cells[column].dataset.key));
  button.click();
  const falling = ranks().every((rank, i, all) => i === 0 || all[i - 1] >= rank);
  button.click();
  const rising = ranks().every((rank, i, all) => i === 0 || all[i - 1] <= rank);
  const input = table.previousElementSibling.querySelector("input");
  input.value = "blocks.1 query";
  input.dispatchEvent(new Event("input"));
  const names = rows().filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
  input.value = "";
  input.dispatchEvent(new Event("input"));
  const result = {
    width: document.documentElement.clientWidth,
    widest: Math.max(...[...document.querySelectorAll("body *")].filter((element) => !element.closest("svg"))
      .map((element) => element.getBoundingClientRect().right)),
    content: document.documentElement.scrollWidth,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    paper: getComputedStyle(document.body).backgroundColor,
    falling, rising, names,
    charts: document.querySelectorAll("svg").length,
    flat: [...document.querySelectorAll("details[open] svg, section > figure svg")]
      .filter((svg) => svg.getBoundingClientRect().height < 20).length,
    run: typeof hostile,
  };
  parent.postMessage(JSON.stringify(result), "*");
});
</script></body>"#;

/// Returns a page that shows another page in a frame of this size, and keeps the message that it receives.
fn framed(page: &Path, width: u32, height: u32) -> String {
    format!(
        r#"<!doctype html><html style="color-scheme: light dark"><body style="margin: 0"><code id="check"></code>
<script>onmessage = (event) => {{ document.getElementById("check").textContent = event.data; }};</script>
<iframe src="file://{}" style="border: 0; width: {width}px; height: {height}px"></iframe></body></html>"#,
        page.display()
    )
}

fn browser() -> PathBuf {
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .flat_map(|folder| ["chromium", "chromium-browser", "google-chrome"].map(|name| folder.join(name)))
        .find(|candidate| candidate.is_file());
    named.or(found).expect("needs Chromium: install it, or name its program in CHROMIUM")
}

/// Opens a page in a frame of this width, and returns the result of the check and the lines of the console. The page needs a frame
/// because the browser does not make a window as narrow as a phone.
fn look(page: &Path, width: u32, dark: bool, folder: &Path) -> (Value, String) {
    let scheme = if dark { "dark" } else { "light" };
    let profile = folder.join("profile");
    let run = |page: &Path, height: u32, what: &str| {
        let output = Command::new(browser())
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--enable-logging=stderr",
            ])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(format!("--window-size={width},{height}"))
            .arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)))
            .args(["--virtual-time-budget=2000", what])
            .arg(format!("file://{}", page.display()))
            .output()
            .expect("the browser starts");
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (checked, frame) = (folder.join("checked.html"), folder.join("frame.html"));
    let text = fs::read_to_string(page).expect("the page is there");
    fs::write(&checked, text.replace("</body>", CHECK)).expect("a temporary file can be written");
    fs::write(&frame, framed(&checked, width, 900)).expect("a temporary file can be written");
    let (dom, console) = run(&frame, 900, "--dump-dom");
    let result = dom.split_once("<code id=\"check\">").and_then(|(_, rest)| rest.split_once("</code>"));
    let (result, _) = result.unwrap_or_else(|| panic!("the check did not run: {console}"));
    let result = result.replace("&quot;", "\"").replace("&amp;", "&");

    let name = format!("{}-{width}-{scheme}.png", page.file_stem().unwrap_or_default().display());
    let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&frame, framed(page, width, 4000)).expect("a temporary file can be written");
    run(&frame, 4000, &format!("--screenshot={}", picture.display()));
    let console = console.lines().filter(|line| line.contains("CONSOLE")).collect::<Vec<_>>().join("\n");
    (serde_json::from_str(&result).expect("the check wrote JSON"), console)
}

fn cntlora(words: &[&dyn AsRef<std::ffi::OsStr>]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cntlora"));
    let output = command.args(words.iter().map(|word| word.as_ref())).output().expect("the tool starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Returns the report with two more modules of 128 experts each. Every expert has its own site.
fn with_experts(mut report: Value) -> Value {
    let (layer, site) = (report["layers"][0].clone(), report["sites"][0].clone());
    for number in 0..128 {
        let name = format!("blocks.0.experts.{number}");
        for module in ["blocks.0.experts.down", "blocks.0.experts.up"] {
            let mut expert = layer.clone();
            expert["module"] = json!(module);
            expert["block"] = json!(number);
            expert["site"] = json!(name);
            expert["energy_kept"] = json!(0.3 + 0.005 * f64::from(number));
            report["layers"].as_array_mut().expect("layers").push(expert);
        }
        let mut expert = site.clone();
        expert["name"] = json!(name);
        expert["rows"] = json!(100 + 10 * number);
        report["sites"].as_array_mut().expect("sites").push(expert);
    }
    report
}

/// Checks the page of an ordinary run, a page with hostile names, and a page with 128 experts. On each page nothing scrolls sideways,
/// the console is empty, tables sort and filter, charts have a height, colours follow the scheme, and no name runs as a script.
#[test]
#[ignore = "slow set: needs Chromium, see the head of this file"]
fn the_page_works_on_screens_and_phones() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let demo = folder.path().join("demo");
    cntlora(&[&"demo", &demo]);
    let (model, out) = (demo.join("model"), demo.join("adapter-budget"));
    let page = folder.path().join("report.html");
    let (activations, source) = (demo.join("activations"), demo.join("activations-source"));
    let inputs: [&dyn AsRef<std::ffi::OsStr>; 4] = [&"--activations", &activations, &"--source", &source];
    // The coupling `transport` has the most charts: only it has a distance between source and target.
    let options: [&dyn AsRef<std::ffi::OsStr>; 9] =
        [&"--rank", &"8", &"--budget", &"--coupling", &"transport", &"--out", &out, &"--report", &page];
    cntlora(&[&[&"init" as &dyn AsRef<std::ffi::OsStr>, &model], &inputs[..], &options[..]].concat());

    let report = fs::read_to_string(out.join("report.json")).expect("the report is there");
    let original: Value = serde_json::from_str(&report).expect("the report is JSON");
    let write_page = |report: &Value, name: &str| {
        let (json, page) =
            (folder.path().join(format!("{name}.json")), folder.path().join(format!("{name}.html")));
        fs::write(&json, report.to_string()).expect("a temporary file can be written");
        cntlora(&[&"report", &json, &"--out", &page]);
        page
    };
    let mut report = original.clone();
    let attacks =
        ["<script>hostile=1</script>", "\" onload=\"hostile=1", "</title>\n<img src=x>", "\u{202e}אב"];
    let attack = |name: &Value, index: usize| {
        json!(format!("{}{}{}", name.as_str().unwrap_or_default(), attacks[index % 4], "x".repeat(index * 9)))
    };
    for (index, layer) in report["layers"].as_array_mut().expect("layers").iter_mut().enumerate() {
        layer["module"] = attack(&layer["module"], index);
    }
    for (index, site) in report["sites"].as_array_mut().expect("sites").iter_mut().enumerate() {
        site["name"] = attack(&site["name"], index);
    }
    report["command"] = attack(&report["command"], 0);
    report["skipped"] = json!([{ "name": attacks[1], "reason": attacks[0] }]);
    let hostile_page = write_page(&report, "hostile");
    let experts_page = write_page(&with_experts(original), "experts");

    for (page, charts) in [(&page, 16), (&hostile_page, 16), (&experts_page, 18)] {
        for (width, dark) in [(1280, false), (1280, true), (400, false), (400, true)] {
            let (found, console) = look(page, width, dark, folder.path());
            let place = format!("{} at {width}, dark {dark}: {found}", page.display());
            assert_eq!(console, "", "{place}");
            assert_eq!(found["width"], width, "{place}");
            assert!(found["content"].as_u64() <= found["width"].as_u64(), "scrolls sideways: {place}");
            assert!(found["widest"].as_f64() <= found["width"].as_f64(), "something sticks out: {place}");
            assert_eq!(found["dark"], dark, "{place}");
            let paper = if dark { "rgb(20, 23, 27)" } else { "rgb(255, 255, 255)" };
            assert_eq!(found["paper"], paper, "{place}");
            assert_eq!((&found["falling"], &found["rising"]), (&json!(true), &json!(true)), "{place}");
            assert_eq!(found["names"].as_array().map(Vec::len), Some(1), "{place}");
            assert_eq!((&found["charts"], &found["flat"]), (&json!(charts), &json!(0)), "{place}");
            assert_eq!(found["run"], "undefined", "{place}");
        }
    }
}
