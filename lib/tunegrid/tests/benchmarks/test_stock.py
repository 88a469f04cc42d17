"""The libraries' own path against ours: each planted bug is named with its stage, and healthy cells differ nowhere."""

import re
from dataclasses import replace
from statistics import fmean

import peft
import pytest
import torch
import transformers as hf
from tunegrid.record.stock import STOCK_STAGES
from tunegrid.run.stock import both
from tunegrid.run.stock.both import Both
from tunegrid.run.stock.known import KNOWN, Tolerance, apart, table
from tunegrid.run.stock.stages import STAGES, compare
from tunegrid.run.stock.start import quiet, refused

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.methods import adamw_torch
from tunegrid.tests.small import CPU, cell_of, train_rows

# Numbers that differ


def test_the_largest_difference_and_the_mean_are_of_theirs_less_ours():
    gap = apart([1.0, 2.0, 2.5], [1.0, 2.25, 2.0])
    assert (gap.largest, gap.at) == (0.5, 2)
    assert gap.mean == pytest.approx(fmean([0, -0.25, 0.5]))


def test_fifty_equal_differences_are_a_bug_and_fifty_of_random_sign_are_noise():
    allowed = Tolerance(largest=1e-3, mean=1e-4, why="a test")
    constant, noise = [3e-4] * 50, [3e-4 * (-1) ** update for update in range(50)]
    assert apart(constant, [0.0] * 50).exceeds(allowed)
    assert not apart(noise, [0.0] * 50).exceeds(allowed)


def test_a_missing_update_and_no_number_are_never_rounding():
    allowed = Tolerance(largest=1e9, mean=1e9, why="a test")
    assert apart([1.0], [1.0, 1.0]).exceeds(allowed)
    assert apart([float("nan")], [1.0]).exceeds(allowed)


# The table


def test_the_guide_shows_the_table_whose_stages_are_those_of_the_flow():
    guide = (ROOT / "benchmarks" / "guides" / "stock-path.md").read_text()
    assert guide.endswith("\n".join(table()) + "\n")
    assert tuple(STAGES) == STOCK_STAGES
    assert {entry.stage for entry in KNOWN} <= set(STOCK_STAGES)
    assert len({entry.id for entry in KNOWN}) == len(KNOWN)
    assert [entry.id for entry in KNOWN if entry.upstream and not (ROOT / entry.upstream).is_file()] == []


# Cells without a path


def test_a_cell_that_trainer_cannot_train_is_refused_with_the_reason(tmp_path):
    cell = cell_of("bert_sa_lora")
    assert refused(cell) == ""
    mine = replace(cell, optimizers={"mine": adamw_torch}, recipe=replace(cell.recipe, optim="mine"))
    assert refused(mine) == "TrainingArguments knows no optimizer 'mine'"
    with pytest.raises(InputError, match="bert_sa_lora has no stock path: TrainingArguments knows no optimizer 'mine'"):
        Both(mine, [], [], tmp_path, CPU)


# Planted bugs


def planted(cell_id, folder, last=STOCK_STAGES[-1]):
    """What differs in a cell, over the libraries as they are now."""
    quiet()
    torch.set_num_threads(1)
    rows = train_rows(cell_id)
    return compare(Both(cell_of(cell_id), rows[:100], rows[300:310], folder, CPU), last).differs


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
    "losses": ("gpt2_sa_sft", hf.Trainer, "create_optimizer", second_moment_is_off),
    "weights": ("gpt2_sa_sft", hf.Trainer, "get_decay_parameter_names", all_names),
    "accumulation": ("gpt2_sa_sft", hf.Trainer, "training_step", batches_are_averaged_twice),
    "resume": ("gpt2_sa_lora", hf.Trainer, "_load_optimizer_and_scheduler", lambda method, *args: None),
    "scores": ("bert_sa_lora", hf.Trainer, "prediction_step", evaluation_drops_out),
    "generation": ("t5_sum_sft", hf.Seq2SeqTrainer, "predict", one_beam),
    "pipeline": ("bert_sa_sft", hf.TextClassificationPipeline, "__init__", saved_head_is_lost),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("stage", STOCK_STAGES)
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


def doubled(method, prepared, known):
    trainer = method(prepared, known)
    own = trainer.divisors
    trainer.divisors = lambda batches: [2 * one for one in own(batches)]
    return trainer


@pytest.mark.filterwarnings("default")
def test_a_bug_of_ours_is_seen_as_well(tmp_path, monkeypatch):
    around(both, "with_known_divisors", doubled, monkeypatch)
    assert planted("bert_sa_lora", tmp_path, "loss").startswith("loss: the loss of update 1 is ")
