"""The report: text, JSON, a page, and what was done to the model."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model

import cntlora
from adapted import adapted
from models import batches


@pytest.fixture(scope="module")
def report():
    model, _, batch = adapted("bert_head", ["query", "value"], task_type="SEQ_CLS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cntlora.initialize_lora_weights(model, batches(batch), method="corda-ipm")


def test_the_text_has_the_table_of_the_tool(report):
    text = str(report)
    assert "bert.encoder.layer.0.attention.self.query" in text and "kept" in text and "corda-ipm" in text
    assert "The factors of 4 layers were written into the adapter." in text
    assert "The updates were taken off the weights of 4 layers" in text
    assert repr(report) == "<cntlora.Report: 4 layers, 0 left out>"
    assert report.layers[0]["module"] == "bert.encoder.layer.0.attention.self.query" and report.left_out == {}


def test_json_and_page(report, tmp_path):
    report.save(tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content == json.loads(report.json())
    assert content["layers"] == report.layers and content["peft"]["class"] == "BertForSequenceClassification"
    assert content["peft"]["notes"] == report.notes and content["method"]["method"] == "corda-ipm"
    report.save(str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    assert page == report.html() and page.startswith("<!doctype html>")
    assert "<h2>Model</h2>" in page and "The updates were taken off the weights" in page and "<h2>Ranks</h2>" in page
    with pytest.raises(ValueError, match="ends with .json or .html, found 'report.txt'"):
        report.save("report.txt")


def test_a_notebook_shows_the_page_in_a_frame(report):
    """The page has styles and scripts, which must not reach the notebook."""
    shown = report._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and shown.count("<") == 2


def test_names_are_escaped():
    """Names of layers come from the user's own classes."""
    class Strange(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("<b>one</b>", torch.nn.Linear(8, 8))
            self.add_module("two", torch.nn.Linear(8, 8))

        def forward(self, rows):
            return self._modules["two"](rows)

    model = get_peft_model(Strange(), LoraConfig(r=2, target_modules=["<b>one</b>", "two"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = cntlora.initialize_lora_weights(model, [torch.randn(40, 8)])
    assert list(report.left_out) == ["<b>one</b>"]
    assert "<b>one</b>" not in report.html() and "&lt;b&gt;one&lt;/b&gt;" in report.html()


def test_methods_without_data_report_no_tokens():
    model, _, batch = adapted()
    text = str(cntlora.initialize_lora_weights(model, method="pissa"))
    assert "tokens" not in text
