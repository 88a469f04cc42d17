"""Which cells a change touches: paths of checkouts and folders, what no cell runs, and what a trace counts."""

import io
import subprocess
import sys

import pytest

from tunegrid.commands import cells
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.machine import versions
from tunegrid.results.touched import Touched, read, write

LORA, TUNERS, BERT = "peft/tuners/lora/layer.py", "peft/tuners/tuners_utils.py", "transformers/models/bert/modeling_bert.py"
TABLE = Touched(
    versions={**versions(), "transformers": "1.0"},
    cells=["bert_sa_lora", "bert_sa_sft", "gpt2_sa_lora"],
    by_file={LORA: ["bert_sa_lora", "gpt2_sa_lora"], TUNERS: ["gpt2_sa_lora"], BERT: ["bert_sa_lora", "bert_sa_sft"]},
)


@pytest.mark.parametrize(
    ("paths", "touched"),
    [
        ([LORA], {"bert_sa_lora", "gpt2_sa_lora"}),
        (["/home/me/peft/src/peft/tuners/tuners_utils.py"], {"gpt2_sa_lora"}),
        (["src\\peft\\tuners\\lora"], {"bert_sa_lora", "gpt2_sa_lora"}),
        (["transformers"], {"bert_sa_lora", "bert_sa_sft"}),
        ([TUNERS, BERT], {"gpt2_sa_lora", "bert_sa_lora", "bert_sa_sft"}),
        (["layer.py", "src/peft/tuners/ia3/layer.py", "README.md"], set()),
    ],
)
def test_a_path_means_the_file_from_the_librarys_folder_on(paths, touched):
    assert TABLE.by(paths) == touched


def test_a_table_is_read_as_it_was_written(tmp_path):
    write(TABLE, tmp_path / "touched.json")
    assert read(tmp_path / "touched.json") == TABLE
    with pytest.raises(InputError, match=r"nothing\.json is no table of traced cells"):
        read(tmp_path / "nothing.json")


def test_ids_are_printed_for_cells_and_what_is_not_known_beside_them(monkeypatch, capsys):
    monkeypatch.setattr(cells, "read", lambda: TABLE)
    assert cells.main(["--touched-by", BERT, "src/peft/helpers.py"]) == 0
    out, err = capsys.readouterr()
    assert out == "bert_sa_lora,bert_sa_sft\n"
    assert err.splitlines() == [
        "src/peft/helpers.py: no quick cell calls a function of it",
        f"traced with transformers 1.0, and here is {versions()['transformers']}: files may have moved",
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("README.md\nsrc/peft/helpers.py\n"))
    assert cells.main(["--touched-by", "-"]) == 1


def test_the_committed_table_knows_the_grid():
    touched = read()
    assert set(touched.cells) == set(STUDY_IDS)
    assert touched.by(["peft/tuners/lora/layer.py"]) == {name for name in STUDY_IDS if name.endswith("lora")}
    assert touched.by(["transformers/models/t5/modeling_t5.py"]) == {name for name in STUDY_IDS if name.startswith("t5_")}
    assert touched.by(["peft/tuners/adalora/layer.py"]) == set()


PLUGIN = """
import tunegrid.lab.tracing as tracing
tracing.pytest_runtest_logstart()
import {module}
{call}
tracing.pytest_runtest_logfinish()
print(any(name.endswith({file!r}) for name in tracing.called))
"""


@pytest.mark.parametrize(
    ("call", "counts"), [("", "False"), ("accelerate.utils.versions.compare_versions('numpy', '>=', '1')", "True")]
)
@pytest.mark.slow
def test_a_call_counts_and_an_import_does_not(call, counts):
    program = PLUGIN.format(module="accelerate.utils.versions", call=call, file="accelerate/utils/versions.py")
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout == f"{counts}\n"
