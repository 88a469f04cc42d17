"""Makes news articles with their highlights: rows {article, highlights, id}.

An article buries two salient facts among scenery and bystanders; its highlights say both in other words, on one to
three lines as the article decides: one line where a single sentence told both, a third where there is a toll.
"""

from random import Random
from typing import Any

from tunegrid.lab.micro.passages import person
from tunegrid.lab.micro.words import AMOUNTS, ANIMALS, PLACES, TOWNS, WEEKDAYS

# (as the article tells it, as the highlight puts it); slots: {place}, {town}, {day}
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
    ("bones were dug up behind the {place} in {town} on {day}", "old grave found at {town} {place}"),
)
# slots: {name}, {animal}
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


def _filled(rng: Random, pattern: str) -> str:
    """Scenery with bystanders of its own."""
    return pattern.format(
        town=rng.choice(TOWNS),
        name=person(rng)[0],
        animal=rng.choice(ANIMALS),
        day=rng.choice(WEEKDAYS),
        place=rng.choice(PLACES),
    )


def news(rng: Random) -> dict[str, Any]:
    """One row in cnn_dailymail's schema, without its id."""
    slots = {
        "place": rng.choice(PLACES),
        "town": rng.choice(TOWNS),
        "day": rng.choice(WEEKDAYS),
        "name": person(rng)[0],
        "animal": rng.choice(ANIMALS),
        "count": rng.choice(AMOUNTS),
    }
    (event, event_line), (who, who_line), (toll, toll_line) = (
        [text.format(**slots) for text in rng.choice(kind)] for kind in (EVENTS, PEOPLE, TOLLS)
    )
    joined, counted = rng.random() < 0.25, rng.random() < 0.25
    salient = [f"{event} and {who} ."] if joined else [f"{event} .", f"{who} ."]
    lines = [f"{event_line} ; {who_line} ."] if joined else [f"{event_line} .", f"{who_line} ."]
    if counted and not joined:
        salient.append(f"{toll} .")
        lines.append(f"{toll_line} .")
    scenery = [_filled(rng, pattern) for pattern in rng.sample(SCENERY, rng.randint(5, 8) - len(salient))]
    places = sorted(rng.sample(range(1, len(salient) + len(scenery)), len(salient)))  # never the lead sentence
    sentences = scenery
    for place, sentence in zip(places, salient, strict=True):
        sentences.insert(place, sentence)
    return {"article": " ".join(sentences), "highlights": "\n".join(lines)}
