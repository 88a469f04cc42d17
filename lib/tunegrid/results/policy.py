"""Which cells may fail a run: `--policy FILE.toml` calls cells critical, supporting or advisory, with margins of their own.

    default = "supporting"         # the tier of cells that no rule names; critical where the file does not say
    supporting_may_be_worse = 2    # the run fails where more supporting cells are worse; 1 where the file does not say

    [[rule]]
    cells = ["*_qa_*", "bert_sa_lora"]   # ids, or patterns of ids
    tier = "critical"
    margins = { f1 = 1.0 }               # in place of those in benchmarks/thresholds/margins.toml

    [[rule]]
    method = "qlora"                     # or backbone, or task
    tier = "advisory"

The first rule that names a cell counts. Tiers weigh what the gate finds; verdicts, and the significance that they rest on, are
those of all cells in every tier. A cell that misses a bound or an audit fails its run in every tier.
"""

import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tunegrid.errors import InputError, first_line
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.record import Record
from tunegrid.results.thresholds import load_margins

PARTS = ("backbone", "task", "method")  # of a cell's id, in this order
KEYS = ("default", "supporting_may_be_worse", "rule")
RULE_KEYS = ("cells", *PARTS, "tier", "margins")
MOST_POINTS, LARGEST_SHARE = 100, 10  # margins of scores, and of memory and speed
MAY_BE_WORSE = 1


class Tier(StrEnum):
    """What a cell that is worse does to its run."""

    CRITICAL = "critical"  # fails it
    SUPPORTING = "supporting"  # fails it together with others
    ADVISORY = "advisory"  # is told


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a policy says of some cells.

    Attributes:
        cells: ids, or patterns of ids; empty names all.
        parts: of the id, by their names in `PARTS`: what a cell must have beside.
        tier: None leaves the policy's default.
        margins: by score, memory figure or step_seconds.
    """

    cells: Sequence[str] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    tier: Tier | None = None
    margins: Mapping[str, float] = field(default_factory=dict)

    def names(self, cell: str) -> bool:
        """Whether it is about this cell."""
        own = parts_of(cell)
        named = not self.cells or any(fnmatchcase(cell, pattern) for pattern in self.cells)
        return named and all(own.get(part) == value for part, value in self.parts.items())


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Tiers and margins of cells; by default every cell is critical, with the suite's margins.

    Attributes:
        name: of its file; empty where none was given.
        may_be_worse: how many supporting cells may be worse.
    """

    name: str = ""
    default: Tier = Tier.CRITICAL
    may_be_worse: int = MAY_BE_WORSE
    rules: Sequence[Rule] = ()

    def tier_of(self, cell: str) -> Tier:
        """A cell's tier."""
        rule = self._rule_of(cell)
        return (rule and rule.tier) or self.default

    def margins_of(self, cell: str) -> Mapping[str, float]:
        """The margins that a cell has in place of the suite's."""
        rule = self._rule_of(cell)
        return rule.margins if rule else {}

    def _rule_of(self, cell: str) -> Rule | None:
        return next((rule for rule in self.rules if rule.names(cell)), None)


EVERY_CELL_CRITICAL = Policy()


def parts_of(cell: str) -> dict[str, str]:
    """Backbone, task and method of a cell's id."""
    return dict(zip(PARTS, cell.split("_", 2), strict=False))


def described(policy: Policy, cells: Sequence[str]) -> list[str]:
    """A line for each tier that cells have: how many, which ones, and their own margins; nothing without a file."""
    if not policy.name:
        return []
    by_tier = {tier: [cell for cell in cells if policy.tier_of(cell) is tier] for tier in Tier}
    allowed = {Tier.SUPPORTING: f" (at most {policy.may_be_worse} may be worse)"}
    return [
        f"{policy.name}: {len(own)} {tier}{allowed.get(tier, '')}: {', '.join(_with_margins(policy, cell) for cell in own)}"
        for tier, own in by_tier.items()
        if own
    ]


def _with_margins(policy: Policy, cell: str) -> str:
    own = ", ".join(f"{name} {margin:g}" for name, margin in policy.margins_of(cell).items())
    return f"{cell} (margin {own})" if own else cell


# Reading


@dataclass(frozen=True, kw_only=True)
class Known:
    """What a policy may name: cells, scores with margins in points, and figures with margins that are shares."""

    cells: Sequence[str]
    scores: Sequence[str]
    shares: Sequence[str]

    @classmethod
    def of(cls, cells: Iterable[str], scores: Iterable[str] = ()) -> "Known":
        """These cells and the study's; these scores and all that the suite has margins for."""
        margins = load_margins()
        return cls(
            cells=list(dict.fromkeys([*STUDY_IDS, *cells])),
            scores=list(dict.fromkeys([*margins["points"], *scores])),
            shares=[*margins["memory"], *margins["speed"]],
        )


def policy_for(path: Path | None, records: Sequence[Record], cells: Iterable[str] = ()) -> Policy:
    """The policy of a file, which may name these cells and those of these records; without a file every cell is critical."""
    if path is None:
        return EVERY_CELL_CRITICAL
    scores = [name for record in records for name in record.bounded_scores]
    return read_policy(path, Known.of([*cells, *(record.cell for record in records)], scores))


def read_policy(path: Path, known: Known) -> Policy:
    """The policy of a file; raises InputError where anything is wrong with it, with a sentence for each."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"the policy {path} cannot be read: {first_line(error)}") from None
    if errors := list(_errors(content, known)):
        raise InputError(f"the policy {path}: {'; '.join(errors)}")
    return Policy(
        name=path.name,
        default=Tier(content.get("default", Tier.CRITICAL)),
        may_be_worse=content.get("supporting_may_be_worse", MAY_BE_WORSE),
        rules=[_rule(rule) for rule in content.get("rule", ())],
    )


def _rule(rule: Mapping[str, Any]) -> Rule:
    """A sound table as a rule."""
    return Rule(
        cells=rule.get("cells", ()),
        parts={part: rule[part] for part in PARTS if part in rule},
        tier=Tier(rule["tier"]) if "tier" in rule else None,
        margins=rule.get("margins", {}),
    )


def _errors(content: Mapping[str, Any], known: Known) -> Iterator[str]:
    """A sentence for everything that is wrong in a file."""
    yield from _unknown("key", content, KEYS)
    if "default" in content:
        yield from _wrong_tier("default", content["default"])
    allowed = content.get("supporting_may_be_worse", MAY_BE_WORSE)
    if isinstance(allowed, bool) or not isinstance(allowed, int) or allowed < 0:
        yield f"supporting_may_be_worse is {allowed!r}: give a whole number of cells, 0 or more"
    rules = content.get("rule", [])
    if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
        yield "rule is not a list of tables: write [[rule]] above each"
        return
    for number, rule in enumerate(rules, start=1):
        yield from (f"rule {number}: {sentence}" for sentence in _errors_of_rule(rule, known))


def _errors_of_rule(rule: Mapping[str, Any], known: Known) -> Iterator[str]:
    yield from _unknown("key", rule, RULE_KEYS)
    if not any(key in rule for key in ("cells", *PARTS)):
        yield f"it names no cell: give cells, {', '.join(PARTS[:-1])} or {PARTS[-1]}"
    if "tier" in rule:
        yield from _wrong_tier("tier", rule["tier"])
    wrong = [*_wrong_cells(rule.get("cells", []), known.cells), *_wrong_parts(rule, known.cells)]
    yield from wrong or _names_nothing(rule, known.cells)
    yield from _wrong_margins(rule.get("margins", {}), known)


def _wrong_tier(key: str, tier: Any) -> Iterator[str]:
    if tier not in [*Tier]:
        yield f"{key} is {tier!r}: give {', '.join(Tier)}{_near(tier, [*Tier])}"


def _wrong_cells(patterns: Any, cells: Sequence[str]) -> Iterator[str]:
    if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
        yield f'cells is {patterns!r}: give a list of ids or patterns, as in ["bert_*", "t5_qa_sft"]'
        return
    for pattern in patterns:
        if not any(fnmatchcase(cell, pattern) for cell in cells):
            yield f"no cell is called {pattern!r}{_near(pattern, cells)}"


def _wrong_parts(rule: Mapping[str, Any], cells: Sequence[str]) -> Iterator[str]:
    for part in PARTS:
        known = list(dict.fromkeys(value for cell in cells if (value := parts_of(cell).get(part))))
        if part in rule and rule[part] not in known:
            yield f"no cell has the {part} {rule[part]!r}{_near(rule[part], known)}"


def _names_nothing(rule: Mapping[str, Any], cells: Sequence[str]) -> Iterator[str]:
    naming = _rule({key: rule[key] for key in ("cells", *PARTS) if key in rule})
    if not any(map(naming.names, cells)):
        yield "no cell has all that it asks for"


def _wrong_margins(own: Any, known: Known) -> Iterator[str]:
    if not isinstance(own, dict):
        yield f"margins is {own!r}: give a table, as in {{ f1 = 1.0 }}"
        return
    yield from _unknown("margin", own, [*known.scores, *known.shares])
    for name, margin in own.items():
        unit, most = ("a share", LARGEST_SHARE) if name in known.shares else ("points", MOST_POINTS)
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin <= most:
            yield f"the margin {name} is {margin!r}: give {unit} from 0 to {most}"


def _unknown(what: str, given: Mapping[str, Any], known: Sequence[str]) -> Iterator[str]:
    for name in given:
        if name not in known:
            yield f"unknown {what} {name!r}{_near(name, known) or ': expected some of ' + ', '.join(known)}"


def _near(name: Any, known: Sequence[str]) -> str:
    """A question that names what was probably meant; empty where nothing is near."""
    near = get_close_matches(name, known, n=1) if isinstance(name, str) else []
    return f"; did you mean {near[0]}?" if near else ""
