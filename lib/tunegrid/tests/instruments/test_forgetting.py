"""The backbone's own loss: what is hidden, by hand; it is what transformers computes, and a frozen backbone forgets nothing."""

from random import Random

import pytest
import torch

from tunegrid.codecs.base import IGNORED
from tunegrid.grid.tasks import SUM
from tunegrid.instruments import NotAskedError
from tunegrid.instruments.forgetting import HIDE, INSTRUMENT, LOADERS, causal, losses, texts_of
from tunegrid.tests.instruments.asking import asked_cell, values
from tunegrid.tests.small import cell_of, silent, tokenizer_of


class Letters:
    """A tokenizer of letters, as far as hiding needs one."""

    mask_token_id, cls_token_id, sep_token_id, eos_token_id, unk_token_id = 100, 101, 102, 1, 2

    def convert_tokens_to_ids(self, token):
        return 200 + int(token.removeprefix("<extra_id_").rstrip(">"))


def test_each_next_token_is_predicted_and_texts_that_a_tokenizer_spells_are_left_out():
    assert causal([7, 8, 9], Letters(), Random(0)) == ([7, 8, 9], [8, 9, IGNORED])
    texts = ("the fire was out .", "李娜 山田 Иван", "the fire was out .")
    rows = [{"article": text, "highlights": "x", "id": "1"} for text in texts]
    assert texts_of(SUM, rows, tokenizer_of("gpt2_sum_sft")) == ["the fire was out ."]


@pytest.mark.parametrize("cell_id", ["bert_sa_sft", "gpt2_qa_lora", "t5_sum_sft"])
def test_before_training_the_loss_is_that_of_the_checkpoint_as_transformers_computes_it(cell_id, monkeypatch):
    """One text after the other, without padding; a mean over its tokens."""
    monkeypatch.setattr("tunegrid.instruments.forgetting.TEXTS", 4)
    cell, tokenizer = cell_of(cell_id), tokenizer_of(cell_id)
    asked = asked_cell(cell)
    with torch.no_grad():
        own = losses(asked)
    model = LOADERS[cell.backbone.objective].from_pretrained(cell.profile.checkpoint_root / cell.backbone.micro).eval()
    rng, expected = Random(0), []
    others = [task for name, task in asked.tasks.items() if name != cell.task.id]
    for text in [text for task in others for text in texts_of(task, asked.splits_of(task).test, tokenizer)]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:128]
        read, labels = HIDE[cell.backbone.objective](ids, tokenizer, rng)
        labels = read if cell.backbone.objective == "causal" else labels  # transformers shifts them
        with torch.no_grad():
            expected.append(float(model(input_ids=torch.tensor([read]), labels=torch.tensor([labels])).loss))
    means = [total / count for total, count in zip(own.nats, own.tokens, strict=True)]
    assert len(means) == 8
    assert means == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("cell_id", "forgets"), [("bert_sa_lora", False), ("gpt2_qa_sft", True)])
def test_training_a_head_alone_forgets_exactly_nothing_and_sft_at_a_high_rate_does(cell_id, forgets, monkeypatch):
    """bert_sa_lora adapts two layers behind the backbone."""
    monkeypatch.setattr("tunegrid.instruments.forgetting.TEXTS", 4)
    recipe = {"max_steps": 6, "warmup_ratio": 0.0, "per_device_train_batch_size": 8, "learning_rate": 3e-2}
    asked = asked_cell(cell_of(cell_id, **recipe, head_learning_rate=None))
    with torch.no_grad():
        before = INSTRUMENT.before(asked)
    asked.trainer.run(silent())
    with pytest.raises(NotAskedError, match="resumed from a checkpoint"):
        INSTRUMENT.before(asked)
    with torch.no_grad():
        figures = INSTRUMENT.measure(asked, before)
    changes = values(figures, "change")
    assert min(changes) > 1 if forgets else set(changes) == {0.0}  # nats a token
    assert (values(figures, "trains"), list(INSTRUMENT.objections(figures))) == ([float(forgets)], [])
    figures.loc[figures.figure == "trains", "value"] = 1.0 - forgets
    assert len(list(INSTRUMENT.objections(figures))) == 1
