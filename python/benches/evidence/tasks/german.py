"""A small language model of English documentation learns German."""

import functools

import language_model
import texts
from language_model import BASE, TUNING, config, loss, make_model, source  # noqa: F401  names of a task
from packages import pip_files

TITLE = "Small language model, English to German"
DESCRIPTION = (
    BASE + "It learns German from the translated messages of pretix, wagtail, django and sphinx. " + TUNING.format(parts="messages")
)
MEASURE, BETTER = "loss", "lower"
RATES = (3.16e-3, 1e-2, 3.16e-2, 1e-1)

NAME = "german"
PACKAGES = {"pretix": "2026.8.0", "wagtail": "8.0.1", "django": "5.2.19", "sphinx": "9.0.4"}
# Shorter messages are labels of buttons and fields.
WORDS = 4


def german(folder):
    """Returns the German messages for training and for tests. None occurs twice."""
    found = {}
    for name, version in PACKAGES.items():
        root = pip_files(name, version, folder / "packages")
        for path in sorted(root.rglob("locale/de/LC_MESSAGES/*.po"), key=lambda path: path.relative_to(root).as_posix()):
            found.update(dict.fromkeys(map(texts.plain, texts.messages(language_model.read(path)))))
    sets = [], []
    for message in found:
        if len(message.split()) >= WORDS:
            sets[texts.is_held_out(message)].append(message)
    return sets


prepare = functools.partial(language_model.prepare, name=NAME, sets=german)
loader = functools.partial(language_model.first_batches, NAME)
train = functools.partial(language_model.train, NAME)
