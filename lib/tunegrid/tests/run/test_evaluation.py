from dataclasses import replace

import pytest
import torch

from tunegrid.grid.cells import STUDY
from tunegrid.grid.recipes import FULL_PROFILE, QUICK_PROFILE
from tunegrid.run.evaluate import EVAL_BATCH, evaluate, precision_of
from tunegrid.run.metrics import Metrics, Scored
from tunegrid.tests.small import CPU, codec_for, rows_of, silent


class Longest(torch.nn.Module):
    """Calls a review good where it is longer than 20 tokens."""

    def forward(self, input_ids, attention_mask):
        longer = (attention_mask.sum(1) > 20).long()
        return type("Output", (), {"logits": 10.0 * torch.nn.functional.one_hot(longer, 2)})


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
    lengths = [len(feature.input_ids) for feature in codec.encode(rows, training=False)]  # predictions come in the rows' order
    for evaluation in (wide, narrow):
        assert [prediction.value for prediction in evaluation.predictions] == [int(length > 20) for length in lengths]
    assert (wide.part.batch, narrow.part.batch) == (EVAL_BATCH, EVAL_BATCH // 4)


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


def test_generated_texts_are_counted_in_tokens_up_to_their_end(monkeypatch):
    codec, rows = codec_for("t5_sum_sft"), rows_of("cnn_dailymail/train")[:2]
    monkeypatch.setattr(codec, "generate", lambda *_: torch.tensor([[5, 6, codec.end_id, 0], [5, codec.end_id, 0, 0]]))
    nothing = Scored(scores={}, examples={}, sources={})
    monkeypatch.setattr("tunegrid.run.evaluate.METRICS", {codec.task.problem: lambda *_: nothing})
    evaluation = evaluate(torch.nn.Module(), codec, rows, Metrics(), CPU, silent())
    assert evaluation.part.generated_tokens == {"mean": 2.5, "median": 2.5, "longest": 3}
    assert evaluation.generated_tokens_per_second == pytest.approx(5 / evaluation.part.seconds)
