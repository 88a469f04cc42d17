"""Makes encyclopedia passages with questions on them: rows in SQuAD's schema.

A passage tells facts about several subjects. Its towns, years, people and amounts come from pools of two or three a
passage, so that the same words answer different questions at different places: only subject *and* relation tell which
occurrence is meant.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from tunegrid.lab.micro.words import (
    AMOUNTS,
    BUILDING_NAMES,
    BUILDINGS,
    JOBS,
    MEN,
    MONTHS,
    SUBJECTS,
    SURNAMES,
    TOWNS,
    WOMEN,
    YEARS,
)


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A kind of fact: how a passage tells it, how a question asks for it, and what answers it."""

    values: str
    told: tuple[str, ...]
    asked: tuple[str, ...]


PERSON = (
    Relation(values="town", told=("was born in {}",), asked=("where was {} born ?", "in which town was {} born ?")),
    Relation(values="date", told=("was married in {}",), asked=("when was {} married ?",)),
    Relation(
        values="town", told=("moved to {}", "later moved to {}"), asked=("where did {} move ?", "to which town did {} move ?")
    ),
    Relation(values="job", told=("worked as a {}",), asked=("what did {} work as ?", "which job did {} have ?")),
    Relation(values="person", told=("married {}",), asked=("who did {} marry ?",)),
    Relation(values="study", told=("studied {}",), asked=("what did {} study ?", "which subject did {} study ?")),
    Relation(values="amount", told=("saved {}", "saved about {}"), asked=("how much did {} save ?",)),
    Relation(values="year", told=("died in {}",), asked=("when did {} die ?", "in which year did {} die ?")),
)
BUILDING = (
    Relation(values="person", told=("was founded by {}",), asked=("who founded {} ?", "who was {} founded by ?")),
    Relation(values="year", told=("opened in {}",), asked=("when did {} open ?", "in which year did {} open ?")),
    Relation(values="town", told=("stands in {}",), asked=("where does {} stand ?", "in which town does {} stand ?")),
    Relation(values="amount", told=("cost {}",), asked=("how much did {} cost ?",)),
    Relation(values="person", told=("belongs to {}", "now belongs to {}"), asked=("who does {} belong to ?", "who owns {} ?")),
    Relation(values="date", told=("burned down in {}",), asked=("when did {} burn down ?",)),
)
FILLERS = (
    "little else is known .",
    "the winters were long .",
    "many letters were lost .",
    "a map from those years survives .",
    "the story is often told .",
    "most of the records are gone .",
)


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One told fact: its question forms are those of `relation` about `subject`; `start` counts from the passage's."""

    subject: str
    relation: Relation
    value: str
    start: int


def person(rng: Random) -> tuple[str, str]:
    """A full name and the pronoun that goes with it."""
    woman = rng.random() < 0.5
    return f"{rng.choice(WOMEN if woman else MEN)} {rng.choice(SURNAMES)}", "she" if woman else "he"


def pools(rng: Random, people: Sequence[str]) -> dict[str, list[str]]:
    """Few values of each kind, so that answers repeat within a passage."""
    years = rng.sample(YEARS, 2)
    return {
        "town": rng.sample(TOWNS, 2),
        "year": years,
        "date": [f"{rng.choice(MONTHS)} {year}" for year in years],
        "amount": [f"{amount} pounds" for amount in rng.sample(AMOUNTS, 2)],
        "person": list(people),
        "job": rng.sample(JOBS, 2),
        "study": rng.sample(SUBJECTS, 2),
    }


class Passage:
    """A text under construction and the facts told in it."""

    def __init__(self, rng: Random, subjects: int, facts: tuple[int, int]) -> None:
        """Tell between `facts[0]` and `facts[1]` facts about each of so many subjects."""
        self.text = ""
        self.facts: list[Fact] = []
        cast = [person(rng) for _ in range(subjects)]
        values = pools(rng, [name for name, _ in cast] + [person(rng)[0]])
        for name, pronoun in cast:
            if rng.random() < 0.5:
                name = f"the {rng.choice(BUILDING_NAMES)} {rng.choice(BUILDINGS)}"
                self._tell(rng, name, "it", rng.sample(BUILDING, rng.randint(*facts)), values)
            else:
                self._tell(rng, name, pronoun, rng.sample(PERSON, rng.randint(*facts)), values)
            if rng.random() < 0.3:
                self._say(rng.choice(FILLERS))

    def _say(self, words: str) -> int:
        """Append words; return where they start."""
        start = len(self.text) + bool(self.text)
        self.text = f"{self.text} {words}".strip()
        return start

    def _tell(self, rng: Random, name: str, pronoun: str, relations: Sequence[Relation], values: dict[str, list[str]]) -> None:
        """One or two facts a sentence; the name first, then sometimes the pronoun."""
        queue = list(relations)
        naming = name
        while queue:
            self._say(naming)
            for last in range(min(len(queue), rng.choice((1, 2))) - 1, -1, -1):
                relation = queue.pop()
                value = rng.choice([value for value in values[relation.values] if value != name])
                before, after = rng.choice(relation.told).split("{}")
                self._say(before.strip())
                self.facts.append(Fact(subject=name, relation=relation, value=value, start=self._say(value + after)))
                self._say("and" if last else ".")
            naming = rng.choice((name, pronoun))


def passage(rng: Random) -> Passage:
    """A passage of ordinary size, or (one in eight) one that outgrows the window."""
    if rng.random() < 0.125:
        return Passage(rng, subjects=rng.randint(4, 5), facts=(2, 4))
    return Passage(rng, subjects=rng.randint(2, 3), facts=(2, 3))


def questions(rng: Random, told: Passage) -> list[tuple[str, Fact]]:
    """A question for each fact that only one place in the passage answers."""
    asked: list[tuple[str, Fact]] = []
    for fact in told.facts:
        same = [other for other in told.facts if (other.subject, other.relation) == (fact.subject, fact.relation)]
        if len(same) == 1:
            asked.append((rng.choice(fact.relation.asked).format(fact.subject), fact))
    return asked


def squad_rows(rng: Random, count: int, article: str) -> list[dict[str, Any]]:
    """So many rows, up to three a passage, their titles `article`_0, `article`_1 ... one a passage."""
    rows: list[dict[str, Any]] = []
    number = 0
    while len(rows) < count:
        told = passage(rng)
        asked = questions(rng, told)
        for question, fact in rng.sample(asked, min(3, len(asked))):
            rows.append(
                {
                    "id": f"{article}-{len(rows):05d}",
                    "title": f"{article}_{number}",
                    "context": told.text,
                    "question": question,
                    "answers": {"text": [fact.value], "answer_start": [fact.start]},
                }
            )
        number += 1
    return rows[:count]
