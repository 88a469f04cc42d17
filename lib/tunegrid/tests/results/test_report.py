"""One report in every format: what files, models and libraries wrote has no effect as markup."""

import json

import pandas as pd
import pytest

from tunegrid.page.render import sentence
from tunegrid.results.report import FORMATS, Section, count, joined, out_of, some

FRAME = pd.DataFrame({"cell": ["bert_sa_lora", "a|b\x1b[31m"], "points": [97.25, None], "best": [True, False]})
SAID = "run `a_b <x>` & *see*\u202e"
SECTION = Section(heading="50 % <b>", frame=FRAME, formats={"points": ".1f"}, sentences=[SAID], folded=True)
PRINTED = {
    "text": r"""50 % <b>
cell          points  best
bert_sa_lora    97.2  yes
a|b\x1b[31m        -  no
run `a_b <x>` & *see*\u202e""",
    "markdown": r"""<details><summary>50 % &lt;b&gt;</summary>

| cell | points | best |
| --- | ---: | --- |
| bert_sa_lora | 97.2 | yes |
| a\|b \[31m | - | no |

* run `a_b <x>` \& \*see\* 

</details>""",
    "latex": r"""% needs \usepackage{booktabs}

\begin{table}
\caption{50 \% <b>}
\begin{tabular}{lrl}
\toprule
cell & points & best \\
\midrule
bert\_sa\_lora & 97.2 & yes \\
a|b [31m & - & no \\
\bottomrule
\end{tabular}
run `a\_b <x>` \& *see* 
\end{table}""",
    "html": r"""<h3>50 % &lt;b&gt;</h3>
<table><thead><tr><th>cell</th><th>points</th><th>best</th></tr></thead><tbody>"""
    r"""<tr><td>bert_sa_lora</td><td>97.2</td><td>yes</td></tr><tr><td>a|b\x1b[31m</td><td>-</td><td>no</td></tr></tbody></table>
<p>run <code>a_b &lt;x&gt;</code> &amp; *see* </p>""",
}


@pytest.mark.parametrize("form", PRINTED)
def test_a_section_in_each_format(form):
    assert FORMATS[form]([SECTION]) == PRINTED[form]


def test_json_has_the_values_and_html_escapes_what_is_no_command():
    [section] = json.loads(FORMATS["json"]([SECTION]))
    assert section["rows"][1] == {"cell": "a|b\x1b[31m", "points": None, "best": False}
    assert sentence(SAID) == r"run <code>a_b &lt;x&gt;</code> &amp; *see*\u202e"
    assert FORMATS["markdown"]([Section(heading="a `b", sentences=["one", "an `open quote"])]) == (
        "**a \\`b**\n\n* one\n* an \\`open quote"
    )


def test_words_of_sentences():
    assert (count(1, "cell"), count(2, "cell")) == ("1 cell", "2 cells")
    assert [out_of(*two, "cell") for two in ((1, 1), (3, 3), (1, 3))] == ["the one cell", "all 3 cells", "1 of 3 cells"]
    assert (joined("abc"), joined("a"), some("abcd"), some("abc")) == ("a, b and c", "a", "a, b, c and 1 more", "a, b, c")
