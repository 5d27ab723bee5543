//! The page as a whole. `tests/report_page.rs` opens it in a browser.

use super::*;
use crate::plan::Skipped;
use crate::report::testing::{block, layer, report};
use crate::report::{SiteReport, TrustRegion, UnusableSite};
use quickcheck::quickcheck;

/// The elements and attributes of a page, without the text between them.
fn tags(page: &str) -> Vec<&str> {
    page.split('<').skip(1).filter_map(|rest| rest.split_once('>')).map(|(tag, _)| tag).collect()
}

/// A report with this text in every field that comes from outside.
fn with_text(text: &str) -> Report {
    let mut report = report(vec![layer(text, 8), layer(&format!("m.0.{text}"), 0)]);
    report.tool_version = text.into();
    report.instruction_set = text.into();
    report.command = Some(text.into());
    report.model = text.into();
    report.inputs.activations[0].path = text.into();
    report.inputs.checkpoint[0].sha256 = Some(text.into());
    report.sites[0].name = text.into();
    report.skipped = vec![Skipped { name: text.into(), reason: text.into() }];
    report.unusable = vec![UnusableSite {
        name: text.into(),
        modules: vec![text.into()],
        reason: text.into(),
        remedy: text.into(),
    }];
    report
}

quickcheck! {
    /// The page of any text has the same tags as the page of a word.
    fn text_never_becomes_markup(text: String) -> bool {
        let attributes_of_ours = |tags: Vec<&str>| -> Vec<String> {
            tags.into_iter().map(|tag| tag.split(" data-key").next().unwrap_or(tag).to_owned()).collect()
        };
        // Dots and digits would move the layer to another chart.
        let text: String = text.chars().filter(|c| *c != '.' && !c.is_ascii_digit()).collect();
        let (found, wanted) = (render(&with_text(&format!("a{text}"))), render(&with_text("a")));
        attributes_of_ours(tags(&found)) == attributes_of_ours(tags(&wanted))
    }
}

/// Names of layers as an attacker would choose them.
#[test]
fn hostile_names_are_harmless() {
    for hostile in [
        "<script>alert(1)</script>",
        "\" onload=\"alert(1)",
        "</title><img src=x>",
        "'a\n\u{202e}b",
        "--><b>",
    ] {
        let page = render(&with_text(hostile));
        assert!(!page.contains(hostile), "{hostile}");
        assert!(!page.contains('\u{202e}'));
    }
}

/// Every chart has an alternative text, and every element is closed.
#[test]
fn the_page_refers_to_no_other_file() {
    let page = render(&report(vec![layer("m.0.q", 8), layer("m.1.q", 4), layer("head", 0)]));
    for outside in ["http:", "https:", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert_eq!(page.matches("<svg role=\"img\"").count(), page.matches("</title><desc>").count());
    assert_eq!(page.matches("<svg").count(), 6, "ranks, sizes, three spectra, effective ranks");
    for open in ["section", "figure", "details", "table", "div", "span", "bdi", "p", "ul", "dl"] {
        let starts =
            tags(&page).iter().filter(|tag| **tag == open || tag.starts_with(&format!("{open} "))).count();
        assert_eq!(starts, page.matches(&format!("</{open}>")).count(), "<{open}>");
    }
}

#[test]
fn the_page_says_what_happened() {
    let mut report = report(vec![layer("m.0.q", 8), layer("m.1.q", 4), layer("head", 0)]);
    report.trust_region = Some(TrustRegion { model: 0.1, depth: 4, layer: 0.05 });
    report.unusable = vec![UnusableSite {
        name: "0.in".into(),
        modules: vec!["0.q".into(), "0.k".into()],
        reason: "all activations are zero".into(),
        remedy: "record more".into(),
    }];
    report.skipped = vec![Skipped { name: "conv".into(), reason: "its weight is not a matrix".into() }];
    report.sites[0].skipped_rows = 3;
    report.sites.push(SiteReport { name: "out".into(), rows: 90, ..report.sites[0].clone() });
    let page = render(&report);
    for said in [
        "<bdi>0.q</bdi>, <bdi>0.k</bdi>: site <bdi>0.in</bdi>: all activations are zero; record more",
        "The model was asked to move by about 10.0 % at most. It has 4 adapted layers that follow one another",
        "From 2\u{202f}048 tokens of fine-tuning activations at 2 sites, cntlora 0.1.0 computed in 1.2 s an adapter of 2 layers",
        "23\u{202f}040 parameters in ranks 4 to 8, which keep 81.2 % of an update on average",
        "<dt>tokens</dt><dd>2\u{202f}048</dd>",
        "Update kept at 2× and 4× the rank: unknown beyond 2 singular values per layer.",
        "<b>Advice:</b> Record site &quot;0.in&quot; again, because 2 modules have no adapter without it.",
        "<bdi>head</bdi>: rank 0",
        "its weight is not a matrix",
        "3 rows of site <bdi>in</bdi>: NaN or infinity",
        "<pre><code>cntlora init model</code></pre>",
        "0123456789abcdef",
    ] {
        assert!(page.contains(said), "{said} is missing");
    }
}

/// A page of 128 experts shows one row, one chart and one cell for all of them. A folded table has a row for each.
#[test]
fn experts_are_folded() {
    let mut layers = vec![layer("m.0.q", 8)];
    layers.extend((0..128).map(|number| block("m.0.experts.up", number)));
    let page = render(&report(layers));
    assert_eq!(page.matches("<svg").count(), 5, "ranks, sizes, two spectra, effective ranks");
    let (open, folded) =
        page.split_once("<details><summary><bdi>m.0.experts.up</bdi>: 128 layers</summary>").unwrap();
    assert!(!open.contains("m.0.experts.up.7"));
    let (folded, _) = folded.split_once("</details>").unwrap();
    assert_eq!(folded.matches("<tr>").count(), 129);
    assert!(folded.contains("<bdi>m.0.experts.up.7</bdi>"));
}
