"""Asks a model for its backbone's own pretraining loss, on texts that the cell does not train on: what it forgets shows there.

The checkpoint is loaded as the model that was pretrained, and the cell's own backbone, adapters included, takes the place of
its backbone: a head that the cell lacks, as BERT's for masked tokens, is the checkpoint's. What is hidden of a text is drawn
once, so a loss before training and one after it differ by what the backbone has become, and by nothing else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import peft
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tunegrid.codecs.base import IGNORED, Batch, integers, on
from tunegrid.codecs.features import chunks
from tunegrid.data.rows import joined
from tunegrid.data.sources import Row
from tunegrid.grid.backbones import Objective, checkpoint_of
from tunegrid.grid.cells import Cell
from tunegrid.grid.tasks import Task
from tunegrid.run.build import base_type, from_hub_or_folder
from tunegrid.run.device import ATTENTION, autocast
from tunegrid.run.evaluate import precision_of
from tunegrid.run.probe import undisturbed
from tunegrid.run.train import Trainer

SEED = 0  # of the texts and of what is hidden in them: the same for every cell and every seed of training
TEXTS = 128  # of each task
LENGTH = 128  # tokens of a text
HIDDEN = 0.15  # of the tokens: BERT's share, and T5's
SPAN = 3  # tokens: T5's mean length of a hidden span
BATCH = 32
LOADERS: Mapping[Objective, Any] = {
    Objective.MASKED: hf.AutoModelForMaskedLM,
    Objective.CAUSAL: hf.AutoModelForCausalLM,
    Objective.SPANS: hf.AutoModelForSeq2SeqLM,
}
Hidden = tuple[list[int], list[int]]  # what a model reads of a text, and what it is to predict: labels


class NotAskedError(Exception):
    """A backbone cannot be asked for its pretraining loss; the message says why."""


@dataclass(frozen=True, kw_only=True)
class TextLosses:
    """A backbone's pretraining loss on each text.

    Attributes:
        texts: how many, by task.
        sums: nats of each text's predicted tokens together.
        tokens: how many these are.
        frozen: nothing that the loss depends on trains.
        refused: why there is no loss.
    """

    objective: Objective | None
    texts: Mapping[str, int]
    sums: Sequence[float]
    tokens: Sequence[int]
    frozen: bool | None
    refused: str | None = None


def texts_of(task: Task, rows: Sequence[Row], tokenizer: Any) -> list[str]:
    """Some of a task's texts, none of them twice: passages without their questions.

    Of twice as many they are the half that the tokenizer splits least. What it must spell, as emoji or a foreign script, a
    backbone never knew: it cannot forget that, but a few such texts would outweigh all others.
    """
    columns = task.text_pair or task.text
    texts = list(dict.fromkeys(text for row in rows if (text := joined(row, columns))))
    drawn = Random(SEED).sample(texts, min(2 * TEXTS, len(texts)))
    split = {text: len(ids) / len(text) for text, ids in zip(drawn, _ids(tokenizer, drawn), strict=True)}
    return sorted(drawn, key=split.__getitem__)[: -(-len(drawn) // 2)]


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def language_losses(trainer: Trainer, tokenizer: Any, texts: Mapping[str, Sequence[str]]) -> TextLosses:
    """What the backbone's own loss is now, text by text; `texts` by task. The trainer's model stays as it is."""
    objective = trainer.cell.backbone.objective
    counts = {task: len(some) for task, some in texts.items()}
    try:
        with undisturbed(trainer), torch.no_grad():
            model = pretraining_model(trainer.cell, trainer.model, trainer.meter.device)
            hidden = list(_hidden(objective, tokenizer, [text for some in texts.values() for text in some]))
            sums = _sums(trainer, model, tokenizer, hidden)
    except NotAskedError as reason:
        return TextLosses(objective=objective, texts=counts, sums=(), tokens=(), frozen=None, refused=str(reason))
    tokens = [sum(label != IGNORED for label in labels) for _, labels in hidden]
    frozen = not any(parameter.requires_grad for parameter in model.parameters())
    return TextLosses(objective=objective, texts=counts, sums=sums, tokens=tokens, frozen=frozen)


# The model


def pretraining_model(cell: Cell, model: nn.Module, device: torch.device) -> Any:
    """The model that was pretrained, with the cell's own backbone in it. Raises NotAskedError where there is none."""
    if cell.backbone.objective is None:
        raise NotAskedError(f"backbone {cell.backbone.id} does not declare what it was pretrained with (Backbone.objective)")
    if isinstance(model, peft.PeftModel) and model.active_peft_config.is_prompt_learning:
        raise NotAskedError("learned tokens stand in front of the text, and leave the backbone as it is")
    source, options = checkpoint_of(cell.backbone, cell.profile)
    options |= {"dtype": base_type(cell), "attn_implementation": ATTENTION, "use_safetensors": True}
    whole, report = from_hub_or_folder(LOADERS[cell.backbone.objective], source, options | {"output_loading_info": True})
    tuned: Any = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    if type(whole) is type(tuned):
        return tuned
    own = own_modules(whole, tuned)
    if lacking := sorted(name for name in report["missing_keys"] if name.split(".")[0] not in own):
        raise NotAskedError(f"the checkpoint lacks {len(lacking)} tensors of its pretraining head, {lacking[0]} among them")
    whole.requires_grad_(False)
    for name, module in own.items():
        setattr(whole, name, module)
    whole.tie_weights()  # the output layer shares the cell's embeddings, as it does in the checkpoint
    return whole.to(device).eval()


def own_modules(whole: Any, tuned: Any) -> dict[str, nn.Module]:
    """The parts of a pretrained model that the cell's model has, by their names in the former; BERT2BERT's are its encoder's.

    Raises NotAskedError where it has none.
    """
    if isinstance(tuned, hf.EncoderDecoderModel):
        return {whole.base_model_prefix: tuned.encoder}
    children = dict(tuned.named_children())
    own = {name: children[name] for name, part in whole.named_children() if type(children.get(name)) is type(part)}
    if not own:
        raise NotAskedError(f"{type(tuned).__name__} has no part of {type(whole).__name__}")
    return own


# What is hidden


def _hidden(objective: Objective | None, tokenizer: Any, texts: Sequence[str]) -> Iterator[Hidden]:
    """What is read and predicted of each text. Raises NotAskedError where the tokenizer lacks what stands for hidden tokens."""
    assert objective, "a model without one was refused"
    hide, rng = HIDE[objective], Random(SEED)
    for ids in _ids(tokenizer, texts):
        yield hide(ids[:LENGTH], tokenizer, rng)


def masked(ids: Sequence[int], tokenizer: Any, rng: Random) -> Hidden:
    """BERT's: some tokens give way to [MASK], and are predicted. Raises NotAskedError without such a token."""
    if tokenizer.mask_token_id is None:
        raise NotAskedError("the tokenizer has no mask token")
    chosen = set(rng.sample(range(len(ids)), _count(ids)))
    read = [tokenizer.mask_token_id if i in chosen else token for i, token in enumerate(ids)]
    labels = [token if i in chosen else IGNORED for i, token in enumerate(ids)]
    return [tokenizer.cls_token_id, *read, tokenizer.sep_token_id], [IGNORED, *labels, IGNORED]


def causal(ids: Sequence[int], tokenizer: Any, rng: Random) -> Hidden:
    """GPT-2's: each token but the first is predicted from those before it; labels stand where they are predicted."""
    return list(ids), [*ids[1:], IGNORED]


def spans(ids: Sequence[int], tokenizer: Any, rng: Random) -> Hidden:
    """T5's: some spans give way to sentinels; the target has each sentinel, its span, and the end token.

    Raises NotAskedError without sentinels.
    """
    read, target, at = list[int](), list[int](), 0
    count = max(1, round(_count(ids) / SPAN))
    room = len(ids) // count  # each span lies in a stretch of its own, and never touches the next one
    for number in range(count):
        length = min(SPAN, max(1, room - 1))
        start = number * room + rng.randint(0, max(0, room - 1 - length))
        sentinel = tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>")
        if sentinel in (None, tokenizer.unk_token_id):
            raise NotAskedError(f"the tokenizer has no sentinel <extra_id_{number}>")
        read += [*ids[at:start], sentinel]
        target += [sentinel, *ids[start : start + length]]
        at = start + length
    end = [tokenizer.eos_token_id]
    return [*read, *ids[at:], *end], [*target, *end]


HIDE: Mapping[Objective, Callable[[Sequence[int], Any, Random], Hidden]] = {
    Objective.MASKED: masked,
    Objective.CAUSAL: causal,
    Objective.SPANS: spans,
}


def _count(ids: Sequence[int]) -> int:
    return min(len(ids), max(1, round(HIDDEN * len(ids))))


# Losses


def _sums(trainer: Trainer, model: Any, tokenizer: Any, hidden: Sequence[Hidden]) -> list[float]:
    """Nats of each text, over the tokens that the checkpoint knows: one that the cell added is no guess of the backbone's."""
    cell, device = trainer.cell, trainer.meter.device
    known = tokenizer.convert_tokens_to_ids(cell.head.new_token) if cell.head.new_token else None
    sums: list[float] = []
    for some in chunks(hidden, BATCH):
        batch, labels = _batch(some, 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
        if cell.backbone.objective is Objective.SPANS:
            batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
        with autocast(precision_of(cell, device), device):
            logits: Tensor = model(**on(device, batch)).logits
        logits = logits[..., :known].float().transpose(1, 2)
        losses = cross_entropy(logits, labels.to(device), ignore_index=IGNORED, reduction="none")
        sums += losses.sum(1).tolist()
    return sums


def _batch(hidden: Sequence[Hidden], pad: int) -> tuple[Batch, Tensor]:
    """Padded ids (B, L) with their mask, and labels."""
    read, labels = zip(*hidden, strict=True)
    ids = _padded(read, pad)
    lengths = integers([len(row) for row in read]).unsqueeze(1)
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths).long()}, _padded(labels, IGNORED)


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return integers([[*row, *[value] * (longest - len(row))] for row in rows])
