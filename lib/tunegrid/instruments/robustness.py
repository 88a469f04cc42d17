"""Scores a trained cell on shifted (changed) rows; some shifts change the right answer.

Text in production contains typos, short forms and names that training text does not (CheckList,
Ribeiro et al. 2020). A shift is a function of a task, a row and a random generator; the row that it
returns has the right target. Some shifts keep the target, although the start of an answer may move
with the text before it. Others turn (change) the target, but only if the new one is known (contrast
sets, Gardner et al. 2020). A row with nothing to change is returned unchanged.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Any

import pandas as pd

from tunegrid.data.sources import Row, answer_texts
from tunegrid.data.splits import check_row
from tunegrid.errors import InputError
from tunegrid.grid.tasks import Problem, Task
from tunegrid.instruments import Figure, Instrument, Shift, tidy
from tunegrid.instruments.trained import TrainedCell
from tunegrid.run.evaluate import Evaluation

SHIFTED_ROWS = 400  # maximum number of rows per shift; enough to detect a 2-point drop
FOLLOWED = 50.0  # percent of twins; a coin toss gets this many right
FEWEST = 10  # a judgement needs at least this many correctly answered rows
SHIFT_SEED = 0  # selects the same rows for every cell and training seed
Edit = tuple[int, int, str]  # start and end of characters in a text, and their replacement
Find = Callable[[str, Random], list[Edit]]
RowMapping = Mapping[str, Any]
Tokens = list[list[list[int]]]  # token ids by row and feature


class Robustness(Instrument):
    """Points on changed rows, whether or not the change affects the right answer."""

    id = "robustness"
    question = (
        "how robust is it? Points on changed rows; "
        "percent of correct rows whose twin with a new answer is correct, too"
    )
    figures = {  # noqa: RUF012
        "points": Figure(shown=".1f"),
        "change": Figure(better="higher", margin=2.0, shown="+.1f"),
        "right": Figure(shown=".1f"),
        "turned": Figure(better="higher", margin=5.0, shown=".1f"),
        "repeated": Figure(),
        "read": Figure(),
        "cut short": Figure(),
    }

    def measure(self, cell: TrainedCell, before: Any) -> pd.DataFrame:
        """Measures every shift, built-in or the user's, that suits the task and changes a row.

        If a shift that keeps the target changes no token of any row, all rows are scored again, to
        check that their points stay equal.
        """
        task = cell.cell.task
        profile = cell.cell.profile
        number = len(cell.test_rows)
        sample = sorted(Random(SHIFT_SEED).sample(range(number), min(SHIFTED_ROWS, number)))
        rows = [cell.test_rows[i] for i in sample]
        names = [cell.row_names[i] for i in sample]
        plain = cell.score(rows)
        repeat = cell.score([dict(row) for row in rows])
        metric = task.main_score
        if metric not in plain.examples:
            metric = next(iter(plain.examples))
        points = plain.examples[metric]
        tokens = row_tokens(cell, rows)
        lines = [
            tidy("points", points, part="plain", row=names),
            tidy("repeated", float(points == repeat.examples[metric])),
            tidy("cut short", float(bool(profile.changes or profile.train_rows))),
        ]
        for shift in (*SHIFTS, *cell.grid.shifts.values()):
            if task.problem not in shift.problems:
                continue
            new = shifted_rows(task, rows, shift)
            changed = [i for i, row in enumerate(rows) if new[i] != row]
            if changed and shift.turns:
                lines += twin_lines(cell, shift, plain, new, changed, names)
            elif changed:
                new_tokens = row_tokens(cell, [new[i] for i in changed])
                token_changes = 0
                for i, ids in zip(changed, new_tokens, strict=True):
                    token_changes += tokens[i] != ids
                scored = changed if token_changes else range(len(new))
                new_scores = cell.score([new[i] for i in scored]).examples[metric]
                new_points = list(points)
                for i, score in zip(scored, new_scores, strict=True):
                    new_points[i] = score
                changes = [after - before for before, after in zip(points, new_points, strict=True)]
                note = shift.meaning
                lines.append(tidy("points", new_points, part=shift.id, row=names, note=note))
                lines.append(tidy("change", changes, part=shift.id, row=names))
                lines.append(tidy("read", float(token_changes), part=shift.id))
        return pd.concat(lines)

    def objections(self, figures: pd.DataFrame) -> Iterator[str]:
        """Objects to points that change without reason, and to answers that ignore a new target.

        Answers are not judged if few rows were answered correctly, or if the profile changes the
        recipe or limits the training rows, since the model may not have learned the decisive words.
        """
        groups = figures.groupby(["figure", "part"], sort=False).value
        means = groups.mean()
        counts = groups.size()
        if not means["repeated", ""]:
            cause = "unchanged rows score differently the second time"
            yield f"{cause}: drops cannot be told from noise"
        for (figure, part), mean in means.items():
            changes = figures[(figures.figure == "change") & (figures.part == part)].value
            if figure == "read" and not mean and changes.any():
                yield f"shift {part} changes no token that the model reads, but points differ"
            count = counts[figure, part]
            is_judged = figure == "turned" and not means["cut short", ""] and count >= FEWEST
            if is_judged and mean <= FOLLOWED:
                yield (
                    f"shift {part} changes the right answer, but only {mean:.0f} % of the twins "
                    f"of {count} correctly answered rows are correct: "
                    "the model hardly uses the decisive words"
                )


def row_tokens(cell: TrainedCell, rows: Sequence[Row]) -> Tokens:
    """The ids of the tokens that the model reads, by row and feature."""
    tokens: Tokens = [[] for _ in rows]
    for feature in cell.codec.encode(rows, training=False):
        tokens[feature.example].append(feature.input_ids)
    return tokens


def twin_lines(
    cell: TrainedCell,
    shift: Shift,
    plain: Evaluation,
    new: Sequence[Row],
    changed: Sequence[int],
    names: Sequence[str],
) -> Iterator[pd.DataFrame]:
    """Yields lines that say which rows, and which of their twins, were answered correctly.

    A row's twin is the changed row with its new right answer. Twins of incorrectly answered rows
    are omitted.
    """
    task = cell.cell.task
    twins = cell.score([new[i] for i in changed])
    right = dict[str, float]()
    right_twins = dict[str, float]()
    for i, twin, answer in zip(changed, twins.rows, twins.predictions, strict=True):
        name = names[i]
        right[name] = 100.0 * follows(task, twin, plain.rows[i], plain.predictions[i].value)
        if right[name]:
            right_twins[name] = 100.0 * follows(task, plain.rows[i], twin, answer.value)
    yield tidy("right", list(right.values()), part=shift.id, row=list(right), note=shift.meaning)
    yield tidy("turned", list(right_twins.values()), part=shift.id, row=list(right_twins))


def follows(task: Task, twin: Row, row: Row, answer: Any) -> bool:
    """Checks whether an answer fits the row rather than its twin.

    A label must equal the row's. An answer or a summary must contain all words that only the row's
    target has, and none of the words that only the twin's target has.
    """
    if task.problem is Problem.CLASSIFY:
        return bool(answer == row[task.target])
    target = _words(row[task.target])
    twin_target = _words(twin[task.target])
    words = _words(answer)
    return target - twin_target <= words and not words & (twin_target - target)


def _words(target: Any) -> set[str]:
    texts = target["text"] if isinstance(target, dict) else [target]
    return set(" ".join(texts).lower().split())


# Edits, which keep answers in the right place


def rewrite_row(
    task: Task,
    row: RowMapping,
    find: Find,
    rng: Random,
    *,
    inside: bool,
    columns: Sequence[str] = (),
) -> Row:
    """Copies a row and applies the edits that `find` returns for `columns`, by default all texts.

    In a passage with answers, edits that cross the edge of an answer are dropped, as are edits
    within an answer unless `inside`.
    """
    new = dict(row)
    for column in columns or (*task.text, *task.text_pair):
        text = row[column]
        edits = find(text, rng)
        if task.problem is Problem.EXTRACT and column == task.text_pair[0]:
            spans = _spans(task, row)
            edits = [edit for edit in edits if _keeps_answers(edit, spans, inside)]
            new[task.target] = _move_answers(row[task.target], text, edits, spans)
        new[column] = apply_edits(text, edits)
    return new


def _keeps_answers(edit: Edit, spans: Sequence[tuple[int, int]], inside: bool) -> bool:
    start, end, _ = edit
    for first, last in spans:
        is_inside = first <= start and end <= last
        if end > first and start < last and not (inside and is_inside):
            return False
    return True


def apply_edits(text: str, edits: Sequence[Edit]) -> str:
    """Applies edits, which must not overlap, to a text."""
    new_text = ""
    position = 0
    for start, end, replacement in sorted(edits):
        new_text += text[position:start] + replacement
        position = end
    return new_text + text[position:]


def _spans(task: Task, row: RowMapping) -> list[tuple[int, int]]:
    starts = row[task.target]["answer_start"]
    texts = answer_texts(task, dict(row))
    return [(start, start + len(text)) for start, text in zip(starts, texts, strict=True)]


def _move_answers(
    answers: RowMapping,
    text: str,
    edits: Sequence[Edit],
    spans: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """The answers after the edits, with their new starts and texts."""

    def moved(position: int, *, end: bool) -> int:
        new_position = position
        for edit_start, edit_end, replacement in edits:
            is_before = edit_start < position if end else edit_end <= position
            if is_before:
                new_position += len(replacement) - (edit_end - edit_start)
        return new_position

    new = apply_edits(text, edits)
    starts = [moved(start, end=False) for start, _ in spans]
    ends = [moved(end, end=True) for _, end in spans]
    texts = [new[start:end] for start, end in zip(starts, ends, strict=True)]
    return dict(answers) | {"text": texts, "answer_start": starts}


# Shifts that keep the target


def typos(task: Task, row: RowMapping, rng: Random) -> Row:
    """Swaps neighbouring letters outside answers, each possible pair with a chance of 5 %."""

    def find(text: str, rng: Random) -> list[Edit]:
        edits = list[Edit]()
        free_from = 0
        for start in range(len(text) - 1):
            left = text[start]
            right = text[start + 1]
            can_swap = left.isalpha() and right.isalpha() and left != right
            if start >= free_from and can_swap and rng.random() < 0.05:
                edits.append((start, start + 2, right + left))
                free_from = start + 2
        return edits

    return rewrite_row(task, row, find, rng, inside=False)


VERBS = "would|could|should|do|does|did|is|are|was|were|has|have|had|can|will"
LONG_FORM = re.compile(rf"\b({VERBS}) ?(?<=[ n])not\b", re.IGNORECASE)
STEMS = {"can": "ca", "will": "wo"}


def contracted(task: Task, row: RowMapping, rng: Random) -> Row:
    """Contracts "would not" to "wouldn't", "can not" to "can't" and so on, outside answers."""

    def find(text: str, rng: Random) -> list[Edit]:
        edits = list[Edit]()
        for match in LONG_FORM.finditer(text):
            verb = match[1].lower()
            edits.append((*match.span(), _match_case(match[1], STEMS.get(verb, verb) + "n't")))
        return edits

    return rewrite_row(task, row, find, rng, inside=False)


def _match_case(word: str, new_word: str) -> str:
    """Gives the new word the case of the old word."""
    if word.isupper() and len(word) > 1:
        return new_word.upper()
    if word[:1].isupper():
        return new_word[:1].upper() + new_word[1:]
    return new_word


# A distracting sentence (AddSent, Jia and Liang 2017) repeats the question's words about another
# person or thing, with an answer of the same kind

WOMENS_NAMES = (
    "anna|bella|clara|diana|ella|fiona|helen|irene"  # part of a pattern
    "|julia|karen|laura|maria|nora|olga|paula|rosa|sarah|tina|wendy"
)
MENS_NAMES = (
    "alan|brian|carl|david|edgar|george|henry|ivan|jack"  # part of a pattern
    "|kevin|leo|martin|noah|oscar|peter|quinn|robert|samuel|victor"
)
GIVEN_NAMES = re.compile(rf"\b({WOMENS_NAMES}|{MENS_NAMES})\b", re.IGNORECASE)
# Pronouns stay correct if a name is replaced by another name of the same group.
GROUPS = (WOMENS_NAMES.split("|"), MENS_NAMES.split("|"))
NEAR = {
    "north": "south",
    "river": "lake",
    "castle": "garden",
    "summer": "winter",
    "iron": "silver",
    "old": "new",
    "south": "north",
    "lake": "river",
    "garden": "castle",
    "winter": "summer",
    "silver": "iron",
    "new": "old",
    "royal": "grand",
    "grand": "royal",
    "hill": "lake",
}
NEARBY = re.compile(rf"\b({'|'.join(NEAR)})\b", re.IGNORECASE)
WRONG_ANSWERS = (  # by a word in the question that shows the kind of answer
    (re.compile(r"\b(who|whom|whose)\b", re.IGNORECASE), "jack moss"),
    (re.compile(r"\b(when|year|date)\b", re.IGNORECASE), "may 1951"),
    (re.compile(r"\b(where|town|city|country|place)\b", re.IGNORECASE), "newport"),
    (re.compile(r"\b(how much|how many|how long|how old)\b", re.IGNORECASE), "57 pounds"),
    (re.compile(r"", re.IGNORECASE), "music"),
)


def distracted(task: Task, row: RowMapping, rng: Random) -> Row:
    """Adds a distracting sentence after the passage, if the question can be reworded for it.

    Returns the row unchanged if the passage contains the reworded question or the wrong answer.
    """
    column = task.text_pair[0]
    passage = row[column]
    question = row[task.text[-1]]
    new_question = _change_question(question, rng)
    wrong_answer = next(answer for kind, answer in WRONG_ANSWERS if kind.search(question))
    if new_question == question or wrong_answer in passage.lower() or new_question in passage:
        return dict(row)
    words = f"{new_question.rstrip(' ?')} : {wrong_answer}"
    sentence = f"{words[:1].upper()}{words[1:]}."
    if passage.rstrip().endswith(" ."):  # the passage is tokenized, without capitals
        sentence = f"{words} ."
    edit = (len(passage), len(passage), f" {sentence}")
    return rewrite_row(task, row, lambda text, _: [edit], rng, inside=False, columns=[column])


def _change_question(question: str, rng: Random) -> str:
    """Rewords the question to ask about another person or, if it names none, another thing."""

    def rename(match: re.Match[str]) -> str:
        name = match[1].lower()
        group = GROUPS[0] if name in GROUPS[0] else GROUPS[1]
        new_name = rng.choice([choice for choice in group if choice != name])
        return _match_case(match[1], new_name)

    text = GIVEN_NAMES.sub(rename, question)
    if text != question:
        return text
    return NEARBY.sub(lambda match: _match_case(match[1], NEAR[match[1].lower()]), question)


# Shifts that turn the target where the new target is known

VERDICT_OPENERS = "overall|all in all|in the end|in short|after a month"
SAID = (
    "buy it again|regret it|recommend it|complain about it|send it back"
    r"|a waste of money|keep its promise|let me down|a [a-z]+ [a-z]+"
)
VERDICT = re.compile(
    rf"\b((?:{VERDICT_OPENERS}) (?:i (?:would|do|can)|it (?:was|did|is)))"
    rf"( not)?((?: ,[^.,]*,| really| truly)? (?:{SAID}) \.)",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(?<!\d)(\d{2}|\d{4})(?!\d)")


def negated(task: Task, row: RowMapping, rng: Random) -> Row:
    """Adds or removes "not" in a review's only verdict ("overall i would buy it again")."""
    column = task.text[-1]
    verdicts = list(VERDICT.finditer(row[column]))
    if len(verdicts) != 1 or len(task.labels) != 2:
        return dict(row)
    start, negation, ending = verdicts[0].groups()
    new_negation = "" if negation else _match_case(start, " not")
    edit = (*verdicts[0].span(), f"{start}{new_negation}{ending}")
    text = apply_edits(row[column], [edit])
    return dict(row) | {column: text, task.target: 1 - row[task.target]}


def renumbered(task: Task, row: RowMapping, rng: Random) -> Row:
    """Changes the only two- or four-digit number in an answer, such as a year or an amount.

    Returns the row unchanged unless all annotated answers share one span.
    """
    spans = _spans(task, row)
    numbers = list(NUMBER.finditer(row[task.target]["text"][0]))
    if len(set(spans)) != 1 or len(numbers) != 1:
        return dict(row)
    column = task.text_pair[0]
    old = numbers[0][0]
    last_digits = range(12, 99) if len(old) == 2 else range(21, 81)
    choices = [f"{old[:-2]}{digits}" for digits in last_digits]
    choices = [number for number in choices if number not in row[column]]
    if not choices:
        return dict(row)
    start = spans[0][0] + numbers[0].start()
    edit = (start, start + len(old), rng.choice(choices))
    return rewrite_row(task, row, lambda text, _: [edit], rng, inside=True, columns=[column])


def renamed(task: Task, row: RowMapping, rng: Random) -> Row:
    """Replaces known given names throughout a row, if its summary contains one."""
    columns = (*task.text, *task.text_pair, task.target)
    names = set[str]()
    for column in columns:
        names.update(name.lower() for name in GIVEN_NAMES.findall(row[column]))
    renaming: dict[str, str] = {}
    for group in GROUPS:
        old_names = sorted(names.intersection(group))
        new_names = [name for name in group if name not in names]
        renaming |= dict(zip(old_names, rng.sample(new_names, len(new_names)), strict=False))

    def find(text: str, rng: Random) -> list[Edit]:
        edits = list[Edit]()
        for match in GIVEN_NAMES.finditer(text):
            new_name = renaming.get(match[1].lower())
            if new_name:
                edits.append((*match.span(), _match_case(match[1], new_name)))
        return edits

    new = rewrite_row(task, row, find, rng, inside=True, columns=columns)
    return new if new[task.target] != row[task.target] else dict(row)


SHIFTS = (
    Shift(id="typos5", meaning="typos at 5 % of all letters", change=typos),
    Shift(id="contracted", meaning="wouldn't for would not", change=contracted),
    Shift(
        id="distracted2",
        meaning="a distracting sentence last",
        change=distracted,
        problems=(Problem.EXTRACT,),
    ),
    Shift(
        id="negated",
        meaning="the verdict negated",
        change=negated,
        problems=(Problem.CLASSIFY,),
        turns=True,
    ),
    Shift(
        id="renumbered",
        meaning="another number as the answer",
        change=renumbered,
        problems=(Problem.EXTRACT,),
        turns=True,
    ),
    Shift(
        id="named",
        meaning="another name in the summary",
        change=renamed,
        problems=(Problem.GENERATE,),
        turns=True,
    ),
)


def shifted_rows(task: Task, rows: Sequence[Row], shift: Shift) -> list[Row]:
    """Applies a shift to all rows.

    Raises InputError if a new row is invalid, or if its target contradicts `turns`.
    """
    source = f"shift {shift.id!r}"
    new_rows: list[Row] = []
    for index, row in enumerate(rows):
        new = shift.change(task, row, Random(f"{SHIFT_SEED} {shift.id} {index}"))
        check_row(task, new, index, source)
        fault = ""
        keeps_target = new[task.target] == row[task.target]
        if new != row and shift.turns and keeps_target:
            fault = f"it says turns=True, but the target stays {new[task.target]!r}"
        if task.problem is Problem.CLASSIFY and not shift.turns and not keeps_target:
            fault = "it changes the label; such a shift says turns=True"
        if fault:
            raise InputError(f"{source}, row {index}: {fault}")
        new_rows.append(new)
    return new_rows


INSTRUMENT = Robustness()
