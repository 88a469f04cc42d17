"""Audits of the rows: what the loss counts, and which rows are in which split."""

from lib.codecs.base import Codec, Feature
from lib.codecs.letters import letters
from lib.data.columns import answer_span, answer_texts, context
from lib.data.sources import Row
from lib.grid.methods import Answer
from lib.run.audits.evidence import SAMPLE, Evidence, sample, text_of


def labels_are_targets(evidence: Evidence) -> Answer:
    """What the loss counts, decoded again, is the target of its row, and nothing of the prompt or the padding."""
    if evidence.splits is None:
        return None
    features = sample(evidence.trainer.features)
    labels = evidence.codec.collate(features)["labels"]
    rows, check = evidence.splits.train, evidence.codec.label_is_target
    wrong = [f for f, label in zip(features, labels, strict=True) if not check(rows[f.example], f, label)]
    return not wrong, f"{len(features) - len(wrong)} of {len(features)} sampled rows" + (
        f"; row {wrong[0].example} is supervised on something else" if wrong else ""
    )


def answers_at_annotated_start(evidence: Evidence) -> Answer:
    """Labelled spans begin and end where the annotation does, and every window that holds its answer has one.

    Of labelled spans some are looked at, those first whose answer repeats in the context; of the others, all.
    """
    codec = evidence.codec
    if evidence.splits is None or not codec.extracts:
        return None
    rows, features = evidence.splits.train, evidence.trainer.features
    labelled = [feature for feature in features if codec.labelled_tokens(feature)]
    unlabelled = [f for f in features if not codec.labelled_tokens(f) and codec.holds_answer(rows[f.example], f)]
    repeated = [feature for feature in labelled if _repeats(codec, rows[feature.example])]
    chosen = sample(repeated, 4 * SAMPLE) + sample(labelled)
    wrong = [feature for feature in chosen if not _at_start(codec, rows[feature.example], feature)]
    detail = f"{len(chosen) - len(wrong)} of {len(chosen)} sampled spans, {len(repeated)} rows repeat their answer"
    if wrong:
        detail += f"; row {wrong[0].example} is labelled elsewhere"
    if unlabelled:
        detail += f"; {len(unlabelled)} windows hold an answer that is not labelled, of row {unlabelled[0].example} first"
    return not wrong and not unlabelled and bool(labelled), detail


def _repeats(codec: Codec, row: Row) -> bool:
    """Whether the answer's text occurs before the annotated start, too."""
    return context(codec.task, row).find(answer_texts(codec.task, row)[0]) != answer_span(codec.task, row)[0]


def _at_start(codec: Codec, row: Row, feature: Feature) -> bool:
    tokens = codec.labelled_tokens(feature)
    if tokens is None:
        return False
    (first, last), (begin, end) = tokens, answer_span(codec.task, row)
    return first[0] <= begin < first[1] and last[0] < end <= last[1]


def offsets_show_their_tokens(evidence: Evidence) -> Answer:
    """The characters from which a token is said to come are its own."""
    codec = evidence.codec
    if evidence.splits is None or not codec.extracts:
        return None
    rows, wrong, count = evidence.splits.train, 0, 0
    for feature in sample(evidence.trainer.features):
        text, extra = context(codec.task, rows[feature.example]), feature.extra
        tokens = feature.input_ids[extra.shift : extra.shift + len(extra.offsets)]
        for token, (start, end) in zip(tokens, extra.offsets, strict=True):
            said = letters(codec.tokenizer.decode([token]))  # nothing: a space before an unknown token
            if said and token != codec.tokenizer.unk_token_id and text[start:end].isascii():  # it may be a part of a letter
                wrong += said != letters(text[start:end])
                count += 1
    return not wrong, f"{count - wrong} of {count} tokens"


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
    """No row that chose among epochs is scored."""
    chosen = evidence.trainer.course.chosen_on
    if evidence.evaluation is None or not chosen:
        return None
    key = text_of(evidence.cell)
    scored = {key(row) for row in evidence.evaluation.rows}
    shared = sum(key(row) in scored for row in chosen)
    return not shared, f"{shared} of {len(chosen)} rows that chose the epoch are scored"
