"""The weekly alarm, with a `gh` that keeps issues and artifacts in a folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tunegrid import ROOT
from tunegrid.tests.sessions import environment

GH = """#!/usr/bin/env bash
set -eu
case "$1 $2" in
"issue list") cat titles.txt 2> /dev/null || true ;;
"issue create") echo "$4" >> titles.txt; cp "$6" body.md ;;
"run download")
  [ -d "artifacts/$3" ] || exit 1
  mkdir -p "$7"
  if [ "$4" = --name ]; then cp "artifacts/$3/$5/"* "$7"; else cp -r artifacts/"$3"/$5 "$7"; fi ;;
api*) cat "run-of-${2##*name=}" 2> /dev/null || true ;;
esac
"""
TUNEGRID = f"""#!/bin/sh
cd "{ROOT}"
exec "{sys.executable}" -m tunegrid "$@"
"""


@pytest.fixture
def alarm(tmp_path):
    """Runs the alarm for jobs with these results; returns what it printed."""
    if not shutil.which("jq"):
        pytest.skip("needs jq, which GitHub's runners have")
    for name, text in (("gh", GH), ("tunegrid", TUNEGRID)):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text.replace("set -eu", f"set -eu\ncd {tmp_path}"))
        program.chmod(0o755)
    write(tmp_path / "artifacts/2/tried-newest-3.12/freeze.txt", "torch==2.14.0+cpu\npeft==0.22\n")

    def run(needs='{"newest": {"result": "failure"}, "lowest": {"result": "success"}}'):
        own = environment(
            PATH=f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            PYTHONPATH=str(ROOT / "lib"),
            NEEDS=needs,
            GITHUB_REPOSITORY="acme/grid",
            GITHUB_RUN_ID="2",
        )
        command = [str(ROOT / "benchmarks" / "ci" / "alarm")]
        ended = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def titles(folder):
    path = folder / "titles.txt"
    return path.read_text().splitlines() if path.exists() else []


def test_it_opens_one_issue_with_what_changed_since_the_job_last_passed(alarm, tmp_path):
    write(tmp_path / "artifacts/1/passed-newest-3.12/freeze.txt", "torch==2.13.0\npeft==0.22\n")
    write(tmp_path / "run-of-passed-newest-3.12", "1")
    alarm()
    assert titles(tmp_path) == ["The weekly job newest fails"]
    lines = (tmp_path / "body.md").read_text().splitlines()
    assert lines[0] == "https://github.com/acme/grid/actions/runs/2"
    assert "newest-3.12, since it last passed:" in lines
    assert lines[-3:-1] == [
        "1 package differs from freeze.txt to freeze.txt:",
        "torch 2.13.0 -> 2.14.0+cpu",
    ]
    assert alarm() == "The weekly job newest fails: an issue is open\n"
    assert len(titles(tmp_path)) == 1


def test_without_a_passed_run_it_lists_beside_the_lock(alarm, tmp_path):
    alarm()
    body = (tmp_path / "body.md").read_text()
    assert "newest-3.12, which is not known to have passed; beside the locked versions:" in body
    assert "torch 2.13.0 -> 2.14.0+cpu" in body


def test_a_part_that_passed_in_this_run_is_left_out(alarm, tmp_path):
    write(tmp_path / "run-of-passed-newest-3.12", "2")
    alarm()
    assert "newest-3.12" not in (tmp_path / "body.md").read_text()


def test_a_job_that_passed_opens_none(alarm, tmp_path):
    alarm('{"newest": {"result": "success"}}')
    assert titles(tmp_path) == []


def test_a_job_that_kept_no_list_says_so(alarm, tmp_path):
    shutil.rmtree(Path(tmp_path / "artifacts"))
    alarm()
    assert "It kept no list of packages." in (tmp_path / "body.md").read_text()


def test_a_list_that_cannot_be_read_is_named_in_the_issue(alarm, tmp_path):
    write(tmp_path / "artifacts/1/passed-newest-3.12/freeze.txt", "")
    write(tmp_path / "run-of-passed-newest-3.12", "1")
    alarm()
    assert "names no version, as in name==1.2" in (tmp_path / "body.md").read_text()
