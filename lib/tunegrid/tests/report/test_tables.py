"""One report in every format: what files, models and libraries wrote has no effect as markup."""

import json

import pandas as pd

from tunegrid.page.render import sentence
from tunegrid.report.tables import FORMATS, Section
from tunegrid.tests.outputs import is_snapshot
from tunegrid.words import count, count_text, phrase, some

FRAME = pd.DataFrame(
    {"cell": ["bert_sa_lora", "a|b\x1b[31m"], "points": [97.25, None], "best": [True, False]}
)
SAID = "run `a_b <x>` & *see*\u202e"
SECTION = Section(
    heading="50 % <b>", frame=FRAME, formats={"points": ".1f"}, sentences=[SAID], folded=True
)


def test_a_section_in_each_format():
    printed = {form: FORMATS[form]([SECTION]) for form in FORMATS}
    assert is_snapshot(
        "".join(f"## {form}\n\n{text}\n\n" for form, text in printed.items()), "formats.txt"
    )
    assert json.loads(printed["json"])[0]["rows"][1] == {
        "cell": "a|b\x1b[31m",
        "points": None,
        "best": False,
    }


def test_what_is_no_command_is_escaped():
    assert sentence(SAID) == r"run <code>a_b &lt;x&gt;</code> &amp; *see*\u202e"
    assert FORMATS["markdown"]([Section(heading="a `b", sentences=["one", "an `open quote"])]) == (
        "**a \\`b**\n\n* one\n* an \\`open quote"
    )


def test_words_of_sentences():
    assert count(1, "cell") == "1 cell"
    assert count(2, "cell") == "2 cells"
    assert count_text(1, 1, "cell") == "the one cell"
    assert count_text(3, 3, "cell") == "all 3 cells"
    assert count_text(1, 3, "cell") == "1 of 3 cells"
    assert phrase("abc") == "a, b and c"
    assert phrase("a") == "a"
    assert some("abcd") == "a, b, c and 1 more"
    assert some("abc") == "a, b, c"
