"""The libraries' own path against ours: each planted bug is named with its stage, and healthy cells differ nowhere."""

import re
from dataclasses import replace

import peft
import pytest
import torch
import transformers as hf

from benchmarks.stock import libraries, ours
from benchmarks.stock.known import KNOWN, table
from benchmarks.stock.stages import STAGES, Pair, first_difference, other_numbers
from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.methods import adamw_torch
from tunegrid.tests.small import CPU, cell_of, train_rows


def test_numbers_differ_by_more_than_a_tolerance_in_units_of_themselves():
    assert other_numbers([1.0, 20.1], [1.0, 20.0], 0.01, "the loss of update {}") == ""
    assert other_numbers([1.0, 0.2], [1.0, 0.1], 0.01, "the loss of update {}") == "the loss of update 2 is 0.2, ours is 0.1"
    assert other_numbers([float("nan")], [1.0], 1e9, "eval_loss") == "eval_loss is nan, ours is 1"
    assert other_numbers([1.0], [1.0, 1.0], 1e9, "eval_loss") == "1 updates, ours has 2"


def test_the_guide_shows_the_table_whose_stages_are_those_of_the_flow():
    guide = (ROOT / "benchmarks" / "guides" / "stock-path.md").read_text()
    assert guide.endswith("\n".join(table()) + "\n")
    assert {entry.stage for entry in KNOWN} <= STAGES.keys()
    assert len({entry.id for entry in KNOWN}) == len(KNOWN)
    assert [entry.id for entry in KNOWN if entry.upstream and not (ROOT / entry.upstream).is_file()] == []


def test_a_cell_that_trainer_cannot_train_is_refused_with_the_reason(tmp_path):
    cell = cell_of("bert_sa_lora")
    assert libraries.refused(cell) == ""
    mine = replace(cell, optimizers={"mine": adamw_torch}, recipe=replace(cell.recipe, optim="mine"))
    assert libraries.refused(mine) == "TrainingArguments knows no optimizer 'mine'"
    with pytest.raises(InputError, match="bert_sa_lora has no stock path: TrainingArguments knows no optimizer 'mine'"):
        Pair(mine, [], [], tmp_path, CPU)


# Planted bugs


def planted(cell_id, folder, last="pipeline"):
    """What differs in a cell, over the libraries as they are now."""
    torch.set_num_threads(1)
    rows = train_rows(cell_id)
    return first_difference(Pair(cell_of(cell_id), rows[:100], rows[300:310], folder, CPU), last)


def around(owner, name, change, monkeypatch):
    """`change` is called in place of a method, with the method and its arguments."""
    method = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **named: change(method, *args, **named))


def no_overflow(method, self, encoding, *args, **named):
    """As tokenizers 0.23.1: no window but the first."""
    return method(self, encoding, *args, **named | {"return_overflowing_tokens": False})


def positions_are_scaled(method, *args, **named):
    model = method(*args, **named)
    model.transformer.wpe.weight.data.mul_(1.01)
    return model


def norms_are_rounded(method, model, **named):
    model = method(model, **named)
    for name, p in model.named_parameters():
        p.data = p.data.bfloat16() if "ln_" in name else p.data
    return model


def padding_counts(method, self, features, *args, **named):
    self.label_pad_token_id = self.tokenizer.pad_token_id
    return method(self, features, *args, **named)


def mask_of_ones(method, *args, **named):
    batch = method(*args, **named)
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    return batch


def last_batch_is_dropped(method, self):
    self.args.dataloader_drop_last = True
    return method(self)


def gradients_are_off(method, self, model, *args, **named):
    loss = method(self, model, *args, **named)
    for p in model.parameters():
        if p.grad is not None:
            p.grad.mul_(1.001)
    return loss


def second_moment_is_off(method, self, *args):
    optimizer = method(self, *args)
    for group in optimizer.param_groups:
        group["betas"] = (0.9, 0.99)
    return optimizer


def batches_are_averaged_twice(method, self, model, *args, **named):
    count = self.args.gradient_accumulation_steps
    loss = method(self, model, *args, **named)
    for p in model.parameters():
        if p.grad is not None and count > 1:
            p.grad.div_(count)
    return loss / count


def evaluation_drops_out(method, *args, **named):
    loss, logits, labels = method(*args, **named)
    return loss * 1.001, logits, labels


def saved_head_is_lost(method, self, *args, **named):
    method(self, *args, **named)
    label = self.model.config.id2label
    self.model.config.id2label = {index: label[len(label) - 1 - index] for index in label}


def all_names(method, self, model):
    return [name for name, _ in model.named_parameters()]


def one_beam(method, *args, **named):
    return method(*args, **named | {"num_beams": 1})


PLANTS = {
    "windows": ("bert_qa_sft", hf.PreTrainedTokenizerFast, "_convert_encoding", no_overflow),
    "start": ("gpt2_sa_lora", hf.AutoModelForSequenceClassification, "from_pretrained", positions_are_scaled),
    "labels": ("t5_sum_sft", hf.DataCollatorForSeq2Seq, "__call__", padding_counts),
    "batch": ("bert_sa_sft", hf.DataCollatorWithPadding, "__call__", mask_of_ones),
    "order": ("gpt2_sa_sft", hf.Trainer, "get_train_dataloader", last_batch_is_dropped),
    "loss": ("bert_sa_lora", hf.Trainer, "compute_loss", lambda method, *args, **named: method(*args, **named) + 3e-4),
    "gradient": ("gpt2_sa_sft", hf.Trainer, "training_step", gradients_are_off),
    "rates": ("gpt2_sa_lora", hf.TrainingArguments, "get_warmup_steps", lambda method, *args: method(*args) - 1),
    "optimizer": ("gpt2_sa_sft", hf.Trainer, "create_optimizer", second_moment_is_off),
    "accumulation": ("gpt2_sa_sft", hf.Trainer, "training_step", batches_are_averaged_twice),
    "resume": ("gpt2_sa_lora", hf.Trainer, "_load_optimizer_and_scheduler", lambda method, *args: None),
    "scores": ("bert_sa_lora", hf.Trainer, "prediction_step", evaluation_drops_out),
    "generation": ("t5_sum_sft", hf.Seq2SeqTrainer, "predict", one_beam),
    "pipeline": ("bert_sa_sft", hf.TextClassificationPipeline, "__init__", saved_head_is_lost),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("stage", STAGES)
def test_a_planted_bug_is_named_with_its_stage(stage, tmp_path, monkeypatch):
    cell_id, owner, name, change = PLANTS[stage]
    around(owner, name, change, monkeypatch)
    said = planted(cell_id, tmp_path)
    assert said.startswith(f"{stage}: ")
    assert stage != "windows" or re.search(r"returned 0 overflow windows, ours has [1-9] overflow windows? \(row \d+\)", said)


@pytest.mark.filterwarnings("default")
def test_what_pefts_helper_does_to_a_packed_base_is_seen(tmp_path, monkeypatch):
    around(peft, "prepare_model_for_kbit_training", norms_are_rounded, monkeypatch)
    sentence = planted("gpt2_sa_qlora", tmp_path, "start")
    assert sentence == "start: base_model.model.transformer.h.0.ln_1.weight is bfloat16 (128,), ours is float32 (128,)"


@pytest.mark.filterwarnings("default")
def test_a_wrong_decay_is_seen(tmp_path, monkeypatch):
    around(hf.Trainer, "get_decay_parameter_names", all_names, monkeypatch)
    assert "optimizer: weight_decay of transformer." in planted("gpt2_sa_sft", tmp_path, "optimizer")


@pytest.mark.filterwarnings("default")
def test_a_bug_of_ours_is_seen_as_well(tmp_path, monkeypatch):
    around(ours.ClassifyCodec, "targets", lambda method, *args: 2 * method(*args), monkeypatch)
    assert planted("bert_sa_lora", tmp_path, "loss").startswith("loss: the loss of update 1 is ")
