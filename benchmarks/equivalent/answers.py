"""Settings that ask a model: rows alone or beside each other, padded on either side, packed; texts with and without a cache."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.equivalent.bench import SILENT, Bench, Setting
from benchmarks.equivalent.compare import Fields
from tunegrid.codecs.base import IGNORED, Batch, Feature
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.run.evaluation import evaluate
from tunegrid.run.metrics import Metrics

LOGITS = ("logits", "start_logits", "end_logits")
Side = Literal["left", "right"]
TOKENS = 12  # of a generated text


def read_alone(rows: int = 4, positions: bool = False) -> Setting:
    """Each row by itself: logits of its real tokens, and the sum of the rows' gradients."""
    return lambda bench: _read(bench, [[row] for row in _uneven(bench, rows)], "right", positions)


def read_together(rows: int = 4, side: Side = "right", positions: bool = False) -> Setting:
    """All rows in one batch, padded on a side; `positions`: the caller says where each token stands."""
    return lambda bench: _read(bench, [_uneven(bench, rows)], side, positions)


def read_backwards(rows: int = 4) -> Setting:
    """The same batch from its last row to its first; logits in the order of the rows."""

    def ask(bench: Bench) -> Fields:
        fields = _read(bench, [_uneven(bench, rows)[::-1]], "right", False)
        return {**fields, "logits": fields["logits"][::-1]}

    return ask


def _uneven(bench: Bench, rows: int) -> list[Feature]:
    """Rows of different lengths, so that a batch of them is padded: from the shortest to the longest."""
    found = sorted(bench.features(40), key=lambda feature: len(feature.input_ids))
    return [found[i * (len(found) - 1) // (rows - 1)] for i in range(rows)]


def _read(bench: Bench, batches: Sequence[Sequence[Feature]], side: Side, positions: bool) -> Fields:
    """Logits of each row at its real tokens, and gradients of the summed loss, without dropout."""
    codec, model = bench.codec(), bench.model(dropout=False).train()
    model.zero_grad()
    logits: list[Any] = []
    for features in batches:
        batch = codec.collate(list(features))
        batch = batch if side == "right" else moved_left(batch, codec.pad_id)
        if positions:
            batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        output = model(**inputs, **({"use_cache": False} if codec.generates else {}))
        named = [getattr(output, name) for name in LOGITS if getattr(output, name, None) is not None]
        logits += [[_real(one[i], batch, i) for one in named] for i in range(len(features))]
        sum((_waves(one) for own in logits[-len(features) :] for one in own), torch.zeros(())).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    return {"logits": [[one.detach() for one in own] for own in logits], "gradients": gradients}


def _real(row: Tensor, batch: Batch, index: int) -> Tensor:
    """Of a row's logits those of real tokens; a classifier has one line for the whole row."""
    masks = [mask for name in ("decoder_attention_mask", "attention_mask") if (mask := batch.get(name)) is not None]
    mask = masks[0][index].bool()
    return row[mask] if len(row) == len(mask) else row


def _waves(row: Tensor) -> Tensor:
    """Each value times a weight of its place: unlike a loss's, its gradients do not vanish where a model is sure."""
    return (row.float() * torch.cos(torch.arange(row.numel(), dtype=torch.float32)).reshape(row.shape)).sum()


def moved_left(batch: Batch, pad: int) -> Batch:
    """The same batch with the padding of its source in front."""
    lengths = batch["attention_mask"].sum(-1).tolist()
    width = batch["attention_mask"].shape[1]
    kept = {name: tensor for name, tensor in batch.items() if not name.startswith("decoder") and tensor.shape[1:] == (width,)}
    fill = {"input_ids": pad, "labels": IGNORED}
    turned = {
        name: torch.stack(
            [torch.cat([torch.full((width - n,), fill.get(name, 0)), row[:n]]) for row, n in zip(tensor, lengths, strict=True)]
        )
        for name, tensor in kept.items()
    }
    return {**batch, **turned}


# Packed


def one_by_one(rows: int = 3) -> Setting:
    """A language model's logits of whole rows, each by itself."""

    def ask(bench: Bench) -> Fields:
        model = bench.model(dropout=False).train()
        with torch.no_grad():
            return {"logits": [model(input_ids=torch.tensor([ids])).logits[0] for ids in _sequences(bench, rows)]}

    return ask


def packed(rows: int = 3, **options: Any) -> Setting:
    """The same rows in one sequence, whose positions start anew with each row, without a mask."""

    def ask(bench: Bench) -> Fields:
        model = bench.model(dropout=False).train()
        sequences = _sequences(bench, rows)
        ids = torch.tensor([[token for one in sequences for token in one]])
        positions = torch.cat([torch.arange(len(one)) for one in sequences]).unsqueeze(0)
        with torch.no_grad():
            logits = model(input_ids=ids, position_ids=positions, **options).logits[0]
        return {"logits": [*logits.split([len(one) for one in sequences])]}

    return ask


def _sequences(bench: Bench, rows: int) -> list[list[int]]:
    return [[*feature.input_ids, *feature.target] for feature in bench.features(rows)]


# Texts


def generated(*, rows: int = 4, at_once: bool = True, attention: str | None = None, **options: Any) -> Setting:
    """Token ids that a search finds: the recipe's, or with other options; in one batch, or row by row.

    Texts are as long as they may be, so that a fault of a late step shows.
    """
    asked = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "min_length": None} | options

    def ask(bench: Bench) -> Fields:
        model, codec = bench.model(attention=attention).eval(), bench.codec()
        assert isinstance(codec, GenerateCodec), "only these search"
        features = _uneven(bench, rows)
        groups = [features] if at_once else [[one] for one in features]
        with torch.inference_mode():
            texts = [ids for group in groups for ids in codec.generate(model, group, bench.device, **asked).tolist()]
        return {"token ids": texts}

    return ask


# Scores


def scored(*, rows: int = 24, backwards: bool = False) -> Setting:
    """What evaluation says of test rows, given from the first to the last or from the last to the first."""

    def ask(bench: Bench) -> Fields:
        given = bench.splits.test[:rows]
        given = given[::-1] if backwards else given
        evaluation = evaluate(bench.model(), bench.codec(), given, Metrics(), bench.device, SILENT)
        turn = slice(None, None, -1 if backwards else 1)
        points = {name: values[turn] for name, values in evaluation.examples.items()}
        predictions = [prediction.value for prediction in evaluation.predictions][turn]
        return {"scores": evaluation.scores, "points of rows": points, "predictions": predictions}

    return ask
