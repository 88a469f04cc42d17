"""Measures what a backbone forgets, by its pretraining loss on texts of other tasks.

The checkpoint is loaded as the pretrained model, and the backbone of this model is replaced by that
of the cell, including adapters. A head that the cell lacks, such as BERT's for masked tokens, comes
from the checkpoint. Texts and hidden tokens are drawn with a fixed seed, so losses before and after
training differ only because of training.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pandas as pd
import peft
import transformers as hf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tunegrid.codecs.base import IGNORED, integers, move_batch
from tunegrid.codecs.features import chunks
from tunegrid.data.sources import Row, stitch
from tunegrid.grid.backbones import Objective, checkpoint_source
from tunegrid.grid.tasks import Task
from tunegrid.instruments import Figure, Instrument, NotAskedError, tidy
from tunegrid.instruments.trained import TrainedCell
from tunegrid.run.build import attention, base_type, from_hub_or_folder
from tunegrid.run.device import autocast
from tunegrid.run.evaluate import eval_precision
from tunegrid.runs.examples import row_id

TEXT_SEED = 0  # draws texts and hidden tokens, identically for all cells and training seeds
MOST_TEXTS = 128  # maximum number of texts per task
LENGTH = 128  # longer texts are cut to this many tokens
HIDDEN_SHARE = 0.15  # share of tokens that are hidden, as for BERT and T5
SPAN = 3  # T5's mean length of a hidden span, in tokens
TEXTS_AT_ONCE = 32
LOADERS: Mapping[Objective, Any] = {
    Objective.MASKED: hf.AutoModelForMaskedLM,
    Objective.CAUSAL: hf.AutoModelForCausalLM,
    Objective.SPANS: hf.AutoModelForSeq2SeqLM,
}
Hidden = tuple[list[int], list[int]]  # input ids and labels of a text


@dataclass(frozen=True, kw_only=True)
class TextLosses:
    """The backbone's pretraining loss on each text."""

    names: Sequence[str]  # each text's name, made of its task and a hash
    nats: Sequence[float]  # each text's loss, summed over predicted tokens
    tokens: Sequence[int]  # each text's number of predicted tokens
    trains: bool  # whether any parameter that the loss uses is trainable


class Forgetting(Instrument):
    """The backbone's loss on each text before and after training, and the change."""

    id = "forgetting"
    question = (
        "what is forgotten? The backbone's own loss on texts of the other tasks, in nats a token"
    )
    figures = {  # noqa: RUF012
        "before": Figure(shown=".3f"),
        "after": Figure(shown=".3f"),
        "change": Figure(better="lower", margin=0.05, shown="+.3f"),
        "trains": Figure(),
    }

    def before(self, cell: TrainedCell) -> TextLosses:
        """Measures the untrained model's losses; raises NotAskedError if training was resumed."""
        if cell.trainer.log.updates:
            cause = "its training was resumed from a checkpoint"
            raise NotAskedError(f"{cause}, so the untrained model is gone")
        return text_losses(cell)

    def measure(self, cell: TrainedCell, before: TextLosses) -> pd.DataFrame:
        """Returns each text's loss before and after training and its change, in nats per token."""
        after = text_losses(cell)
        tokens = before.tokens
        nats = {"before": before.nats, "after": after.nats}
        nats["change"] = [new - old for old, new in zip(before.nats, after.nats, strict=True)]
        lines = []
        for name, values in nats.items():
            means = [value / number for value, number in zip(values, tokens, strict=True)]
            lines.append(tidy(name, means, row=before.names, weight=tokens))
        lines.append(tidy("trains", float(after.trains)))
        return pd.concat(lines)

    def objections(self, figures: pd.DataFrame) -> Iterator[str]:
        """Objects if a loss is not finite, or if losses change although the backbone is frozen.

        Also objects if the backbone trains but no loss changes.
        """
        changes = figures[figures.figure == "change"].value
        trains = bool(figures[figures.figure == "trains"].value.item())
        if not (changes - changes == 0).all():
            yield "the backbone's own loss is not finite after training"
        elif not trains and changes.any():
            change = f"{changes.abs().max():.3g} nats"
            yield f"the backbone is frozen, but its own loss changed by up to {change}"
        elif trains and not changes.any():
            fault = "the backbone trains, but its own loss is identical on every text"
            yield f"{fault}: the wrong model was measured"


def text_losses(cell: TrainedCell) -> TextLosses:
    """Measures the backbone's pretraining losses; raises NotAskedError if it cannot."""
    model = pretraining_model(cell)
    tokenizer = cell.codec.tokenizer
    texts = {}
    for name, task in cell.tasks.items():
        if name != cell.cell.task.id:
            for text in task_texts(task, cell.read_splits(task).test, tokenizer):
                texts[f"{name} {row_id({'text': text})}"] = text
    hide = HIDE[cell.cell.backbone.objective or Objective.MASKED]
    rng = Random(TEXT_SEED)
    hidden = []
    tokens = []
    for ids in _ids(tokenizer, list(texts.values())):
        inputs, labels = hide(ids[:LENGTH], tokenizer, rng)
        hidden.append((inputs, labels))
        tokens.append(sum(label != IGNORED for label in labels))
    return TextLosses(
        names=list(texts),
        nats=_nats(cell, model, hidden),
        tokens=tokens,
        trains=any(parameter.requires_grad for parameter in model.parameters()),
    )


def task_texts(task: Task, rows: Sequence[Row], tokenizer: Any) -> list[str]:
    """Selects distinct texts of a task; from pairs such as question and passage, the second text.

    From a random sample, the half with the fewest tokens per character is kept. A backbone never
    learned text that its tokenizer must spell out, such as emoji or a foreign script, so it cannot
    forget such text; but a few such texts would outweigh all others.
    """
    columns = task.text_pair or task.text
    texts = list(dict.fromkeys(stitch(row, columns) for row in rows))
    texts = [text for text in texts if text]
    sample = Random(TEXT_SEED).sample(texts, min(2 * MOST_TEXTS, len(texts)))
    splits = {}
    for text, ids in zip(sample, _ids(tokenizer, sample), strict=True):
        splits[text] = len(ids) / len(text)
    return sorted(sample, key=splits.__getitem__)[: -(-len(sample) // 2)]


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    encoding = tokenizer(list(texts), add_special_tokens=False, verbose=False)
    ids: list[list[int]] = encoding["input_ids"]
    return ids


def pretraining_model(cell: TrainedCell) -> Any:
    """The pretrained model with the cell's backbone in place of its own.

    Raises NotAskedError if no such model can be built.
    """
    backbone = cell.cell.backbone
    tuned: Any = cell.model
    if backbone.objective is None:
        cause = "does not declare what it was pretrained with (Backbone.objective)"
        raise NotAskedError(f"backbone {backbone.id} {cause}")
    if isinstance(tuned, peft.PeftModel):
        if tuned.active_peft_config.is_prompt_learning:
            cause = "learned tokens come before the text"
            raise NotAskedError(f"{cause}, and the backbone does not change")
        tuned = tuned.get_base_model()
    source, options = checkpoint_source(backbone, cell.cell.profile)
    options["dtype"] = base_type(cell.cell)
    options["attn_implementation"] = attention(cell.cell)
    options["use_safetensors"] = True
    options["output_loading_info"] = True
    full_model, report = from_hub_or_folder(LOADERS[backbone.objective], source, options)
    if type(full_model) is type(tuned):
        return tuned
    modules = own_modules(full_model, tuned)
    missing = [name for name in report["missing_keys"] if name.split(".")[0] not in modules]
    if missing:
        tensors = f"{len(missing)} tensors of its pretraining head, {min(missing)} among them"
        raise NotAskedError(f"the checkpoint lacks {tensors}")
    full_model.requires_grad_(False)
    for name, module in modules.items():
        setattr(full_model, name, module)
    full_model.tie_weights()  # the output layer must share the cell's embeddings
    return full_model.to(cell.device).eval()


def own_modules(whole: Any, tuned: Any) -> dict[str, nn.Module]:
    """The cell's modules that the pretrained model also has, by name; for BERT2BERT, the encoder.

    Raises NotAskedError if the models have no module in common.
    """
    if isinstance(tuned, hf.EncoderDecoderModel):
        return {whole.base_model_prefix: tuned.encoder}
    children = dict(tuned.named_children())
    modules = {}
    for name, module in whole.named_children():
        if type(children.get(name)) is type(module):
            modules[name] = children[name]
    if not modules:
        raise NotAskedError(f"{type(tuned).__name__} has no part of {type(whole).__name__}")
    return modules


def masked(ids: Sequence[int], tokenizer: Any, rng: Random) -> Hidden:
    """Replaces tokens with [MASK], as in BERT's pretraining; the labels are the replaced tokens.

    Raises NotAskedError if the tokenizer has no [MASK].
    """
    if tokenizer.mask_token_id is None:
        raise NotAskedError("the tokenizer has no mask token")
    tokens = list(ids)
    labels = [IGNORED] * len(ids)
    for i in rng.sample(range(len(ids)), _count(ids)):
        tokens[i] = tokenizer.mask_token_id
        labels[i] = ids[i]
    inputs = [tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id]
    return inputs, [IGNORED, *labels, IGNORED]


def causal(ids: Sequence[int], tokenizer: Any, rng: Random) -> Hidden:
    """Shifts the labels for GPT-2, which predicts each token from the tokens before it."""
    return list(ids), [*ids[1:], IGNORED]


def spans(ids: Sequence[int], tokenizer: Any, rng: Random) -> Hidden:
    """Replaces spans with sentinels, as in T5; the target holds each sentinel with its span.

    Raises NotAskedError if the tokenizer lacks a sentinel.
    """
    inputs = list[int]()
    target = list[int]()
    position = 0
    count = max(1, round(_count(ids) / SPAN))
    room = len(ids) // count  # each span stays within its own stretch
    for number in range(count):
        length = min(SPAN, max(1, room - 1))
        start = number * room + rng.randint(0, max(0, room - 1 - length))
        sentinel = tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>")
        if sentinel in (None, tokenizer.unk_token_id):
            raise NotAskedError(f"the tokenizer has no sentinel <extra_id_{number}>")
        inputs += [*ids[position:start], sentinel]
        target += [sentinel, *ids[start : start + length]]
        position = start + length
    end = tokenizer.eos_token_id
    return [*inputs, *ids[position:], end], [*target, end]


HIDE = {Objective.MASKED: masked, Objective.CAUSAL: causal, Objective.SPANS: spans}


def _count(ids: Sequence[int]) -> int:
    return min(len(ids), max(1, round(HIDDEN_SHARE * len(ids))))


def _nats(cell: TrainedCell, model: Any, hidden: Sequence[Hidden]) -> list[float]:
    """Each text's summed loss in nats; the softmax excludes a token that the cell added."""
    tokenizer = cell.codec.tokenizer
    new_token = cell.cell.head.new_token
    new_id = tokenizer.convert_tokens_to_ids(new_token) if new_token else None
    nats: list[float] = []
    for texts in chunks(hidden, TEXTS_AT_ONCE):
        inputs = [ids for ids, _ in texts]
        labels = _pad([targets for _, targets in texts], IGNORED)
        batch = {
            "input_ids": _pad(inputs, tokenizer.pad_token_id or 0),
            "attention_mask": _pad([[1] * len(row) for row in inputs], 0),
        }
        if cell.cell.backbone.objective is Objective.SPANS:
            batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
        with autocast(eval_precision(cell.cell, cell.device), cell.device):
            logits: Tensor = model(**move_batch(cell.device, batch)).logits
        logits = logits[..., :new_id].float().transpose(1, 2)
        labels = labels.to(cell.device)
        losses = cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        nats += losses.sum(1).tolist()
    return nats


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return integers([[*row, *[value] * (longest - len(row))] for row in rows])


INSTRUMENT = Forgetting()
