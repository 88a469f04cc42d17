"""Audits of the rows: what the loss counts, and which rows meet which."""

from collections.abc import Callable

from torch import Tensor

from lib.codecs.base import IGNORED, Codec, Feature
from lib.codecs.generate import GenerateCodec
from lib.data.sources import Row
from lib.grid.tasks import Problem
from lib.run.audits.evidence import SAMPLE, Answer, Evidence, letters, same_letters, sample, text_of


def labels_are_targets(evidence: Evidence) -> Answer:
    """What the loss counts, decoded again, is the target of its row, and nothing of the prompt or the padding."""
    if evidence.splits is None:
        return None
    features = sample(evidence.trainer.features)
    labels = evidence.codec.collate(features)["labels"]
    rows, check = evidence.splits.train, LABELS[evidence.cell.task.problem]
    wrong = [f for f, label in zip(features, labels, strict=True) if not check(evidence.codec, rows[f.example], f, label)]
    return not wrong, f"{len(features) - len(wrong)} of {len(features)} sampled rows" + (
        f"; row {wrong[0].example} is supervised on something else" if wrong else ""
    )


def _label_is_the_rows(codec: Codec, row: Row, feature: Feature, label: Tensor) -> bool:
    return bool(int(label) == row["label"])


def _span_is_the_answer(codec: Codec, row: Row, feature: Feature, label: Tensor) -> bool:
    first, last = label.tolist()
    return (first, last) == (0, 0) or same_letters(
        codec.tokenizer.decode(feature.input_ids[first : last + 1]), row["answers"]["text"][0], codec
    )


def _summary_is_supervised(codec: Codec, row: Row, feature: Feature, label: Tensor) -> bool:
    """The counted labels are the row's highlights and the end token; only a summary that was too long may be cut."""
    counted = label[label != IGNORED].tolist()
    cap = codec.recipe.max_target_length or 0
    assert isinstance(codec, GenerateCodec), "a generating cell has a generating codec"
    if not counted or counted[-1] != codec.end_id or len(counted) > cap:
        return False
    text, whole = letters(codec.tokenizer.decode(counted[:-1])), letters(row["highlights"])
    unknown = codec.tokenizer.unk_token_id in counted[:-1]
    return unknown or text == whole or (len(counted) == cap and whole.startswith(text))


LABELS: dict[Problem, Callable[[Codec, Row, Feature, Tensor], bool]] = {
    Problem.CLASSIFY: _label_is_the_rows,
    Problem.EXTRACT: _span_is_the_answer,
    Problem.GENERATE: _summary_is_supervised,
}


def answers_at_annotated_start(evidence: Evidence) -> Answer:
    """Labelled spans begin and end where the annotation does; rows whose answer repeats in the context come first."""
    if evidence.splits is None or evidence.cell.task.problem is not Problem.EXTRACT:
        return None
    rows = evidence.splits.train
    labelled = [f for f in evidence.trainer.features if f.target != (0, 0)]
    repeated = [f for f in labelled if _repeats(rows[f.example])]
    chosen = sample(repeated, 4 * SAMPLE) + sample(labelled)
    wrong = [f for f in chosen if not _at_start(rows[f.example], f)]
    return not wrong, f"{len(chosen) - len(wrong)} of {len(chosen)} sampled spans, {len(repeated)} rows repeat their answer" + (
        f"; row {wrong[0].example} is labelled elsewhere" if wrong else ""
    )


def _repeats(row: Row) -> bool:
    return bool(row["context"].find(row["answers"]["text"][0]) != row["answers"]["answer_start"][0])


def _at_start(row: Row, feature: Feature) -> bool:
    begin, window = row["answers"]["answer_start"][0], feature.extra
    end = begin + len(row["answers"]["text"][0])
    first, last = (window.offsets[place - window.shift] for place in feature.target)
    return bool(first[0] <= begin < first[1] and last[0] < end <= last[1])


def no_leakage(evidence: Evidence) -> Answer:
    """No test row's text is among the training rows."""
    if evidence.splits is None:
        return None
    key = text_of(evidence.cell)
    trained = {key(row) for row in evidence.splits.train}
    shared = [i for i, row in enumerate(evidence.splits.test) if key(row) in trained]
    if shared:
        return False, f"{len(shared)} of {len(evidence.splits.test)} test rows are trained on, row {shared[0]} among them"
    return True, f"{len(evidence.splits.test)} test rows, none in train"


def selection_apart_from_test(evidence: Evidence) -> Answer:
    """The rows that chose among epochs are none of those that are scored."""
    chosen = evidence.trainer.course.chosen_on
    if evidence.evaluation is None or not chosen:
        return None
    key = text_of(evidence.cell)
    scored = {key(row) for row in evidence.evaluation.rows}
    shared = sum(key(row) in scored for row in chosen)
    return not shared, f"{shared} of {len(chosen)} rows that chose the epoch are scored"
