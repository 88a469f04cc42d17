"""Each patch of the table bites: the patched library gives another answer on a small input, and the former one afterwards."""

import re
from functools import partial

import accelerate
import bitsandbytes as bnb
import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm

from benchmarks.library_bugs import BUGS, HARMLESS, INEXPRESSIBLE, LATER
from benchmarks.library_invariants import INVARIANTS
from benchmarks.library_patches.planting import Planting
from benchmarks.test_equivalent import ROWS
from tunegrid import ROOT
from tunegrid.data.splits import load_splits
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.grid.tasks import SA, TASKS
from tunegrid.run.device import resolve_precision
from tunegrid.tests.small import CPU, cell_of, rows_of, silent, tokenizer_of, train_rows, trainer_of

pytestmark = pytest.mark.slow

ALL = (*BUGS, *LATER)
PAGE = (ROOT / "reports" / "evidence" / "library-bugs.md").read_text()
SECOND = (
    *(4, 6, 8, 10, 14, 16, 18, 20, 22, 26, 28, 30, 32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 58, 60, 62, 64, 66, 70, 76),
    *(80, 82),
)
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


# Of the second list


def adapted(features=4, methods=1, **options):
    """A linear layer with one or two LoRA adapters that add something; alpha is twice the rank."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(features, features), nn.Linear(features, features))
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["0", "1"], init_lora_weights=False, **options)
    model = get_peft_model(model, config, adapter_name="foo")
    for name in ("foobar", "third")[: methods - 1]:
        model.add_adapter(name, config)
    return model


def packed_sum():
    trainer = trainer_of("gpt2_sum_qlora", train_rows("gpt2_sum_qlora")[:2])
    for name, p in trainer.parameters.items():
        if "lora_B" in name:
            p.data.fill_(0.01)
    return evaluated(trainer, [trainer.features])


def merged_apart(**options):
    """Whether a merged model answers as the adapted one."""
    model, row = adapted(**options), torch.ones(1, 4)
    for name, p in model.named_parameters():
        if "lora_B" in name and name.endswith("bias"):
            p.data.fill_(1.0)
    return torch.allclose(model(row), model.merge_and_unload()(row), atol=1e-5)


def scale_after_reset():
    layer = adapted(use_rslora=True).base_model.model[0]
    layer.scale_layer(2.0)
    layer.unscale_layer()
    return layer.scaling["foo"]


def scales_by_pattern():
    model = nn.ModuleDict({"inner": nn.ModuleDict({"value": nn.Linear(4, 4)})})
    patterns = {"rank_pattern": {"value": 2}, "alpha_pattern": {"inner.value": 8}}
    return get_peft_model(model, LoraConfig(r=1, lora_alpha=1, target_modules=["value"], **patterns)).inner.value.scaling[
        "default"
    ]


def gradient_of_backward():
    weight = torch.ones(1, requires_grad=True)
    accelerate.Accelerator(cpu=True).backward(weight * 3)
    return weight.grad.item()


def small_moments():
    small, large = (torch.zeros(n, requires_grad=True) for n in (8, 4096))
    optimizer = bnb.optim.AdamW8bit([small, large])
    for p in (small, large):
        p.grad = torch.ones_like(p)
    optimizer.step()
    return [optimizer.state[p]["state1"].dtype for p in (small, large)]


def norm_gradient():
    torch.manual_seed(0)
    norm = T5LayerNorm(8)
    norm(torch.randn(256, 8)).square().sum().backward()
    return norm.weight.grad.tolist()


def gradient_after_evaluation():
    layer = nn.Linear(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            layer(torch.ones(1, 2))
        layer(torch.ones(1, 2)).sum().backward()
    return layer.weight.grad is not None


def generated_with_padding():
    trainer = trainer_of("t5_sum_lora", train_rows("t5_sum_lora")[:8])
    features = sorted(trainer.features, key=lambda feature: len(feature.input_ids))
    with torch.no_grad():
        output = trainer.codec.generate(
            trainer.model.eval(), [features[0], features[-1]], CPU, output_scores=True, return_dict_in_generate=True
        )
    return [score.sum().item() for score in output.scores]


def grown_rows():
    model = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=32, n_embd=4, n_layer=1, n_head=1))
    before = model.transformer.wte.weight.detach().clone()
    model.resize_token_embeddings(33, mean_resizing=False)
    return torch.equal(model.transformer.wte.weight[:32], before)


def packing_error():
    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4")
    return bool((bnb.functional.dequantize_4bit(packed, state) - weight).norm() / weight.norm() < 0.2)


def fully_masked():
    one = torch.ones(1, 1, 2, 2)
    mask = torch.tensor([[False, False], [True, False]])
    return torch.nn.functional.scaled_dot_product_attention(one, one, one, attn_mask=mask).isnan().any().item()


LATER_PROBES = {
    "A04": packed_sum,
    "A08": gradient_of_backward,
    "A10": small_moments,
    "A14": generated_with_padding,
    "A18": grown_rows,
    "A20": norm_gradient,
    "A22": gradient_after_evaluation,
    "A26": scale_after_reset,
    "A28": partial(merged_apart, lora_bias=True),
    "A32": scales_by_pattern,
    "A42": merged_apart,
    "A52": packing_error,
    "A58": fully_masked,
    **{bug.id: INVARIANTS[bug.breaks] for bug in LATER if bug.breaks},
}


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


ALL_PROBES = PROBES | LATER_PROBES


@pytest.mark.parametrize("bug", [bug for bug in ALL if bug.id in ALL_PROBES], ids=lambda bug: bug.id)
def test_a_patch_bites_and_is_undone(bug):
    probe = ALL_PROBES[bug.id]
    before = probe()
    with pytest.MonkeyPatch.context() as monkeypatch:
        bug.patch(plant := Planting(monkeypatch))
        assert probe() != before
    assert plant.acts
    assert probe() == before


def test_calls_of_what_is_planted_are_counted(monkeypatch):
    class Library:
        rate = 1

        def answer(self):
            return 1

        @staticmethod
        def constant():
            return 1

    plant = Planting(monkeypatch)
    plant.setattr(Library, "answer", lambda self: 2)
    plant.setattr(Library, "constant", staticmethod(lambda: 2))
    plant.setattr(Library, "rate", 2)
    plant.setitem(table := {"one": max}, "one", min)
    assert plant.acts == 0
    assert (Library().answer(), Library.constant(), Library.rate, table["one"](2, 3)) == (2, 2, 2, 2)
    assert plant.acts == 4
    plant.setattr(Library, "answer", lambda self: 3, counted=False)
    assert (Library().answer(), plant.acts) == (3, 4)


def test_rows_are_others_where_the_mapping_is_forgotten(monkeypatch, tmp_path):
    bug = next(bug for bug in BUGS if bug.id == "B52")
    monkeypatch = Planting(monkeypatch)
    shipped = load_splits(SA, QUICK_PROFILE).fingerprint
    assert rows_of_parquet(bug.setting, tmp_path / "sound") == shipped
    bug.patch(monkeypatch)
    with pytest.raises(InputError, match=bug.refusal):
        rows_of_parquet(bug.setting, tmp_path / "broken")


def test_every_bug_of_the_list_is_in_the_table_once():
    ids = sorted(bug.id for bug in (*ALL, *INEXPRESSIBLE))
    assert ids == [*(f"A{number:02}" for number in SECOND), *(f"B{number:02}" for number in range(2, 56, 2))]
    assert set(ALL_PROBES) == {bug.id for bug in ALL} - {"B52", "A70"}  # refused; seen on ranks alone


def test_the_page_shows_what_cannot_be_put_back():
    named, cannot = (re.findall(r"^\| ([AB]\d+) ", part, re.MULTILINE) for part in PAGE.split("cannot be put back here"))
    assert cannot == [bug.id for bug in INEXPRESSIBLE]
    assert named == [bug.id for bug in LATER if not bug.breaks]


def test_every_cell_of_the_table_is_in_its_grid():
    for change in (*ALL, *HARMLESS):
        assert set(change.cells) <= set(change.grid().recipes)
    assert {cell for change in (*BUGS, *HARMLESS) for cell in change.cells} <= set(STUDY_IDS)


def test_of_the_bugs_in_a_module_at_least_nine_of_ten_can_be_named_with_it():
    inside = [bug for bug in ALL if bug.module]
    named = [bug for bug in inside if not bug.unseen]
    print(f"{len(named)} of {len(inside)} bugs in a module are named with it: {len(named) / len(inside):.1%}")
    assert all(bug.module for bug in ALL if bug.unseen)
    assert len(named) >= 0.9 * len(inside)
    assert f"{len(inside)} bugs are in a module" in PAGE
    assert f"{len(named)} are named so" in PAGE


def test_a_bug_names_a_row_of_equal_settings():
    assert {"two-adapters-of-like-names"} < {bug.seen_by for bug in ALL if bug.seen_by} <= {row.id for row in ROWS}


def test_every_invariant_has_a_name_of_its_own_and_says_what_holds():
    assert {bug.breaks for bug in ALL if bug.breaks} <= set(INVARIANTS)
    assert all(invariant.__doc__ for invariant in INVARIANTS.values())


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
