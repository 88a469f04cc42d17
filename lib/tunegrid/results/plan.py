"""Plans a grid on so many GPUs from estimates of its cells: when it ends, what it needs and costs.

A run has one GPU, and the longest goes first. A figure that nobody measured is None: memory of an update of another size or of
another kind of device is not scaled, and hours of a CPU have no price.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tunegrid.results.estimates import Estimate, duration, shared_out
from tunegrid.results.table import Column, number
from tunegrid.results.table import lines as table_lines

COLUMNS = (
    Column(title="cell", width=15),
    Column(title="one run", width=9, right=True),
    Column(title="GiB", width=6, right=True),
    Column(title="at least", width=9, right=True),
    Column(title="time is", gap=2),
    Column(title="from", gap=2),
)
PRICE = Column(title="price", width=8, right=True)  # of one run, where a GPU's hour has a price


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A schedule.

    Attributes:
        estimates: by cell.
        seeds: runs of each cell.
        gpus: how many run at the same time.
        price: of one GPU for an hour.
    """

    estimates: Mapping[str, Estimate]
    gpus: int
    seeds: int = 1
    price: float | None = None

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Of one run, by cell, the longest first; without cells whose time is not known."""
        known = {cell: estimate.seconds for cell, estimate in self.estimates.items() if estimate.seconds is not None}
        return dict(sorted(known.items(), key=lambda item: (-item[1], item[0])))

    @property
    def unknown(self) -> list[str]:
        """Cells whose time is not known."""
        return [cell for cell in self.estimates if cell not in self.seconds]

    @property
    def busy_seconds(self) -> float:
        """Of all runs together."""
        return self.seeds * sum(self.seconds.values())

    def makespan(self, gpus: int) -> float:
        """Seconds until the last run ends."""
        runs = {(cell, seed): seconds for cell, seconds in self.seconds.items() for seed in range(self.seeds)}
        return max(sum(runs[run] for run in share) for share in shared_out(runs, gpus))

    @cached_property
    def wall_seconds(self) -> float | None:
        """Until the last run ends; None where no time is known."""
        return self.makespan(self.gpus) if self.seconds else None

    @property
    def idle_share(self) -> float | None:
        """Of the GPUs' time until then, what no run uses."""
        return 1 - self.busy_seconds / (self.gpus * self.wall_seconds) if self.wall_seconds else None

    @cached_property
    def gpus_that_help(self) -> int | None:
        """The fewest GPUs that end as soon as all of them."""
        if not self.wall_seconds:
            return None
        latest = self.wall_seconds * (1 + 1e-9)
        fewest = max(1, math.ceil(self.busy_seconds / latest))
        return next(count for count in range(fewest, self.gpus + 1) if self.makespan(count) <= latest)

    @property
    def on_gpu(self) -> bool:
        """Whether all times are of GPUs."""
        return all(self.estimates[cell].on_gpu for cell in self.seconds)

    def cost(self, seconds: float | None) -> float | None:
        """The price of so much time of one GPU; None where it is not a GPU's, or no price is known."""
        return None if seconds is None or self.price is None or not self.on_gpu else self.price * seconds / 3600

    def cost_of(self, cell: str) -> float | None:
        """The price of one run of a cell; None where its time is not a GPU's, or no price is known."""
        estimate = self.estimates[cell]
        if self.price is None or estimate.seconds is None or not estimate.on_gpu:
            return None
        return self.price * estimate.seconds / 3600

    @property
    def has_prices(self) -> bool:
        """Whether the price of any cell is known."""
        return any(self.cost_of(cell) is not None for cell in self.estimates)

    def memory(self, cell: str) -> tuple[float | None, float | None]:
        """GiB that a cell was seen to take on a GPU, at its own updates; and GiB that its tensors take at least."""
        return self.estimates[cell].gpu_gib, self.estimates[cell].tensors_gib


def as_json(plan: Plan) -> dict[str, object]:
    """All figures; null is not known."""
    cells = [
        {
            "cell": cell,
            "seconds": estimate.seconds,
            "gib": plan.memory(cell)[0],
            "at_least_gib": plan.memory(cell)[1],
            "cost": plan.cost_of(cell),
            "reckoned": estimate.reckoned,
            "device": estimate.device,
            "source": estimate.source,
        }
        for cell, estimate in plan.estimates.items()
    ]
    held = None if plan.wall_seconds is None else plan.gpus * plan.wall_seconds
    return {
        "gpus": plan.gpus,
        "seeds": plan.seeds,
        "wall_seconds": plan.wall_seconds,
        "busy_seconds": plan.busy_seconds if plan.seconds else None,
        "idle_share": plan.idle_share,
        "gpus_that_help": plan.gpus_that_help,
        "cost_of_runs": plan.cost(plan.busy_seconds),
        "cost_of_all_gpus_until_the_end": plan.cost(held),
        "cells_of_unknown_time": plan.unknown,
        "cells": cells,
    }


def lines(plan: Plan) -> list[str]:
    """The plan for people: cells, the schedule, what it rests on."""
    order, columns = [*plan.seconds, *plan.unknown], (*COLUMNS[:2], PRICE, *COLUMNS[2:]) if plan.has_prices else COLUMNS
    return [*table_lines(columns, [_cells(plan, cell) for cell in order]), "", *_schedule(plan), *_caveats(plan)]


def _cells(plan: Plan, cell: str) -> tuple[str, ...]:
    estimate, (gib, least) = plan.estimates[cell], plan.memory(cell)
    price = (number(plan.cost_of(cell), 2),) if plan.has_prices else ()
    known = "-" if estimate.seconds is None else "reckoned" if estimate.reckoned else "measured"
    return cell, duration(estimate.seconds), *price, number(gib, 2), number(least, 2), known, estimate.source


def _schedule(plan: Plan) -> list[str]:
    runs = f"{len(plan.seconds)} cells x {plan.seeds} seeds on {plan.gpus} {'GPUs' if plan.on_gpu else 'devices'}"
    if not plan.seconds or plan.wall_seconds is None or plan.idle_share is None:
        return [f"{runs}: no time is known"]
    held = plan.gpus * plan.wall_seconds
    longest, seconds = next(iter(plan.seconds.items()))
    bound = f"; the longest run alone, {longest}, takes {duration(seconds)}" if plan.gpus > 1 else ""
    return [
        f"{runs}, longest first: {duration(plan.wall_seconds)}{bound}",
        f"idle {100 * plan.idle_share:.0f} %; {plan.gpus_that_help} of them would end as soon",
        f"hours of runs {_hours(plan.busy_seconds)}, of all {plan.gpus} until the last run ends {_hours(held)}",
        *_price(plan, held),
    ]


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f}"


def _price(plan: Plan, held: float) -> list[str]:
    runs, all_of_them = plan.cost(plan.busy_seconds), plan.cost(held)
    if plan.price is None:
        return []
    if runs is None or all_of_them is None:
        return ["price not known: these are times of a CPU"]
    return [f"price {runs:,.2f} for the runs, {all_of_them:,.2f} where all GPUs are held until the last run ends"]


def _caveats(plan: Plan) -> list[str]:
    """What these figures rest on, one sentence each."""
    seconds = plan.seconds
    devices = sorted({plan.estimates[cell].device or "a device without a name" for cell in seconds})
    reckoned = [cell for cell in seconds if plan.estimates[cell].reckoned]
    other = [cell for cell in reckoned if not plan.estimates[cell].same_update]
    dark = [cell for cell in plan.estimates if plan.memory(cell)[0] is None]
    clauses = [
        (seconds, f"times are of {', '.join(devices)}"),
        (seconds and not plan.on_gpu, "a GPU's times come from its own footprint: pytest -m footprint --benchmark-json=FILE"),
        (
            reckoned,
            f"{len(reckoned)} are reckoned: training rows by a footprint's rate, without loading, validation and scoring",
        ),
        (other, f"{len(other)} of these have other rows per update than their footprint: neither time nor memory is scaled"),
        (
            dark,
            f"memory of {len(dark)} cells is not known; what their tensors took in one update of the footprint is the least",
        ),
        (plan.unknown, f"not in it, since no time is known: {', '.join(plan.unknown)}"),
    ]
    return [sentence for applies, sentence in clauses if applies]


def plan_of(cells: Sequence[str], known: Mapping[str, Estimate], *, gpus: int, seeds: int, price: float | None) -> Plan:
    """The plan of these cells."""
    return Plan(estimates={cell: known.get(cell, Estimate()) for cell in cells}, gpus=gpus, seeds=seeds, price=price)
