"""Asks a trained model for logits, gradients and texts, for audits, and leaves no trace."""

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

FIRST_ROWS = 32  # of training, of which the shortest and the longest are asked about
MOST_VALUES = 2**24  # of gradients that are added up, smallest tensors first: 64 MiB of fp32
# Largest differences on the quick cells: fp32 7e-6 of the logits and 2e-6 of the gradients; NF4, which computes in bf16 and
# so to 4e-3, 4e-3 of the logits and 1.3e-2 of the gradients. Real models are four times as deep.
FINE, COARSE = 1e-4, 0.1
APART = 3.0  # so many times the bound, and a part of it, are norms that are clipped
HALVES = (torch.bfloat16, torch.float16)  # types of 16 bits; numbers that fit neither were computed in fp32


@dataclass(kw_only=True)
class Probe:
    """What a trained model answers in evaluation mode, in the precision of training."""

    rows: list[Feature]  # a short and a long one; side by side they have padding
    alone: list[list[Tensor]] = field(default_factory=list)  # logits of each row, (1, ...); none if the output names none
    together: list[Tensor] = field(default_factory=list)  # logits of their batch, each (B, ...)
    # How far the batch's gradient is from the sum of the rows', in units of its norm; None if it may not fit. If it is more
    # than rounding, that of two other rows if it is less: a ReLU at 0 can fall to its other side.
    gap: float | None = None
    called: set[nn.Module] = field(default_factory=set)  # the modules that the model used
    after_evaluation: float | None = None  # how far the last row's gradient is off right after an evaluation, as `gap`
    without_gradients: float = 0.0  # how far the last row's logits without gradients are from those with, as `distance`
    clipped: float | None = None  # how far clipping is off from its definition, in units of the norm; None if nothing clips
    computed: dict[str, str] = field(default_factory=dict)  # the types in which layers packed to 4 bits computed, by name
    repeated: float = math.nan  # how far the logits of another pass over the batch are from `together`, as `distance`
    loss: float = math.nan  # what the codec made of that pass, in nats


def probe(trainer: Trainer) -> Probe:
    """Ask about a few rows; their batch is differentiated if training held as many rows at once."""
    answer = Probe(rows=spread_features(trainer.features[:FIRST_ROWS], 2))
    trained = {name: p for name, p in trainer.parameters.items() if p.requires_grad}
    names, row_gradients = smallest_tensors(trained), list[list[Tensor]]()  # gradients of the smallest tensors, row by row
    parameters = [trained[name] for name in names]
    with torch.enable_grad(), keep_state(trainer), trainer.accelerator.autocast():
        for row in answer.rows:
            with attach(trainer.model.modules(), lambda module, *_: answer.called.add(module)):
                logits = get_logits(trainer, [row])[0]
            if not logits:
                return answer
            answer.alone.append([one.detach() for one in logits])
            row_gradients.append(logit_gradients(logits, [logits], parameters))
        fits = trainer.log.micro_batch >= len(answer.rows)
        with torch.set_grad_enabled(fits):
            logits = get_logits(trainer, answer.rows)[0]
            answer.together = [one.detach() for one in logits]
            if fits:
                sums = [torch.stack(tensors).sum(0) for tensors in zip(*row_gradients, strict=True)]
                answer.gap = relative_gap(logit_gradients(logits, answer.alone, parameters), sums)
                if answer.gap > allowance(trainer):
                    answer.gap = min(answer.gap, _other_gap(trainer, parameters))
            with compute_types(trainer.model) as answer.computed:
                repeat, loss = logits_and_loss(trainer, move_batch(trainer.meter.device, trainer.codec.collate(answer.rows)))
            answer.repeated = max(distance(one, other.detach()) for one, other in zip(answer.together, repeat, strict=True))
            answer.loss = float(loss.detach())
    # In a region of autocast of its own: a cast or a packed weight may outlive the evaluation in it.
    with torch.enable_grad(), keep_state(trainer), trainer.accelerator.autocast():
        with torch.no_grad():
            get_logits(trainer, answer.rows[-1:])
        logits = get_logits(trainer, answer.rows[-1:])[0]
        answer.after_evaluation = relative_gap(logit_gradients(logits, [logits], parameters), row_gradients[-1])
    answer.without_gradients = gradient_mode_gap(trainer, answer.rows[-1])
    answer.clipped = clipping_gap(trainer, dict(zip(names, row_gradients[-1], strict=True)))
    return answer


def gradient_mode_gap(trainer: Trainer, row: Feature) -> float:
    """The distance of a row's logits without gradients from those with: outside autocast, which would round both."""
    with keep_state(trainer):
        with torch.enable_grad():
            trained = get_logits(trainer, [row])[0]
        with torch.no_grad():
            evaluated = get_logits(trainer, [row])[0]
    return max(distance(ours.detach(), theirs) for ours, theirs in zip(trained, evaluated, strict=True))


def clipping_gap(trainer: Trainer, gradients: Mapping[str, Tensor]) -> float | None:
    """The largest error of the norm and the gradients that the trainer's clipping gives, in units of the norm.

    Of gradients above the bound and below it. None if nothing clips, or if the clipping belongs to a loss scale or to ranks.
    """
    bound = trainer.cell.recipe.max_grad_norm
    size = norm(gradients.values())
    if bound is None or not size or trainer.accelerator.scaler or trainer.ranks.holds_parts:
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
            gaps += [abs(float(reported_norm) - target) / target, relative_gap(clipped, expected)]
    finally:
        for parameter in parameters.values():
            parameter.grad = None
    return max(gaps)


def _other_gap(trainer: Trainer, parameters: Sequence[Tensor]) -> float:
    """The gap of two rows of middling lengths; infinite if there are none."""
    rows = spread_features(trainer.features[:FIRST_ROWS], 4)[1:3]
    if len(rows) < 2:
        return math.inf
    row_logits = [get_logits(trainer, [row])[0] for row in rows]
    row_gradients = [logit_gradients(logits, [logits], parameters) for logits in row_logits]
    sums = [torch.stack(tensors).sum(0) for tensors in zip(*row_gradients, strict=True)]
    return relative_gap(logit_gradients(get_logits(trainer, rows)[0], row_logits, parameters), sums)


def spread_features(features: Sequence[Feature], count: int) -> list[Feature]:
    """So many features, evenly spread by length: the shortest, the longest, and some between, none of them twice."""
    lengths = get_lengths(features)
    ordered = sorted(range(len(features)), key=lambda index: lengths[index])
    indices = [round((len(ordered) - 1) * step / (count - 1)) for step in range(count)]
    return [features[ordered[index]] for index in dict.fromkeys(indices)]


def smallest_tensors(trained: Mapping[str, Tensor]) -> list[str]:
    """The names of the smallest tensors, as many as fit into `MOST_VALUES`."""
    names = sorted(trained, key=lambda name: trained[name].numel())
    sizes = accumulate(trained[name].numel() for name in names)
    return [name for name, size in zip(names, sizes, strict=True) if size <= MOST_VALUES]


def relative_gap(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """How far some gradients are from others, in units of the norm of the others."""
    size = norm(theirs)
    rest = [one - other for one, other in zip(ours, theirs, strict=True)]
    return norm(rest) / size if size else 0.0


def norm(tensors: Iterable[Tensor]) -> float:
    """The norm of some tensors, from their squares in fp64 on the host: not by the functions that clip."""
    squares = [float(tensor.detach().cpu().double().square().sum()) for tensor in tensors]
    return math.sqrt(math.fsum(squares))


def logit_gradients(logits: Sequence[Tensor], alone: Sequence[Sequence[Tensor]], parameters: Iterable[Tensor]) -> list[Tensor]:
    """Gradients of a fixed sum of logits (B, ...), without the padding that row i has none of in `alone[i]`; zeros if none."""
    # Unlike those of a loss, they do not vanish if a model is sure.
    pairs = [(batch[i], one.shape[1:]) for i, row in enumerate(alone) for batch, one in zip(logits, row, strict=True)]
    sums = []
    for padded, shape in pairs:  # each value times a weight that depends on its position alone
        row = padded[tuple(map(slice, shape))]
        positions = torch.arange(row.numel(), device=row.device, dtype=torch.float32)
        sums.append((row.float() * torch.cos(positions).reshape(row.shape)).sum())
    total = torch.stack(sums).sum()
    parameters = list(parameters)
    if not total.requires_grad:
        return list(map(torch.zeros_like, parameters))
    return list(torch.autograd.grad(total, parameters, materialize_grads=True))


# Logits, losses and texts


def get_logits(trainer: Trainer, features: Sequence[Feature], model: nn.Module | None = None) -> tuple[list[Tensor], Batch]:
    """What the model, or another one, answers to a training batch, each (B, ...), if its output names it; and the batch."""
    batch = move_batch(trainer.meter.device, trainer.codec.collate(features))
    return logits_and_loss(trainer, batch, model)[0], batch


def logits_and_loss(trainer: Trainer, batch: Batch, model: nn.Module | None = None) -> tuple[list[Tensor], Tensor]:
    """The logits of a batch, each (B, ...), and the loss that the codec makes of them."""
    model = trainer.model if model is None else model
    outputs: list[Any] = []
    with attach([model], lambda module, inputs, output: outputs.append(output)):
        loss = trainer.codec.loss(model, batch)
    return output_logits(outputs[-1]), loss


def output_logits(output: Any) -> list[Tensor]:
    """The logits that a model's output names."""
    tensors = [getattr(output, name, None) for name in ("logits", "start_logits", "end_logits")]
    return [logits for logits in tensors if logits is not None]


def target_logits(trainer: Trainer, features: Sequence[Feature], encoded: Tensor | None = None) -> list[Tensor]:
    """The logits (T, V) that each row's target tokens are predicted from, of a codec that generates."""
    batch: dict[str, Any] = trainer.codec.to_device(trainer.codec.collate(features), trainer.meter.device)
    if encoded is not None:  # what the encoder made of the rows' sources
        batch = {**batch, "encoder_outputs": (encoded,)}
    [logits], _ = logits_and_loss(trainer, batch)
    return target_rows(logits, batch, features)


def target_rows(logits: Tensor, batch: Batch, features: Sequence[Feature] | None = None) -> list[Tensor]:
    """Of a batch's logits (B, L, V) those (T, V) that each row's target tokens are predicted from."""
    labels = batch["labels"]
    if "kept" in batch and logits.shape[1] == len(batch["kept"]):  # logits of the positions that count alone
        labels = labels[:, batch["kept"] + 1]
    elif "decoder_input_ids" not in batch:  # one sequence, perhaps behind learned tokens: each token predicts the next
        logits, labels = logits[:, -labels.shape[1] : -1], labels[:, 1:]
    learned_rows = [row[mask].float() for row, mask in zip(logits, labels.to(logits.device) != IGNORED, strict=True)]
    # With `features`, without what is learned before the target: a conversation's earlier turns of the assistant.
    lengths = [len(row.target) for row in features] if features else map(len, learned_rows)
    return [one[len(one) - length :] for one, length in zip(learned_rows, lengths, strict=True)]


class FoundTexts(NamedTuple):
    """The texts of a search, those of all beams, and how far its scores are off, in units of the largest logit."""

    texts: list[list[int]]
    gap: float  # of a token's score, from that of the whole text in one pass without a cache
    total_gap: float  # of a text's score, from the sum of the search's own for its tokens, by the length of the text alone


def run_search(trainer: Trainer, features: Sequence[Feature], rules: Generation | None = None, **options: Any) -> FoundTexts:
    """Searches with a cache. Prompts are one batch; `rules` and `options` replace the recipe's search.

    Whole texts are passed with the row alone: another search is no measure, since a near-tie in it is no fault.
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
            whole += target_logits(trainer, [replace(feature, target=ids) for ids in own_texts])
    # Log-probabilities (texts, T) that the search gave to the tokens of its texts, before it changed any.
    steps_of_beams = torch.stack(output.logits).float().log_softmax(-1)  # (T, texts, V)
    tokens = output.sequences[:, : len(steps_of_beams)]
    origin = getattr(output, "beam_indices", None)
    if origin is None:
        origin = torch.arange(len(tokens), device=tokens.device).unsqueeze(1).expand_as(tokens)
    origin = origin[:, : tokens.shape[1]].clamp(min=0)  # -1 behind the end of a text
    scores = steps_of_beams[torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens), origin, tokens]
    totals = getattr(output, "sequences_scores", None)  # of a search with beams
    gaps = []
    total_gaps = [0.0]
    for i, (logits, ids) in enumerate(zip(whole, texts, strict=True)):
        largest = float(logits.abs().max())
        own_scores = scores[i, : len(ids)]
        gaps.append(float((own_scores - token_scores(logits.log_softmax(-1), ids)).abs().max()) / largest)
        if totals is not None:
            total = float(totals[i]) * math.pow(len(ids), settings["length_penalty"])
            total_gaps.append(abs(total - float(own_scores.sum())) / largest)
    return FoundTexts(texts, max(gaps), max(total_gaps))


def token_scores(scores: Tensor, ids: Sequence[int]) -> Tensor:
    """Scores (T) of a text's tokens, of those (T, V) of all tokens."""
    return scores.gather(1, torch.tensor(ids, device=scores.device).unsqueeze(1)).squeeze(1)


@contextmanager
def compute_types(model: nn.Module) -> Iterator[dict[str, str]]:
    """Meanwhile note, by name, in which type each layer computes whose weights are packed to 4 bits.

    Such a layer turns its inputs into the type that it computes in, and its output back: only the output's digits tell.
    Each is asked with fp32 inputs outside autocast. Under autocast, bitsandbytes multiplies by `linear` in autocast's type, but
    few tokens on a GPU by a kernel of its own in the layer's: the type would depend on the batch, and not on the layer alone.
    """
    names: dict[nn.Module, str] = {m: name for name, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    types: dict[str, str] = {}

    def look(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        values = inputs[0].detach().float().requires_grad_(inputs[0].requires_grad)  # on a CPU, layers are packed anew without
        with torch.autocast(values.device.type, enabled=False):
            result = module.forward(values).detach()  # not by a call, which would come here again
        if result.any():  # zeros fit every type
            types[names[module]] = type_of_digits(result)

    with attach(names, look):
        yield types


def type_of_digits(numbers: Tensor) -> str:
    """The type of 16 bits that holds these numbers as they are, or else the tensor's own."""
    types = (half for half in HALVES if numbers.dtype is half or torch.equal(numbers.to(half).to(numbers.dtype), numbers))
    return dtype_name(next(types, numbers.dtype))


# Without a trace, and how far rounding goes


@contextmanager
def keep_state(trainer: Trainer, *, training: bool = False) -> Iterator[None]:
    """The model in evaluation mode, or in training mode; afterwards modes and random numbers are as they were."""
    device, models = trainer.meter.device, {trainer.model, trainer.ddp_model}
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.train(training)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def attach(modules: Iterable[nn.Module], look: Callable[[nn.Module, tuple[Any, ...], Any], None]) -> Iterator[None]:
    """Call `look` with each of these modules, its inputs and its output, whenever the model uses it."""
    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(module.register_forward_hook(look))
        yield


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of two tensors, in units of the largest value; infinite if their shapes differ."""
    if ours.shape != theirs.shape:
        return math.inf
    scale = max(float(ours.abs().max()), float(theirs.abs().max()))
    return float((ours.float() - theirs.float()).abs().max()) / scale if scale else 0.0


def allowance(trainer: Trainer, fine: float = FINE, coarse: float = COARSE) -> float:
    """How far apart rounding may take two ways to compute the same, in units of the largest value: `fine` if all is in fp32."""
    return fine if has_fp32_base(trainer) and trainer.log.precision == "fp32" else coarse


def has_fp32_base(trainer: Trainer) -> bool:
    """Checks that all that is not trained computes in fp32 outside autocast."""
    return trainer.cell.quantization is None and base_type(trainer.cell) is torch.float32
