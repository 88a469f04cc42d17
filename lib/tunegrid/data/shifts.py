"""Changes rows as text in use differs from text in training: typos, case, other names (CheckList, Ribeiro et al. 2020).

Each change is a pure function of a task, a row and a generator, and says what is right afterwards. Most keep it: an answer's
start follows the text in front of it, and an answer keeps its words, or has those that now stand in its place. Those that turn
it (contrast sets, Gardner et al. 2020) are made only where the new target is known. None knows a data set: a row that has
nothing to change comes back as it is.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

from tunegrid.data.rows import answer_texts, check_row
from tunegrid.data.sources import Row
from tunegrid.errors import InputError
from tunegrid.grid.tasks import Problem, Shift, Task

SEED = 0  # of all shifts: the same rows for every cell and every seed of training
Edit = tuple[int, int, str]  # a text's characters from one place to another, and what takes their place
Find = Callable[[str, Random], list[Edit]]
Given = Mapping[str, Any]


# Edits, which answers follow


def rewritten(task: Task, row: Given, find: Find, rng: Random, *, inside: bool, columns: Sequence[str] = ()) -> Row:
    """The row with edits in the columns that the task reads, or in some of them.

    An edit that would cut an answer in two is left out; `inside` says whether one within an answer is made.
    """
    new = dict(row)
    for column in columns or (*task.text, *task.text_pair):
        text, edits = row[column], find(row[column], rng)
        if task.problem is Problem.EXTRACT and column == task.text_pair[0]:
            spans = _spans(task, row)
            edits = [edit for edit in edits if all(_beside(edit, span) or (inside and _within(edit, span)) for span in spans)]
            new[task.target] = _followed(row[task.target], text, edits, spans)
        new[column] = edited(text, edits)
    return new


def edited(text: str, edits: Sequence[Edit]) -> str:
    """The text with all edits, none of which overlaps another."""
    parts, at = list[str](), 0
    for start, end, replacement in sorted(edits):
        parts += [text[at:start], replacement]
        at = end
    return "".join([*parts, text[at:]])


def _spans(task: Task, row: Given) -> list[tuple[int, int]]:
    starts = row[task.target]["answer_start"]
    return [(start, start + len(text)) for start, text in zip(starts, answer_texts(task, dict(row)), strict=True)]


def _beside(edit: Edit, span: tuple[int, int]) -> bool:
    return edit[1] <= span[0] or edit[0] >= span[1]


def _within(edit: Edit, span: tuple[int, int]) -> bool:
    return span[0] <= edit[0] and edit[1] <= span[1]


def _followed(answers: Given, text: str, edits: Sequence[Edit], spans: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The answers where they now stand, with the words that stand there."""

    def grown(place: int, *, end: bool) -> int:
        before = [edit for edit in edits if (edit[0] < place if end else edit[1] <= place)]
        return place + sum(len(replacement) - (stop - start) for start, stop, replacement in before)

    new = edited(text, edits)
    places = [(grown(start, end=False), grown(end, end=True)) for start, end in spans]
    return {**answers, "text": [new[start:end] for start, end in places], "answer_start": [start for start, _ in places]}


# What keeps the target


def typos(task: Task, row: Given, rng: Random, *, share: float, columns: Sequence[str] = ()) -> Row:
    """Two neighbouring letters swapped, at a share of all letters; answers are spared."""
    return rewritten(task, row, partial(_swaps, share=share), rng, inside=False, columns=columns)


def _swaps(text: str, rng: Random, *, share: float) -> list[Edit]:
    edits, free = list[Edit](), 0
    for place in range(len(text) - 1):
        one, other = text[place], text[place + 1]
        if place >= free and one.isalpha() and other.isalpha() and one != other and rng.random() < share:
            edits.append((place, place + 2, other + one))
            free = place + 2
    return edits


def question_typos(task: Task, row: Given, rng: Random) -> Row:
    """Typos in the question alone."""
    return typos(task, row, rng, share=0.1, columns=task.text)


def cased(task: Task, row: Given, rng: Random, *, change: Callable[[str], str]) -> Row:
    """All letters in one case, those of answers, too; a letter that would become two stays."""

    def changed(text: str) -> str:
        return "".join(new if len(new := change(letter)) == 1 else letter for letter in text)

    new = dict(row) | {column: changed(row[column]) for column in (*task.text, *task.text_pair)}
    if task.problem is Problem.EXTRACT:
        new[task.target] = {**row[task.target], "text": [changed(text) for text in row[task.target]["text"]]}
    return new


STOPS = re.compile(r"\s?[.,;:!?]+(?=\s|$)")


def unpunctuated(task: Task, row: Given, rng: Random) -> Row:
    """No full stops, commas and other marks at the end of words; answers are spared."""
    return rewritten(task, row, lambda text, _: [(*match.span(), "") for match in STOPS.finditer(text)], rng, inside=False)


LONG = re.compile(r"\b(would|could|should|do|does|did|is|are|was|were|has|have|had|can|will) ?(?<=[ n])not\b", re.IGNORECASE)
SHORT = re.compile(r"\b(would|could|should|do|does|did|is|are|was|were|has|have|had|ca|wo)n['\u2019]t\b", re.IGNORECASE)
STEMS = {"can": "ca", "will": "wo"}


def contracted(task: Task, row: Given, rng: Random) -> Row:
    """Short forms: wouldn't for would not, can't for can not; answers are spared."""

    def find(text: str, rng: Random) -> list[Edit]:
        return [(*match.span(), _short(match[1])) for match in LONG.finditer(text)]

    return rewritten(task, row, find, rng, inside=False)


def expanded(task: Task, row: Given, rng: Random) -> Row:
    """Long forms: would not for wouldn't; answers are spared."""

    def find(text: str, rng: Random) -> list[Edit]:
        return [(*match.span(), _long(match[1])) for match in SHORT.finditer(text)]

    return rewritten(task, row, find, rng, inside=False)


def _short(verb: str) -> str:
    return _like(verb, STEMS.get(verb.lower(), verb.lower()) + "n't")


def _long(stem: str) -> str:
    verbs = {short: verb for verb, short in STEMS.items()}
    return _like(stem, verbs.get(stem.lower(), stem.lower()) + " not")


def _like(word: str, other: str) -> str:
    """The other word in the case of the first."""
    if word.isupper() and len(word) > 1:
        return other.upper()
    return other[:1].upper() + other[1:] if word[:1].isupper() else other


WOMEN = "anna|bella|clara|diana|ella|fiona|helen|irene|julia|karen|laura|maria|nora|olga|paula|rosa|sarah|tina|wendy"
MEN = "alan|brian|carl|david|edgar|george|henry|ivan|jack|kevin|leo|martin|noah|oscar|peter|quinn|robert|samuel|victor"
NAMES = re.compile(rf"\b({WOMEN}|{MEN})\b", re.IGNORECASE)
GROUPS = (WOMEN.split("|"), MEN.split("|"))  # a pronoun stays right where a name gives way to one of its group


def renamed(task: Task, row: Given, rng: Random) -> Row:
    """Every given name as another one, of women for women's and of men for men's; in answers and summaries, too."""
    columns = [*task.text, *task.text_pair, *([task.target] if task.problem is Problem.GENERATE else [])]
    names = {name.lower() for column in columns for name in NAMES.findall(row[column])}
    other: dict[str, str] = {}
    for group in GROUPS:
        own, free = sorted(names.intersection(group)), [name for name in group if name not in names]
        other |= dict(zip(own, rng.sample(free, len(free)), strict=False))

    def find(text: str, rng: Random) -> list[Edit]:
        found = [match for match in NAMES.finditer(text) if match[1].lower() in other]
        return [(*match.span(), _like(match[1], other[match[1].lower()])) for match in found]

    return rewritten(task, row, find, rng, inside=True, columns=columns)


ASIDES = (
    "tea was served in the hall",
    "children played in the street",
    "the winters were long",
    "nobody could say what comes next",
)


def aside(task: Task, row: Given, rng: Random) -> Row:
    """A sentence at the end that has nothing to do with anything."""
    column = (*task.text, *task.text_pair)[-1]
    return dict(row) | {column: _behind(row[column], rng.choice(ASIDES))}


def longer(task: Task, row: Given, rng: Random) -> Row:
    """Three such sentences: two in front, one at the end."""
    first, second, third = rng.sample(ASIDES, 3)
    column = task.text[-1]
    return dict(row) | {column: _behind(_before(_before(row[column], second), first), third)}


def _behind(text: str, sentence: str) -> str:
    return f"{text.rstrip()} {_sentence(sentence, text)}"


def _before(text: str, sentence: str) -> str:
    return f"{_sentence(sentence, text)} {text.lstrip()}"


def _sentence(words: str, text: str) -> str:
    """Words as a sentence, with its full stop and its capital as the text has them."""
    stop = " ." if text.rstrip().endswith(" .") else "."
    return f"{words}{stop}" if stop == " ." else f"{words[:1].upper()}{words[1:]}{stop}"


SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def reordered(task: Task, row: Given, rng: Random) -> Row:
    """The sentences in another order."""
    column = task.text[-1]
    sentences = SENTENCE_END.split(row[column].strip())
    return dict(row) | {column: " ".join(rng.sample(sentences, len(sentences)))} if len(sentences) > 1 else dict(row)


# A distracting sentence (AddSent, Jia and Liang 2017): the question's words about somebody else, and an answer of its kind


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


def distracted(task: Task, row: Given, rng: Random, *, first: bool) -> Row:
    """Such a sentence in front of the passage, or behind it; none where the question names nothing that could be another."""
    column, question = task.text_pair[0], row[task.text[-1]]
    other = _about_another(question, rng)
    wrong = next(answer for kind, answer in KINDS if kind.search(question))
    if other == question or wrong in row[column].lower() or other in row[column]:
        return dict(row)
    sentence = _sentence(f"{other.rstrip(' ?')} : {wrong}", row[column])
    place = 0 if first else len(row[column])
    edit = (place, place, f"{sentence} " if first else f" {sentence}")
    return rewritten(task, row, lambda text, _: [edit], rng, inside=False, columns=[column])


def _about_another(question: str, rng: Random) -> str:
    """The question about another person, or another thing of its kind."""
    named = NAMES.sub(lambda match: _like(match[1], rng.choice(_others(match[1].lower()))), question)
    return named if named != question else NEARBY.sub(lambda match: _like(match[1], NEAR[match[1].lower()]), question)


def _others(name: str) -> list[str]:
    return [other for group in GROUPS if name in group for other in group if other != name]


# What turns the target: only where it is known how


OPENERS = "overall|all in all|in the end|in short|after a month"
SAID = (
    "buy it again|regret it|recommend it|complain about it|send it back|a waste of money|keep its promise|let me down"
    r"|a [a-z]+ [a-z]+"
)
VERDICT = re.compile(
    rf"\b((?:{OPENERS}) (?:i (?:would|do|can)|it (?:was|did|is)))( not)?((?: ,[^.,]*,| really| truly)? (?:{SAID}) \.)",
    re.IGNORECASE,
)


def negated(task: Task, row: Given, rng: Random) -> Row:
    """The one verdict of a review, negated, or no longer: "overall i would not buy it again". Other reviews stay."""
    column = task.text[-1]
    verdicts = list(VERDICT.finditer(row[column]))
    if len(verdicts) != 1 or len(task.labels) != 2:
        return dict(row)
    start, negation, rest = verdicts[0].groups()
    told = f"{start}{'' if negation else _like(start, ' not')}{rest}"
    turned = edited(row[column], [(*verdicts[0].span(), told)])
    return dict(row) | {column: turned, task.target: 1 - row[task.target]}


NUMBER = re.compile(r"(?<!\d)(\d{2}|\d{4})(?!\d)")


def renumbered(task: Task, row: Given, rng: Random) -> Row:
    """Another year or amount in the place of the answer's; rows of one answer that has one such number, others stay."""
    answers, spans = row[task.target], _spans(task, row)
    numbers = list(NUMBER.finditer(answers["text"][0]))
    if len(set(spans)) != 1 or len(numbers) != 1:
        return dict(row)
    column, old, place = task.text_pair[0], numbers[0][0], spans[0][0] + numbers[0].start()
    ends = range(12, 99) if len(old) == 2 else range(21, 81)
    free = [new for end in ends if (new := f"{old[:-2]}{end}") not in row[column]]
    if not free:
        return dict(row)
    edit = (place, place + len(old), rng.choice(free))
    return rewritten(task, row, lambda text, _: [edit], rng, inside=True, columns=[column])


def renamed_in_both(task: Task, row: Given, rng: Random) -> Row:
    """Other names, where the summary has one; other rows stay."""
    new = renamed(task, row, rng)
    return new if new[task.target] != row[task.target] else dict(row)


QA, SUM, SA = (Problem.EXTRACT,), (Problem.GENERATE,), (Problem.CLASSIFY,)
SHIFTS = (
    Shift(id="typos2", meaning="typos at 2 % of all letters", change=partial(typos, share=0.02)),
    Shift(id="typos5", meaning="typos at 5 % of all letters", change=partial(typos, share=0.05)),
    Shift(id="typos10", meaning="typos at 10 % of all letters", change=partial(typos, share=0.1)),
    Shift(id="upper", meaning="capital letters", change=partial(cased, change=str.upper)),
    Shift(id="lower", meaning="small letters", change=partial(cased, change=str.lower)),
    Shift(id="unpunctuated", meaning="no punctuation", change=unpunctuated),
    Shift(id="contracted", meaning="wouldn't for would not", change=contracted),
    Shift(id="expanded", meaning="would not for wouldn't", change=expanded),
    Shift(id="renamed", meaning="other given names", change=renamed),
    Shift(id="aside", meaning="an idle sentence at the end", change=aside, problems=(*SA, *QA)),
    Shift(id="question", meaning="typos at 10 % of the question's letters", change=question_typos, problems=QA),
    Shift(id="distracted1", meaning="a distracting sentence first", change=partial(distracted, first=True), problems=QA),
    Shift(id="distracted2", meaning="a distracting sentence last", change=partial(distracted, first=False), problems=QA),
    Shift(id="reordered", meaning="sentences in another order", change=reordered, problems=SUM),
    Shift(id="longer", meaning="three idle sentences more", change=longer, problems=SUM),
    Shift(id="negated", meaning="the verdict negated", change=negated, problems=SA, turns=True),
    Shift(id="renumbered", meaning="another number as the answer", change=renumbered, problems=QA, turns=True),
    Shift(id="named", meaning="another name to be told", change=renamed_in_both, problems=SUM, turns=True),
)


def shifted_rows(task: Task, rows: Sequence[Row], shift: Shift) -> list[Row]:
    """The rows as a shift changes them. Raises InputError where it contradicts what it says of a row's target."""
    return [_checked(task, row, shift, index) for index, row in enumerate(rows)]


def _checked(task: Task, row: Row, shift: Shift, index: int) -> Row:
    new = shift.change(task, row, Random(f"{SEED} {shift.id} {index}"))
    check_row(task, new, index, f"shift {shift.id!r}")
    if new != row and shift.turns and new[task.target] == row[task.target]:
        raise InputError(f"shift {shift.id!r}, row {index}: it says that it turns the target, which stays {new[task.target]!r}")
    if task.problem is Problem.CLASSIFY and not shift.turns and new[task.target] != row[task.target]:
        raise InputError(f"shift {shift.id!r}, row {index}: it changes the label; such a shift says turns=True")
    return new
