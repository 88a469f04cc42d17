"""Audits dropout: its rates, its masks, and the mean and variance of outputs."""

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from transformers import Cache
from transformers.utils import CONFIG_NAME

from tunegrid.audits.evidence import Evidence, expect_none
from tunegrid.audits.saved_files import checkpoint_fields
from tunegrid.grid.methods import Answer, Measured, closest_to_limit
from tunegrid.run.probe import get_logits, keep_state

IDLE = "is without effect"
MASKS = 5  # extra masks drawn from each module
LOW_CALLS = 24  # calls of a module whose dropout is a number
HIGH_RATE = 0.8  # far above usual rates
HIGH_CALLS = 16  # calls at that rate
# Only the first few modules of each class are called often, since all of them share its code. A few
# calls show that the other modules drop values, too.
FULLY_ASKED = 3
FEW_CALLS = 2
SKEWED = 0.2  # allowed log ratio of two variances, each estimated from few outputs
ALLOWED_ERRORS = 6.0  # standard errors by which the share of dropped values may be off
ALLOWED_ERRORS_OF_MEANS = 7.0  # more, since few numbers estimate the error
MEAN_ROUNDING = 1e-3  # error that 16 bits may add to a mean
ROUNDINGS = 3.0  # allowed rounding errors of a kept value, which is scaled and scaled back
NO_DEVIATION = Measured(0.0, ALLOWED_ERRORS)
LEAST_DROPPED = 3.0  # dropped values per mask; with fewer, masks of all rows may be equal by luck
HOLDERS = (nn.ModuleDict, nn.ModuleList)  # modules that are never called themselves


class Dropout(NamedTuple):
    """A dropout that module `user` must apply; its rate is stored as `attribute` of `holder`."""

    name: str
    holder: nn.Module
    attribute: str
    user: nn.Module
    rate: float


def dropout_drops(evidence: Evidence) -> Answer:
    """Dropouts have their declared rates, draw a new mask for each call and row, and keep the mean.

    A dropout module must not be applied twice to a tensor, and must scale the values that it keeps
    by 1 / (1 - rate). Dropout that is stored only as a rate, as in SDPA attention, must change its
    module's output when all other dropout is off. For attention, the mean and variance over many
    outputs must also match the rate. Dropout that has no effect is a fault if it is in an adapter
    or if the backbone declares its dropouts. `predicting_twice_is_the_same` checks that evaluation
    drops no values.
    """
    faults = undeclared_rates(evidence)
    if faults:
        count = f"{len(faults)} have another rate than the checkpoint's config"
        return False, f"{count}: {', '.join(faults[:3])}"
    dropouts = declared_dropouts(evidence.model)
    if not dropouts:
        return None
    look = DropoutPass(dropouts)
    row = evidence.probe.rows[-1]
    with (
        torch.no_grad(),
        keep_state(evidence.trainer, training=True),
        look.attached(evidence.model),
    ):
        get_logits(evidence.trainer, [row, row])
    if not evidence.cell.backbone.dropouts:  # some may be unused, as in ALBERT
        for dropout in dropouts:
            if look.faults.get(dropout.name) == IDLE and not isinstance(
                dropout.user, BaseTunerLayer
            ):
                del look.faults[dropout.name]
    if look.faults:
        sentences = [f"{name} {fault}" for name, fault in look.faults.items()]
        return expect_none(sentences, f"{len(dropouts)} dropouts", "are wrong")
    return (
        look.closest,
        f"{len(look.called)} drop at their declared rate, {len(look.numbers)} have an effect",
    )


def undeclared_rates(evidence: Evidence) -> list[str]:
    """Describes dropouts that are missing, or whose rates differ from the checkpoint's config."""
    cell = evidence.cell
    config = {} if cell.profile.random_weights else checkpoint_fields(cell, CONFIG_NAME)
    if not config:
        return []
    own_rates = all_rates(evidence.model)
    fields = {**cell.backbone.dropouts, **cell.head.dropouts}
    faults = []
    for pattern, config_field in fields.items():
        values = [config.get(name) for name in config_field.split(" or ")]
        rate = next((value for value in values if value is not None), None)
        names = [name for name in own_rates if re.search(rf"(^|\.){pattern}$", name)]
        if rate and not names:
            faults.append(f"no dropout of {config_field} {rate:g}")
        for name in names:
            if rate is not None and own_rates[name] != rate:
                faults.append(f"{name} {own_rates[name]:g}, not {rate:g}")
    return faults


def all_rates(model: nn.Module) -> dict[str, float]:
    """The rate of each module (0 if not a dropout) and of each "dropout" attribute, by name."""
    rates = {}
    for name, module in model.named_modules():
        rates[name] = module.p if isinstance(module, nn.Dropout) else 0.0
        for key, rate in number_rates(module).items():
            rates[f"{name}.{key}"] = rate
    return rates


def number_rates(module: nn.Module) -> dict[str, float]:
    """A module's float attributes whose names contain "dropout"."""
    numbers = {key: value for key, value in vars(module).items() if isinstance(value, float)}
    return {key: rate for key, rate in numbers.items() if "dropout" in key}


def declared_dropouts(model: nn.Module) -> list[Dropout]:
    """All `nn.Dropout` modules and "dropout" attributes with a rate strictly between 0 and 1."""
    modules = dict(model.named_modules())
    dropouts = []
    for name, module in modules.items():
        if isinstance(module, nn.Dropout):
            user = name.rpartition(".")[0]
            while user and isinstance(modules[user], HOLDERS):
                user = user.rpartition(".")[0]
            dropouts.append(Dropout(name, module, "p", modules[user], module.p))
        for key, rate in number_rates(module).items():
            dropouts.append(Dropout(f"{name}.{key}", module, key, module, rate))
    return [dropout for dropout in dropouts if 0 < dropout.rate < 1]


@dataclass
class DropoutPass:
    """Checks dropouts during a training-mode pass of the model over a batch of two equal rows.

    Dropout modules are also called on tensors of ones, and modules that store only a rate are
    called again on their inputs. Both are cheaper than more passes of the model.
    """

    dropouts: list[Dropout]
    # What is wrong with a dropout, as the end of a sentence, by the dropout's name.
    faults: dict[str, str] = field(default_factory=dict)
    # The dropout modules that were called.
    called: dict[nn.Module, Dropout] = field(default_factory=dict)
    # Names of the other dropouts whose user was called.
    numbers: set[str] = field(default_factory=set)
    kinds: Counter[type] = field(default_factory=Counter)  # number of such users, by class
    closest: Measured = NO_DEVIATION  # the random deviation closest to its limit
    _last_module: nn.Module | None = None
    _last_output: Tensor | None = None
    _is_busy: bool = False  # True during the audit's own calls, which are not checked

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Checks every call of the model's modules while the context is open."""
        modules = {dropout.holder: dropout for dropout in self.dropouts if dropout.attribute == "p"}
        users: dict[nn.Module, list[Dropout]] = {}
        for dropout in self.dropouts:
            users.setdefault(dropout.user, []).append(dropout)

        def look(
            module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any
        ) -> None:
            if self._is_busy:
                return
            leaves = tree_leaves([*inputs, *options.values()])
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            if tensors and not any(module.children()):
                self._look_for_second_mask(module, tensors[0])
            if module in modules:
                self._look_at_module(modules[module], tensors[0], output)
            self._is_busy = True
            for dropout in users.get(module, []):
                if dropout.holder not in self.called and dropout.name not in self.numbers:
                    self._look_at_number(dropout, inputs, options)
            self._is_busy = False

        with ExitStack() as hooks:
            for module in model.modules():
                hooks.enter_context(module.register_forward_hook(look, with_kwargs=True))
            yield

    def _look_for_second_mask(self, module: nn.Module, values: Tensor) -> None:
        """Notes a fault if a leaf module's input shows that the last dropout is applied twice."""
        output = self._last_output
        if output is None or values.shape != output.shape or self._last_module is None:
            return
        is_twice = values is output and module is self._last_module
        kept = values != 0
        if values is not output and bool(kept.any()) and bool((~kept & (output != 0)).any()):
            factors = values[kept].double() / output[kept].double()
            is_twice = bool(
                torch.isfinite(factors).all() and factors.max() - factors.min() < MEAN_ROUNDING
            )
        if is_twice:
            self.faults[self.called[self._last_module].name] = "is applied twice"

    def _look_at_module(self, dropout: Dropout, values: Tensor, output: Tensor) -> None:
        """Checks a dropout module's effect on its input and, on its first call, on ones."""
        module, rate = dropout.holder, dropout.rate
        self._last_module = module
        self._last_output = output
        is_first = module not in self.called
        self.called[module] = dropout
        # An in-place module overwrites its input.
        pairs = [] if values is output else [(values, output)]
        if is_first:
            ones = torch.ones_like(values)
            pairs += [(ones, module.forward(ones.clone())) for _ in range(MASKS)]
        masks = [(given != 0) & (result == 0) for given, result in pairs]
        share, luck = dropped_share(pairs, rate)
        if not luck:  # bad luck does not strike twice
            ones = torch.ones_like(values)
            share, luck = dropped_share([(ones, module.forward(ones.clone())) for _ in masks], rate)
        self.closest = closest_to_limit([self.closest, luck])
        if not luck:
            self.faults[dropout.name] = f"drops {share:.2%} of the values, not {rate:.2%}"
        elif not all(is_scaled(given, result, rate) for given, result in pairs):
            self.faults[dropout.name] = (
                f"does not give the values that it keeps 1 / (1 - {rate:g}) times"
            )
        # Few values may repeat by luck, and other kinds of dropout may drop whole rows.
        elif is_first and type(module) is nn.Dropout and values.numel() * rate > LEAST_DROPPED:
            fault = repetition(masks[-MASKS:], range(values.dim()))
            if fault:
                self.faults[dropout.name] = fault

    def _look_at_number(
        self, dropout: Dropout, inputs: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        """Compares a module's outputs under this dropout alone with its output without dropout."""
        self.numbers.add(dropout.name)
        arguments = (inputs, options)
        inputs, options = tree_map(
            repeatable, arguments, is_leaf=lambda value: isinstance(value, Cache)
        )

        def call() -> Tensor:
            outputs = tree_leaves(dropout.user.forward(*inputs, **options))
            tensors = [leaf for leaf in outputs if isinstance(leaf, Tensor)]
            return next(tensor for tensor in tensors if tensor.is_floating_point()).detach()

        try:
            for each in self.dropouts:
                setattr(each.holder, each.attribute, 0.0)
            plain = call()
            setattr(dropout.holder, dropout.attribute, dropout.rate)
            kind = type(dropout.user)
            self.kinds[kind] += 1
            is_fully_asked = self.kinds[kind] <= FULLY_ASKED
            draws = [call() for _ in range(LOW_CALLS if is_fully_asked else FEW_CALLS)]
            fault = repetition(draws, range(1) if has_equal_rows(plain) else ())
            if all(torch.equal(draw, plain) for draw in draws):
                fault = IDLE
            elif not fault and is_fully_asked and is_linear(dropout.user):
                luck, fault = wrong_moments(dropout, plain, draws, call)
                if fault:  # bad luck does not strike twice
                    setattr(dropout.holder, dropout.attribute, dropout.rate)
                    luck, fault = wrong_moments(
                        dropout, plain, [call() for _ in range(LOW_CALLS)], call
                    )
                self.closest = closest_to_limit([self.closest, luck])
        finally:
            for each in self.dropouts:
                setattr(each.holder, each.attribute, each.rate)
        if fault:
            self.faults[dropout.name] = fault


def dropped_share(pairs: Sequence[tuple[Tensor, Tensor]], rate: float) -> tuple[float, Measured]:
    """The share of values that became 0, and its deviation from `rate` in standard errors.

    `pairs` are inputs and outputs of a dropout.
    """
    count = sum(int((given != 0).sum()) for given, _ in pairs)
    zeros = sum(int(((given != 0) & (result == 0)).sum()) for given, result in pairs)
    error = math.sqrt(rate * (1 - rate) * count)
    luck = Measured(in_errors(abs(zeros - rate * count), error), ALLOWED_ERRORS)
    return zeros / max(1, count), luck


def wrong_moments(
    dropout: Dropout,
    plain: Tensor,
    draws: list[Tensor],
    call: Callable[[], Tensor],
) -> tuple[Measured, str]:
    """Returns the deviation closest to its limit, and the end of a sentence about the first fault.

    The sentence is empty if there is no fault. `draws`, made at the declared rate, are compared
    with `plain` and with new outputs at `HIGH_RATE`.
    """
    setattr(dropout.holder, dropout.attribute, HIGH_RATE)
    high_draws = [call() for _ in range(HIGH_CALLS)]
    closest, fault = NO_DEVIATION, ""
    for luck, sentence in moments(plain, draws, high_draws, dropout.rate):
        closest = closest_to_limit([closest, luck])
        if not luck and not fault:
            fault = sentence
    return closest, fault


def is_scaled(values: Tensor, output: Tensor, rate: float) -> bool:
    """Checks whether kept values are the input times 1 / (1 - rate), up to rounding."""
    gap = (output * (1 - rate) - values).abs()
    tolerance = ROUNDINGS * torch.finfo(output.dtype).eps * values.abs()
    return bool(((output == 0) | (gap <= tolerance)).all())


def repetition(results: list[Tensor], dimensions: Iterable[int]) -> str:
    """The end of a sentence if all results, or all rows along a dimension, are equal; else ""."""
    if all(torch.equal(result, results[0]) for result in results):
        return "drops the same values each time"
    for dimension in dimensions:
        size = results[0].shape[dimension]
        if size > 1 and all(
            bool((result == result.narrow(dimension, 0, 1)).all()) for result in results
        ):
            return f"drops the same values in all {size} rows of dimension {dimension}"
    return ""


def has_equal_rows(tensor: Tensor) -> bool:
    """Checks whether a tensor consists of two equal rows."""
    return len(tensor) == 2 and torch.equal(tensor[0], tensor[1])


def moments(
    plain: Tensor, draws: list[Tensor], high_draws: list[Tensor], rate: float
) -> Iterator[tuple[Measured, str]]:
    """Yields the deviations of the outputs' mean and variance, each with the end of a sentence.

    The outputs must be linear in the kept values. A value that is kept with probability 1 - p, and
    then divided by 1 - p, keeps its mean and has a variance of p / (1 - p) times its square. This
    gives the ratio of the variances at two rates.
    """
    values = plain.double()
    size = float((values * values).sum())
    if not size:
        return
    shares = [float((draw.double() * values).sum()) / size for draw in draws]
    mean, error = mean_and_error(shares)
    luck = Measured(in_errors(abs(mean - 1) - MEAN_ROUNDING, error), ALLOWED_ERRORS_OF_MEANS)
    yield (
        luck,
        f"gives {mean:.2%} of the output without dropout, in the mean of {len(shares)} calls",
    )
    low, low_error = mean_and_error(squares(draws, values))
    high, high_error = mean_and_error(squares(high_draws, values))
    factor = high / low * rate / (1 - rate) * (1 - HIGH_RATE) / HIGH_RATE
    error = math.hypot(low_error / low, high_error / high)
    luck = Measured(in_errors(abs(math.log(factor)) - SKEWED, error), ALLOWED_ERRORS_OF_MEANS)
    growth = f"{factor:.2f} times as fast with the rate as it should"
    yield luck, f"does not drop {rate:.2%}: its variance grows {growth}"


def squares(draws: list[Tensor], values: Tensor) -> list[float]:
    """The squared distance of each output from the output without dropout."""
    return [float((draw.double() - values).square().sum()) for draw in draws]


def mean_and_error(numbers: list[float]) -> tuple[float, float]:
    """The mean of some numbers and its standard error."""
    return statistics.mean(numbers), statistics.stdev(numbers) / math.sqrt(len(numbers))


def in_errors(deviation: float, error: float) -> float:
    """A deviation in units of its standard error; 0 if it is not positive."""
    if deviation <= 0:
        return 0.0
    return deviation / error if error else math.inf


def is_linear(user: nn.Module) -> bool:
    """Checks whether a module is an attention module that contains no norm.

    Its output is then linear in the values that dropout keeps.
    """
    kinds = [type(module).__name__.lower() for module in user.modules()]
    is_attention = "attention" in kinds[0] or "attn" in kinds[0]
    return is_attention and not any("norm" in kind for kind in kinds)


def repeatable(value: Any) -> Any:
    """Prepares an argument for repeated calls.

    Replaces the second of two rows with the first, and drops a cache, which would grow with every
    call.
    """
    if isinstance(value, Cache):
        return None
    if isinstance(value, Tensor) and value.shape[:1] == (2,):
        return torch.cat([value[:1], value[:1]])
    return value
