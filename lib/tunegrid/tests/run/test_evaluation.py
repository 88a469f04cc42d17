from dataclasses import replace

import pytest
import torch

from tunegrid.codecs.base import Feature
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FULL_PROFILE, QUICK_PROFILE
from tunegrid.run.evaluate import EVAL_BATCH, evaluate, precision_of, predict
from tunegrid.run.metrics import Metrics, Scored
from tunegrid.tests.small import CPU, codec_for, model_of, rows_of, silent


class Longest(torch.nn.Module):
    """Calls a review good where it is longer than 20 tokens."""

    def forward(self, input_ids, attention_mask):
        longer = (attention_mask.sum(1) > 20).long()
        return type("Output", (), {"logits": 10.0 * torch.nn.functional.one_hot(longer, 2)})


def test_predictions_come_in_the_order_of_the_rows_however_they_are_batched():
    codec, rows = codec_for("bert_sa_sft"), rows_of("amazon_polarity/train")[: EVAL_BATCH + 9]
    evaluation = evaluate(Longest(), codec, rows, Metrics(), CPU, silent())
    lengths = [len(feature.input_ids) for feature in codec.encode(rows, training=False)]
    assert [prediction.value for prediction in evaluation.predictions] == [int(length > 20) for length in lengths]


class Narrow(Longest):
    """The same, with memory for `rows` rows at once."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, input_ids, attention_mask):
        if len(input_ids) > self.rows:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(input_ids, attention_mask)


def test_where_memory_runs_out_fewer_rows_are_predicted_at_once():
    codec, rows = codec_for("bert_sa_sft"), rows_of("amazon_polarity/train")[: EVAL_BATCH + 9]
    wide, narrow = (evaluate(model, codec, rows, Metrics(), CPU, silent()) for model in (Longest(), Narrow(EVAL_BATCH // 3)))
    assert [p.value for p in narrow.predictions] == [p.value for p in wide.predictions]
    assert (wide.part.batch, narrow.part.batch) == (EVAL_BATCH, EVAL_BATCH // 4)


class Shapes(Longest):
    """The same, and remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, input_ids, attention_mask):
        self.shapes.append(tuple(input_ids.shape))
        return super().forward(input_ids, attention_mask)


def test_long_rows_go_through_a_true_checkpoint_in_smaller_batches_on_a_cpu():
    """2,048 tokens: two rows of 700, or 34 rows of 60; one row of 5,000 goes alone. A micro backbone has 64 of any length."""
    codec, model = codec_for("bert_sa_sft"), Shapes()
    features = [Feature(example=n, input_ids=[2] * n, target=0) for n in [5000, *[700] * 6, *[60] * 70]]
    predict(model, codec, features, CPU, silent())
    assert model.shapes == [(64, 5000), (13, 60)]
    model.shapes.clear()
    codec.cell = replace(codec.cell, profile=replace(codec.cell.profile, micro=False))
    outputs, batch = predict(model, codec, features, CPU, silent())
    assert model.shapes == [(1, 5000), (2, 700), (2, 700), (2, 700), (34, 60), (34, 60), (2, 60)]
    assert [label for label, *_ in outputs] == [1] * 77
    assert batch == EVAL_BATCH


def test_texts_are_generated_in_whole_batches():
    codec = codec_for("gpt2_sum_sft")
    codec.cell = replace(codec.cell, profile=replace(codec.cell.profile, micro=False))
    codec.predict = lambda model, features, device: [len(features)] * len(features)
    features = [Feature(example=n, input_ids=[2] * 500, target=[]) for n in range(70)]
    outputs, _ = predict(Longest(), codec, features, CPU, silent())
    assert outputs == [64] * 64 + [6] * 6


def test_one_row_that_cannot_be_predicted_ends_the_cell_in_a_sentence():
    with pytest.raises(InputError, match="memory runs out when it predicts one row at a time"):
        evaluate(Narrow(0), codec_for("bert_sa_sft"), rows_of("amazon_polarity/train")[:3], Metrics(), CPU, silent())


class Rounded(Longest):
    """Notes in which type a matrix product of its forward pass is."""

    def forward(self, input_ids, attention_mask):
        self.kind = (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
        return super().forward(input_ids, attention_mask)


@pytest.mark.parametrize(("micro", "kind"), [(True, torch.float32), (False, torch.bfloat16)])
def test_forward_passes_compute_in_that_precision_and_the_evaluation_says_so(micro, kind):
    codec, model = codec_for("gpt2_sa_sft"), Rounded()
    recipe, profile = replace(codec.cell.recipe, precision="bf16"), replace(codec.cell.profile, micro=micro)
    codec.cell = replace(codec.cell, recipe=recipe, profile=profile)
    evaluation = evaluate(model, codec, rows_of("amazon_polarity/train")[:3], Metrics(), CPU, silent())
    assert (model.kind, evaluation.part.precision) == (kind, "fp32" if micro else "bf16")
    assert (evaluation.part.generated_tokens, evaluation.generated_tokens_per_second) == (None, None)  # it classifies
    # Trained in fp16, which a CPU only emulates; in fp32; in bf16, and generates.
    full = [precision_of(STUDY.cell(cell_id, FULL_PROFILE), CPU) for cell_id in ("gpt2_sa_sft", "bert_sa_sft", "t5_sum_sft")]
    assert (full, precision_of(STUDY.cell("t5_sa_sft", QUICK_PROFILE), CPU)) == (["bf16", "fp32", "fp32"], "fp32")


def test_scores_and_losses_are_over_all_rows():
    rows = [{"label": 0, "content": "poor lamp ."}, {"label": 1, "content": "poor lamp ."}] * 2
    evaluation = evaluate(Longest(), codec_for("bert_sa_sft"), rows, Metrics(), CPU, silent())  # calls all of them bad
    assert evaluation.scores["accuracy"] == 50.0
    assert evaluation.part.loss == pytest.approx(5.0, abs=1e-3)  # nearly 0 for one half, nearly 10 for the other


def test_every_question_is_answered_whether_a_window_holds_its_answer_or_not():
    rows = rows_of("squad/validation")[:20]
    evaluation = evaluate(model_of("bert_qa_sft"), codec_for("bert_qa_sft"), rows, Metrics(), CPU, silent())
    assert len(evaluation.predictions) == 20
    assert evaluation.part.loss is None
    assert evaluation.samples_per_second == pytest.approx(20 / evaluation.part.seconds)


def test_generated_texts_are_counted_in_tokens_up_to_their_end(monkeypatch):
    codec, rows = codec_for("t5_sum_sft"), rows_of("cnn_dailymail/train")[:2]
    monkeypatch.setattr(codec, "generate", lambda *_: torch.tensor([[5, 6, codec.end_id, 0], [5, codec.end_id, 0, 0]]))
    nothing = Scored(scores={}, examples={}, sources={})
    monkeypatch.setattr("tunegrid.run.evaluate.METRICS", {codec.task.problem: lambda *_: nothing})
    evaluation = evaluate(torch.nn.Module(), codec, rows, Metrics(), CPU, silent())
    assert evaluation.part.generated_tokens == {"mean": 2.5, "median": 2.5, "longest": 3}
    assert evaluation.generated_tokens_per_second == pytest.approx(5 / evaluation.part.seconds)
