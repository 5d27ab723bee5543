"""The texts of the evidence: docstrings, messages, code, their split and their pieces. Nothing is downloaded and no base is needed."""

import pathlib
import sys
import types

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benches" / "evidence"))

import language_model  # noqa: E402
import texts  # noqa: E402
from tasks import code, german  # noqa: E402

SENTENCE = "Return the number of nodes that the graph has in all"


def test_held_out_keys_are_a_tenth_and_always_the_same():
    """The choice is a property of the key: it does not depend on the process or on other keys."""
    keys = [f"package/module_{number}.py" for number in range(3000)]
    chosen = [key for key in keys if texts.is_held_out(key)]
    assert 240 < len(chosen) < 360
    assert chosen[:2] == ["package/module_14.py", "package/module_38.py"]
    assert all(texts.is_held_out(key, share=5) for key in chosen)


def test_docstrings_come_in_the_order_of_the_file():
    """Strings that are not docstrings do not count, and the indentation is removed."""
    source = '''"""Module."""
value = """no docstring"""

class A:
    """Class.

    Second paragraph.
    """

    async def f(self):
        "Method."
        "no docstring"

def g():
    """Function."""

def h():
    return 1
'''
    assert texts.docstrings(source) == ["Module.", "Class.\n\nSecond paragraph.", "Method.", "Function."]
    assert texts.docstrings("def broken(:") == [] == texts.docstrings("\0")


@pytest.mark.parametrize(
    ("marked", "plain"),
    [
        ("see :func:`~a.b` and :py:class:`C`", "see ~a.b and C"),
        ("``x`` is `y`, *very* or **most** so", "x is y, very or most so"),
        ("the `page <a.html>`_ and `other`__", "the page and other"),
        ("pass *args and **kwargs to 2*3*4", "pass *args and **kwargs to 2*3*4"),
        ("two\n   lines", "two lines"),
    ],
)
def test_marks_are_removed(marked, plain):
    assert texts.without_markup(marked) == plain


def test_prose_is_sentences_only():
    docstring = f"""{SENTENCE},
    and `nodes` of its parts.

    Parameters
    ----------
    graph : Graph
        The graph whose nodes are counted, without those of its parts.
    other, more :
        It has the same meaning as the other one of these two arguments.

    Too short.

    >>> this is an example which has enough words to count as prose
    3

    .. note:: this is a directive which has enough words to count as prose

    x_1 + x_2 = y(3) / 4 * [5] - {{6}} <= 7 != 8 ; 9 ** 10
    """
    assert texts.prose(docstring) == [
        f"{SENTENCE}, and nodes of its parts.",
        "The graph whose nodes are counted, without those of its parts. It has the same meaning as the other one of these two arguments.",
    ]


def test_messages_are_translations_only():
    """The header, fuzzy and obsolete entries, missing translations and those that equal the original are left out."""
    content = r'''# Comment.
msgid ""
msgstr ""
"Language: de\n"
"Plural-Forms: nplurals=2; plural=n != 1;\n"

#: a.py:1
msgid "Save"
msgstr "Speichern"

#, python-format
msgctxt "verb"
msgid ""
"A long "
"message"
msgstr ""
"Eine \"lange\" "
"Nachricht\n"

#, fuzzy, python-format
#| msgid "Old"
msgid "New"
msgstr "Falsch"
msgid "without an empty line"
msgstr "ohne Leerzeile"

msgid "one"
msgid_plural "many"
msgstr[0] "eins"
msgstr[1] "viele"

msgid "Name"
msgstr "Name"

msgid "nothing"
msgstr ""

#~ msgid "gone"
#~ msgstr "fort"
'''
    assert texts.messages(content) == ["Speichern", 'Eine "lange" Nachricht\n', "ohne Leerzeile", "eins", "viele"]
    assert texts.messages(content.replace("\n", "\r\n")) == texts.messages(content)
    assert texts.messages("") == []


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        ('<a href="x">Hier</a>&nbsp;klicken<br>\n oder  dort', "Hier klicken oder dort"),
        ("%(count)d von {total} und %s: {}", "X von X und X: X"),
        ("&Datei öffnen", "Datei öffnen"),
        ("3 < 4 und **fett** und `a`", "3 < 4 und fett und a"),
    ],
)
def test_messages_lose_their_markup(message, plain):
    assert texts.plain(message) == plain


def test_code_has_tabs_and_no_empty_lines():
    assert texts.code("def f():\n    if x:  \n\n        return (1,\n                2)\n\tpass\n") == (
        "def f():\n\tif x:\n\t\treturn (1,\n\t\t\t\t2)\n\tpass"
    )


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Writes files of packages, and puts them in place of those of pip."""

    def write(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")

    for module in (language_model, german, code):
        monkeypatch.setattr(module, "pip_files", lambda name, version, folder: tmp_path / name)
    return write


def test_english_files_are_split_and_paragraphs_are_unique(packages, monkeypatch):
    monkeypatch.setattr(language_model, "ENGLISH", {"a": "1", "b": "1"})
    files = {f"{name}/m{number}.py": f'"""{SENTENCE} {"x" * number}{name}.\n\n{SENTENCE}."""' for name in "ab" for number in range(30)}
    packages({**files, "a/tests/test.py": f'"""{SENTENCE} of the test."""', "b/broken.py": "def", "b/empty.py": ""})
    trained, held_out = language_model.english(pathlib.Path())
    assert len(trained) + len(held_out) == 60 and len(held_out) == sum(map(texts.is_held_out, files)) > 2
    paragraphs = "\n".join(trained + held_out).split("\n")
    assert len(paragraphs) == len(set(paragraphs)) == 61
    assert f"{SENTENCE}." in paragraphs


def test_german_messages_are_split_and_unique(packages, monkeypatch):
    monkeypatch.setattr(german, "PACKAGES", {"a": "1", "b": "1"})
    entries = [f'msgid "m{number}"\nmsgstr "Das ist die {number}. Nachricht"\n' for number in range(100)]
    packages({
        "a/locale/de/LC_MESSAGES/django.po": "\n".join([*entries, 'msgid "short"\nmsgstr "Zu kurz"']),
        "b/x/locale/de/LC_MESSAGES/django.po": "\n".join(entries),
        "b/x/locale/fr/LC_MESSAGES/django.po": 'msgid "m"\nmsgstr "Voici le message en question"',
    })  # fmt: skip
    trained, held_out = german.german(pathlib.Path())
    assert 2 < len(held_out) < 25
    assert sorted(trained + held_out) == sorted(f"Das ist die {number}. Nachricht" for number in range(100))


def test_code_files_are_split_and_unique(packages, monkeypatch):
    monkeypatch.setattr(code, "PACKAGES", {"a": "1"})
    files = {f"a/m{number}.py": f"x = {number}\n" for number in range(100)}
    packages({**files, "a/z/copy.py": "x = 1\n", "a/migrations/m.py": "y = 1", "a/empty.py": "\n"})
    trained, held_out = code.sources(pathlib.Path())
    assert len(held_out) == sum(map(texts.is_held_out, files)) > 2
    assert sorted(trained + held_out) == sorted(f"x = {number}" for number in range(100))


def test_the_base_learns_no_package_of_the_code():
    assert not set(code.PACKAGES) & set(language_model.ENGLISH)


@pytest.fixture(scope="module")
def tokenizer():
    return language_model.train_tokenizer([f"{SENTENCE} {number}" for number in range(50)])


def test_every_text_survives_the_tokenizer(tokenizer):
    """Also characters that the training texts lack."""
    for text in (SENTENCE, "Größe: 5 €", "\tif x:\n\t\tpass", "日本"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.token_to_id(language_model.END) == 0
    assert len(tokenizer.encode(SENTENCE).ids) < len(SENTENCE) / 3


def test_pieces_are_the_texts_one_after_the_other(tokenizer):
    parts = [f"{SENTENCE} {'word ' * number}" for number in range(40)]
    rows = language_model.pieces(tokenizer, parts)
    assert rows.shape[1] == language_model.LENGTH and int((rows == 0).sum()) in (39, 40)
    text = "".join(tokenizer.decode(part) for part in rows.flatten().tolist() for part in [[part]] if part)
    assert len(text) > 500 and "".join(parts).startswith(text)


def test_test_rows_are_spread_over_all_texts():
    rows = torch.arange(100).view(100, 1)
    assert language_model.spread(rows, 4).flatten().tolist() == [0, 25, 50, 75]
    assert len(language_model.spread(rows, 100)) == 100
    with pytest.raises(RuntimeError, match="the texts have 100 pieces of 96 tokens; 101 are needed"):
        language_model.spread(rows, 101)


def saved_rows(folder, monkeypatch):
    """Writes rows of numbers in place of texts: those for training are 0, 1, …, those for tests begin with 1000."""
    monkeypatch.setenv("CNTLORA_EVIDENCE", str(folder))
    for name in ("language", "german"):
        rows = torch.arange(1000, dtype=torch.int32).view(-1, 1).expand(-1, 4)
        (folder / name).mkdir()
        torch.save(dict(train=rows, test=rows[: language_model.TEST] + 1000), folder / name / "rows.pt")


class Noted(torch.nn.Module):
    """A model whose loss is a weight, and that notes the batches."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.seen = {True: [], False: []}

    def forward(self, input_ids, attention_mask, labels):
        assert torch.equal(input_ids, labels) and attention_mask.all() and input_ids.dtype == torch.int64
        self.seen[self.training].append(input_ids[:, 0].tolist())
        return types.SimpleNamespace(loss=self.weight.sum())


def trained(seed):
    model = Noted()
    points = list(german.train(model, [dict(params=[model.weight], lr=0.01)], seed))
    return model, points


def test_a_run_depends_on_the_seed_only(tmp_path, monkeypatch):
    """Training rows are drawn without repetition, test rows are all the test rows and never trained on."""
    saved_rows(tmp_path, monkeypatch)
    model, points = trained(3)
    steps = model.seen[True]
    assert len(steps) == language_model.STEPS and all(len(rows) == language_model.BATCH for rows in steps)
    rows = [row for step in steps for row in step]
    assert len(set(rows)) == len(rows) and max(rows) < 1000
    assert trained(3)[0].seen == model.seen and trained(4)[0].seen[True] != steps
    assert {row for part in model.seen[False] for row in part} == set(range(1000, 1000 + language_model.TEST))
    assert [point["step"] for point in points] == [0, *language_model.MEASURED] and points[-1]["step"] == language_model.STEPS
    assert [sorted(point) for point in points] == [["kept", "loss", "step"], *[["loss", "step"]] * 5, ["kept", "loss", "step"]]
    assert points[0]["loss"] == 1 and points[-1]["loss"] < points[1]["loss"] < 1
    assert points[0]["kept"] == 1 and points[-1]["kept"] == points[-1]["loss"]


def test_starts_see_the_first_rows(tmp_path, monkeypatch):
    saved_rows(tmp_path, monkeypatch)
    for batches in (german.loader(), german.source()):
        assert len(batches) == language_model.LOADED
        assert torch.cat([batch["input_ids"][:, 0] for batch in batches]).tolist() == list(range(256))
    (tmp_path / "german" / "rows.pt").unlink()
    assert len(german.source()) == language_model.LOADED


def test_the_folder_must_be_named(monkeypatch):
    monkeypatch.delenv("CNTLORA_EVIDENCE", raising=False)
    with pytest.raises(RuntimeError, match="CNTLORA_EVIDENCE is not set; it names the folder of `prepare`"):
        german.loader()


def test_a_small_base_learns_and_is_found_again(tmp_path, packages, monkeypatch):
    """`prepare` trains the tokenizer and the base once, and `make_model` loads the checkpoint. LoRA adapts all targets."""
    import peft

    for name, value in dict(VOCABULARY=300, LENGTH=16, BASE_STEPS=2, BASE_BATCH=2, TEST=2, ENGLISH={"a": "1"}).items():
        monkeypatch.setattr(language_model, name, value)
    monkeypatch.setitem(language_model.SHAPE, "hidden_size", 16)
    monkeypatch.setitem(language_model.SHAPE, "num_hidden_layers", 1)
    monkeypatch.setattr(code, "PACKAGES", {"a": "1"})
    packages({f"a/m{number}.py": f'"""{SENTENCE} {"x" * number}."""\n' * 9 for number in range(60)})
    monkeypatch.setenv("CNTLORA_EVIDENCE", str(tmp_path))
    threads = torch.get_num_threads()
    code.prepare(tmp_path)
    torch.set_num_threads(threads)
    model = code.make_model(0)
    assert model.config.vocab_size == 300 and model.config.tie_word_embeddings
    monkeypatch.setattr(language_model, "english", None)
    code.prepare(tmp_path)
    adapted = peft.get_peft_model(model, code.config())
    assert sum(name.endswith("lora_A.default.weight") for name, _ in adapted.named_parameters()) == len(language_model.TARGETS)
    assert torch.isfinite(code.loss(adapted, code.loader()[0]))
