"""Generates passages with questions in SQuAD's schema, and news with highlights.

A passage tells facts about several subjects. Its towns, years, people and amounts come from small
pools, so the same words answer different questions in different places. Only the subject *and* the
relation tell which occurrence is meant.
"""

from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from tunegrid.lab.micro import words
from tunegrid.lab.micro.words import AMOUNTS, ANIMALS, TOWNS, VENUES, WEEKDAYS


class Relation(NamedTuple):
    """A kind of fact: the pool of its answers, its statements and its questions."""

    pool: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]


PERSON: tuple[Relation, ...] = (
    Relation("town", ("was born in {}",), ("where was {} born ?", "in which town was {} born ?")),
    Relation("date", ("was married in {}",), ("when was {} married ?",)),
    Relation(
        "town",
        ("moved to {}", "later moved to {}"),
        ("where did {} move ?", "to which town did {} move ?"),
    ),
    Relation("job", ("worked as a {}",), ("what did {} work as ?", "which job did {} have ?")),
    Relation("person", ("married {}",), ("who did {} marry ?",)),
    Relation("study", ("studied {}",), ("what did {} study ?", "which subject did {} study ?")),
    Relation("amount", ("saved {}", "saved about {}"), ("how much did {} save ?",)),
    Relation("year", ("died in {}",), ("when did {} die ?", "in which year did {} die ?")),
)
BUILDING: tuple[Relation, ...] = (
    Relation("person", ("was founded by {}",), ("who founded {} ?", "who was {} founded by ?")),
    Relation("year", ("opened in {}",), ("when did {} open ?", "in which year did {} open ?")),
    Relation("town", ("stands in {}",), ("where does {} stand ?", "in which town does {} stand ?")),
    Relation("amount", ("cost {}",), ("how much did {} cost ?",)),
    Relation(
        "person",
        ("belongs to {}", "now belongs to {}"),
        ("who does {} belong to ?", "who owns {} ?"),
    ),
    Relation("date", ("burned down in {}",), ("when did {} burn down ?",)),
)
FILLERS = (
    "little else is known .",
    "the winters were long .",
    "many letters were lost .",
    "a map from those years survives .",
    "the story is often told .",
    "most of the records are gone .",
)


class Fact(NamedTuple):
    """A fact told in a passage; `start` is the character where its value begins."""

    subject: str
    relation: Relation
    value: str
    start: int

    @property
    def span(self) -> tuple[int, int]:
        """The value's (start, end) in characters."""
        return self.start, self.start + len(self.value)


def person(rng: Random) -> tuple[str, str]:
    """A full name and the matching pronoun."""
    if rng.random() < 0.5:
        return f"{rng.choice(words.WOMEN)} {rng.choice(words.SURNAMES)}", "she"
    return f"{rng.choice(words.MEN)} {rng.choice(words.SURNAMES)}", "he"


def pools(rng: Random, people: Sequence[str]) -> dict[str, list[str]]:
    """A few values of each kind, so that answers repeat within a passage."""
    years = rng.sample(words.YEARS, 2)
    towns = rng.sample(TOWNS, 2)
    dates = [f"{rng.choice(words.MONTHS)} {year}" for year in years]
    amounts = [f"{amount} pounds" for amount in rng.sample(AMOUNTS, 2)]
    return {
        "town": towns,
        "year": years,
        "date": dates,
        "amount": amounts,
        "person": list(people),
        "job": rng.sample(words.JOBS, 2),
        "study": rng.sample(words.SUBJECTS, 2),
    }


class Passage:
    """A text under construction and the facts told in it."""

    def __init__(self, rng: Random, subjects: int, facts: tuple[int, int]) -> None:
        """Tell `facts[0]` to `facts[1]` facts about each of `subjects` subjects."""
        self.text = ""
        self.facts: list[Fact] = []
        cast = [person(rng) for _ in range(subjects)]
        names = [name for name, _ in cast]
        bystander, _ = person(rng)
        values = pools(rng, [*names, bystander])
        for name, pronoun in cast:
            relations = PERSON
            if rng.random() < 0.5:
                name = f"the {rng.choice(words.BUILDING_NAMES)} {rng.choice(words.BUILDINGS)}"
                pronoun = "it"
                relations = BUILDING
            told = rng.sample(relations, rng.randint(*facts))
            self._tell(rng, name, pronoun, told, values)
            if rng.random() < 0.3:
                self._append(rng.choice(FILLERS))

    def _append(self, text: str) -> int:
        """Append words and return where they start."""
        start = len(self.text) + bool(self.text)
        self.text = f"{self.text} {text}".strip()
        return start

    def _tell(
        self,
        rng: Random,
        name: str,
        pronoun: str,
        relations: list[Relation],
        values: dict[str, list[str]],
    ) -> None:
        """Append sentences of one or two facts; later sentences may use a pronoun for the name."""
        subject = name
        while relations:
            self._append(subject)
            fact_count = min(len(relations), rng.choice((1, 2)))
            for facts_left in reversed(range(fact_count)):
                relation = relations.pop()
                value = rng.choice([value for value in values[relation.pool] if value != name])
                lead, tail = rng.choice(relation.statements).split("{}")
                self._append(lead.strip())
                self.facts.append(Fact(name, relation, value, self._append(value + tail)))
                self._append("and" if facts_left else ".")
            subject = rng.choice((name, pronoun))


def passage(rng: Random) -> Passage:
    """A passage of ordinary size or, one time in eight, one that is too long for one window."""
    if rng.random() < 0.125:
        return Passage(rng, subjects=rng.randint(4, 5), facts=(2, 4))
    return Passage(rng, subjects=rng.randint(2, 3), facts=(2, 3))


def questions(rng: Random, text: Passage) -> list[tuple[str, Fact]]:
    """Pairs of a question and its fact; facts that share subject and relation are omitted."""
    subjects = [(fact.subject, fact.relation) for fact in text.facts]
    pairs = []
    for fact in text.facts:
        if subjects.count((fact.subject, fact.relation)) == 1:
            pattern = rng.choice(fact.relation.questions)
            pairs.append((pattern.format(fact.subject), fact))
    return pairs


def squad_rows(rng: Random, count: int, article: str) -> list[dict[str, Any]]:
    """Rows in SQuAD's schema, up to three per passage; titles are `article` plus _0, _1 ..."""
    rows: list[dict[str, Any]] = []
    number = 0
    while len(rows) < count:
        text = passage(rng)
        pairs = questions(rng, text)
        for question, fact in rng.sample(pairs, min(3, len(pairs))):
            row = {
                "id": f"{article}-{len(rows):05d}",
                "title": f"{article}_{number}",
                "context": text.text,
                "question": question,
                "answers": {"text": [fact.value], "answer_start": [fact.start]},
            }
            rows.append(row)
        number += 1
    return rows[:count]


# (wording in the article, wording in the highlight); slots: {place}, {town}, {day}
EVENTS = (
    ("flames tore through the {place} in {town} on {day}", "fire hits {town} {place}"),
    ("the {place} in {town} was under water by {day}", "flood closes {town} {place}"),
    ("masked men broke into the {place} in {town} on {day}", "robbers raid {town} {place}"),
    ("hundreds came to see the new {place} in {town} on {day}", "{town} opens new {place}"),
    ("the roof of the {place} in {town} came down on {day}", "{town} {place} collapses"),
    ("workers at the {place} in {town} walked out on {day}", "strike stops {town} {place}"),
    ("the {place} in {town} was sold to a bank on {day}", "bank buys {town} {place}"),
    ("a gale damaged the {place} in {town} on {day}", "storm batters {town} {place}"),
    ("the council voted on {day} to shut the {place} in {town}", "council to close {town} {place}"),
    (
        "bones were dug up behind the {place} in {town} on {day}",
        "old grave found at {town} {place}",
    ),
)
# Slots: {name}, {animal}
PEOPLE = (
    ("officers took {name} away in handcuffs", "police arrest {name}"),
    ("a jury found that {name} had done nothing wrong", "court clears {name}"),
    ("{name} was given a medal for great courage", "{name} honoured for bravery"),
    ("{name} was carried out alive by neighbours", "{name} rescued"),
    ("{name} gave up the office of mayor", "mayor {name} resigns"),
    ("{name} has not been seen since then", "{name} missing"),
    ("{name} paid for all the repairs", "{name} gives money"),
    ("doctors are treating {name} for burns", "{name} hurt"),
    ("{name} pulled a {animal} to safety", "{name} saves {animal}"),
    ("{name} told reporters that the plans were a mistake", "{name} criticises plans"),
)
TOLLS = (
    ("{count} people had to leave their homes", "{count} homeless"),
    ("the damage comes to {count} thousand pounds", "bill of {count} thousand pounds"),
    ("{count} families wrote to complain", "{count} complaints"),
)
SCENERY = (
    "it was a quiet morning in {town} .",
    "rain had fallen over {town} for days .",
    "the road to {town} stayed open .",
    "shops in {town} opened late .",
    "trains from {town} ran on time .",
    "{name} , who lives nearby , watched from a window .",
    "{name} said it was a strange sight .",
    "{name} took the bus home .",
    "a {animal} slept in the sun .",
    "tea was served in the hall .",
    "the next meeting is on {day} .",
    "children played in the street .",
    "nobody could say what comes next .",
    "the {place} in {town} was not affected .",
)


def news(rng: Random) -> dict[str, Any]:
    """Make a row in cnn_dailymail's schema, without its id."""
    slots = {
        "place": rng.choice(VENUES),
        "town": rng.choice(TOWNS),
        "day": rng.choice(WEEKDAYS),
        "name": person(rng)[0],
        "animal": rng.choice(ANIMALS),
        "count": rng.choice(AMOUNTS),
    }
    event, event_line = rng.choice(EVENTS)
    people, people_line = rng.choice(PEOPLE)
    toll, toll_line = rng.choice(TOLLS)
    is_joined = rng.random() < 0.25
    has_toll = rng.random() < 0.25
    if is_joined:
        salient_sentences = [f"{event} and {people} ."]
        highlights = [f"{event_line} ; {people_line} ."]
    else:
        salient_sentences = [f"{event} .", f"{people} ."]
        highlights = [f"{event_line} .", f"{people_line} ."]
        if has_toll:
            salient_sentences.append(f"{toll} .")
            highlights.append(f"{toll_line} .")
    salient_count = len(salient_sentences)
    sentences = []
    for scenery in rng.sample(SCENERY, rng.randint(5, 8) - salient_count):
        sentence = scenery.format(  # with other bystanders
            town=rng.choice(TOWNS),
            name=person(rng)[0],
            animal=rng.choice(ANIMALS),
            day=rng.choice(WEEKDAYS),
            place=rng.choice(VENUES),
        )
        sentences.append(sentence)
    # never first, so the lead sentence is no summary
    later_places = range(1, salient_count + len(sentences))
    numbers = sorted(rng.sample(later_places, salient_count))
    for number, sentence in zip(numbers, salient_sentences, strict=True):
        sentences.insert(number, sentence)
    return {
        "article": " ".join(sentences).format(**slots),
        "highlights": "\n".join(highlights).format(**slots),
    }
