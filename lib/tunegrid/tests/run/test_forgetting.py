"""The backbone's own loss: it is what transformers computes, a frozen backbone forgets nothing, SFT at a high rate does."""

import json
import re
import shutil
from dataclasses import replace
from random import Random

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tunegrid.results.forgetting import forgetting_record, objections
from tunegrid.run.forgetting import HIDE, LOADERS, NotAskedError, causal, language_losses, masked, own_modules, spans, texts_of

from tunegrid.codecs.base import IGNORED
from tunegrid.data.splits import load_splits
from tunegrid.grid.profiles import ZOO_PROFILE
from tunegrid.grid.tasks import QA, SA, SUM
from tunegrid.grid.zoo import zoo
from tunegrid.tests.small import cell_of, silent, tokenizer_of, trainer_for, trainer_of

QUICK = {"max_steps": 6, "warmup_ratio": 0.0, "per_device_train_batch_size": 8}


class Letters:
    """A tokenizer of letters, as far as hiding needs one."""

    mask_token_id, cls_token_id, sep_token_id, eos_token_id, unk_token_id = 100, 101, 102, 1, 2

    def convert_tokens_to_ids(self, token):
        return 200 + int(token.removeprefix("<extra_id_").rstrip(">"))


def texts(cell_id):
    """Of the other tasks, eight each."""
    cell, tokenizer = cell_of(cell_id), tokenizer_of(cell_id)
    return {
        task.id: texts_of(task, load_splits(task, cell.profile).test, tokenizer)[:8]
        for task in (SA, QA, SUM)
        if task.id != cell.task.id
    }


def asked(trainer, cell_id):
    return language_losses(trainer, tokenizer_of(cell_id), texts(cell_id))


def forgotten(cell_id, **changes):
    """What a cell forgets in a few updates."""
    cell = cell_of(cell_id, **{**QUICK, **changes})
    trainer = trainer_for(cell, load_splits(cell.task, cell.profile).train[:48])
    before = asked(trainer, cell_id)
    trainer.run(silent())
    return forgetting_record(before, asked(trainer, cell_id))


# What is hidden, by hand


def test_masked_tokens_are_predicted_and_no_other():
    read, labels = masked(range(10, 30), Letters(), Random(0))
    assert (read[0], read[-1]) == (101, 102)
    assert [i for i, token in enumerate(read) if token == 100] == [i for i, label in enumerate(labels) if label != IGNORED]
    assert sum(label != IGNORED for label in labels) == 3  # 15 % of 20
    assert [label if token == 100 else token for token, label in zip(read, labels, strict=True)][1:-1] == list(range(10, 30))


def test_spans_and_the_rest_make_the_text_again():
    """20 tokens, 15 % in spans of 3: one span."""
    ids = list(range(10, 30))
    read, target = spans(ids, Letters(), Random(0))
    assert target[0] == 200
    assert (len(target), target[-1], read[-1]) == (5, 1, 1)
    place = read.index(200)
    assert [*read[:place], *target[1:-1], *read[place + 1 : -1]] == ids


def test_each_next_token_is_predicted_and_texts_that_a_tokenizer_spells_are_left_out():
    assert causal([7, 8, 9], Letters(), Random(0)) == ([7, 8, 9], [8, 9, IGNORED])
    rows = [
        {"article": text, "highlights": "x", "id": "1"}
        for text in ("the fire was out .", "李娜 山田 Иван", "the fire was out .")
    ]
    assert texts_of(SUM, rows, tokenizer_of("gpt2_sum_sft")) == ["the fire was out ."]


@pytest.mark.parametrize("length", [1, 2, 5, 64, 128])
def test_however_long_a_text_is_something_of_it_is_hidden(length):
    for hide in HIDE.values():
        read, labels = hide(list(range(10, 10 + length)), Letters(), Random(1))
        assert read
        assert length == 1 or any(label != IGNORED for label in labels)


# The model


@pytest.mark.parametrize("cell_id", ["bert_sa_sft", "bert_sum_sft", "gpt2_qa_lora", "gpt2_sum_sft", "t5_sa_sft", "t5_sum_sft"])
def test_before_training_the_loss_is_that_of_the_checkpoint_as_transformers_computes_it(cell_id):
    """One text after the other, without padding; a mean over its tokens."""
    cell, tokenizer = cell_of(cell_id), tokenizer_of(cell_id)
    own = asked(trainer_of(cell_id, load_splits(cell.task, cell.profile).train[:8]), cell_id)
    model = LOADERS[cell.backbone.objective].from_pretrained(cell.profile.checkpoint_root / cell.backbone.micro).eval()
    rng, expected = Random(0), []
    for text in [text for some in texts(cell_id).values() for text in some]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:128]
        read, labels = HIDE[cell.backbone.objective](ids, tokenizer, rng)
        labels = read if cell.backbone.objective == "causal" else labels  # transformers shifts them
        with torch.no_grad():
            expected.append(float(model(input_ids=torch.tensor([read]), labels=torch.tensor([labels])).loss))
    means = [total / count for total, count in zip(own.sums, own.tokens, strict=True)]
    assert means == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("cell_id", ["bert_sa_lora", "gpt2_sa_qlora", "t5_qa_sft"])
def test_a_model_that_does_not_train_forgets_exactly_nothing(cell_id):
    cell = cell_of(cell_id)
    trainer = trainer_of(cell_id, load_splits(cell.task, cell.profile).train[:8])
    change = forgetting_record(asked(trainer, cell_id), asked(trainer, cell_id)).change
    assert (change.value, change.low, change.high) == (0.0, 0.0, 0.0)


def test_training_a_head_alone_forgets_exactly_nothing():
    """bert_sa_lora adapts two layers behind the backbone."""
    part = forgotten("bert_sa_lora", learning_rate=1e-1)
    assert part.frozen
    assert part.change.value == part.change.high == 0.0
    assert list(objections(part)) == []


def test_sft_at_a_high_rate_forgets_and_at_its_own_far_less():
    much, little = (forgotten("gpt2_qa_sft", learning_rate=rate, head_learning_rate=None) for rate in (3e-2, 3e-5))
    assert not much.frozen
    assert much.change.low > 1.0  # nats a token
    assert abs(little.change.value) < 0.05


@pytest.mark.parametrize("cell_id", ["bert_qa_lora", "bert_sum_sft", "t5_sa_sft", "gpt2_sa_sft", "gpt2_sum_lora"])
def test_what_trains_is_what_is_asked(cell_id):
    """Each trained weight of the backbone that is changed by hand changes the loss: adapters, embeddings, and tied heads."""
    cell = cell_of(cell_id)
    trainer = trainer_of(cell_id, load_splits(cell.task, cell.profile).train[:8])
    before = asked(trainer, cell_id)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if parameter.requires_grad and "decoder" not in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    after = asked(trainer, cell_id)
    assert not after.frozen
    assert all(old != new for old, new in zip(before.sums, after.sums, strict=True))


def test_asking_leaves_random_numbers_and_modes_as_they_were():
    trainer = trainer_of("bert_sa_sft", load_splits(SA, cell_of("bert_sa_sft").profile).train[:8])
    trainer.model.train()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    asked(trainer, "bert_sa_sft")
    assert torch.equal(torch.rand(4), expected)
    assert all(module.training for module in trainer.model.modules())
    assert {p.requires_grad for p in trainer.model.parameters()} == {True}


# What cannot be asked


def without_its_pretraining_head(folder):
    """A cell of an encoder-only export of BERT: no tensor of `cls.predictions`."""
    cell = cell_of("bert_sa_sft")
    path = shutil.copytree(cell.profile.checkpoint_root / "bert-micro", folder / "bert-micro") / "model.safetensors"
    kept = {name: tensor.clone() for name, tensor in load_file(path).items() if not name.startswith("cls.")}
    path.unlink()
    save_file(kept, path, {"format": "pt"})
    return replace(cell, profile=replace(cell.profile, checkpoint_root=folder))


BERT = cell_of("bert_sa_sft")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: replace(BERT, backbone=replace(BERT.backbone, objective=None)), "bert does not declare what it was"),
        (without_its_pretraining_head, "lacks .* tensors of its pretraining head, cls.predictions.bias among them"),
        (lambda folder: zoo().cell("t5_sum_prompt", ZOO_PROFILE), "learned tokens stand in front of the text"),
    ],
)
def test_what_cannot_be_asked_says_why(tmp_path, make, words):
    cell = make(tmp_path)
    trainer = trainer_for(cell, load_splits(cell.task, cell.profile).train[:8])
    losses = language_losses(trainer, trainer.codec.tokenizer, {"qa": ["the fire was out ."]})
    part = forgetting_record(losses, losses)
    assert re.search(words, part.refused)
    assert part.before is part.after is part.change is part.frozen is None
    assert list(objections(part)) == []


def test_a_model_of_another_family_is_not_asked():
    config = json.loads((cell_of("gpt2_sa_sft").profile.checkpoint_root / "gpt2-micro" / "config.json").read_text())
    whole = hf.GPT2LMHeadModel(hf.GPT2Config(**config))
    with pytest.raises(NotAskedError, match=r"^Linear has no part of GPT2LMHeadModel$"):
        own_modules(whole, torch.nn.Linear(1, 1))
