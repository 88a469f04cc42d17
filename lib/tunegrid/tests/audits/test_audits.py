"""Audits by hand. That each catches its fault in a run is shown by `pytest -m faults`."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.proof.plants.patches import decoding_cleans_up
from benchmarks.proof.plants.plant import Planting
from tunegrid.audits import BEFORE, Evidence, run_audits, scores
from tunegrid.codecs.base import Prediction, alphanumeric, same_alphanumeric
from tunegrid.data.splits import Splits
from tunegrid.grid.tasks import QA, SUM
from tunegrid.record.record import EvaluationRecord
from tunegrid.run.build import checksums
from tunegrid.run.evaluate import Evaluation
from tunegrid.run.metrics import METRICS, Metrics
from tunegrid.tests.small import fine_tuner, get_codec, get_evidence, quick_cell, read_rows

REVIEWS = read_rows("amazon_polarity/train")[:16]


@pytest.fixture(scope="module")
def evidence():
    """A quick cell after four updates; nothing was scored."""
    return get_evidence(
        fine_tuner("gpt2_sa_lora", REVIEWS, max_steps=4, per_device_train_batch_size=2), run=True
    )


# Marks

ONES = torch.ones(5)
BITS = [
    torch.tensor(bits, dtype=torch.int16).view(torch.bfloat16)
    for bits in ([0x0102, 0], [0x0002, 0x0100])
]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ONES, torch.tensor([1, 1, 1, 1, 1 + 2**-23])),  # one bit
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
        BITS,  # two bytes trade places; read byte by byte, both would sum up to 3, and to 2
        *(
            (torch.zeros(5, dtype=dtype), ONES.to(dtype))
            for dtype in (torch.float32, torch.bfloat16, torch.uint8)
        ),
    ],
)
def test_equal_bits_have_equal_marks_and_others_have_not(one, other):
    first, same, changed = checksums(zip("abc", [one, one.clone(), other], strict=True)).values()
    assert first == same != changed


# The run as a whole


def test_a_sound_run_passes_what_applies(evidence):
    weights = checksums(evidence.model.named_parameters())
    findings = run_audits(evidence)
    assert checksums(evidence.model.named_parameters()) == weights
    assert [finding.detail for finding in findings if not finding.passed] == []


def test_an_audit_that_cannot_look_has_failed(evidence):
    splits = Splits(train=REVIEWS, validation=[], test=[], origins={})
    findings = {
        finding.name: finding
        for finding in run_audits(replace(evidence, codec=None, splits=splits))
    }
    assert not findings["labels_are_targets"].passed
    assert findings["labels_are_targets"].detail.startswith("could not look: AttributeError: ")
    assert findings["base_frozen"].passed


# Texts


def test_tokens_may_reach_beyond_the_text_but_not_miss_it():
    # BERT reads an accent away, so does this
    assert alphanumeric("It's 2.50 - \u00c0B!") == "its250ab"
    assert same_alphanumeric("reed ,", "Reed", "[UNK]")
    assert same_alphanumeric("anna [UNK]", "anna X", "[UNK]")
    assert not same_alphanumeric("anna", "anna reed", "[UNK]")
    assert not same_alphanumeric("anna", "anna reed", None)


@pytest.mark.parametrize("cell_id", ["gpt2_sum_sft", "t5_sum_sft"])
def test_a_summary_one_token_off_is_not_the_target(cell_id):
    codec = get_codec(cell_id)
    (row, other) = read_rows("cnn_dailymail/train")[:2]
    [feature] = codec.encode([row], training=True)
    label = codec.collate([feature])["labels"][0]
    assert codec.label_is_target(row, feature, label)
    assert not codec.label_is_target(row, feature, label[:-1])  # no end token
    assert not codec.label_is_target(other, feature, label)


def test_a_text_whose_spaces_are_cleaned_up_is_not_its_tokens_but_where_the_tokenizer_says_so(
    monkeypatch,
):
    codec = get_codec("t5_sum_sft")
    [row, *_] = read_rows("cnn_dailymail/train")
    [feature] = codec.encode([row], training=True)
    decoding_cleans_up(Planting(monkeypatch))
    [prediction] = codec.decode([row], [feature], [feature.target])
    assert codec.label_is_target(row, feature, codec.collate([feature])["labels"][0])
    assert (
        codec.decode_alone(feature.target).replace(" .", ".")
        == prediction.value
        != codec.decode_alone(feature.target)
    )
    monkeypatch.setattr(codec.tokenizer, "clean_up_tokenization_spaces", True)
    assert codec.decode_alone(feature.target) is None


def test_only_a_window_without_its_answer_may_be_labelled_with_none():
    codec = get_codec("bert_qa_sft", max_length=24, doc_stride=4)
    row = next(
        row for row in read_rows("squad/train") if len(codec.encode([row], training=True)) > 2
    )
    features = codec.encode([row], training=True)
    held = [codec.holds_answer(row, feature) for feature in features]
    assert 0 < sum(held) < len(held)
    assert held == [feature.target != (0, 0) for feature in features]
    assert [codec.label_is_target(row, feature, torch.tensor([0, 0])) for feature in features] == [
        not one for one in held
    ]


# Scores


def evaluated(cell_id, rows, values, metrics=None):
    """An evaluation in which a cell's model predicted these values, scored by the suite's own
    metrics.
    """
    cell = quick_cell(cell_id)
    scored = METRICS[cell.task.problem](metrics or Metrics(), cell.task, rows, values)
    predictions = [Prediction(value=value) for value in values]
    part = EvaluationRecord(seconds=1.0, loss=None, batch=1, metric_sources={}, precision="fp32")
    points = {"scores": scored.scores, "examples": scored.examples}
    return Evaluation(
        part=part, predictions=predictions, rows=rows, features=[], outputs=[], **points
    )


def invariants(cell_id, evaluation):
    return scores.metric_invariants(
        Evidence(cell=quick_cell(cell_id), codec=None, trainer=None, evaluation=evaluation)
    )


THE = {"context": "the a", "question": "", "answers": {"text": ["the"], "answer_start": [0]}}
RED = {"context": "a red car", "question": "", "answers": {"text": ["red"], "answer_start": [2]}}


def test_an_exact_match_above_f1_is_impossible_but_where_the_answer_is_an_article_alone():
    # Both articles normalize to nothing
    evaluation = evaluated("bert_qa_sft", [THE, RED], ["a", "red"])
    assert evaluation.examples == {"exact_match": [100.0, 100.0], "f1": [0.0, 100.0]}
    assert invariants("bert_qa_sft", evaluation) == (True, "2 rows, 2 metrics")
    evaluation.examples["f1"][1] = 0.0
    evaluation.scores["f1"] = 0.0
    assert invariants("bert_qa_sft", evaluation) == (False, "exact_match 100.0 is above f1 0.0")


def test_a_bertscore_outside_precision_and_recall_is_found():
    evaluation = evaluated("bert_qa_sft", [RED, RED], ["red", "red"])
    rows = {
        "bertscore_precision": [50.0, 50.0],
        "bertscore_f1": [55.0, 61.0],
        "bertscore_recall": [60.0, 60.0],
    }
    evaluation.examples.update(rows)
    evaluation.scores.update(
        {"bertscore_precision": 50.0, "bertscore_f1": 58.0, "bertscore_recall": 70.0}
    )
    said = invariants("bert_qa_sft", evaluation)
    evaluation.scores["bertscore_recall"] = 60.0
    assert said == (False, "bertscore_recall 70.00 is not the mean 60.00 of its rows")
    assert not invariants("bert_qa_sft", evaluation)[0]


@pytest.mark.parametrize(
    ("targets", "predictions", "passed"),
    [
        # 2 are a fifth of the 10 rows with another target
        ([0] * 10 + [1] * 10, [0] * 18 + [1] * 2, True),
        ([0] * 10 + [1] * 10, [0] * 19 + [1], False),
        ([0] * 10 + [1] * 9, [0] * 19, None),  # so few others a sound model may miss
    ],
)
def test_predictions_collapse_if_hardly_any_differs_though_targets_do(targets, predictions, passed):
    evaluation = evaluated("bert_sa_lora", [{"label": label} for label in targets], predictions)
    answer = scores.predictions_not_collapsed(
        Evidence(cell=quick_cell("bert_sa_lora"), codec=None, trainer=None, evaluation=evaluation)
    )
    assert (answer or [None])[0] is passed


@pytest.mark.parametrize(
    ("rows", "right", "untrained", "passed", "error"),
    [
        # A constant answer is right in 7 of 14 rows. 16 rows with those that are added: 7 x 100 /
        # 16 = 43.75 points are gained, and the error is the root of (8 x 10,000 / 16 - 43.75^2) /
        # 16, 13.9; 6 x 100 / 16 = 37.5, and 13.6.
        (14, 14, [], True, 13.9),
        (14, 13, [], False, 13.6),
        # 10 x 100 / 42 = 23.8 points, and the root of (11 x 10,000 / 42 - 23.8^2) / 42, 7.0: above
        # the constant answer, and as far below the untrained model; or 3 x 100 / 42 = 7.1 points
        # below it, and the root of (18 x 10,000 / 42 - 7.1^2) / 42.
        (40, 30, [100.0] * 40, False, 7.0),
        (40, 30, [0.0] * 7 + [100.0] * 33, True, 10.0),
    ],
)
def test_something_is_learned_if_the_difference_is_above_three_standard_errors(
    rows, right, untrained, passed, error
):
    labels = [0] * (rows // 2) + [1] * (rows // 2)
    evaluation = evaluated(
        "bert_sa_lora",
        [{"label": label} for label in labels],
        labels[:right] + [0] * (rows - right),
    )
    splits = Splits(train=[], validation=[], test=[], origins={})
    trainer = SimpleNamespace(log=SimpleNamespace(first_step={"untrained": untrained}))
    evidence = Evidence(
        cell=quick_cell("bert_sa_lora"),
        codec=None,
        trainer=trainer,
        splits=splits,
        evaluation=evaluation,
    )
    learned, detail, without_model = scores.learned_something(evidence)
    assert learned == passed
    assert without_model["accuracy"] == 50.0
    assert "without a model scores 50.0 (standard error " in detail
    assert detail.endswith(f"(standard error {error})")


def test_a_random_span_is_of_the_answers_length_and_a_lead_the_first_sentence():
    answer = {"text": ["red car"], "answer_start": [2]}
    test = [{"context": "a red car", "answers": answer}] * 6
    assert set(scores.random_span(QA, [{"context": "a red car", "answers": answer}], test)) == {
        "red car",
        "a red",
    }
    assert scores.lead_sentence(SUM, [], [{"article": "fire hits dover . police come ."}]) == [
        "fire hits dover ."
    ]


# What trains, and by which settings


def failed_names(evidence):
    findings = run_audits(replace(evidence), [BEFORE, "of training"])  # a probe of its own
    return [finding.name for finding in findings if not finding.passed]


def test_a_frozen_adapter_and_a_base_tensor_that_trains_are_not_as_declared(evidence):
    names = [
        name
        for name in evidence.trainer.parameters
        if "lora_B" in name or name.endswith("wte.weight")
    ]
    for name in names[:1] + names[-1:]:
        parameter = evidence.trainer.parameters[name]
        parameter.requires_grad_(not parameter.requires_grad)
        try:
            assert "trains_as_declared" in failed_names(evidence)
        finally:
            parameter.requires_grad_(not parameter.requires_grad)
    assert failed_names(evidence) == []


@pytest.mark.parametrize(
    ("field", "value"), [("betas", (0.9, 0.95)), ("eps", 1e-6), ("weight_decay", 0.5)]
)
def test_each_group_of_the_optimizer_has_the_documented_settings_and_the_recipes_decay(
    evidence, field, value
):
    group = next(group for group in evidence.trainer.optimizer.param_groups if group["params"])
    before = group[field]
    group[field] = value
    try:
        assert failed_names(evidence) == ["optimizer_set_as_declared"]
    finally:
        group[field] = before


def test_a_parameter_in_two_groups_is_told(evidence):
    groups = evidence.trainer.optimizer.param_groups
    groups.append(groups[0])
    try:
        assert "trains_as_declared" in failed_names(evidence)
    finally:
        groups.pop()
