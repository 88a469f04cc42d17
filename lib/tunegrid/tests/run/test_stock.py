"""The libraries' own path against ours: each planted bug is named with its stage, and healthy cells differ nowhere."""

import re
from dataclasses import replace
from statistics import fmean

import peft
import pytest
import torch
import transformers as hf

from tunegrid import ROOT
from tunegrid.errors import InputError
from tunegrid.grid.methods import adamw_torch
from tunegrid.record.parts import STOCK_STAGES
from tunegrid.run.stock.both import Both
from tunegrid.run.stock.known import KNOWN, Tolerance, apart, table
from tunegrid.run.stock.oracle import OracleTrainer
from tunegrid.run.stock.stages import STAGES, compare
from tunegrid.run.stock.start import quiet, refused
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


def test_the_guide_shows_the_known_differences():
    guide = (ROOT / "benchmarks" / "guides" / "stock-path.md").read_text()
    assert guide.endswith("\n".join(table()) + "\n")


def test_reports_that_the_table_names_exist():
    assert [entry.id for entry in KNOWN if entry.upstream and not (ROOT / entry.upstream).is_file()] == []


def test_stages_of_the_table_are_those_of_the_flow():
    assert tuple(STAGES) == STOCK_STAGES
    assert {entry.stage for entry in KNOWN} <= set(STOCK_STAGES)
    assert len({entry.id for entry in KNOWN}) == len(KNOWN)


# Cells without a path


def test_a_cell_that_trainer_cannot_train_is_refused_with_the_reason():
    cell = cell_of("bert_sa_lora")
    assert refused(cell) == ""
    mine = replace(cell, optimizers={"mine": adamw_torch}, recipe=replace(cell.recipe, optim="mine"))
    assert refused(mine) == "TrainingArguments knows no optimizer 'mine'"


def test_a_refused_cell_is_an_error_of_one_sentence(tmp_path):
    cell = cell_of("bert_sa_lora", optim="mine")
    with pytest.raises(InputError, match="bert_sa_lora has no stock path: TrainingArguments knows no optimizer 'mine'"):
        Both(cell, [], [], tmp_path, CPU)


# Planted bugs


def planted(cell_id, folder, last=STOCK_STAGES[-1]):
    """What differs in a cell, over the libraries as they are now."""
    quiet()
    torch.set_num_threads(1)
    rows = train_rows(cell_id)
    return compare(Both(cell_of(cell_id), rows[:100], rows[300:310], folder, CPU), last).differs


def around(owner, name, change, monkeypatch):
    """Let a method's result, or what it is called with, be changed: `change` is called with the method and its arguments."""
    method = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args, **named: change(method, *args, **named))


def no_overflow(monkeypatch):
    """As tokenizers 0.23.1: no window but the first."""
    kind = hf.PreTrainedTokenizerFast

    def convert(method, self, encoding, *args, **named):
        names = list(named)
        return method(self, encoding, *args, **{name: named[name] for name in names} | {"return_overflowing_tokens": False})

    around(kind, "_convert_encoding", convert, monkeypatch)


def positions_are_scaled(monkeypatch):
    def loaded(method, *args, **named):
        model = method(*args, **named)
        model.transformer.wpe.weight.data.mul_(1.01)
        return model

    around(hf.AutoModelForSequenceClassification, "from_pretrained", loaded, monkeypatch)


def norms_are_rounded(monkeypatch):
    def prepared(method, model, **named):
        model = method(model, **named)
        for name, p in model.named_parameters():
            p.data = p.data.bfloat16() if "ln_" in name else p.data
        return model

    around(peft, "prepare_model_for_kbit_training", prepared, monkeypatch)


def padding_counts(monkeypatch):
    def collated(method, self, features, *args, **named):
        self.label_pad_token_id = self.tokenizer.pad_token_id
        return method(self, features, *args, **named)

    around(hf.DataCollatorForSeq2Seq, "__call__", collated, monkeypatch)


def mask_of_ones(monkeypatch):
    def collated(method, self, features, *args, **named):
        batch = method(self, features, *args, **named)
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
        return batch

    around(hf.DataCollatorWithPadding, "__call__", collated, monkeypatch)


def last_batch_is_dropped(monkeypatch):
    def loader(method, self):
        self.args.dataloader_drop_last = True
        return method(self)

    around(hf.Trainer, "get_train_dataloader", loader, monkeypatch)


def loss_is_off(monkeypatch):
    around(hf.Trainer, "compute_loss", lambda method, *args, **named: method(*args, **named) + 3e-4, monkeypatch)


def gradients_are_off(monkeypatch):
    def stepped(method, self, model, *args, **named):
        loss = method(self, model, *args, **named)
        for p in model.parameters():
            if p.grad is not None:
                p.grad.mul_(1.001)
        return loss

    around(hf.Trainer, "training_step", stepped, monkeypatch)


def warmup_is_skipped(monkeypatch):
    around(hf.TrainingArguments, "get_warmup_steps", lambda method, *args: method(*args) - 1, monkeypatch)


def second_moment_is_off(monkeypatch):
    def made(method, self, *args):
        optimizer = method(self, *args)
        for group in optimizer.param_groups:
            group["betas"] = (0.9, 0.99)
        return optimizer

    around(hf.Trainer, "create_optimizer", made, monkeypatch)


def everything_decays(monkeypatch):
    def names(method, self, model):
        return [name for name, _ in model.named_parameters()]

    around(hf.Trainer, "get_decay_parameter_names", names, monkeypatch)


def batches_are_averaged_twice(monkeypatch):
    def stepped(method, self, model, *args, **named):
        count = self.args.gradient_accumulation_steps
        loss = method(self, model, *args, **named)
        for p in model.parameters():
            if p.grad is not None and count > 1:
                p.grad.div_(count)
        return loss / count

    around(hf.Trainer, "training_step", stepped, monkeypatch)


def optimizer_state_is_lost(monkeypatch):
    around(hf.Trainer, "_load_optimizer_and_scheduler", lambda method, *args: None, monkeypatch)


def evaluation_drops_out(monkeypatch):
    def step(method, self, model, inputs, *args, **named):
        loss, logits, labels = method(self, model, inputs, *args, **named)
        return loss * 1.001, logits, labels

    around(hf.Trainer, "prediction_step", step, monkeypatch)


def beams_are_lost(monkeypatch):
    def predict(method, self, *args, **named):
        return method(self, *args, **named | {"num_beams": 1})

    around(hf.Seq2SeqTrainer, "predict", predict, monkeypatch)


def saved_head_is_lost(monkeypatch):
    def saved(method, self, *args, **named):
        method(self, *args, **named)
        label = self.model.config.id2label
        self.model.config.id2label = {index: label[len(label) - 1 - index] for index in label}

    around(hf.TextClassificationPipeline, "__init__", saved, monkeypatch)


PLANTS = {
    "windows": ("bert_qa_sft", no_overflow),
    "start": ("gpt2_sa_lora", positions_are_scaled),
    "labels": ("t5_sum_sft", padding_counts),
    "batch": ("bert_sa_sft", mask_of_ones),
    "order": ("gpt2_sa_sft", last_batch_is_dropped),
    "loss": ("bert_sa_lora", loss_is_off),
    "gradient": ("gpt2_sa_sft", gradients_are_off),
    "rates": ("gpt2_sa_lora", warmup_is_skipped),
    "losses": ("gpt2_sa_sft", second_moment_is_off),
    "weights": ("gpt2_sa_sft", everything_decays),
    "accumulation": ("gpt2_sa_sft", batches_are_averaged_twice),
    "resume": ("gpt2_sa_lora", optimizer_state_is_lost),
    "scores": ("bert_sa_lora", evaluation_drops_out),
    "generation": ("t5_sum_sft", beams_are_lost),
    "pipeline": ("bert_sa_sft", saved_head_is_lost),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("stage", STOCK_STAGES)
def test_a_planted_bug_is_named_with_its_stage(stage, tmp_path, monkeypatch):
    cell_id, plant = PLANTS[stage]
    plant(monkeypatch)
    assert re.match(f"{stage}: ", planted(cell_id, tmp_path))


@pytest.mark.filterwarnings("default")
def test_what_pefts_helper_does_to_a_packed_base_is_seen(tmp_path, monkeypatch):
    norms_are_rounded(monkeypatch)
    sentence = planted("gpt2_sa_qlora", tmp_path, "start")
    assert sentence == ("start: base_model.model.transformer.h.0.ln_1.weight is bfloat16 (128,), ours is float32 (128,)")


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("cell_id", ["bert_qa_qlora", "gpt2_sum_lora", "t5_sum_sft"])
@pytest.mark.slow
def test_a_healthy_cell_differs_nowhere(cell_id, tmp_path):
    assert planted(cell_id, tmp_path) == ""


@pytest.mark.filterwarnings("default")
def test_the_sentence_of_lost_windows_counts_them_and_names_the_row(tmp_path, monkeypatch):
    no_overflow(monkeypatch)
    sentence = planted("bert_qa_sft", tmp_path, "windows")
    assert re.fullmatch(
        r"windows: the tokenizer returned 0 overflow windows, ours has [1-9] overflow windows? \(row \d+\)", sentence
    )


@pytest.mark.filterwarnings("default")
def test_a_bug_of_ours_is_seen_as_well(tmp_path, monkeypatch):
    around(OracleTrainer, "divisors", lambda method, self, batches: [2 * one for one in method(self, batches)], monkeypatch)
    assert planted("bert_sa_lora", tmp_path, "loss").startswith("loss: the loss of update 1 is ")
