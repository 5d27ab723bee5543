"""A vision transformer that knows printed characters reads handwritten digits on textures."""

import functools

import handwriting
from handwriting import config, loss, make_model, prepare, source  # noqa: F401  parts of a task

TITLE = "Vision transformer, digits on textures"
DESCRIPTION = handwriting.DESCRIPTION.format(where="on smooth textures, which the base has never seen,")
MEASURE, BETTER = "score", "higher"
RATES = (1e-3, 3.16e-3, 1e-2, 3.16e-2)

loader = functools.partial(handwriting.loader, True)
train = functools.partial(handwriting.train, True)
