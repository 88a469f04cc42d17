"""Asks a codec how sure a model was of the predictions of an evaluation."""

import math
from collections.abc import Sequence

from tunegrid.codecs.base import Codec
from tunegrid.data.sources import Row
from tunegrid.run.evaluation import Evaluation

FITTED = 384  # validation rows that a temperature is fitted on: it is one number, and they are predicted for it alone


def confidences(codec: Codec, evaluation: Evaluation, temperature: float = 1.0) -> Sequence[float] | None:
    """The probability of each row's prediction; None where the codec gives none, or a model gave no numbers."""
    if not evaluation.outputs:
        return None
    examples = [feature.example for feature in evaluation.features]
    known = codec.confidences(examples, evaluation.outputs, temperature)
    return known if known and all(map(math.isfinite, known)) else None


def spread(rows: Sequence[Row]) -> Sequence[Row]:
    """At most `FITTED` of these rows, evenly spread over them."""
    return rows[:: math.ceil(len(rows) / FITTED)]
