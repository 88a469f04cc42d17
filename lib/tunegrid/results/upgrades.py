"""Says in one sentence what an upgrade changed."""

from collections.abc import Iterable, Mapping, Sequence

from tunegrid.record import Record
from tunegrid.results.failures import causes_of
from tunegrid.results.judgements import Judgement, Verdict, by_cell
from tunegrid.results.outcomes import FLOWS, failing
from tunegrid.results.words import SHOWN

# What cells are called in the sentence, in its order; those from the third on are named.
WORDS = ("equal", "rounding", "not comparable", "new", "changed", "failed", "worse", "missing")
UNNAMED = WORDS[:2]


def sentence(changes: str, judged: Sequence[Judgement], kinds: Sequence[str], failed: Mapping[str, str] | None = None) -> str:
    """As "peft 0.21.2 -> 0.22.0: 26 cells equal, 1 changed (gpt2_qa_lora: backward: lora_B at update 1; f1 -2.1, worse)".

    Args:
        changes: what was upgraded.
        judged: by the gate.
        kinds: of figures that count.
        failed: why cells failed by themselves, as by an audit.
    """
    failed = failed or {}
    if not judged:
        reasons = "; ".join(dict.fromkeys(failed.values()))
        return f"{changes}: no cell finishes" + (f" ({reasons})" if reasons else "")
    groups: dict[str, list[str]] = {word: [] for word in WORDS}
    for cell, own in by_cell(judged).items():
        word, reason = _cell(own, failing(own, kinds), failed.get(cell, ""))
        groups[word].append(f"{cell}: {reason}" if reason else cell)
    parts = [_group(word, cells) for word, cells in groups.items() if cells]
    noun = "cell" if len(next(cells for cells in groups.values() if cells)) == 1 else "cells"
    count, _, others = ", ".join(parts).partition(" ")
    return f"{changes}: {count} {noun} {others}"


def failures(before: Iterable[Record], after: Iterable[Record]) -> dict[str, str]:
    """Why cells failed by themselves after the upgrade, by cell; of the same failure it says that it was there before."""
    known = {record.cell: causes_of(record) for record in before}
    causes = {record.cell: causes_of(record) for record in after}
    return {cell: _first(own) + (", as before" if own == known.get(cell) else "") for cell, own in causes.items() if own}


def _first(causes: Sequence[str]) -> str:
    return causes[0] + (f" and {len(causes) - 1} more" if len(causes) > 1 else "")


def _group(word: str, cells: Sequence[str]) -> str:
    if word in UNNAMED:
        return f"{len(cells)} {word}"
    more = f" and {len(cells) - SHOWN} more" if len(cells) > SHOWN else ""
    return f"{len(cells)} {word} ({', '.join(cells[:SHOWN])}{more})"


def _cell(judged: Sequence[Judgement], bad: Sequence[Judgement], failed: str) -> tuple[str, str]:
    """The word for a cell, and what there is to say of it."""
    whole = next((j for j in judged if j.quantity == "cell"), None)
    if whole:
        return str(whole.verdict), failed
    arithmetic = next((j for j in judged if j.quantity in FLOWS), None)
    word = str(arithmetic.verdict) if arithmetic else str(Verdict.NOT_COMPARABLE)
    if word in UNNAMED and not bad:
        return ("failed", failed) if failed else (word, "")
    figures = [j for j in judged if j.quantity not in FLOWS and (j in bad or (j.quantity == j.main_score and j.effect))]
    reason = (
        arithmetic.detail.partition("; with ")[0].removesuffix(", forward equal") if arithmetic and word not in UNNAMED else ""
    )
    return "worse" if word in UNNAMED else word, "; ".join(filter(None, [reason, *map(_figure, figures), failed]))


def _figure(judgement: Judgement) -> str:
    if judgement.effect is None:
        return f"{judgement.quantity} {judgement.verdict}"
    change = f"{judgement.effect:+.1f}" if judgement.kind == "quality" else f"{100 * judgement.effect:+.1f} %"
    return f"{judgement.quantity} {change}, {judgement.verdict}"
