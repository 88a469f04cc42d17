"""What does training cost of what the backbone knew? Its own pretraining loss, on texts that the cell does not train on.

The checkpoint is loaded as the model that was pretrained, and the cell's own backbone, adapters included, takes the place of
its backbone: a head that the cell lacks, as BERT's for masked tokens, is the checkpoint's. What is hidden of a text is drawn
once, so a loss before training and one after it differ by what the backbone has become, and by nothing else.
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

SEED = 0  # of the texts and of what is hidden in them: the same for every cell and every seed of training
MOST_TEXTS = 128  # of each task
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


@dataclass(frozen=True, kw_only=True)
class TextLosses:
    """A backbone's pretraining loss on each text."""

    names: Sequence[str]  # of the texts, by task and content
    nats: Sequence[float]  # of each text's predicted tokens together
    tokens: Sequence[int]  # how many these are
    trains: bool  # whether the loss depends on anything that trains


class Forgetting(Instrument):
    """The loss before training, after it, and the change, text by text."""

    id = "forgetting"
    question = "what is forgotten? The backbone's own loss on texts of the other tasks, in nats a token"
    figures = {  # noqa: RUF012
        "before": Figure(shown=".3f"),
        "after": Figure(shown=".3f"),
        "change": Figure(better="lower", margin=0.05, shown="+.3f"),
        "trains": Figure(),
    }

    def before(self, cell: TrainedCell) -> TextLosses:
        """The losses of the model as it starts."""
        if cell.trainer.log.updates:
            raise NotAskedError("its training was resumed from a checkpoint, so the untrained model is gone")
        return losses(cell)

    def measure(self, cell: TrainedCell, before: TextLosses) -> pd.DataFrame:
        """The same of the trained model, and how far both lie apart."""
        after, tokens = losses(cell), before.tokens
        nats = {"before": before.nats, "after": after.nats}
        nats["change"] = [new - old for old, new in zip(before.nats, after.nats, strict=True)]
        lines = [
            tidy(name, [n / t for n, t in zip(values, tokens, strict=True)], row=before.names, weight=tokens)
            for name, values in nats.items()
        ]
        return pd.concat([*lines, tidy("trains", float(after.trains))])

    def objections(self, figures: pd.DataFrame) -> Iterator[str]:
        """Where a frozen backbone forgot, where a trained one was not asked, and where its loss is no number."""
        changes = figures[figures.figure == "change"].value
        trains = bool(figures[figures.figure == "trains"].value.item())
        if not (changes - changes == 0).all():
            yield "the backbone's own loss is not finite after training"
        elif not trains and changes.any():
            yield f"the backbone is frozen, but its own loss changed by up to {changes.abs().max():.3g} nats"
        elif trains and not changes.any():
            yield "the backbone trains, but its own loss is identical on every text: the wrong model was measured"


def losses(cell: TrainedCell) -> TextLosses:
    """What the backbone's own loss is now. Raises NotAskedError if there is none."""
    model, tokenizer = pretraining_model(cell), cell.codec.tokenizer
    texts = {
        f"{name} {row_id({'text': text})}": text
        for name, task in cell.tasks.items()
        if name != cell.cell.task.id
        for text in task_texts(task, cell.read_splits(task).test, tokenizer)
    }
    hide, rng = HIDE[cell.cell.backbone.objective or Objective.MASKED], Random(SEED)
    hidden = [hide(ids[:LENGTH], tokenizer, rng) for ids in _ids(tokenizer, list(texts.values()))]
    return TextLosses(
        names=list(texts),
        nats=_nats(cell, model, hidden),
        tokens=[sum(label != IGNORED for label in labels) for _, labels in hidden],
        trains=any(parameter.requires_grad for parameter in model.parameters()),
    )


def task_texts(task: Task, rows: Sequence[Row], tokenizer: Any) -> list[str]:
    """Some of a task's texts, none of them twice: passages without their questions.

    Of twice as many they are the half that the tokenizer splits least. What it must spell, as emoji or a foreign script, a
    backbone never knew: it cannot forget that, but a few such texts would outweigh all others.
    """
    columns = task.text_pair or task.text
    texts = list(dict.fromkeys(text for row in rows if (text := stitch(row, columns))))
    sample = Random(SEED).sample(texts, min(2 * MOST_TEXTS, len(texts)))
    split = {text: len(ids) / len(text) for text, ids in zip(sample, _ids(tokenizer, sample), strict=True)}
    return sorted(sample, key=split.__getitem__)[: -(-len(sample) // 2)]


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def pretraining_model(cell: TrainedCell) -> Any:
    """The model that was pretrained, with the cell's own backbone in it. Raises NotAskedError if there is none."""
    backbone, model = cell.cell.backbone, cell.model
    if backbone.objective is None:
        raise NotAskedError(f"backbone {backbone.id} does not declare what it was pretrained with (Backbone.objective)")
    if isinstance(model, peft.PeftModel) and model.active_peft_config.is_prompt_learning:
        raise NotAskedError("learned tokens come before the text, and the backbone does not change")
    source, options = checkpoint_source(backbone, cell.cell.profile)
    options |= {"dtype": base_type(cell.cell), "attn_implementation": attention(cell.cell), "use_safetensors": True}
    full_model, report = from_hub_or_folder(LOADERS[backbone.objective], source, options | {"output_loading_info": True})
    tuned: Any = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    if type(full_model) is type(tuned):
        return tuned
    modules = own_modules(full_model, tuned)
    if lost_keys := sorted(name for name in report["missing_keys"] if name.split(".")[0] not in modules):
        raise NotAskedError(f"the checkpoint lacks {len(lost_keys)} tensors of its pretraining head, {lost_keys[0]} among them")
    full_model.requires_grad_(False)
    for name, module in modules.items():
        setattr(full_model, name, module)
    full_model.tie_weights()  # the output layer shares the cell's embeddings, as it does in the checkpoint
    return full_model.to(cell.device).eval()


def own_modules(whole: Any, tuned: Any) -> dict[str, nn.Module]:
    """The parts of a pretrained model that the cell's model has, by their names in the former; BERT2BERT's are its encoder's.

    Raises NotAskedError if it has none.
    """
    if isinstance(tuned, hf.EncoderDecoderModel):
        return {whole.base_model_prefix: tuned.encoder}
    children = dict(tuned.named_children())
    modules = {name: children[name] for name, part in whole.named_children() if type(children.get(name)) is type(part)}
    if not modules:
        raise NotAskedError(f"{type(tuned).__name__} has no part of {type(whole).__name__}")
    return modules


def masked(ids: Sequence[int], tokenizer: Any, rng: Random) -> Hidden:
    """BERT's: some tokens give way to [MASK], and are predicted. Raises NotAskedError without such a token."""
    if tokenizer.mask_token_id is None:
        raise NotAskedError("the tokenizer has no mask token")
    places = set(rng.sample(range(len(ids)), _count(ids)))
    tokens = [tokenizer.mask_token_id if i in places else token for i, token in enumerate(ids)]
    labels = [token if i in places else IGNORED for i, token in enumerate(ids)]
    return [tokenizer.cls_token_id, *tokens, tokenizer.sep_token_id], [IGNORED, *labels, IGNORED]


def causal(ids: Sequence[int], tokenizer: Any, rng: Random) -> Hidden:
    """GPT-2's: each token but the first is predicted from those before it; labels stand where they are predicted."""
    return list(ids), [*ids[1:], IGNORED]


def spans(ids: Sequence[int], tokenizer: Any, rng: Random) -> Hidden:
    """T5's: some spans give way to sentinels; the target has each sentinel, its span, and the end token.

    Raises NotAskedError without sentinels.
    """
    inputs, target, place = list[int](), list[int](), 0
    count = max(1, round(_count(ids) / SPAN))
    room = len(ids) // count  # each span lies in a stretch of its own, and never touches the next one
    for number in range(count):
        length = min(SPAN, max(1, room - 1))
        start = number * room + rng.randint(0, max(0, room - 1 - length))
        sentinel = tokenizer.convert_tokens_to_ids(f"<extra_id_{number}>")
        if sentinel in (None, tokenizer.unk_token_id):
            raise NotAskedError(f"the tokenizer has no sentinel <extra_id_{number}>")
        inputs += [*ids[place:start], sentinel]
        target += [sentinel, *ids[start : start + length]]
        place = start + length
    end = [tokenizer.eos_token_id]
    return [*inputs, *ids[place:], *end], [*target, *end]


HIDE = {Objective.MASKED: masked, Objective.CAUSAL: causal, Objective.SPANS: spans}


def _count(ids: Sequence[int]) -> int:
    return min(len(ids), max(1, round(HIDDEN * len(ids))))


def _nats(cell: TrainedCell, model: Any, hidden: Sequence[Hidden]) -> list[float]:
    """Of each text, over the tokens that the checkpoint knows: one that the cell added is no guess of the backbone's."""
    tokenizer, new = cell.codec.tokenizer, cell.cell.head.new_token
    new_id = tokenizer.convert_tokens_to_ids(new) if new else None
    nats: list[float] = []
    for part in chunks(hidden, BATCH):
        inputs, targets = zip(*part, strict=True)
        labels = _pad(targets, IGNORED)
        batch = {
            "input_ids": _pad(inputs, tokenizer.pad_token_id or 0),
            "attention_mask": _pad([[1] * len(row) for row in inputs], 0),
        }
        if cell.cell.backbone.objective is Objective.SPANS:
            batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels)
        with autocast(eval_precision(cell.cell, cell.device), cell.device):
            logits: Tensor = model(**move_batch(cell.device, batch)).logits
        logits = logits[..., :new_id].float().transpose(1, 2)
        of_tokens = cross_entropy(logits, labels.to(cell.device), ignore_index=IGNORED, reduction="none")
        nats += of_tokens.sum(1).tolist()
    return nats


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return integers([[*row, *[value] * (longest - len(row))] for row in rows])


INSTRUMENT = Forgetting()
