"""How robust is a trained cell? Points of test rows as shifts change them, and whether answers turn that must.

Text in use differs from text in training: typos, short forms, other names (CheckList, Ribeiro et al. 2020). A shift is a pure
function of a task, a row and a generator, and says what is right afterwards. Most keep it: an answer's start follows the text
in front of it. Those that turn it (contrast sets, Gardner et al. 2020) are made only where the new target is known. None knows
a data set: a row that has nothing to change comes back as it is, and keeps its points.
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

ROWS = 400  # test rows at most: a drop of 2 points of 100 is then told from none; every shift costs an evaluation of them
FOLLOWED = 50.0  # percent of the twins of rows that are answered rightly; a coin's toss gives as many
FEWEST = 10  # of such rows
SEED = 0  # of all shifts: the same rows for every cell and every seed of training
Edit = tuple[int, int, str]  # a text's characters from one place to another, and what takes their place
Find = Callable[[str, Random], list[Edit]]
RowMapping = Mapping[str, Any]
Tokens = list[list[list[int]]]  # of each row, of each of its features


class Robustness(Instrument):
    """Changed rows keep their answers, or turn them."""

    id = "robustness"
    question = "how robust is it? Points on changed rows; percent of correct rows whose twin with a new answer is correct, too"
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
        """Every shift that changes any row, of the suite and of the user.

        Where a shift changes no token of any row, all rows are scored again: they must have the same points to the last bit.
        """
        task, profile = cell.cell.task, cell.cell.profile
        sample = sorted(Random(SEED).sample(range(len(cell.test_rows)), min(ROWS, len(cell.test_rows))))
        rows, names = [cell.test_rows[i] for i in sample], [cell.row_names[i] for i in sample]
        plain, repeat = cell.score(rows), cell.score([dict(row) for row in rows])
        metric = task.main_score if task.main_score in plain.examples else next(iter(plain.examples))
        points, tokens = plain.examples[metric], row_tokens(cell, rows)
        lines = [
            tidy("points", points, part="plain", row=names),
            tidy("repeated", float(points == repeat.examples[metric])),
            tidy("cut short", float(bool(profile.changes or profile.train_rows))),
        ]
        for shift in (*SHIFTS, *cell.grid.shifts.values()):
            new = shifted_rows(task, rows, shift) if task.problem in shift.problems else rows
            places = [i for i, (old, row) in enumerate(zip(rows, new, strict=True)) if row != old]
            if places and shift.turns:
                lines += contrast(cell, shift, plain, new, places, names)
            elif places:
                new_tokens = row_tokens(cell, [new[i] for i in places])
                token_changes = sum(tokens[i] != ids for i, ids in zip(places, new_tokens, strict=True))
                indexes, new_points = (places if token_changes else range(len(new))), list(points)
                for i, after in zip(indexes, cell.score([new[i] for i in indexes]).examples[metric], strict=True):
                    new_points[i] = after
                changes = [after - old for old, after in zip(points, new_points, strict=True)]
                lines.append(tidy("points", new_points, part=shift.id, row=names, note=shift.meaning))
                lines.append(tidy("change", changes, part=shift.id, row=names))
                lines.append(tidy("read", float(token_changes), part=shift.id))
        return pd.concat(lines)

    def objections(self, figures: pd.DataFrame) -> Iterator[str]:
        """Where points change without a reason, and where answers do not turn that must: invariance alone is none.

        A training that was cut short need not have learned what decides.
        """
        groups = figures.groupby(["figure", "part"], sort=False).value
        means, counts = groups.mean(), groups.size()
        if not means["repeated", ""]:
            yield "unchanged rows score differently the second time: drops cannot be told from noise"
        for (figure, part), mean in means.items():
            if figure == "read" and not mean and figures[(figures.figure == "change") & (figures.part == part)].value.any():
                yield f"shift {part} changes no token that the model reads, but points differ"
            count = counts[figure, part]
            if figure == "turned" and not means["cut short", ""] and count >= FEWEST and mean <= FOLLOWED:
                yield (
                    f"shift {part} changes the right answer, but only {mean:.0f} % of the twins of {count} correctly answered "
                    "rows are correct: the model hardly uses the decisive words"
                )


def row_tokens(cell: TrainedCell, rows: Sequence[Row]) -> Tokens:
    """What the model reads of each row."""
    tokens: Tokens = [[] for _ in rows]
    for feature in cell.codec.encode(rows, training=False):
        tokens[feature.example].append(feature.input_ids)
    return tokens


def contrast(
    cell: TrainedCell, shift: Shift, plain: Evaluation, new: Sequence[Row], changed: Sequence[int], names: Sequence[str]
) -> Iterator[pd.DataFrame]:
    """Whether each row that has a twin of another answer is answered rightly, and of those that are, whether its twin is."""
    twins, task = cell.score([new[i] for i in changed]), cell.cell.task
    right, right_twins = dict[str, float](), dict[str, float]()
    for i, twin, answer in zip(changed, twins.rows, twins.predictions, strict=True):
        right[names[i]] = 100.0 * follows(task, twin, plain.rows[i], plain.predictions[i].value)
        if right[names[i]]:
            right_twins[names[i]] = 100.0 * follows(task, plain.rows[i], twin, answer.value)
    yield tidy("right", list(right.values()), part=shift.id, row=list(right), note=shift.meaning)
    yield tidy("turned", list(right_twins.values()), part=shift.id, row=list(right_twins))


def follows(task: Task, other: Row, row: Row, answer: Any) -> bool:
    """Whether an answer is the row's and not that of the other, which asks the same of another text.

    A label is the row's or not. Of an answer or a summary, the words count that the row's target has and the other's has not:
    all of them are there, and none the other way round.
    """
    if task.problem is Problem.CLASSIFY:
        return bool(answer == row[task.target])
    target, others, words = _words(row[task.target]), _words(other[task.target]), _words(answer)
    return target - others <= words and not words & (others - target)


def _words(target: Any) -> set[str]:
    texts = target["text"] if isinstance(target, dict) else [target]
    return {word for text in texts for word in text.lower().split()}


# Edits, which answers follow


def rewrite_row(task: Task, row: RowMapping, find: Find, rng: Random, *, inside: bool, columns: Sequence[str] = ()) -> Row:
    """The row with edits in the columns that the task reads, or in some of them.

    An edit that would cut an answer in two is left out; `inside` says whether one within an answer is made.
    """
    new = dict(row)
    for column in columns or (*task.text, *task.text_pair):
        text, edits = row[column], find(row[column], rng)
        if task.problem is Problem.EXTRACT and column == task.text_pair[0]:
            spans = _spans(task, row)
            edits = [
                (start, end, new_text)
                for start, end, new_text in edits
                if all(end <= a or start >= b or (inside and a <= start and end <= b) for a, b in spans)
            ]
            new[task.target] = _move_answers(row[task.target], text, edits, spans)
        new[column] = apply_edits(text, edits)
    return new


def apply_edits(text: str, edits: Sequence[Edit]) -> str:
    """The text with all edits, none of which overlaps another."""
    parts, position = list[str](), 0
    for start, end, replacement in sorted(edits):
        parts += [text[position:start], replacement]
        position = end
    return "".join([*parts, text[position:]])


def _spans(task: Task, row: RowMapping) -> list[tuple[int, int]]:
    starts = row[task.target]["answer_start"]
    return [(start, start + len(text)) for start, text in zip(starts, answer_texts(task, dict(row)), strict=True)]


def _move_answers(answers: RowMapping, text: str, edits: Sequence[Edit], spans: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The answers where they now stand, with the words that stand there."""

    def grown(place: int, *, end: bool) -> int:
        before = [edit for edit in edits if (edit[0] < place if end else edit[1] <= place)]
        return place + sum(len(replacement) - (stop - start) for start, stop, replacement in before)

    new = apply_edits(text, edits)
    places = [(grown(start, end=False), grown(end, end=True)) for start, end in spans]
    return {**answers, "text": [new[start:end] for start, end in places], "answer_start": [start for start, _ in places]}


# What keeps the target


def typos(task: Task, row: RowMapping, rng: Random) -> Row:
    """Two neighbouring letters swapped, at 5 % of all letters; answers are spared."""

    def find(text: str, rng: Random) -> list[Edit]:
        edits, next_place = list[Edit](), 0
        for place in range(len(text) - 1):
            one, other = text[place], text[place + 1]
            if place >= next_place and one.isalpha() and other.isalpha() and one != other and rng.random() < 0.05:
                edits.append((place, place + 2, other + one))
                next_place = place + 2
        return edits

    return rewrite_row(task, row, find, rng, inside=False)


LONG = re.compile(r"\b(would|could|should|do|does|did|is|are|was|were|has|have|had|can|will) ?(?<=[ n])not\b", re.IGNORECASE)
STEMS = {"can": "ca", "will": "wo"}


def contracted(task: Task, row: RowMapping, rng: Random) -> Row:
    """Short forms: wouldn't for would not, can't for can not; answers are spared."""

    def find(text: str, rng: Random) -> list[Edit]:
        verbs = [(match, match[1].lower()) for match in LONG.finditer(text)]
        return [(*match.span(), _match_case(match[1], STEMS.get(verb, verb) + "n't")) for match, verb in verbs]

    return rewrite_row(task, row, find, rng, inside=False)


def _match_case(word: str, other: str) -> str:
    """The other word in the case of the first."""
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other


# A distracting sentence (AddSent, Jia and Liang 2017): the question's words about somebody else, and an answer of its kind

WOMEN = "anna|bella|clara|diana|ella|fiona|helen|irene|julia|karen|laura|maria|nora|olga|paula|rosa|sarah|tina|wendy"
MEN = "alan|brian|carl|david|edgar|george|henry|ivan|jack|kevin|leo|martin|noah|oscar|peter|quinn|robert|samuel|victor"
NAMES = re.compile(rf"\b({WOMEN}|{MEN})\b", re.IGNORECASE)
GROUPS = (WOMEN.split("|"), MEN.split("|"))  # a pronoun stays right where a name gives way to one of its group
PAIRS = (("north", "south"), ("river", "lake"), ("castle", "garden"), ("summer", "winter"), ("iron", "silver"), ("old", "new"))
NEAR = {**dict(PAIRS), **{other: one for one, other in PAIRS}, "royal": "grand", "grand": "royal", "hill": "lake"}
NEARBY = re.compile(rf"\b({'|'.join(NEAR)})\b", re.IGNORECASE)
KINDS = (  # what a question asks for by one of its words, and a wrong answer of that kind
    (re.compile(r"\b(who|whom|whose)\b", re.IGNORECASE), "jack moss"),
    (re.compile(r"\b(when|year|date)\b", re.IGNORECASE), "may 1951"),
    (re.compile(r"\b(where|town|city|country|place)\b", re.IGNORECASE), "newport"),
    (re.compile(r"\b(how much|how many|how long|how old)\b", re.IGNORECASE), "57 pounds"),
    (re.compile(r"", re.IGNORECASE), "music"),
)


def distracted(task: Task, row: RowMapping, rng: Random) -> Row:
    """Such a sentence behind the passage; none if the question names nothing that could be another."""
    column, question = task.text_pair[0], row[task.text[-1]]
    other = _other_question(question, rng)
    wrong_answer = next(answer for kind, answer in KINDS if kind.search(question))
    if other == question or wrong_answer in row[column].lower() or other in row[column]:
        return dict(row)
    words = f"{other.rstrip(' ?')} : {wrong_answer}"
    is_tokenized = row[column].rstrip().endswith(" .")  # its full stops and capitals are as the text has them
    sentence = f"{words} ." if is_tokenized else f"{words[:1].upper()}{words[1:]}."
    edit = (len(row[column]), len(row[column]), f" {sentence}")
    return rewrite_row(task, row, lambda text, _: [edit], rng, inside=False, columns=[column])


def _other_question(question: str, rng: Random) -> str:
    """The question about another person, or another thing of its kind."""

    def others(name: str) -> list[str]:
        return [other for group in GROUPS if name in group for other in group if other != name]

    text = NAMES.sub(lambda match: _match_case(match[1], rng.choice(others(match[1].lower()))), question)
    return text if text != question else NEARBY.sub(lambda match: _match_case(match[1], NEAR[match[1].lower()]), question)


# What turns the target: only if it is known how

OPENERS = "overall|all in all|in the end|in short|after a month"
SAID = (
    "buy it again|regret it|recommend it|complain about it|send it back|a waste of money|keep its promise|let me down"
    r"|a [a-z]+ [a-z]+"
)
VERDICT = re.compile(
    rf"\b((?:{OPENERS}) (?:i (?:would|do|can)|it (?:was|did|is)))( not)?((?: ,[^.,]*,| really| truly)? (?:{SAID}) \.)",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(?<!\d)(\d{2}|\d{4})(?!\d)")


def negated(task: Task, row: RowMapping, rng: Random) -> Row:
    """The one verdict of a review, negated, or no longer: "overall i would not buy it again". Other reviews stay."""
    column = task.text[-1]
    verdicts = list(VERDICT.finditer(row[column]))
    if len(verdicts) != 1 or len(task.labels) != 2:
        return dict(row)
    start, negation, rest = verdicts[0].groups()
    verdict = f"{start}{'' if negation else _match_case(start, ' not')}{rest}"
    text = apply_edits(row[column], [(*verdicts[0].span(), verdict)])
    return dict(row) | {column: text, task.target: 1 - row[task.target]}


def renumbered(task: Task, row: RowMapping, rng: Random) -> Row:
    """Another year or amount in the place of the answer's; rows of one answer that has one such number, others stay."""
    answers, spans = row[task.target], _spans(task, row)
    numbers = list(NUMBER.finditer(answers["text"][0]))
    if len(set(spans)) != 1 or len(numbers) != 1:
        return dict(row)
    column, old, place = task.text_pair[0], numbers[0][0], spans[0][0] + numbers[0].start()
    ends = range(12, 99) if len(old) == 2 else range(21, 81)
    choices = [new for end in ends if (new := f"{old[:-2]}{end}") not in row[column]]
    if not choices:
        return dict(row)
    edit = (place, place + len(old), rng.choice(choices))
    return rewrite_row(task, row, lambda text, _: [edit], rng, inside=True, columns=[column])


def renamed(task: Task, row: RowMapping, rng: Random) -> Row:
    """Every given name as another one, of women for women's and of men for men's, where the summary has one; others stay."""
    columns = (*task.text, *task.text_pair, task.target)
    names = {name.lower() for column in columns for name in NAMES.findall(row[column])}
    other: dict[str, str] = {}
    for group in GROUPS:
        old_names, new_names = sorted(names.intersection(group)), [name for name in group if name not in names]
        other |= dict(zip(old_names, rng.sample(new_names, len(new_names)), strict=False))

    def find(text: str, rng: Random) -> list[Edit]:
        matches = [match for match in NAMES.finditer(text) if match[1].lower() in other]
        return [(*match.span(), _match_case(match[1], other[match[1].lower()])) for match in matches]

    new = rewrite_row(task, row, find, rng, inside=True, columns=columns)
    return new if new[task.target] != row[task.target] else dict(row)


QA, SUM, SA = (Problem.EXTRACT,), (Problem.GENERATE,), (Problem.CLASSIFY,)
SHIFTS = (
    Shift(id="typos5", meaning="typos at 5 % of all letters", change=typos),
    Shift(id="contracted", meaning="wouldn't for would not", change=contracted),
    Shift(id="distracted2", meaning="a distracting sentence last", change=distracted, problems=QA),
    Shift(id="negated", meaning="the verdict negated", change=negated, problems=SA, turns=True),
    Shift(id="renumbered", meaning="another number as the answer", change=renumbered, problems=QA, turns=True),
    Shift(id="named", meaning="another name in the summary", change=renamed, problems=SUM, turns=True),
)


def shifted_rows(task: Task, rows: Sequence[Row], shift: Shift) -> list[Row]:
    """The rows as a shift changes them. Raises InputError if it contradicts what it says of a row's target."""
    new_rows: list[Row] = []
    for index, row in enumerate(rows):
        new, place = shift.change(task, row, Random(f"{SEED} {shift.id} {index}")), f"shift {shift.id!r}"
        check_row(task, new, index, place)
        if new != row and shift.turns and new[task.target] == row[task.target]:
            raise InputError(f"{place}, row {index}: it says turns=True, but the target stays {new[task.target]!r}")
        if task.problem is Problem.CLASSIFY and not shift.turns and new[task.target] != row[task.target]:
            raise InputError(f"{place}, row {index}: it changes the label; such a shift says turns=True")
        new_rows.append(new)
    return new_rows


INSTRUMENT = Robustness()
