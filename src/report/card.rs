//! The report as the text of a model card, in Markdown.

use super::Report;
use super::text::{kept_on_average, rank_range, tokens_and_rows};
use crate::factors::Start;
use crate::storage::visible::one_line;
use std::fmt::Write as _;

/// The card of an adapter that takes the update of another one away.
pub(crate) const ANCHOR: &str = "\
# Anchor of a LoRA adapter

This adapter takes the initial update of the adapter in the folder above away. Load it beside that one, and keep it frozen. Written by cntlora.
";

/// The origin of an adapter, its figures, the command that made it, and how training starts from it. `is_anchored` tells that there is an
/// anchor. `uniform` is the rank to which all factors were padded.
pub(crate) fn render(report: &Report, is_anchored: bool, uniform: Option<usize>) -> String {
    let method = &report.method;
    let mut text = format!(
        "# Initial LoRA adapter\n\nMade by cntlora {}, and not trained yet. {}\n\n",
        one_line(&report.tool_version),
        at_start(method.start, is_anchored),
    );
    let ranks = match rank_range(report) {
        Some((least, largest)) if least < largest => format!("{least} to {largest}"),
        Some((rank, _)) => rank.to_string(),
        None => "none".into(),
    };
    let ranks = match uniform {
        Some(uniform) => format!("{ranks}, padded with zeros to {uniform}"),
        None => ranks,
    };
    let base = code(&report.model.display().to_string());
    let rows = [
        ("base", base),
        ("method", method.method.name().to_owned()),
        ("start", method.start.name().to_owned()),
        ("scale", method.scale.to_string()),
        ("ranks", ranks),
        ("layers", report.layers.iter().filter(|layer| layer.rank > 0).count().to_string()),
        ("parameters", report.parameters.to_string()),
    ];
    _ = writeln!(text, "| | |\n|---|---|");
    for (name, value) in rows {
        _ = writeln!(text, "| {name} | {value} |");
    }
    for figure in [tokens_and_rows(report), kept_on_average(report)].into_iter().flatten() {
        _ = write!(text, "\n{}\n", figure.replace('\n', " "));
    }
    if let Some(command) = &report.command {
        _ = write!(text, "\n## Command\n\n    {}\n", one_line(command));
    }
    _ = write!(
        text,
        "\n## Training\n\n```python\nfrom peft import PeftModel\n\nmodel = PeftModel.from_pretrained(model, \"FOLDER\", \
         is_trainable=True)\n```\n\n`report.json` has all figures, and `cntlora.json` the options and the inputs.\n"
    );
    text
}

/// The effect of the adapter before training.
fn at_start(start: Start, is_anchored: bool) -> &'static str {
    match (start, is_anchored) {
        (Start::Mirrored | Start::Zero, _) => "Before training, it does not change the output of the base.",
        (Start::Residual, false) => {
            "It belongs to the changed base that was written with it: together they compute what the original model computes."
        }
        (Start::Residual, true) => {
            "It belongs to the anchor in its folder: together they do not change the output of the base."
        }
        (Start::Update, _) => {
            "Before training, it already changes the output of the base, by a limited update."
        }
    }
}

/// Text in a cell of a table, as code.
fn code(text: &str) -> String {
    let text = one_line(text).replace('|', "\\|");
    let longest = text.split(|character| character != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest + 1);
    format!("{fence} {text} {fence}")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{layer, report};
    use super::*;
    use expect_test::expect;

    #[test]
    fn cards_show_the_origin_and_the_figures() {
        let mut report = report(vec![layer("q", 8), layer("v", 4)]);
        report.command = Some("cntlora init 'a\nb' --out x".into());
        expect![[r##"
            # Initial LoRA adapter

            Made by cntlora 0.1.0, and not trained yet. Before training, it already changes the output of the base, by a limited update.

            | | |
            |---|---|
            | base | ` model ` |
            | method | cntlora |
            | start | update |
            | scale | 1 |
            | ranks | 4 to 8, padded with zeros to 16 |
            | layers | 2 |
            | parameters | 23040 |

            2048 tokens of fine-tuning activations, a row per token at every site

            update kept on average: 81.2 % update kept at 2× and 4× the rank: unknown beyond 2 singular values per layer

            ## Command

                cntlora init 'a\nb' --out x

            ## Training

            ```python
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, "FOLDER", is_trainable=True)
            ```

            `report.json` has all figures, and `cntlora.json` the options and the inputs.
        "##]]
        .assert_eq(&render(&report, false, Some(16)));
    }

    #[test]
    fn paths_are_shown_as_code() {
        assert_eq!(code("a|b"), "` a\\|b `");
        assert_eq!(code("a``b"), "``` a``b ```");
    }
}
