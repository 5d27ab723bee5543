"""The page, the drawings and the files of a comparison."""

import json
import re
import xml.etree.ElementTree as xml
from html.parser import HTMLParser

import pytest

from cntlora.comparison import BUILT_IN
from cntlora.comparison.drawing import DARK, LIGHT, Axes, Line, chart, escaped
from cntlora.comparison.results import Comparison
from cntlora.comparison.runs import shown_rate
from cntlora.comparison.scales import log_ticks, spread, ticks, value_range
from compared import made_runs

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = "<script>alert('1')</script> & \"two\" \x00\x1b]]>"
VOID = {"meta", "br"}


def comparison(starts=("lora", "cntlora"), **changes):
    """Returns a comparison in which each start is a little better than the one before."""
    values = {
        start: {
            "tuning": {rate: {seed: [9.0, 4.0, end - place / 10] for seed in (0, 1)} for rate, end in ((0.1, 2.0), (1.0, 3.0))},
            "report": {0.1: {seed: [9.0, 3.0 + seed / 10, 1.5 - place / 10 + seed / 10] for seed in (2, 3, 4)}},
        }
        for place, start in enumerate(starts)
    }
    runs = made_runs(values, **changes)
    return Comparison(runs.plan, runs)


class Balanced(HTMLParser):
    """Checks that every element of a page is closed, and collects its text and its elements."""

    def __init__(self):
        super().__init__()
        self.open, self.names, self.texts = [], [], []

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.names.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def parsed(page):
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def drawings(page):
    """Returns the drawings of a page, each parsed as XML."""
    return [xml.fromstring(text) for text in re.findall(r"<figure>(<svg.*?</svg>)\n?(?:<figcaption|</figure>)", page, re.DOTALL)]


def test_the_page_holds_every_start(tmp_path):
    names = list(BUILT_IN)[:14]
    found = comparison(names)
    found.save(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page == found.html() and page.startswith("<!doctype html>")
    assert not re.search(r"<script|<link|url\(|@import| src=", page), "the page is self-contained"
    assert "prefers-color-scheme: dark" in page
    text = parsed(page).texts
    curves, rates = drawings(page)
    for name in names:
        # Two tables and two drawings.
        assert text.count(name) >= 4, name
        for drawing in (curves, rates):
            assert name in [entry.text for entry in drawing.iter(SVG + "text")]
    assert f"Better than lora: {', '.join(names[1:])}." in text
    assert '<td class="better">better</td>' in page and "95 % interval" in text


@pytest.mark.parametrize("count", [2, 15])
def test_drawings_are_files_of_their_own(count):
    """A white background, colours in attributes, no references, and inside of the picture."""
    found = comparison(["lora", *(f"start {number}" for number in range(1, count))])
    for text in (found.curves_svg(), found.rates_svg()):
        root = xml.fromstring(text)
        assert root.tag == SVG + "svg" and root.find(SVG + "rect").get("fill") == "#ffffff"
        assert "var(" not in text and "href" not in text and "<style" not in text
        height = float(root.get("height"))
        labels = [entry for entry in root.iter(SVG + "text") if (entry.text or "").startswith(("lora", "start "))]
        places = sorted(float(entry.get("y")) for entry in labels)
        assert len(places) == count and all(after - before >= 14 for before, after in zip(places, places[1:]))
        assert places[0] > 0 and places[-1] < height
        paths = [path for path in root.iter(SVG + "path") if path.get("class", "").startswith("line")]
        looks = [(path.get("stroke"), path.get("stroke-dasharray")) for path in paths]
        # Each start has its line and its label in the same look, which no other start has.
        assert len(looks) == 2 * count and len(set(looks)) == count


def test_a_start_keeps_its_colour():
    found = comparison(["lora", "first", "two"])
    colour = LIGHT[2]
    assert found.curves_svg(starts=["two"]).count(colour) == found.curves_svg().count(colour) > 0
    assert "first" not in found.curves_svg(starts=["two"]) and "A title" in found.rates_svg(title="A title")
    with pytest.raises(ValueError, match="the comparison has no start 'three'. It has lora, first, two"):
        found.curves_svg(starts=["three"])
    with pytest.raises(ValueError, match="has no start 'three'"):
        found.rates_svg(starts=["three"])
    with pytest.raises(ValueError, match="no run measured 'score'. They measured loss"):
        found.curves_svg(measure="score")


def test_a_curve_and_its_band():
    """The line goes through the means, and the band has their intervals."""
    text = chart([Line("a", 0, [(0, 1.0), (10, 3.0)], [(0.0, 2.0), (2.0, 4.0)])], Axes("t", "x", "y"), True)
    root = xml.fromstring(text)
    area, line = (path for path in root.iter(SVG + "path") if path.get("class") in ("area0", "line0") and path.get("d").count("L") > 0)
    points = [tuple(map(float, point.split())) for point in line.get("d")[1:].split("L")]
    corners = [tuple(map(float, point.split())) for point in area.get("d")[1:-1].split("L")]
    (first_x, first_y), (last_x, last_y) = points
    assert first_x == 0 and last_x > 300 and first_y > last_y, "values grow upwards"
    step = (first_y - last_y) / 2
    assert [x for x, _ in corners] == [0, last_x, last_x, 0]
    assert [y for _, y in corners] == pytest.approx([first_y - step, last_y - step, last_y + step, first_y + step], abs=0.2)


def test_hostile_names_do_no_harm():
    found = comparison(["lora", HOSTILE], measure="loss")
    page = found.html()
    assert "<script" not in page and "\x00" not in page and "\x1b" not in page
    parser = parsed(page)
    assert "script" not in parser.names
    assert any("<script>alert('1')</script> & \"two\" ??]]>" in text for text in parser.texts)
    for drawing in [*drawings(page), xml.fromstring(found.curves_svg()), xml.fromstring(found.rates_svg(title=HOSTILE))]:
        assert any("<script>" in (entry.text or "") for entry in drawing.iter(SVG + "text"))
    assert escaped("a\ud800b\uffff") == "a?b?"


def test_an_error_is_text_on_the_page():
    runs = made_runs({"lora": {"tuning": {0.1: {0: "the start failed: OSError: <b>no</b>"}}}})
    page = Comparison(runs.plan, runs).html()
    assert "OSError: &lt;b&gt;no&lt;/b&gt;" in page and "<b>no" not in page
    # The runs that a start lacks because it cannot be used are not called missing.
    assert "(1 lost)" in page and "missing" not in "".join(parsed(page).texts)


def test_the_page_of_an_unfinished_comparison():
    """It shows what exists, and says what is missing."""
    empty = made_runs({"lora": {}, "cntlora": {}})
    page = Comparison(empty.plan, empty).html()
    parsed(page)
    assert "at least 14 runs are missing" in page and "There are no verdicts yet." in page and "There are no curves yet." in page
    assert [drawing.find(f"{SVG}text[2]").text for drawing in drawings(page)] == ["There are no runs yet."]
    some = made_runs({
        "lora": {
            "tuning": {0.1: {0: [9.0, 4.0, 3.0], 1: [9.0, 4.0, 3.0]}, 1.0: {0: [9.0, 5.0, 4.0], 1: [9.0, 5.0, 4.0]}},
            "report": {0.1: {2: [9.0, 4.0, 3.0]}},
        },
        "cntlora": {"tuning": {0.1: {0: [9.0, 4.0, 2.0]}}},
    })
    page = Comparison(some.plan, some).html()
    parsed(page)
    assert "2 (1 missing)" in page and len(drawings(page)) == 2 and "at least 8 runs are missing" in page
    # One run has no band.
    assert "fill-opacity" not in Comparison(some.plan, some).curves_svg()


def test_files_of_a_comparison(tmp_path):
    found = comparison()
    found.save(str(tmp_path / "summary.json"))
    content = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert content == json.loads(found.json()) and content["missing"] == 0 and content["plan"]["baseline"] == "lora"
    lora, ours = content["results"]
    assert ours["start"] == "cntlora" and ours["verdict"] == "better" and ours["difference"]["mean"] == pytest.approx(-0.1)
    assert lora["rate"] == 0.1 and lora["grid"][1] == {"rate": 1.0, "mean": 3.0, "values": [3.0, 3.0]}
    with pytest.raises(ValueError, match="the name of a comparison ends with .json or .html, found 'page.txt'"):
        found.save("page.txt")


def test_a_notebook_shows_the_page_in_a_frame():
    shown = comparison()._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and shown.count("<") == 2


def test_bad_values_do_not_flatten_the_others():
    lines = [Line("a", 0, [(1, 1.0), (2, 1.2), (3, 1.1)]), Line("b", 1, [(1, 1.3), (2, 1.4), (3, 900.0)])]
    values = [y for line in lines for _, y in line.points]
    low, high, is_cut = value_range(values, [], True)
    assert 0.9 < low < 1.0 and 1.4 < high < 2.5 and is_cut
    assert value_range([-value for value in values], [], False) == (pytest.approx(-high), pytest.approx(-low), True)
    assert "worse values are cut off" in chart(lines, Axes("t", "x", "y"), True)
    assert "cut off" not in chart(lines[:1], Axes("t", "x", "y"), True)
    # All values are equal.
    low, high, is_cut = value_range([2.0, 2.0], [], True)
    assert low < 2 < high and not is_cut
    # A band has room on the better side, but not for far more than the lines need.
    assert value_range([1.0, 1.2, 1.4], [0.9, -50.0, 70.0], True)[:2] == pytest.approx((0.9 - 0.02, 1.4 + 0.02))
    xml.fromstring(chart([Line("a", 0, [(5, 1e300)]), Line("b", 1, [(5, -1e300)])], Axes("t", "x", "y"), True))


def test_ticks_are_round_numbers():
    assert ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(-3.0, 12.0) == [0, 5, 10]
    assert ticks(0.61, 0.684) == pytest.approx([0.62, 0.64, 0.66, 0.68])
    assert log_ticks(3e-5, 0.3) == [1e-4, 1e-3, 1e-2, 1e-1]
    assert log_ticks(1e-3, 1e-2) == [1e-3, 2e-3, 5e-3, 1e-2]
    for low, high in ((1e-9, 3e-9), (-1e5, 7e4), (0.0, 400.0)):
        assert 3 <= len(ticks(low, high)) <= 10


def test_labels_do_not_overlap():
    assert spread([5.0, 100.0], 15, 0, 200) == [5.0, 100.0]
    assert spread([50.0, 50.0, 51.0], 15, 0, 200) == [50.0, 65.0, 80.0]
    assert spread([199.0, 200.0, 198.0], 15, 0, 200) == [185.0, 200.0, 170.0]


@pytest.mark.parametrize("rate, text", [(1e-4, "1e-4"), (3.16e-4, "3.16e-4"), (1.1e-5, "1.1e-5"), (3.33333e-5, "3.33e-5"), (0.01, "0.01"),
                                        (0.111, "0.111"), (1e-10, "1e-10"), (2.0, "2")])
def test_rates_are_short(rate, text):
    assert shown_rate(rate) == text


def test_there_is_a_dark_colour_for_every_light_one():
    assert len(DARK) == len(LIGHT) == len(set(LIGHT)) == len(set(DARK))
