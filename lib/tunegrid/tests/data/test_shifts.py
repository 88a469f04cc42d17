"""Shifts: what each changes, that all of it is right afterwards, and that the same row is always changed alike."""

import re
from functools import partial
from itertools import product
from random import Random

import pytest
from tunegrid.data.shifts import (
    SHIFTS,
    aside,
    cased,
    contracted,
    distracted,
    expanded,
    longer,
    negated,
    renamed,
    renamed_in_both,
    renumbered,
    reordered,
    shifted_rows,
    typos,
    unpunctuated,
)

from fixtures.session import check_grid
from tunegrid.errors import InputError
from tunegrid.grid.cells import study
from tunegrid.grid.tasks import QA, SA, SUM, Shift
from tunegrid.lab.micro.reviews import HEDGES, VERDICTS
from tunegrid.lab.micro.words import GOOD
from tunegrid.tests.small import rows_of

FILES = {"sa": "amazon_polarity/train", "qa": "squad/validation", "sum": "cnn_dailymail/test"}
FRONT = partial(distracted, first=True)
TASKS = {task.id: task for task in (SA, QA, SUM)}
CASES = [(name, shift) for name, shift in product(TASKS, SHIFTS) if TASKS[name].problem in shift.problems]


def review(content, label=1):
    return {"label": label, "title": "my lamp", "content": content}


def question(context, asked, answer):
    answers = {"text": [answer], "answer_start": [context.index(answer)]}
    return {"id": "1", "title": "t", "context": context, "question": asked, "answers": answers}


def report(article, highlights):
    return {"article": article, "highlights": highlights, "id": "1"}


# Properties over all quick rows


@pytest.mark.parametrize(("name", "shift"), CASES, ids=lambda value: getattr(value, "id", value))
def test_the_target_of_every_quick_row_is_right_afterwards(name, shift):
    """`shifted_rows` checks each row as data is checked: an answer stands at its start, a label exists."""
    task, rows = TASKS[name], rows_of(FILES[name])
    new = shifted_rows(task, rows, shift)
    assert shifted_rows(task, rows[:40], shift) == new[:40]  # a row is always changed alike
    if shift.turns:
        assert all((row == old) == (row[task.target] == old[task.target]) for old, row in zip(rows, new, strict=True))
        assert rows != new
    if not shift.turns and shift.id not in ("renamed", "upper", "lower"):
        assert [_said(row[task.target]) for row in new] == [_said(row[task.target]) for row in rows]


def _said(target):
    return target["text"] if isinstance(target, dict) else target


def test_every_quick_review_turns_into_the_one_that_its_verdict_has_as_its_opposite():
    """By the grammar that wrote them, which the shift does not know: of each pair of verdicts one stands before, one after."""
    patterns = [(_pattern(good), _pattern(bad)) for good, bad in VERDICTS]
    rows = rows_of(FILES["sa"])
    turned = shifted_rows(SA, rows, _shift("negated"))
    for old, new in zip(rows, turned, strict=True):
        before, after = (_verdict(row["content"], patterns) for row in (old, new))
        assert (before, after) == ((old["label"],), (1 - old["label"],)), new["content"]


def _pattern(verdict):
    words = re.escape(verdict).replace(r"\{good\}", "[a-z]+").replace(r"\{bad\}", "[a-z]+").replace(r"\{product\}", "[a-z]+")
    hedges = "|".join(re.escape(hedge) for hedge in HEDGES)
    return re.compile(rf"(?:overall|all in all|in the end|in short|after a month) {words} \.".replace(r"\{\}", f"(?:{hedges})"))


def _verdict(content, patterns):
    """The labels of verdicts that stand in a review; one with an adjective is told by its negation and the adjective."""
    text, found = content.lower(), []
    for good, bad in patterns:
        for label, pattern in ((1, good), (0, bad)):
            if match := pattern.search(text):
                adjective = re.search(r" a ([a-z]+) [a-z]+ \.$", match[0])
                side = (adjective[1] in GOOD) == (" not " not in f"{match[0]} ") if adjective else label == 1
                found.append(int(side))
    return tuple(dict.fromkeys(found))


def _shift(name):
    return next(shift for shift in SHIFTS if shift.id == name)


# One by one, by hand


def test_typos_swap_neighbours_and_spare_answers():
    row = typos(QA, question("ab cd", "ef ?", "cd"), Random(0), share=1.0)
    assert (row["context"], row["question"], row["answers"]) == ("ba cd", "fe ?", {"text": ["cd"], "answer_start": [3]})


def test_capital_letters_are_an_answers_too_and_no_letter_becomes_two():
    row = cased(QA, question("der fuß ist rot", "was ?", "fuß"), Random(0), change=str.upper)
    assert (row["context"], row["answers"]["text"]) == ("DER FUß IST ROT", ["FUß"])


def test_an_answer_follows_the_marks_that_go_in_front_of_it():
    row = unpunctuated(QA, question("well , then . in 3.5 years , ann left .", "who ?", "ann"), Random(0))
    assert row["context"] == "well then in 3.5 years ann left"
    assert row["answers"] == {"text": ["ann"], "answer_start": [23]}


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ("i would not , really , buy it", "i wouldn't , really , buy it"),
        ("It Can not be", "It Can't be"),
        ("I WILL NOT GO", "I WON'T GO"),
        ("i can not tie a knot", "i can't tie a knot"),
    ],
)
def test_contractions_go_both_ways(long, short):
    assert contracted(SA, review(long), Random(0))["content"] == short
    assert expanded(SA, review(short), Random(0))["content"] == long


def test_a_name_is_another_one_of_its_group_everywhere_and_in_the_answer():
    row = renamed(QA, question("Anna met david . anna left .", "who met david ?", "david"), Random(0))
    woman, man = row["context"].split()[0], row["answers"]["text"][0]
    assert row["context"] == f"{woman} met {man} . {woman.lower()} left ."
    assert row["question"] == f"who met {man} ?"
    assert woman.istitle()
    assert {woman.lower(), man}.isdisjoint({"anna", "david"})
    assert row["answers"]["answer_start"] == [row["context"].index(man)]


def test_idle_sentences_are_written_as_the_text_is():
    assert aside(SA, review("it is good ."), Random(0))["content"].startswith("it is good . ")
    assert re.fullmatch(r"It is good\. [A-Z][a-z ]+\.", aside(SA, review("It is good."), Random(0))["content"])
    assert longer(SUM, report("ann fell .", "x"), Random(0))["article"].count(" .") == 4


def test_sentences_stay_whole_in_another_order():
    row = reordered(SUM, report("a b . c d . e f .", "x"), Random(1))
    assert row["article"] != "a b . c d . e f ."
    assert sorted(re.findall(r"[a-f] [a-f] \.", row["article"])) == ["a b .", "c d .", "e f ."]
    assert sorted(row["article"].split()) == sorted(["a", "b", ".", "c", "d", ".", "e", "f", "."])


ENDS = [question("ann founded the old mill", "who founded the old mill ?", answer) for answer in ("ann", "mill")]


@pytest.mark.parametrize("first", [True, False])
def test_a_distracting_sentence_is_about_another_and_holds_no_right_answer(first):
    row = distracted(
        QA, question("the old mill opened in 1931 .", "when did the old mill open ?", "1931"), Random(0), first=first
    )
    sentence = "when did the new mill open : may 1951 ."
    told = "the old mill opened in 1931 ."
    assert row["context"] == (f"{sentence} {told}" if first else f"{told} {sentence}")
    start = row["answers"]["answer_start"][0]
    assert row["context"][start : start + 4] == "1931"
    for old in ENDS:  # an answer at either end of a passage keeps its words
        answers = distracted(QA, old, Random(0), first=first)["answers"]
        assert answers["text"] == old["answers"]["text"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("overall i would buy it again .", "overall i would not buy it again ."),
        ("in short it is not , i must say , a weak watch .", "in short it is , i must say , a weak watch ."),
        ("OVERALL IT DID LET ME DOWN .", "OVERALL IT DID NOT LET ME DOWN ."),
    ],
)
def test_a_verdict_turns_and_its_label(before, after):
    assert negated(SA, review(before, 1), Random(0)) == review(after, 0)
    assert negated(SA, review(after, 0), Random(0)) == review(before, 1)


def test_only_the_answers_own_number_becomes_another():
    row = renumbered(QA, question("it closed in 1931 . it burned in may 1931 .", "when ?", "may 1931"), Random(0))
    year = row["answers"]["text"][0].removeprefix("may ")
    assert row["context"] == f"it closed in 1931 . it burned in may {year} ."
    assert year != "1931"
    assert year[:2] == "19"


NOTHING_NAMED = question("the mill opened in 1931 .", "when did it open ?", "1931")


@pytest.mark.parametrize(
    ("task", "change", "row"),
    [
        (QA, FRONT, NOTHING_NAMED),
        (SA, negated, review("it is not good .")),  # no known verdict
        (SA, negated, review("overall i would buy it again . in short i do regret it .")),  # two
        (QA, renumbered, question("ann lives in rome .", "where ?", "rome")),
        (SUM, renamed_in_both, report("anna saw a fire .", "fire .")),
        *((QA, partial(typos, share=0.0), row) for row in (NOTHING_NAMED, question("ab cd", "ef ?", "cd"))),
    ],
)
def test_a_row_in_which_a_shift_finds_nothing_stays(task, change, row):
    assert change(task, row, Random(0)) == row


# What a shift says of itself is held to it


def lying(**changes):
    return {"meaning": "-", "change": lambda task, row, rng: dict(row) | changes}


ROME = question("ann lives in rome .", "where ?", "rome")


@pytest.mark.parametrize(
    ("shift", "task", "rows", "words"),
    [
        (Shift(id="liar", **lying(label=0)), SA, [review("bad", 0), review("good", 1)], "row 1: it changes the label"),
        (Shift(id="still", **lying(title="x"), turns=True), SA, [review("good", 1)], "row 0: it says that it turns the target"),
        (Shift(id="cut", **lying(context="nn lives in rome .")), QA, [ROME], "row 0 .*: answer 'rome' does not stand at"),
    ],
)
def test_a_shift_that_does_not_do_what_it_says_is_refused(shift, task, rows, words):
    with pytest.raises(InputError, match=f"^shift '{shift.id}', {words}"):
        shifted_rows(task, rows, shift)


def test_a_user_adds_a_shift_under_a_name_of_its_own():
    grid, own = study(), Shift(id="loud", **lying())
    grid.add_shift(own)
    assert grid.shifts == {"loud": own}
    for taken, words in ((own, "is in the grid already"), (Shift(id="plain", **lying()), "stands for something else")):
        with pytest.raises(InputError, match=words):
            grid.add_shift(taken)
    grid.add_shift(SHIFTS[0])  # whose name could be a part of a file, as every shift's must
    with pytest.raises(InputError, match="is the suite's own; give yours another id"):
        check_grid(grid)
