"""Each patch of the table bites: the patched library gives another answer on a small input, and the former one afterwards."""

from functools import partial

import accelerate
import bitsandbytes as bnb
import pytest
import torch
import transformers as hf
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.t5.modeling_t5 import T5Attention

from benchmarks.library_bugs import BUGS, HARMLESS, INEXPRESSIBLE
from tunegrid import ROOT
from tunegrid.data.splits import load_splits
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.grid.tasks import SA, TASKS
from tunegrid.run.device import resolve_precision
from tunegrid.tests.small import CPU, cell_of, rows_of, silent, tokenizer_of, train_rows, trainer_of

pytestmark = pytest.mark.slow

PAGE = (ROOT / "reports" / "evidence" / "library-bugs.md").read_text()
SENTENCE = "a fox slept in the sun ."


def outputs(cell_id):
    """The loss of four padded rows, without dropout."""
    trainer = trainer_of(cell_id, train_rows(cell_id)[:4])
    return evaluated(trainer, [trainer.features[:4]])


def evaluated(trainer, group):
    trainer.model.eval()
    with torch.no_grad():
        return sum(float(trainer.codec.loss(trainer.model, trainer.codec.collate(features))) for features in group)


def losses(cell_id, updates=3):
    """The losses of a few updates."""
    return trainer_of(cell_id, train_rows(cell_id)[:64], max_steps=updates).run(silent()).losses


def bias_gradient():
    bias = torch.ones(1, 1, 2, 2, requires_grad=True)
    query = torch.eye(2).reshape(1, 1, 2, 2).requires_grad_()
    scaled = torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=bias)
    scaled.square().sum().backward()
    return bias.grad is not None


def relative_bias():
    torch.manual_seed(0)
    layer = T5Attention(hf.T5Config(num_heads=1, is_decoder=True), has_relative_attention_bias=True, layer_idx=0)
    return layer.compute_bias(1, 5, past_seen_tokens=4).tolist()


def scale_of_second_layer():
    return GPT2Attention(hf.GPT2Config(scale_attn_by_inverse_layer_idx=True), layer_idx=1).scaling


def evaluated_attention():
    """Whether two evaluations of one attention layer agree; its attention drops half of its weights in training."""
    torch.manual_seed(0)
    config = hf.BertConfig(hidden_size=8, num_attention_heads=1, attention_probs_dropout_prob=0.5, attn_implementation="sdpa")
    layer, states = BertSelfAttention(config).eval(), torch.randn(1, 6, 8)
    return torch.equal(layer(states)[0], layer(states)[0])


def evaluated_adapter():
    """Whether two evaluations of an adapted model agree; its adapters drop a tenth of their inputs in training."""
    trainer = trainer_of("bert_qa_lora", rows_of("squad/train")[:64], max_steps=3)  # the first rate of a warm-up is 0
    trainer.run(silent())
    return evaluated(trainer, trainer.last_group) == evaluated(trainer, trainer.last_group)


def dequantized():
    weight = torch.linspace(-1, 1, 4096).reshape(32, 128)
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    return bnb.functional.dequantize_4bit(packed, state).abs().max() < 2


def block():
    return bnb.functional.quantize_4bit(torch.ones(4, 128), blocksize=64, quant_type="nf4")[1].blocksize


def second_moments():
    optimizer = bnb.optim.AdamW8bit([torch.zeros(1, requires_grad=True)])
    optimizer.fill_qmap()
    return float(optimizer.name2qmap["udynamic"].min())


def rate_after_a_step():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    optimizer.step()
    schedule.step()
    return schedule.get_last_lr()


def clipped():
    weight = torch.zeros(2, requires_grad=True)
    weight.grad = torch.tensor([3.0, 4.0])
    accelerate.Accelerator(cpu=True).clip_grad_norm_([weight], 1.0)
    return weight.grad.norm().round(decimals=3).item()


def first_update():
    """Adam's first update is the learning rate, whatever the gradient; without correction it is sqrt(10) times as large."""
    weight = torch.zeros(1, requires_grad=True)
    weight.grad = torch.ones(1)
    torch.optim.AdamW([weight], lr=0.1, weight_decay=0.0, fused=True).step()
    return round(weight.item(), 4)


def first_offset():
    return tokenizer_of("t5_qa_lora")(SENTENCE, return_offsets_mapping=True)["offset_mapping"][0]


def decoded():
    tokenizer = tokenizer_of("t5_sum_sft")
    return tokenizer.decode(tokenizer(SENTENCE, add_special_tokens=False)["input_ids"])


def beams():
    cache = hf.DynamicCache()
    cache.update(torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), 0)
    cache.reorder_cache(torch.tensor([1, 1]))
    return cache.layers[0].keys.flatten().tolist()


def rows_of_parquet(setting, folder):
    return load_splits(SA, setting(QUICK_PROFILE, folder)).fingerprint


PROBES = {
    "B02": partial(outputs, "t5_sum_sft"),
    "B04": partial(outputs, "gpt2_sa_sft"),
    "B06": relative_bias,
    "B08": partial(outputs, "bert_sum_sft"),
    "B10": partial(outputs, "t5_qa_sft"),
    "B12": partial(outputs, "bert_qa_lora"),
    "B14": partial(outputs, "bert_sa_sft"),
    "B16": bias_gradient,
    "B18": partial(losses, "gpt2_qa_lora"),
    "B20": partial(losses, "bert_qa_qlora"),
    "B22": partial(losses, "gpt2_sa_qlora"),
    "B24": evaluated_adapter,
    "B26": dequantized,
    "B28": block,
    "B30": second_moments,
    "B32": partial(outputs, "t5_sum_qlora"),
    "B34": rate_after_a_step,
    "B36": clipped,
    "B38": first_update,
    "B40": first_offset,
    "B42": decoded,
    "B44": scale_of_second_layer,
    "B46": evaluated_attention,
    "B48": beams,
}


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.id in PROBES], ids=lambda bug: bug.id)
def test_a_patch_bites_and_is_undone(bug):
    probe = PROBES[bug.id]
    before = probe()
    with pytest.MonkeyPatch.context() as monkeypatch:
        bug.patch(monkeypatch)
        assert probe() != before
    assert probe() == before


def test_rows_are_others_where_the_mapping_is_forgotten(monkeypatch, tmp_path):
    bug = next(bug for bug in BUGS if bug.id == "B52")
    shipped = load_splits(SA, QUICK_PROFILE).fingerprint
    assert rows_of_parquet(bug.setting, tmp_path / "sound") == shipped
    bug.patch(monkeypatch)
    with pytest.raises(InputError, match=bug.refusal):
        rows_of_parquet(bug.setting, tmp_path / "broken")


def test_every_bug_of_the_list_is_in_the_table_once():
    ids = sorted(bug.id for bug in (*BUGS, *INEXPRESSIBLE))
    assert ids == [f"B{number:02}" for number in range(2, 56, 2)]
    assert set(PROBES) == {bug.id for bug in BUGS} - {"B52"}


def test_the_page_shows_what_cannot_be_put_back():
    shown = [line for line in PAGE.splitlines() if line.startswith("| B")]
    assert [line.split(" | ")[0].removeprefix("| ") for line in shown] == [bug.id for bug in INEXPRESSIBLE]


def test_every_cell_of_the_table_is_one_of_the_study():
    assert {cell for change in (*BUGS, *HARMLESS) for cell in change.cells} <= set(STUDY_IDS)


def test_harmless_changes_run_on_every_task_and_method():
    parts = [cell.split("_") for change in HARMLESS for cell in change.cells]
    assert {task for _, task, _ in parts} == {task.id for task in TASKS}
    assert {method for *_, method in parts} == {"lora", "qlora", "sft"}


def test_fp16_stays_inexpressible_on_a_cpu():
    assert resolve_precision(cell_of("gpt2_sa_sft", precision="fp16"), CPU)[0] == "bf16"
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    assert accelerate.Accelerator(mixed_precision="fp16", cpu=True).scaler is None


def test_training_goes_past_the_trainer_of_transformers(monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("transformers.Trainer was made")

    monkeypatch.setattr(hf.Trainer, "__init__", refuse)
    assert len(losses("gpt2_sa_lora", updates=2)) == 2
