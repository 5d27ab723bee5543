"""A vision transformer that knows printed characters reads handwritten digits."""

import functools

import handwriting
from handwriting import config, loss, make_model, prepare, source  # noqa: F401  parts of a task

TITLE = "Vision transformer, handwritten digits"
DESCRIPTION = handwriting.DESCRIPTION.format(where="on black, as the printed characters are,")
MEASURE, BETTER = "score", "higher"
RATES = (1e-3, 3.16e-3, 1e-2, 3.16e-2)

loader = functools.partial(handwriting.loader, False)
train = functools.partial(handwriting.train, False)
