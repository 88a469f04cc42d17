"""Audits of the rows: what the loss counts, and which rows are in which split."""

from collections.abc import Sequence

from tunegrid.audits.evidence import SAMPLE, Evidence, sample, text_of
from tunegrid.codecs.base import Codec, Feature, alphanumeric
from tunegrid.data.rows import answer_span, answer_texts, context
from tunegrid.data.sources import Row
from tunegrid.grid.methods import Answer


def labels_are_targets(evidence: Evidence) -> Answer:
    """What the loss counts, decoded again, is the target of its row, and nothing of the prompt or the padding."""
    if evidence.splits is None:
        return None
    features = sample(evidence.trainer.features)
    labels = evidence.codec.collate(features)["labels"]
    rows, check = evidence.splits.train, evidence.codec.label_is_target
    wrong = [f for f, label in zip(features, labels, strict=True) if not check(rows[f.example], f, label)]
    return not wrong, f"{len(features) - len(wrong)} of {len(features)} sampled rows" + (
        f"; what row {wrong[0].example} is trained on decodes to something else" if wrong else ""
    )


def answers_at_annotated_start(evidence: Evidence) -> Answer:
    """Labelled spans begin and end where the annotation does, and every window that holds its answer has one.

    Of labelled spans some are looked at, those first whose answer repeats in the context; of the others, all.
    """
    codec = evidence.codec
    if evidence.splits is None or not codec.extracts:
        return None
    rows, features = evidence.splits.train, evidence.trainer.features
    labelled, repeated, unlabelled = _by_answer(codec, rows, features)
    chosen = [features[index] for index in sample(repeated, 4 * SAMPLE) + sample(labelled)]
    wrong = [feature for feature in chosen if not _at_start(codec, rows[feature.example], feature)]
    detail = f"{len(chosen) - len(wrong)} of {len(chosen)} sampled spans, {len(repeated)} rows repeat their answer"
    if wrong:
        detail += f"; row {wrong[0].example} is labelled elsewhere"
    if unlabelled:
        detail += f"; {len(unlabelled)} windows hold an answer that is not labelled, of row {unlabelled[0]} first"
    return not wrong and not unlabelled and bool(labelled), detail


def _by_answer(codec: Codec, rows: Sequence[Row], features: Sequence[Feature]) -> tuple[list[int], list[int], list[int]]:
    """Indices of labelled features, and of those whose answer repeats; rows of those that hold an answer without a label."""
    labelled, repeated, unlabelled = [], [], []
    for index, feature in enumerate(features):
        row = rows[feature.example]
        if codec.labelled_tokens(feature):
            labelled.append(index)
            repeated += [index] if _repeats(codec, row) else []
        elif codec.holds_answer(row, feature):
            unlabelled.append(feature.example)
    return labelled, repeated, unlabelled


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
            said = alphanumeric(codec.tokenizer.decode([token]))  # nothing: a space before an unknown token
            if said and token != codec.tokenizer.unk_token_id and text[start:end].isascii():  # it may be a part of a letter
                wrong += said != alphanumeric(text[start:end])
                count += 1
    return not wrong, f"{count - wrong} of {count} tokens"


def no_leakage(evidence: Evidence) -> Answer:
    """No test row's text is among the training rows."""
    if evidence.splits is None:
        return None
    key, test = text_of(evidence.cell), evidence.splits.test
    scored = [key(row) for row in test]
    wanted = set(scored)
    trained = {key_hash for row in evidence.splits.train if (key_hash := key(row)) in wanted}
    shared = [i for i, key_hash in enumerate(scored) if key_hash in trained]
    if shared:
        return False, f"{len(shared)} of {len(test)} test rows are trained on, row {shared[0]} among them"
    return True, f"{len(test)} test rows, none in train"


def selection_apart_from_test(evidence: Evidence) -> Answer:
    """No row that chose among epochs is scored."""
    chosen = evidence.trainer.chosen_on
    if evidence.evaluation is None or not chosen:
        return None
    key = text_of(evidence.cell)
    scored = {key(row) for row in evidence.evaluation.rows}
    shared = sum(key(row) in scored for row in chosen)
    return not shared, f"{shared} of {len(chosen)} rows that chose the epoch are scored"
