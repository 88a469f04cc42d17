"""Audits by hand. That each catches its fault in a run is shown by `pytest -m faults`."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.proof.plants.patches import decoding_cleans_up
from benchmarks.proof.plants.plant import Planting
from tunegrid.audits import BEFORE, Evidence, run_audits, scores
from tunegrid.codecs.base import alphanumeric, same_alphanumeric
from tunegrid.data.splits import Splits
from tunegrid.grid.tasks import QA, SUM
from tunegrid.run.build import checksums
from tunegrid.tests.small import (
    evaluate_answers,
    fine_tuner,
    get_codec,
    get_evidence,
    quick_cell,
    read_rows,
)

REVIEWS = read_rows("amazon_polarity/train")[:16]


@pytest.fixture(scope="module")
def evidence():
    """A quick cell after four updates; nothing was scored."""
    return get_evidence(
        fine_tuner("gpt2_sa_lora", REVIEWS, max_steps=4, per_device_train_batch_size=2), run=True
    )


# Checksums


def bf16(*bits):
    return torch.tensor(bits, dtype=torch.int16).view(torch.bfloat16)


@pytest.mark.parametrize(
    ("tensor", "changed"),
    [
        (torch.ones(5), torch.tensor([1, 1, 1, 1, 1 + 2**-23])),  # one bit
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])),
        # Two bytes trade places; read byte by byte, both would sum up to 3, and to 2
        (bf16(0x0102, 0), bf16(0x0002, 0x0100)),
        (torch.zeros(5), torch.ones(5)),
        (bf16(0, 0), torch.ones(2, dtype=torch.bfloat16)),
        (torch.zeros(5, dtype=torch.uint8), torch.ones(5, dtype=torch.uint8)),
    ],
)
def test_only_tensors_with_equal_bits_have_equal_checksums(tensor, changed):
    tensors = {"first": tensor, "same": tensor.clone(), "changed": changed}
    marks = dict(checksums(tensors.items()))
    assert marks["first"] == marks["same"]
    assert marks["first"] != marks["changed"]


# The run as a whole


def test_a_sound_run_passes_what_applies(evidence):
    weights = checksums(evidence.model.named_parameters())
    findings = run_audits(evidence)
    assert checksums(evidence.model.named_parameters()) == weights
    assert [finding.detail for finding in findings if not finding.passed] == []


def test_an_audit_that_cannot_look_has_failed(evidence):
    splits = Splits(train=REVIEWS, validation=[], test=[], origins={})
    findings = run_audits(replace(evidence, codec=None, splits=splits))
    by_name = {finding.name: finding for finding in findings}
    assert not by_name["labels_are_targets"].passed
    assert by_name["labels_are_targets"].detail.startswith("could not look: AttributeError: ")
    assert by_name["base_frozen"].passed


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
    row, another_row, *_ = read_rows("cnn_dailymail/train")
    [feature] = codec.encode([row], training=True)
    label = codec.collate([feature])["labels"][0]
    assert codec.label_is_target(row, feature, label)
    assert not codec.label_is_target(row, feature, label[:-1])  # no end token
    assert not codec.label_is_target(another_row, feature, label)


def test_a_text_whose_spaces_are_cleaned_up_is_not_its_tokens_but_where_the_tokenizer_says_so(
    monkeypatch,
):
    codec = get_codec("t5_sum_sft")
    row = read_rows("cnn_dailymail/train")[0]
    [feature] = codec.encode([row], training=True)
    decoding_cleans_up(Planting(monkeypatch))
    [prediction] = codec.decode([row], [feature], [feature.target])
    assert codec.label_is_target(row, feature, codec.collate([feature])["labels"][0])
    text = codec.decode_alone(feature.target)
    assert text != prediction.value
    assert text.replace(" .", ".") == prediction.value
    monkeypatch.setattr(codec.tokenizer, "clean_up_tokenization_spaces", True)
    assert codec.decode_alone(feature.target) is None


def test_only_a_window_without_its_answer_may_be_labelled_with_none():
    codec = get_codec("bert_qa_sft", max_length=24, doc_stride=4)
    features = []
    rows = iter(read_rows("squad/train"))
    while len(features) < 3:
        row = next(rows)
        features = codec.encode([row], training=True)
    holds_answer = [codec.holds_answer(row, feature) for feature in features]
    assert set(holds_answer) == {True, False}
    assert [feature.target != (0, 0) for feature in features] == holds_answer
    no_span = torch.tensor([0, 0])
    for feature, holds in zip(features, holds_answer, strict=True):
        assert codec.label_is_target(row, feature, no_span) != holds


# Scores


def scored(cell_id, rows, answers):
    """Evidence of a cell of which nothing is known but these answers."""
    return Evidence(
        cell=quick_cell(cell_id),
        codec=None,
        trainer=None,
        splits=Splits(train=[], validation=[], test=[], origins={}),
        evaluation=evaluate_answers(cell_id, rows, answers),
    )


THE = {"context": "the a", "question": "", "answers": {"text": ["the"], "answer_start": [0]}}
RED = {"context": "a red car", "question": "", "answers": {"text": ["red"], "answer_start": [2]}}


def test_an_exact_match_above_f1_is_impossible_but_where_the_answer_is_an_article_alone():
    evidence = scored("bert_qa_sft", [THE, RED], ["a", "red"])
    evaluation = evidence.evaluation
    # Both articles normalize to nothing
    assert evaluation.examples == {"exact_match": [100.0, 100.0], "f1": [0.0, 100.0]}
    assert scores.metric_invariants(evidence) == (True, "2 rows, 2 metrics")
    evaluation.examples["f1"][1] = 0.0
    evaluation.scores["f1"] = 0.0
    assert scores.metric_invariants(evidence) == (False, "exact_match 100.0 is above f1 0.0")


def test_a_bertscore_outside_precision_and_recall_is_found():
    evidence = scored("bert_qa_sft", [RED, RED], ["red", "red"])
    evaluation = evidence.evaluation
    points = {
        "bertscore_precision": [50.0, 50.0],
        "bertscore_f1": [58.0, 49.0],
        "bertscore_recall": [60.0, 60.0],
    }
    evaluation.examples.update(points)
    evaluation.scores.update(bertscore_precision=50.0, bertscore_f1=53.5, bertscore_recall=70.0)
    assert scores.metric_invariants(evidence) == (
        False,
        "bertscore_recall 70.00 is not the mean 60.00 of its rows",
    )
    evaluation.scores["bertscore_recall"] = 60.0
    assert scores.metric_invariants(evidence) == (
        False,
        "bertscore_f1 is outside precision and recall on row 1",
    )


@pytest.mark.parametrize(
    ("targets", "predictions", "expected"),
    [
        # 2 are a fifth of the 10 rows with another target
        ([0] * 10 + [1] * 10, [0] * 18 + [1] * 2, True),
        ([0] * 10 + [1] * 10, [0] * 19 + [1], False),
        ([0] * 10 + [1] * 9, [0] * 19, None),  # so few others a sound model may miss
    ],
)
def test_predictions_collapse_if_hardly_any_differs_though_targets_do(
    targets, predictions, expected
):
    evidence = scored("bert_sa_lora", [{"label": label} for label in targets], predictions)
    answer = scores.predictions_not_collapsed(evidence)
    passed = answer[0] if answer else None
    assert passed is expected


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
    answers = labels[:right] + [0] * (rows - right)
    evidence = scored("bert_sa_lora", [{"label": label} for label in labels], answers)
    log = SimpleNamespace(first_step={"untrained": untrained})
    evidence = replace(evidence, trainer=SimpleNamespace(log=log))
    learned, detail, without_model = scores.learned_something(evidence)
    assert learned == passed
    assert without_model["accuracy"] == 50.0
    assert "without a model scores 50.0 (standard error " in detail
    assert detail.endswith(f"(standard error {error})")


def test_a_random_span_is_of_the_answers_length_and_a_lead_the_first_sentence():
    row = {"context": "a red car", "answers": {"text": ["red car"], "answer_start": [2]}}
    assert set(scores.random_span(QA, [row], [row] * 6)) == {"red car", "a red"}
    article = {"article": "fire hits dover . police come ."}
    assert scores.lead_sentence(SUM, [], [article]) == ["fire hits dover ."]


# What trains, and by which settings


def failed_names(evidence):
    findings = run_audits(replace(evidence), [BEFORE, "of training"])  # a probe of its own
    return [finding.name for finding in findings if not finding.passed]


@pytest.mark.parametrize("end", ["lora_B.default.weight", "wte.weight"])
def test_a_frozen_adapter_and_a_base_tensor_that_trains_are_not_as_declared(
    evidence, monkeypatch, end
):
    parameters = evidence.trainer.parameters
    parameter = next(parameters[name] for name in parameters if name.endswith(end))
    monkeypatch.setattr(parameter, "requires_grad", not parameter.requires_grad)
    assert "trains_as_declared" in failed_names(evidence)


@pytest.mark.parametrize(
    ("field", "value"), [("betas", (0.9, 0.95)), ("eps", 1e-6), ("weight_decay", 0.5)]
)
def test_each_group_of_the_optimizer_has_the_documented_settings_and_the_recipes_decay(
    evidence, monkeypatch, field, value
):
    group = next(group for group in evidence.trainer.optimizer.param_groups if group["params"])
    monkeypatch.setitem(group, field, value)
    assert failed_names(evidence) == ["optimizer_set_as_declared"]


def test_a_parameter_in_two_groups_is_not_as_declared(evidence, monkeypatch):
    optimizer = evidence.trainer.optimizer
    groups = optimizer.param_groups
    monkeypatch.setattr(optimizer, "param_groups", [*groups, groups[0]])
    assert "trains_as_declared" in failed_names(evidence)
