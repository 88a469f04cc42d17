"""Shifts: what each changes, that all of it is right afterwards, and that the same row is always changed alike."""

import json
import re
from functools import cache, partial
from itertools import product
from random import Random

import pytest

from fixtures.session import check_grid
from tunegrid import ROOT
from tunegrid.data.shifts import (
    SHIFTS,
    aside,
    cased,
    contracted,
    distracted,
    edited,
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
from tunegrid.errors import InputError
from tunegrid.grid.cells import study
from tunegrid.grid.tasks import QA, SA, SUM, Problem, Shift
from tunegrid.lab.micro.reviews import HEDGES, VERDICTS
from tunegrid.lab.micro.words import GOOD

FILES = {"sa": "amazon_polarity/train", "qa": "squad/validation", "sum": "cnn_dailymail/test"}
TASKS = {task.id: task for task in (SA, QA, SUM)}
CASES = [(name, shift) for name, shift in product(TASKS, SHIFTS) if TASKS[name].problem in shift.problems]


@cache
def rows_of(task):
    lines = (ROOT / "fixtures" / "data" / f"{FILES[task]}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


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
    task, rows = TASKS[name], rows_of(name)
    new = shifted_rows(task, rows, shift)
    if shift.turns:
        assert all((row == old) == (row[task.target] == old[task.target]) for old, row in zip(rows, new, strict=True))
        assert rows != new
    if not shift.turns and shift.id not in ("renamed", "upper", "lower"):
        assert [_said(row[task.target]) for row in new] == [_said(row[task.target]) for row in rows]


def _said(target):
    return target["text"] if isinstance(target, dict) else target


@pytest.mark.parametrize(("name", "shift"), CASES, ids=lambda value: getattr(value, "id", value))
def test_a_row_is_always_changed_alike_whatever_was_changed_before(name, shift):
    some = rows_of(name)[:40]
    assert shifted_rows(TASKS[name], some, shift) == shifted_rows(TASKS[name], some, shift)


@pytest.mark.parametrize("name", TASKS)
def test_typos_at_a_rate_of_0_leave_every_row_as_it_is(name):
    shift = Shift(id="typos0", meaning="none", change=partial(typos, share=0.0))
    assert shifted_rows(TASKS[name], rows_of(name), shift) == rows_of(name)


def test_every_quick_review_turns_into_the_one_that_its_verdict_has_as_its_opposite():
    """By the grammar that wrote them, which the shift does not know: of each pair of verdicts one stands before, one after."""
    patterns = [(_pattern(good), _pattern(bad)) for good, bad in VERDICTS]
    rows = rows_of("sa")
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


def test_edits_are_made_from_left_to_right():
    assert edited("abcdef", [(4, 5, ""), (0, 2, "XYZ"), (3, 3, "-")]) == "XYZc-df"


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
    ],
)
def test_contractions_go_both_ways(long, short):
    assert contracted(SA, review(long), Random(0))["content"] == short
    assert expanded(SA, review(short), Random(0))["content"] == long


def test_cannot_is_contracted_and_a_knot_is_not():
    assert contracted(SA, review("i cannot tie a knot"), Random(0))["content"] == "i can't tie a knot"


def test_a_name_is_another_one_of_its_group_everywhere_and_in_the_answer():
    row = renamed(QA, question("Anna met david . anna left .", "who met david ?", "david"), Random(0))
    woman, man = row["context"].split()[0], row["answers"]["text"][0]
    assert row["context"] == f"{woman} met {man} . {woman.lower()} left ."
    assert row["question"] == f"who met {man} ?"
    assert woman.istitle()
    assert {woman.lower(), man}.isdisjoint({"anna", "david"})
    assert row["answers"]["answer_start"] == [row["context"].index(man)]


def test_a_summary_tells_the_new_name():
    row = renamed(SUM, report("anna fell .", "anna hurt ."), Random(0))
    assert row["article"].split()[0] == row["highlights"].split()[0] != "anna"


def test_idle_sentences_are_written_as_the_text_is():
    assert aside(SA, review("it is good ."), Random(0))["content"].startswith("it is good . ")
    assert re.fullmatch(r"It is good\. [A-Z][a-z ]+\.", aside(SA, review("It is good."), Random(0))["content"])
    assert longer(SUM, report("ann fell .", "x"), Random(0))["article"].count(" .") == 4


def test_sentences_stay_whole_in_another_order():
    row = reordered(SUM, report("a b . c d . e f .", "x"), Random(1))
    assert row["article"] != "a b . c d . e f ."
    assert sorted(re.findall(r"[a-f] [a-f] \.", row["article"])) == ["a b .", "c d .", "e f ."]
    assert sorted(row["article"].split()) == sorted(["a", "b", ".", "c", "d", ".", "e", "f", "."])


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


@pytest.mark.parametrize("first", [True, False])
def test_an_answer_at_either_end_of_a_passage_keeps_its_words(first):
    told = "ann founded the old mill"
    row = distracted(QA, question(told, "who founded the old mill ?", "ann"), Random(0), first=first)
    assert row["answers"] == {"text": ["ann"], "answer_start": [row["context"].index("ann")]}
    row = distracted(QA, question(told, "who founded the old mill ?", "mill"), Random(0), first=first)
    assert row["answers"]["text"] == ["mill"]


def test_a_question_that_names_nothing_has_no_distracting_sentence():
    row = question("the mill opened in 1931 .", "when did it open ?", "1931")
    assert distracted(QA, row, Random(0), first=True) == row


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


@pytest.mark.parametrize("content", ["it is not good .", "overall i would buy it again . in short i do regret it ."])
def test_a_review_without_one_known_verdict_stays(content):
    assert negated(SA, review(content), Random(0)) == review(content)


def test_only_the_answers_own_number_becomes_another():
    row = renumbered(QA, question("it closed in 1931 . it burned in may 1931 .", "when ?", "may 1931"), Random(0))
    year = row["answers"]["text"][0].removeprefix("may ")
    assert row["context"] == f"it closed in 1931 . it burned in may {year} ."
    assert year != "1931"
    assert year[:2] == "19"


def test_answers_without_a_number_stay():
    row = question("ann lives in rome .", "where ?", "rome")
    assert renumbered(QA, row, Random(0)) == row


def test_a_summary_without_a_name_does_not_turn():
    row = report("anna saw a fire .", "fire .")
    assert renamed_in_both(SUM, row, Random(0)) == row


# What a shift says of itself is held to it


def test_a_shift_that_changes_a_label_must_say_so():
    liar = Shift(id="liar", meaning="-", change=lambda task, row, rng: dict(row) | {"label": 0}, problems=(Problem.CLASSIFY,))
    with pytest.raises(InputError, match=r"^shift 'liar', row 1: it changes the label; such a shift says turns=True$"):
        shifted_rows(SA, [review("bad", 0), review("good", 1)], liar)


def test_one_that_turns_nothing_must_not_say_so():
    still = Shift(id="still", meaning="-", change=lambda task, row, rng: dict(row) | {"title": "x"}, turns=True)
    with pytest.raises(InputError, match=r"^shift 'still', row 0: it says that it turns the target, which stays 1$"):
        shifted_rows(SA, [review("good", 1)], still)


def test_one_that_loses_the_answer_is_refused():
    cut = Shift(id="cut", meaning="-", change=lambda task, row, rng: dict(row) | {"context": row["context"][1:]})
    with pytest.raises(InputError, match=r"^shift 'cut', row 0 \(id 1\): answer 'rome' does not stand at answer_start"):
        shifted_rows(QA, [question("ann lives in rome .", "where ?", "rome")], cut)


def test_a_user_adds_a_shift_under_a_name_of_its_own():
    grid, own = study(), Shift(id="loud", meaning="!", change=lambda task, row, rng: dict(row))
    grid.add_shift(own)
    assert grid.shifts == {"loud": own}
    with pytest.raises(InputError, match="is in the grid already"):
        grid.add_shift(own)
    with pytest.raises(InputError, match="stands for something else"):
        grid.add_shift(Shift(id="plain", meaning="-", change=own.change))


def test_a_name_of_the_suites_own_shifts_is_taken():
    grid = study()
    grid.add_shift(SHIFTS[0])  # whose name could be a part of a file, as every shift's must
    with pytest.raises(InputError, match=r"^shift 'typos2' is the suite's own; give yours another id$"):
        check_grid(grid)
