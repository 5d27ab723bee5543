"""The tasks of the evidence: packages, drawings, backgrounds, the digits' file format, batches and rates. Nothing is downloaded."""

import importlib
import io
import json
import pathlib
import stat
import sys
import tarfile
import zipfile
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "benches" / "evidence"))

import handwriting  # noqa: E402
import measures  # noqa: E402
import packages  # noqa: E402
import schedule  # noqa: E402

TASKS = {
    **dict.fromkeys(("topics", "digits", "digits_background"), ("score", "higher")),
    **dict.fromkeys(("german", "code", "denoising"), ("loss", "lower")),
}
PARTS = ("TITLE", "DESCRIPTION", "MEASURE", "BETTER", "RATES", "prepare", "make_model", "config", "loader", "source", "loss", "train")


def script(path, *lines):
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def archive(path, **files):
    """Writes an archive of the kind that its name says. The files lie in a folder `package` if the archive is not a wheel."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as opened:
            for name, content in files.items():
                opened.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as opened:
            for name, content in files.items():
                entry = tarfile.TarInfo(f"package/{name}")
                entry.size = len(content)
                opened.addfile(entry, io.BytesIO(content.encode()))
    return path


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """Makes an `npm` of these lines of shell the only program on PATH."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return lambda *lines: script(tmp_path / "bin" / "npm", *lines)


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Puts a module `pip` with this text before the real one."""

    def write(text):
        (tmp_path / "modules" / "pip").mkdir(parents=True, exist_ok=True)
        (tmp_path / "modules" / "pip" / "__init__.py").write_text("")
        (tmp_path / "modules" / "pip" / "__main__.py").write_text(text)

    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    return write


def test_npm_files_are_unpacked_once(tmp_path, npm):
    """The version is pinned, scripts of the package do not run, and a second call does not need npm."""
    packed = archive(tmp_path / "thing-1.2.3.tgz", **{"data.json": "[1]"})
    npm(f'echo "$@" > {tmp_path}/words', f"/bin/cp {packed} $4")
    folder = packages.npm_files("thing", "1.2.3", tmp_path / "cache")
    assert (folder / "data.json").read_text() == "[1]"
    words = (tmp_path / "words").read_text().split()
    assert words[:3] == ["pack", "--ignore-scripts", "--pack-destination"] and words[4:] == ["thing@1.2.3"]
    (tmp_path / "bin" / "npm").unlink()
    assert packages.npm_files("thing", "1.2.3", tmp_path / "cache") == folder
    assert [path.name for path in folder.parent.iterdir()] == ["thing-1.2.3"]


def test_packages_with_a_scope_have_one_folder(tmp_path, npm):
    npm(f"/bin/cp {archive(tmp_path / 'scope-thing.tgz', a='b')} $4")
    assert packages.npm_files("@scope/thing", "1.0.0", tmp_path / "cache") == tmp_path / "cache" / "npm" / "@scope+thing-1.0.0"


def test_a_missing_npm_is_named(tmp_path, npm):
    with pytest.raises(packages.PackageError, match="^npm is not installed; it is needed for the package thing$"):
        packages.npm_files("thing", "1.2.3", tmp_path / "cache")


def test_messages_of_npm_are_passed_on(tmp_path, npm):
    """A failed download leaves nothing that a later call would take for the package."""
    npm("echo npm error no such version >&2", "exit 7")
    with pytest.raises(packages.PackageError, match=r"npm could not download thing 9 \(exit code 7\):\nnpm error no such version$"):
        packages.npm_files("thing", "9", tmp_path / "cache")
    assert list((tmp_path / "cache" / "npm").iterdir()) == []


def test_a_download_of_nothing_and_a_broken_archive_are_refused(tmp_path, npm):
    npm("exit 0")
    with pytest.raises(packages.PackageError, match="one archive of thing-1 was expected, 0 were downloaded"):
        packages.npm_files("thing", "1", tmp_path / "cache")
    npm("echo broken > $4/thing-1.tgz")
    with pytest.raises(packages.PackageError, match="the archive thing-1.tgz cannot be unpacked"):
        packages.npm_files("thing", "1", tmp_path / "cache")


def test_files_of_an_archive_stay_inside_its_folder(tmp_path, npm):
    npm(f"/bin/cp {archive(tmp_path / 'bad.tgz', **{'../../../outside': 'x'})} $4")
    with pytest.raises(packages.PackageError, match="cannot be unpacked"):
        packages.npm_files("bad", "1", tmp_path / "cache")
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize("name", ["thing-1.0-py3-none-any.whl", "thing-1.0.tar.gz"])
def test_pip_files_come_from_wheels_and_source_archives(tmp_path, pip, name):
    """The folder holds the files themselves, without the folder around those of a source archive."""
    packed = archive(tmp_path / name, **{"font.ttf": "f"})
    pip(f"import shutil, sys\nassert sys.argv[-1] == 'thing==1.0'\nshutil.copy({str(packed)!r}, sys.argv[sys.argv.index('--dest') + 1])")
    folder = packages.pip_files("thing", "1.0", tmp_path / "cache")
    assert folder == tmp_path / "cache" / "pip" / "thing-1.0"
    assert (folder / "font.ttf").read_text() == "f"


def test_messages_of_pip_are_passed_on(tmp_path, pip):
    pip("import sys\nsys.exit('ERROR: No matching distribution found for thing==9')")
    with pytest.raises(packages.PackageError, match=r"pip could not download thing 9 \(exit code 1\):\nERROR: No matching distribution"):
        packages.pip_files("thing", "9", tmp_path / "cache")


def test_an_interpreter_without_pip_is_named(tmp_path, monkeypatch):
    """The message names the interpreter: people have several."""
    script(tmp_path / "python", 'echo "$0: No module named pip" >&2', "exit 1")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(packages.PackageError, match=f"^{tmp_path}/python has no pip$"):
        packages.pip_files("thing", "1", tmp_path / "cache")


def test_rates_rise_and_fall():
    """The rate is full after a twentieth of the steps and falls to nearly nothing at the end."""
    shares = [schedule.share(step, 80) for step in range(80)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 76 / 77]
    assert shares[-1] == pytest.approx(1 / 77)
    assert sorted(shares[3:], reverse=True) == shares[3:]


def test_steps_follow_the_rates_of_the_groups():
    """Each group keeps its own rate. AdamW's first step has the length of the rate, so the moves show it."""
    model = torch.nn.Module()
    model.first, model.second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [dict(params=[model.first], lr=0.1), dict(params=[model.second], lr=0.01)]
    steps = schedule.steps_of(model, groups, [1.0] * 40, lambda model, batch: (model.first + model.second).sum() * batch)
    assert next(steps) == 1
    assert model.first.item() == pytest.approx(-0.05, rel=1e-4)
    assert model.second.item() == pytest.approx(-0.005, rel=1e-4)
    assert list(steps) == list(range(2, 41))


def digits_file(folder, digit, numbers):
    path = folder / "src" / "digits"
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{digit}.json").write_text(json.dumps(dict(data=numbers)))


def test_digits_are_read_in_the_order_of_their_files(tmp_path):
    """Each file has the pixels of one digit's images, row by row."""
    for digit in range(10):
        digits_file(tmp_path, digit, [digit / 10] * 784 + [0] * 27 + [1] + [0] * 756)
    images, labels = handwriting.read_digits(tmp_path)
    assert images.shape == (20, 28, 28)
    assert labels.tolist() == [digit for digit in range(10) for _ in range(2)]
    assert (images[::2].mean((1, 2)) * 10).round().tolist() == list(range(10))
    assert all(image[0, 27] == 1 and image.sum() == 1 for image in images[1::2])


@pytest.mark.parametrize(
    ("numbers", "message"),
    [([0.0] * 785, "0.json has 785 numbers; a multiple of 784 was expected"), ([], "0.json has 0 numbers"), ([2] * 784, "outside 0 to 1")],
)
def test_other_digits_are_refused(tmp_path, numbers, message):
    digits_file(tmp_path, 0, numbers)
    with pytest.raises(ValueError, match=message):
        handwriting.read_digits(tmp_path)


def test_training_and_test_digits_are_disjoint_and_the_same_every_time():
    images = torch.arange(2000.0).view(-1, 1, 1).expand(-1, 28, 28)
    chosen, labels = handwriting.chosen_digits(images, torch.arange(2000) % 10)
    numbers = chosen[:, 0, 0]
    assert len(numbers) == handwriting.TRAINING + handwriting.TEST == len(set(numbers.tolist()))
    assert torch.equal(labels, (numbers % 10).long())
    assert torch.equal(handwriting.chosen_digits(images, torch.arange(2000) % 10)[0], chosen)


def drawing(character, size=96):
    """Returns a drawing in the font that pillow carries."""
    from PIL import ImageFont

    return handwriting.glyph(ImageFont.load_default(size), character)


def test_characters_fill_the_middle_of_the_square():
    """The longer side has 40 of 56 pixels and the drawing is centred, whatever the size of the font."""
    for character in "1MQg":
        for size in (40, 96):
            rows, columns = (drawing(character, size) > 40).nonzero().T
            height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
            assert 37 <= max(height, width) <= 40
            assert abs(rows.max() + rows.min() - 55) <= 3 and abs(columns.max() + columns.min() - 55) <= 3


def test_a_character_without_a_drawing_is_refused():
    with pytest.raises(ValueError, match="draws nothing for ' '"):
        drawing(" ")


def test_moved_drawings_stay_whole():
    """Moves keep nearly all the ink, differ between images and are the same for the same seed."""
    drawings = torch.stack([drawing("8")] * 50)
    images = handwriting.moved(drawings, handwriting.seeded(4))
    assert images.shape == (50, 28, 28) and 0 <= images.min() and images.max() <= 1
    ink = images.sum((1, 2)) / (drawings[0].float().sum() / 255 / 4)
    # A size of .8 × .85 to 1.1 × 1.1.
    assert 0.6 < ink.min() and ink.max() < 1.35
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    assert border.max() < 0.2
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images, handwriting.moved(drawings, handwriting.seeded(4)))


def test_drawings_that_are_not_moved_keep_their_place(monkeypatch):
    """Half of the random numbers: no turn, no shift, a size of .95 and .975."""
    monkeypatch.setattr(torch, "rand", lambda count, generator: torch.full((count,), 0.5))
    bar = torch.zeros(1, 56, 56, dtype=torch.uint8)
    bar[0, 8:48, 24:32] = 255
    rows, columns = (handwriting.moved(bar, None)[0] > 0.5).nonzero().T
    assert rows.min() + rows.max() == 27 and columns.min() + columns.max() == 27
    assert rows.max() - rows.min() + 1 in (18, 20) and columns.max() - columns.min() + 1 == 4


def test_backgrounds_leave_the_ink():
    """The characters keep a contrast of .4 with their background, which is smooth, varies in an image, and differs between images."""
    images = torch.zeros(400, 28, 28)
    images[:, 10:18, 10:18] = 1
    changed = handwriting.on_backgrounds(images, handwriting.seeded(1))
    assert torch.equal(changed[:, 10:18, 10:18], images[:, 10:18, 10:18])
    background = changed[images == 0].view(400, -1)
    assert 0 <= background.min() and 0.55 < background.max() <= 0.6 and 0.25 < background.mean() < 0.35
    assert background.std(0).min() > 0.05 and background.std(1).min() > 0.02
    rows = changed[:, :10]
    assert (rows[:, 1:] - rows[:, :-1]).abs().max() < 0.2
    assert torch.equal(changed, handwriting.on_backgrounds(images, handwriting.seeded(1)))


def test_fonts_are_chosen_by_name(tmp_path):
    """A face that comes in two formats counts once, and fonts of symbols do not count."""
    for name in ("a/Lato-Bold.ttf", "a/Lato-Bold.otf", "b/deep/Roboto.TTF", "b/cmex10.ttf", "b/STIXSizOneSymReg.ttf", "b/readme.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = handwriting.fonts([tmp_path / "a", tmp_path / "b"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a/Lato-Bold.ttf", "b/deep/Roboto.TTF"]


def test_glyphs_of_a_font_have_all_labels(tmp_path):
    """Small letters of a font that has only capitals are left out: their labels would be wrong."""
    from PIL import ImageFont

    font = ImageFont.load_default(10)
    for name in ("Some.ttf", "AmaticSC-Some.ttf"):
        (tmp_path / name).write_bytes(font.font_bytes)
    images, labels = handwriting.glyphs([tmp_path / "Some.ttf"])
    assert labels.tolist() == list(range(47)) and images.shape == (47, 56, 56)
    assert len({image.numpy().tobytes() for image in images}) == 47
    assert handwriting.glyphs([tmp_path / "AmaticSC-Some.ttf"])[1].tolist() == list(range(36))


def written_digits(folder, monkeypatch):
    """Writes random images in place of the digits."""
    monkeypatch.setenv("CNTLORA_EVIDENCE", str(folder))
    (folder / "handwriting").mkdir()
    count = handwriting.TRAINING + handwriting.TEST
    images = torch.rand(count, 28, 28, generator=handwriting.seeded(0))
    torch.save(dict(images=images, labels=torch.arange(count)), folder / "handwriting" / "digits.pt")
    handwriting.written.cache_clear()
    handwriting.test_batches.cache_clear()


def test_batches_of_digits_depend_on_the_seed_only(tmp_path, monkeypatch):
    """Every round goes through all training digits once. Test digits never occur in training."""
    written_digits(tmp_path, monkeypatch)
    labels = torch.cat([batch["labels"] for batch in handwriting.training_batches(False, 3)])
    assert len(labels) == handwriting.STEPS * handwriting.BATCH
    assert all(sorted(part.tolist()) == list(range(handwriting.TRAINING)) for part in labels.split(handwriting.TRAINING))
    for background in (False, True):
        same = [handwriting.training_batches(background, 3)[0]["pixel_values"] for _ in range(2)]
        assert torch.equal(*same) and same[0].shape == (handwriting.BATCH, 1, 28, 28)
        assert not torch.equal(same[0], handwriting.training_batches(background, 4)[0]["pixel_values"])
        tested = torch.cat([batch["labels"] for batch in handwriting.test_batches(background)])
        assert tested.tolist() == list(range(handwriting.TRAINING, handwriting.TRAINING + handwriting.TEST))
        loaded = torch.cat([batch["labels"] for batch in handwriting.loader(background)])
        assert loaded.tolist() == list(range(handwriting.TRAINING))
    handwriting.written.cache_clear()
    handwriting.test_batches.cache_clear()


def test_missing_folders_are_named(monkeypatch):
    topics = importlib.import_module("tasks.topics")
    for name in ("CNTLORA_EVIDENCE", "CNTLORA_MINILM", "CNTLORA_SECTIONS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="CNTLORA_EVIDENCE is not set"):
        handwriting.place()
    with pytest.raises(RuntimeError, match="CNTLORA_MINILM is not set; it names a folder with MiniLM in `model`"):
        topics.model_folder()


@pytest.mark.parametrize("name", TASKS)
def test_tasks_have_all_parts(name):
    """The driver needs these names, and rates at a steady ratio."""
    task = importlib.import_module(f"tasks.{name}")
    assert [part for part in PARTS if not hasattr(task, part)] == []
    assert (task.MEASURE, task.BETTER) == TASKS[name]
    assert len(task.RATES) == 4
    assert all(3 < later / earlier < 3.4 for earlier, later in zip(task.RATES, task.RATES[1:]))
    assert "{" not in task.DESCRIPTION


def test_topics_are_grouped_by_length(tmp_path, monkeypatch):
    """Batches hold texts of like length, come in an order of their own, and depend on the seed only."""
    topics = importlib.import_module("tasks.topics")
    pairs = [[" ".join(["word"] * (1 + number % 12)), number] for number in range(1000)]
    monkeypatch.setattr(topics, "sections", lambda: dict(train=pairs))
    monkeypatch.setattr(topics, "tokenizer", lambda: words_of)
    drawn = topics.training_batches(5)
    assert len(drawn) == topics.STEPS
    labels = [batch["labels"].tolist() for batch in drawn]
    assert all(len(part) == topics.BATCH for part in labels)
    assert len({label for part in labels for label in part}) == topics.STEPS * topics.BATCH
    lengths = [[1 + label % 12 for label in part] for part in labels]
    assert sum(max(part) - min(part) for part in lengths) <= 11
    assert [part[0] for part in lengths] != sorted(part[0] for part in lengths)
    assert labels == [batch["labels"].tolist() for batch in topics.training_batches(5)]
    assert labels != [batch["labels"].tolist() for batch in topics.training_batches(6)]


class Found:
    """Stands in for a model and its output."""

    def __init__(self, answer):
        self.answer = answer

    def eval(self):
        return self

    def __call__(self, **batch):
        return self.answer(batch)


def test_measurements_weigh_batches_by_their_size():
    """Three of four answers in a batch of three and a batch of one are right. The losses are 1 and 3."""
    given = [dict(labels=torch.tensor([0, 1, 2])), dict(labels=torch.tensor([3]))]
    guesses = {3: [0, 1, 0], 1: [3]}

    def answer(batch):
        count = len(batch["labels"])
        logits = torch.nn.functional.one_hot(torch.tensor(guesses[count]), 4).float()
        return SimpleNamespace(loss=torch.tensor(1.0 if count == 3 else 3.0), logits=logits)

    assert measures.loss_and_score(Found(answer), given) == dict(loss=1.5, score=0.75)


def test_kept_is_the_similarity_of_means_without_padding(monkeypatch):
    """Directions count, lengths and padding do not: cosines of 1 and of 0 are .5 on average."""
    topics = importlib.import_module("tasks.topics")
    states = torch.tensor([[[2.0, 0.0], [4.0, 0.0], [0.0, 9.0]], [[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    batch = dict(attention_mask=torch.tensor([[1, 1, 0], [1, 1, 1]]))
    monkeypatch.setattr(topics, "kept_batch", lambda: batch)
    monkeypatch.setattr(topics, "base_embeddings", lambda: torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    model = Found(lambda batch: SimpleNamespace(hidden_states=[None, states]))
    assert topics.embeddings(model, batch).tolist() == [[3, 0], [0, 1]]
    assert topics.kept(model) == pytest.approx(0.5)


def words_of(texts, **options):
    """Stands in for a tokenizer: one token for each word."""
    if isinstance(texts, str):
        return dict(input_ids=[1] * len(texts.split()))
    return dict(input_ids=torch.ones(len(texts), 1, dtype=torch.long))
