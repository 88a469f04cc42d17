"""`tunegrid answer`: what it prints and writes, and how it refuses."""

import subprocess
import sys

import pytest

from tunegrid import ROOT
from tunegrid.commands.answer import main
from tunegrid.tests.records import saved, trained

BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"


@pytest.fixture
def run(tmp_path):
    return saved(tmp_path / "run.json", *trained("bert_sa_sft", 93.0, 95.0), *trained("bert_sa_lora", 79.0, 81.0))


def test_the_page_is_printed_or_written(run, tmp_path, capsys):
    assert main([str(run)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"# Which method, and what cannot be told\n\nRUNS is `{run}`: 2 cells of the quick profile")
    output = tmp_path / "folder" / "page.md"
    assert main([str(run), "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"wrote {output}\n"
    assert output.read_text() == printed


def test_a_task_and_a_limit_are_taken(run, capsys):
    assert main([str(run), "--task", "sa", "--memory-gib", "0.5"]) == 0
    assert "no other method stays within 0.5 GiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--task", "qa"], "no cell of task 'qa' in these runs; they hold sa"),
        (["--memory-gib", "much"], "'much' is not an amount of memory: expected GiB, as in 7.5"),
        (["--memory-gib", "0"], "'0' is not an amount of memory: expected GiB, as in 7.5"),
        (["-o", "/dev/null/page.md"], "/dev/null/page.md cannot be written"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(run, options, sentence, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([str(run), *options])
    assert exit_.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_folder_is_no_run(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path)])
    assert exit_.value.code == 2
    assert capsys.readouterr().err == f"tunegrid answer: error: {tmp_path} is a folder; name the file of a run\n"


def test_it_needs_no_torch():
    code = f"import sys; from tunegrid.commands.answer import main; main([{str(BASELINE)!r}]); sys.exit('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "lib", capture_output=True, text=True, check=False)
    assert ran.returncode == 0
    assert "T5 is the first backbone in question answering" in ran.stdout
