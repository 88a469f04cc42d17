"""One report in five formats."""

import json

import pandas as pd
import pytest

from tunegrid.results.report import FORMATS, Section

FRAME = pd.DataFrame({"cell": ["bert_sa_lora", "a|b\x1b[31m"], "points": [97.25, None]})
SECTION = Section(heading="50 % <b>", frame=FRAME, formats={"points": ".1f"}, sentences=["run `a_b <x>` & *see*"])
PRINTED = {
    "text": r"""50 % <b>
cell          points
bert_sa_lora    97.2
a|b\x1b[31m        -
run `a_b <x>` & *see*""",
    "markdown": r"""**50 % \<b\>**

| cell | points |
| --- | ---: |
| bert_sa_lora | 97.2 |
| a\|b \[31m | - |

* run `a_b <x>` \& \*see\*""",
    "latex": r"""% needs \usepackage{booktabs,graphicx}

\begin{table}
\centering
\caption{50 \% \textless{}b\textgreater{}}
\resizebox{\linewidth}{!}{%
\begin{tabular}{lr}
\toprule
cell & points \\
\midrule
bert\_sa\_lora & 97.2 \\
a|b [31m & - \\
\bottomrule
\end{tabular}
}
\par\footnotesize run `a\_b \textless{}x\textgreater{}` \& *see*
\end{table}""",
    "html": r"""<h3>50 % &lt;b&gt;</h3>
<div class="wide"><table><thead><tr><th>cell</th><th class="number">points</th></tr></thead><tbody><tr><td>bert_sa_lora</td>"""
    r"""<td class="number">97.2</td></tr><tr><td>a|b\x1b[31m</td><td class="number">-</td></tr></tbody></table></div>
<p>run <code>a_b &lt;x&gt;</code> &amp; *see*</p>""",
}


@pytest.mark.parametrize("form", PRINTED)
def test_a_section_in_each_format_has_no_effect_as_markup(form):
    assert FORMATS[form]([SECTION]) == PRINTED[form]


def test_json_has_the_values_and_null_where_nothing_was_measured_and_text_words_for_booleans():
    [section] = json.loads(FORMATS["json"]([SECTION]))
    assert section["rows"] == [{"cell": "bert_sa_lora", "points": 97.25}, {"cell": "a|b\x1b[31m", "points": None}]
    words = Section(frame=pd.DataFrame({"best": [True, False], "value": pd.Series([1.0, 0.0], dtype=object)}))
    assert words.cells == [["yes", "1.0"], ["no", "0.0"]]
    assert json.loads(FORMATS["json"]([words]))[0]["rows"][1] == {"best": False, "value": 0.0}


def test_sections_without_a_table_and_folded_ones():
    plain = [Section(sentences=["one.", "two."]), Section(heading="more", sentences=["three."], folded=True)]
    assert FORMATS["text"](plain) == "one.\ntwo.\n\nmore\nthree."
    assert FORMATS["markdown"](plain) == "* one.\n* two.\n\n<details><summary>more</summary>\n\n* three.\n\n</details>"
    assert FORMATS["html"](plain) == "<p>one.</p>\n<p>two.</p>\n<details>\n<summary>more</summary>\n<p>three.</p>\n</details>"
