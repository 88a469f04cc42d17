"""Computes a model's logits, gradients and texts for audits, and restores the model's state."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple

import bitsandbytes as bnb
import torch
from torch import Tensor, nn

from tunegrid.codecs.base import IGNORED, Batch, Feature, move_batch
from tunegrid.codecs.features import chunks, get_lengths
from tunegrid.codecs.generate import GenerateCodec
from tunegrid.grid.recipes import Generation
from tunegrid.run.build import base_type, dtype_name
from tunegrid.run.train import Trainer

FIRST_ROWS = 32  # the shortest and the longest of this many training rows are probed
MOST_VALUES = 2**24  # gradient values to sum at most, from the smallest tensors up; 64 MiB of fp32
# Largest differences on the quick cells: in fp32, 7e-6 for logits and 2e-6 for gradients; with NF4,
# which computes in bf16 and is thus accurate to 4e-3, 4e-3 for logits and 1.3e-2 for gradients.
# Real models are four times as deep.
FINE = 1e-4
COARSE = 0.1
APART = 3.0  # clipping is tried on norms this many times above and below the bound
# 16-bit types; numbers that fit neither were computed in fp32.
HALVES = (torch.bfloat16, torch.float16)


@dataclass(kw_only=True)
class Probe:
    """A trained model's logits in evaluation mode, and the numerical errors that a probe found."""

    rows: list[Feature]  # a short and a long row, so that their batch has padding
    # Logits of each row on its own, (1, ...); empty if the output has no logits.
    alone: list[list[Tensor]] = field(default_factory=list)
    # Logits of the rows as one batch, each (B, ...).
    together: list[Tensor] = field(default_factory=list)
    # Distance between the batch's gradient and the sum of the rows' gradients, relative to the norm
    # of that sum; None if the batch may not fit. If rounding cannot explain it, two other rows are
    # tried and the smaller gap counts, since a ReLU at 0 can flip.
    gap: float | None = None
    called: set[nn.Module] = field(default_factory=set)  # modules that the model called
    # Relative error of the last row's gradient right after an evaluation.
    after_evaluation: float | None = None
    # `distance` between the last row's logits with and without gradients.
    without_gradients: float = 0.0
    # Relative error of clipping; None if `clipping_gap` could not measure it.
    clipped: float | None = None
    # Types in which layers packed to 4 bits computed, by layer name.
    computed: dict[str, str] = field(default_factory=dict)
    # `distance` between `together` and the logits of a second pass over the batch.
    repeated: float = math.nan
    loss: float = math.nan  # the codec's loss in that second pass, in nats


def probe(trainer: Trainer) -> Probe:
    """Probes a short and a long row, each on its own and both as one batch.

    The batch's gradient is computed only if micro-batches hold at least two rows in training.
    """
    answer = Probe(rows=spread_features(trainer.features[:FIRST_ROWS], 2))
    trained = {name: p for name, p in trainer.parameters.items() if p.requires_grad}
    names = smallest_tensors(trained)
    parameters = [trained[name] for name in names]
    row_gradients: list[list[Tensor]] = []
    with torch.enable_grad(), keep_state(trainer), trainer.accelerator.autocast():
        for row in answer.rows:
            with attach(trainer.model.modules(), lambda module, *_: answer.called.add(module)):
                logits = get_logits(trainer, [row])[0]
            if not logits:
                return answer
            answer.alone.append([tensor.detach() for tensor in logits])
            row_gradients.append(logit_gradients(logits, [logits], parameters))
        fits = trainer.log.micro_batch >= len(answer.rows)
        with torch.set_grad_enabled(fits):
            logits = get_logits(trainer, answer.rows)[0]
            answer.together = [tensor.detach() for tensor in logits]
            if fits:
                gradients = logit_gradients(logits, answer.alone, parameters)
                answer.gap = relative_gap(gradients, sum_rows(row_gradients))
                if answer.gap > allowance(trainer):
                    answer.gap = min(answer.gap, _other_gap(trainer, parameters))
            with compute_types(trainer.model) as answer.computed:
                batch = move_batch(trainer.meter.device, trainer.codec.collate(answer.rows))
                repeated_logits, loss = logits_and_loss(trainer, batch)
            answer.repeated = largest_distance(answer.together, repeated_logits)
            answer.loss = float(loss.detach())
    # A new autocast region, in which a cached cast or a repacked weight may outlive evaluation.
    with torch.enable_grad(), keep_state(trainer), trainer.accelerator.autocast():
        with torch.no_grad():
            get_logits(trainer, answer.rows[-1:])
        logits = get_logits(trainer, answer.rows[-1:])[0]
        gradients = logit_gradients(logits, [logits], parameters)
        answer.after_evaluation = relative_gap(gradients, row_gradients[-1])
    answer.without_gradients = gradient_mode_gap(trainer, answer.rows[-1])
    answer.clipped = clipping_gap(trainer, dict(zip(names, row_gradients[-1], strict=True)))
    return answer


def gradient_mode_gap(trainer: Trainer, row: Feature) -> float:
    """The distance between a row's logits with and without gradients.

    Both are computed outside autocast, which would round them.
    """
    with keep_state(trainer):
        with torch.enable_grad():
            trained = get_logits(trainer, [row])[0]
        with torch.no_grad():
            evaluated = get_logits(trainer, [row])[0]
    return largest_distance(trained, evaluated)


def largest_distance(logits: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest `distance` between corresponding tensors of two outputs."""
    pairs = zip(logits, expected, strict=True)
    return max(distance(tensor.detach(), wanted.detach()) for tensor, wanted in pairs)


def clipping_gap(trainer: Trainer, gradients: Mapping[str, Tensor]) -> float | None:
    """The largest relative error of the norms and gradients that the trainer's clipping yields.

    Tries gradients with norms above and below the bound. None if the recipe does not clip, if all
    gradients are zero, or if a loss scale or sharded weights complicate clipping.
    """
    bound = trainer.cell.recipe.max_grad_norm
    size = norm(gradients.values())
    if bound is None or not size:
        return None
    if trainer.accelerator.scaler or trainer.ranks.holds_parts:
        return None
    parameters = {name: trainer.parameters[name] for name in gradients}
    gaps = []
    try:
        for target in (APART * bound, bound / APART):
            for name, parameter in parameters.items():
                parameter.grad = gradients[name] * (target / size)
            reported_norm = trainer.stepper.clip()
            assert reported_norm is not None, "the recipe clips"
            expected = [gradient * (min(target, bound) / size) for gradient in gradients.values()]
            clipped = [p.grad for p in parameters.values() if p.grad is not None]
            gaps.append(abs(float(reported_norm) - target) / target)
            gaps.append(relative_gap(clipped, expected))
    finally:
        for parameter in parameters.values():
            parameter.grad = None
    return max(gaps)


def _other_gap(trainer: Trainer, parameters: Sequence[Tensor]) -> float:
    """`Probe.gap` for two rows of medium length; infinite if there are no two such rows."""
    rows = spread_features(trainer.features[:FIRST_ROWS], 4)[1:3]
    if len(rows) < 2:
        return math.inf
    row_logits = [get_logits(trainer, [row])[0] for row in rows]
    row_gradients = [logit_gradients(logits, [logits], parameters) for logits in row_logits]
    gradients = logit_gradients(get_logits(trainer, rows)[0], row_logits, parameters)
    return relative_gap(gradients, sum_rows(row_gradients))


def sum_rows(row_gradients: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Each parameter's gradient, summed over the rows."""
    return [torch.stack(tensors).sum(0) for tensors in zip(*row_gradients, strict=True)]


def spread_features(features: Sequence[Feature], count: int) -> list[Feature]:
    """Up to `count` distinct features, evenly spaced from the shortest to the longest."""
    lengths = get_lengths(features)
    ordered = sorted(range(len(features)), key=lambda index: lengths[index])
    indices = [round((len(ordered) - 1) * step / (count - 1)) for step in range(count)]
    return [features[ordered[index]] for index in dict.fromkeys(indices)]


def smallest_tensors(trained: Mapping[str, Tensor]) -> list[str]:
    """Names of the smallest tensors, which have at most `MOST_VALUES` values in total."""
    names = sorted(trained, key=lambda name: trained[name].numel())
    sizes = accumulate(trained[name].numel() for name in names)
    return [name for name, size in zip(names, sizes, strict=True) if size <= MOST_VALUES]


def relative_gap(gradients: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The norm of the gradients' errors, relative to the norm of the expected gradients."""
    size = norm(expected)
    errors = [gradient - wanted for gradient, wanted in zip(gradients, expected, strict=True)]
    return norm(errors) / size if size else 0.0


def norm(tensors: Iterable[Tensor]) -> float:
    """The norm of all tensors together, computed in fp64 on the host without torch's clipping."""
    squares = [float(tensor.detach().cpu().double().square().sum()) for tensor in tensors]
    return math.sqrt(math.fsum(squares))


def logit_gradients(
    logits: Sequence[Tensor],
    alone: Sequence[Sequence[Tensor]],
    parameters: Sequence[Tensor],
) -> list[Tensor]:
    """Gradients of a fixed weighted sum of logits (B, ...); zero if the sum needs no gradient.

    The sum skips padding by cutting row i to the shape of `alone[i]`. Unlike the gradients of a
    loss, these do not vanish when the model is confident.
    """
    sums = []
    for i, row_logits in enumerate(alone):
        for batch, unpadded in zip(logits, row_logits, strict=True):
            row = batch[i][tuple(map(slice, unpadded.shape[1:]))]
            # A value's weight depends only on its position.
            positions = torch.arange(row.numel(), device=row.device, dtype=torch.float32)
            sums.append((row.float() * torch.cos(positions).reshape(row.shape)).sum())
    total = torch.stack(sums).sum()
    if not total.requires_grad:
        return [torch.zeros_like(parameter) for parameter in parameters]
    return list(torch.autograd.grad(total, parameters, materialize_grads=True))


# Logits, losses and texts


def get_logits(
    trainer: Trainer,
    features: Sequence[Feature],
    model: nn.Module | None = None,
) -> tuple[list[Tensor], Batch]:
    """Collates features into a batch; returns a model's logits, each (B, ...), and the batch.

    `model` defaults to the trainer's.
    """
    batch = move_batch(trainer.meter.device, trainer.codec.collate(features))
    return logits_and_loss(trainer, batch, model)[0], batch


def logits_and_loss(
    trainer: Trainer,
    batch: Batch,
    model: nn.Module | None = None,
) -> tuple[list[Tensor], Tensor]:
    """A model's logits for a batch, each (B, ...), and the codec's loss."""
    model = trainer.model if model is None else model
    outputs: list[Any] = []
    with attach([model], lambda module, inputs, output: outputs.append(output)):
        loss = trainer.codec.loss(model, batch)
    return output_logits(outputs[-1]), loss


def output_logits(output: Any) -> list[Tensor]:
    """The logits in a model's output, under any of their possible names."""
    tensors = [getattr(output, name, None) for name in ("logits", "start_logits", "end_logits")]
    return [logits for logits in tensors if logits is not None]


def target_logits(
    trainer: Trainer,
    features: Sequence[Feature],
    encoded: Tensor | None = None,
) -> list[Tensor]:
    """The logits (T, V) that predict each row's target tokens; only for codecs that generate.

    `encoded` is the encoder's output for the rows' sources.
    """
    codec = trainer.codec
    batch: dict[str, Any] = codec.to_device(codec.collate(features), trainer.meter.device)
    if encoded is not None:
        batch = {**batch, "encoder_outputs": (encoded,)}
    [logits], _ = logits_and_loss(trainer, batch)
    return target_rows(logits, batch, features)


def target_rows(
    logits: Tensor,
    batch: Batch,
    features: Sequence[Feature] | None = None,
) -> list[Tensor]:
    """Picks, from logits (B, L, V), the logits (T, V) that predict each row's target tokens.

    If `features` are given, targets in earlier turns of a conversation are left out.
    """
    labels = batch["labels"]
    # The model computed logits only at the kept positions.
    if "kept" in batch and logits.shape[1] == len(batch["kept"]):
        labels = labels[:, batch["kept"] + 1]
    elif "decoder_input_ids" not in batch:  # causal, perhaps after learned prompt tokens
        logits = logits[:, -labels.shape[1] : -1]
        labels = labels[:, 1:]
    masks = labels.to(logits.device) != IGNORED
    rows = [row[mask].float() for row, mask in zip(logits, masks, strict=True)]
    if not features:
        return rows
    pairs = zip(rows, features, strict=True)
    return [row[len(row) - len(feature.target) :] for row, feature in pairs]


class FoundTexts(NamedTuple):
    """Texts of all beams in a search, and errors of their scores, relative to the largest logit."""

    texts: list[list[int]]
    gap: float  # error of a token's score, against one pass over the whole text without a cache
    # Error of a text's score, against its tokens' summed scores (length penalty undone).
    total_gap: float


def run_search(
    trainer: Trainer,
    features: Sequence[Feature],
    rules: Generation | None = None,
    **options: Any,
) -> FoundTexts:
    """Generates from all prompts in one batch; `rules` and `options` override the recipe's search.

    The search uses a cache. Its scores are compared with scores from passes over whole texts, one
    row's beams at a time. A second search cannot be the reference, since it may decide near-ties
    differently.
    """
    codec = trainer.codec
    assert isinstance(codec, GenerateCodec), "only these search"
    settings = codec.search_settings(rules or codec.generation) | options
    beams = settings["num_beams"]
    settings |= {"num_return_sequences": beams, "return_dict_in_generate": True}
    settings |= {"output_logits": True, "output_scores": True}
    with torch.no_grad(), keep_state(trainer):
        output = codec.generate(trainer.model, features, trainer.meter.device, **settings)
        texts = [codec.cut_at_end(ids) for ids in output.sequences.tolist()]
        whole: list[Tensor] = []
        for feature, own_texts in zip(features, chunks(texts, beams), strict=True):
            drafts = [replace(feature, target=ids) for ids in own_texts]
            whole += target_logits(trainer, drafts)
    # Log-probabilities (texts, T) of the texts' tokens, before the search adjusted any score.
    beam_scores = torch.stack(output.logits).float().log_softmax(-1)  # (T, texts, V)
    tokens = output.sequences[:, : len(beam_scores)]
    beams_of_texts = getattr(output, "beam_indices", None)
    if beams_of_texts is None:
        text_numbers = torch.arange(len(tokens), device=tokens.device)
        beams_of_texts = text_numbers.unsqueeze(1).expand_as(tokens)
    beams_of_texts = beams_of_texts[:, : tokens.shape[1]].clamp(min=0)  # -1 after the text's end
    steps = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    scores = beam_scores[steps, beams_of_texts, tokens]
    totals = getattr(output, "sequences_scores", None)  # None without beams
    gaps = []
    total_gaps = [0.0]
    for i, (logits, ids) in enumerate(zip(whole, texts, strict=True)):
        largest = float(logits.abs().max())
        own_scores = scores[i, : len(ids)]
        errors = own_scores - token_scores(logits.log_softmax(-1), ids)
        gaps.append(float(errors.abs().max()) / largest)
        if totals is not None:
            total = float(totals[i]) * math.pow(len(ids), settings["length_penalty"])
            total_gaps.append(abs(total - float(own_scores.sum())) / largest)
    return FoundTexts(texts, max(gaps), max(total_gaps))


def token_scores(scores: Tensor, ids: Sequence[int]) -> Tensor:
    """Picks the scores (T) of a text's tokens from the scores (T, V) of the whole vocabulary."""
    return scores.gather(1, torch.tensor(ids, device=scores.device).unsqueeze(1)).squeeze(1)


@contextmanager
def compute_types(model: nn.Module) -> Iterator[dict[str, str]]:
    """Records the type in which each 4-bit layer computes, by the layer's name.

    Such a layer casts its inputs to its compute type and its output back, so only the output's
    digits reveal that type. Each layer is therefore called again, with fp32 inputs and outside
    autocast. Under autocast, the type would also depend on the batch: bitsandbytes calls `linear`
    in autocast's type but, for few tokens on a GPU, uses its own kernel in the layer's type.
    """
    names: dict[nn.Module, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            names[module] = name
    types: dict[str, str] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # Layers on a CPU are repacked if their inputs need no gradient.
        values = inputs[0].detach().float().requires_grad_(inputs[0].requires_grad)
        with torch.autocast(values.device.type, enabled=False):
            result = module.forward(values).detach()  # calling the module would re-enter this hook
        if result.any():  # zeros fit every type
            types[names[module]] = type_of_digits(result)

    with attach(names, look):
        yield types


def type_of_digits(numbers: Tensor) -> str:
    """The 16-bit type that holds `numbers` exactly, or else the tensor's own type."""
    for half in HALVES:
        if numbers.dtype is half or torch.equal(numbers.to(half).to(numbers.dtype), numbers):
            return dtype_name(half)
    return dtype_name(numbers.dtype)


# Restoring state; limits of rounding


@contextmanager
def keep_state(trainer: Trainer, *, training: bool = False) -> Iterator[None]:
    """Switches to evaluation or training mode; restores the mode and random state afterwards."""
    device = trainer.meter.device
    models = {trainer.model, trainer.ddp_model}
    modes: dict[nn.Module, bool] = {}
    for model in models:
        modes |= {module: module.training for module in model.modules()}
    for model in models:
        model.train(training)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def attach(
    modules: Iterable[nn.Module],
    look: Callable[[nn.Module, tuple[Any, ...], Any], None],
) -> Iterator[None]:
    """Calls `look` with a module, its inputs and its output each time the model uses the module."""
    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(look))
        yield


def distance(values: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest magnitude; infinite if the shapes differ."""
    if values.shape != expected.shape:
        return math.inf
    scale = max(float(values.abs().max()), float(expected.abs().max()))
    return float((values.float() - expected.float()).abs().max()) / scale if scale else 0.0


def allowance(trainer: Trainer, fine: float = FINE, coarse: float = COARSE) -> float:
    """The largest `distance` that rounding may cause: `fine` for fp32, else `coarse`."""
    return fine if has_fp32_base(trainer) and trainer.log.precision == "fp32" else coarse


def has_fp32_base(trainer: Trainer) -> bool:
    """Checks whether the base computes in fp32 outside autocast."""
    return trainer.cell.quantization is None and base_type(trainer.cell) is torch.float32
