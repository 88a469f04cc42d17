"""Sessions of the suite in processes of their own, as a user starts them: run, or only collected."""

import json
import os
import re
import subprocess
import sys

from fixtures.process import Child
from tunegrid import ROOT

SMALL = ("--set", "train_rows=48", "--set", "eval_rows=16")
COLLECT = """
import contextlib, gc, io, json, sys
import pytest

answers = []
for arguments in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.redirect_stderr(text):
        code = int(pytest.main(["--collect-only", "-q", *arguments]))
    answers.append([code, text.getvalue()])
    gc.freeze()  # pytest collects garbage five times a session
json.dump(answers, sys.stdout)
"""


def run(tmp_path, *options, timeout=120, **variables):
    """Exit code, output and the rows of the JSON that a run of the suite writes."""
    path = tmp_path / "run.json"
    command = [sys.executable, "-m", "pytest", f"--benchmark-json={path}", *SMALL, *options]
    # Without the outer session's variables: this session is not one of its workers.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | variables
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=timeout)
    rows = json.loads(path.read_text())["benchmarks"] if path.exists() else []
    return answer.returncode, answer.stdout + answer.stderr, [row["extra_info"] for row in rows]


def run_in(folder, plugins, *options, **variables):
    """Exit code and output of a session over a folder's own tests, with some of the suite's plugins."""
    command = [sys.executable, "-m", "pytest", *(f"-pfixtures.{plugin}" for plugin in plugins), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "lib", ROOT, folder))), **variables}
    answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return answer.returncode, answer.stdout + answer.stderr


def collect(*arguments):
    """pytest's own answer to these arguments, without running a cell."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def collected(*arguments):
    return re.findall(r"^benchmarks/test_finetune\.py::test_finetune\[(.+)\]$", collect(*arguments).stdout, re.MULTILINE)


def collected_together(command_lines):
    """Exit code and output of collecting by each command line, all in one process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    run = subprocess.run(
        [sys.executable, "-c", COLLECT],
        input=json.dumps(command_lines),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(run.stdout)


def option_values(**options):
    """What `config.getoption` answers: these values, and the defaults; `settings` are those of `--set`."""
    settings = tuple(options.pop("settings", {}).items())
    named = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    return {"--set": settings, "--child": Child(), **named}.get


def with_one_gpu(folder):
    """The PATH of a machine whose nvidia-smi lists one GPU."""
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Tesla T4, 15360 MiB, 550.54'\n")
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"
