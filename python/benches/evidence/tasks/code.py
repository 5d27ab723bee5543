"""A small language model of English documentation learns Python source code."""

import functools

import language_model
import texts
from language_model import BASE, TUNING, config, loss, make_model, source  # noqa: F401  names of a task
from packages import pip_files

TITLE = "Small language model, English to Python"
DESCRIPTION = BASE + "It learns the source code of wagtail, with tabs as indentation. " + TUNING.format(parts="files")
MEASURE, BETTER = "loss", "lower"
RATES = (3.16e-3, 1e-2, 3.16e-2, 1e-1)

NAME = "code"
# None of the packages whose docstrings the base has learned.
PACKAGES = {"wagtail": "8.0.1"}


def sources(folder):
    """Returns the contents of Python files for training and for tests. None occurs twice."""
    sets, seen = ([], []), set()
    for name, version in PACKAGES.items():
        root = pip_files(name, version, folder / "packages")
        for path in language_model.python_files(root):
            text = texts.code(language_model.read(path))
            if text and text not in seen:
                seen.add(text)
                sets[texts.is_held_out(f"{name}/{path.relative_to(root).as_posix()}")].append(text)
    return sets


prepare = functools.partial(language_model.prepare, name=NAME, sets=sources)
loader = functools.partial(language_model.first_batches, NAME)
train = functools.partial(language_model.train, NAME)
