"""Sessions of the suite in processes of their own, as a user starts them: run, or only collected."""

import json
import os
import re
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from fixtures.child import Child
from tunegrid import ROOT

SMALL = ("--set", "train_rows=48", "--set", "eval_rows=16")
# A process that has loaded the libraries, which take seconds, and forks one session after the other. It sees no GPU, which
# a forked process could not use.
SERVER = """
import gc, json, os, runpy, signal, sys
import accelerate, bitsandbytes, datasets, evaluate, peft, pyarrow, rouge_score.rouge_scorer, scipy.stats, torch, transformers
import transformers.models.bert.modeling_bert, transformers.models.gpt2.modeling_gpt2, transformers.models.t5.modeling_t5

gc.freeze()
while line := sys.stdin.readline():
    if not (session := os.fork()):
        break
    print(os.waitstatus_to_exitcode(os.waitpid(session, 0)[1]), flush=True)
else:
    sys.exit()
given = json.loads(line)
for number, path in enumerate((os.devnull, *given["streams"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
os.environ.clear()
os.environ.update(given["environment"])
os.chdir(given["folder"])
sys.path[:0] = [given["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
sys.argv = ["pytest", *given["arguments"]]
signal.alarm(given["timeout"])
runpy.run_module("pytest", run_name="__main__", alter_sys=True)
"""
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


@cache
def _server():
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", SERVER],
        env=own | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def pytest_session(*arguments, folder=ROOT, timeout=120, **variables):
    """Exit code and output of `python -m pytest` in a folder. What reads variables when it is imported does not see these."""
    # Without the outer session's variables: this session is not one of its workers.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | variables
    environment["PYTEST_ADDOPTS"] = "-W ignore::pytest.PytestAssertRewriteWarning"  # of a plugin that the libraries load
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        given = {"arguments": list(map(str, arguments)), "environment": environment, "folder": str(folder), "timeout": timeout}
        server = _server()
        print(json.dumps(given | {"streams": [out.name, err.name]}), file=server.stdin, flush=True)
        code = int(server.stdout.readline())
        return code, out.read() + err.read()


def benchmark_rows(path):
    """What a run's file holds of each cell."""
    return [row["extra_info"] for row in json.loads(Path(path).read_text())["benchmarks"]]


def run(tmp_path, *options, timeout=120, **variables):
    """Exit code, output and the rows of the JSON that a run of the suite writes."""
    path = tmp_path / "run.json"
    path.unlink(missing_ok=True)
    code, output = pytest_session(f"--benchmark-json={path}", *SMALL, *options, timeout=timeout, **variables)
    return code, output, benchmark_rows(path) if path.exists() else []


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
