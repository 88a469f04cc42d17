"""Runs sessions of the suite in their own processes, as a user starts them, or collects only."""

import atexit
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

from fixtures.options import Ranks
from fixtures.session import Session
from tunegrid import ROOT
from tunegrid.grid.recipes import FIXTURES
from tunegrid.launcher import Child

# This checkout, whichever version is installed
SOURCES = os.pathsep.join(map(str, (ROOT / "lib", ROOT)))
# Of the suite's plugins those of a session that trains no cell
SESSION_PLUGINS = (
    "options",
    "session",
    "selection",
    "progress",
    "results",
    "confirm",
    "processes",
    "reports",
)
TOO_SHORT = 6  # exit code of a run in which no cell made enough updates to be judged
SMALL = ("--set", "train_rows=48", "--set", "eval_rows=16")
# A process that loads the libraries, which takes seconds, and then forks one program after another.
# It sees no GPU, because a forked process could not use one.
SERVER = """
import gc, json, os, runpy, signal, sys
import accelerate, bitsandbytes, datasets, peft, pyarrow, pytest, scipy.stats, torch
import rouge_score.rouge_scorer
import transformers.models.bert.modeling_bert
import transformers.models.gpt2.modeling_gpt2
import transformers.models.t5.modeling_t5

gc.freeze()
while line := sys.stdin.readline():
    if not (process := os.fork()):
        break
    print("pid", process, flush=True)
    print("code", os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
else:
    sys.exit()
job = json.loads(line)
for number, path in enumerate((os.devnull, *job["streams"])):
    os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
os.environ.clear()
os.environ.update(job["environment"])
os.chdir(job["folder"])
sys.path[:0] = [job["folder"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
program = job["program"]
sys.argv = [program, *job["arguments"]]
# A shell's jobs in the background ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.alarm(job["timeout"])
if program.endswith(".py"):
    runpy.run_path(program, run_name="__main__")
else:
    runpy.run_module(program, run_name="__main__", alter_sys=True)
"""


@cache
def _server():
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(
        [sys.executable, "-P", "-c", SERVER],
        env=own | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    atexit.register(_end, server)
    return server


def _end(server):
    with server:
        server.kill()


def environment(**variables):
    """The environment without the outer session's variables, so that sessions stay separate."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return outer | variables


class ForkedProcess:
    """A Python process that runs a module or a file in a folder.

    The libraries are loaded before it is forked, so they never see `variables`.
    """

    def __init__(self, program, *arguments, folder=ROOT, timeout=300, **variables):
        own = environment(**variables)
        # A plugin that the libraries load causes this warning.
        own["PYTEST_ADDOPTS"] = "-W ignore::pytest.PytestAssertRewriteWarning"
        self.streams = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        self.server = _server()
        job = {
            "program": str(program),
            "arguments": list(map(str, arguments)),
            "folder": str(folder),
            "timeout": timeout,
            "environment": own,
            "streams": [stream.name for stream in self.streams],
        }
        self.server.stdin.write(json.dumps(job).encode() + b"\n")
        self.pid = self._read_number(b"pid")

    def _read_number(self, name):
        """Reads the server's next value under this name.

        Skips lines that are left over from a process that nobody waited for.
        """
        lines = iter(self.server.stdout.readline, b"")
        line = next(line for line in lines if line.startswith(name))
        return int(line.split()[1])

    def runs(self):
        return not select.select([self.server.stdout], [], [], 0)[0]

    def ended(self):
        """Waits for the process and returns the same as `subprocess.run`."""
        code = self._read_number(b"code")
        texts = []
        for stream in self.streams:
            with stream:
                texts.append(stream.read())
        return subprocess.CompletedProcess([], code, *texts)


SessionProcess = partial(ForkedProcess, "pytest")


def benchmark_rows(path):
    """The data that a run's file holds for each cell."""
    return [row["extra_info"] for row in json.loads(Path(path).read_text())["benchmarks"]]


def run(tmp_path, *options, **how):
    """Runs the suite; returns the exit code, the output, and the rows of its JSON file."""
    path = tmp_path / "run.json"
    path.unlink(missing_ok=True)
    answer = SessionProcess(f"--benchmark-json={path}", *SMALL, *options, **how).ended()
    rows = benchmark_rows(path) if path.exists() else []
    return answer.returncode, answer.stdout + answer.stderr, rows


def run_folder(folder, plugins, *options, **variables):
    """Runs a folder's tests with some of the suite's plugins; returns the exit code and output."""
    command = [sys.executable, "-m", "pytest"]
    command += [f"-pfixtures.{plugin}" for plugin in plugins]
    command += options
    own = environment(PYTHONPATH=f"{SOURCES}{os.pathsep}{folder}") | variables
    answer = subprocess.run(
        command, cwd=folder, env=own, capture_output=True, text=True, check=False, timeout=300
    )
    return answer.returncode, answer.stdout + answer.stderr


def run_text(folder, text, *options, **variables):
    """Runs a test file of this text with a cache in its folder, as `run_folder` does."""
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (folder / "test_cells.py").write_text(text)
    return run_folder(
        folder, SESSION_PLUGINS, *options, TUNEGRID_CACHE=str(folder / "cache"), **variables
    )


def full_options(folder, **named):
    """Options of a full run on checkpoints and data in a folder.

    Copies a micro backbone into the folder under each name, or the data sets if the value is
    "data".
    """
    for name, micro in named.items():
        source = FIXTURES / "backbones" / f"{micro}-micro"
        if micro == "data":
            source = FIXTURES / "data" / name
        shutil.copytree(source, folder / name)
    return ("-m", "full", "--device", "cpu", f"--checkpoint-root={folder}", f"--data-root={folder}")


def run_lines(command_lines, **variables):
    """Runs pytest with each of these command lines, all in one process.

    Returns the exit code, standard output and standard error of each.
    """
    answer = ForkedProcess(
        "tunegrid.tests.together", json.dumps(list(command_lines)), timeout=600, **variables
    ).ended()
    assert answer.returncode == 0, answer.stderr
    return [
        SimpleNamespace(code=code, out=out, err=err)
        for code, out, err in json.loads(answer.stdout.splitlines()[-1])
    ]


def collected_ids(output):
    """The parameters of each cell's test in the output of `--collect-only -q`."""
    test_id = r"^benchmarks/test_(?:finetune|footprint)\.py::\w+\[(.+)\]$"
    return re.findall(test_id, output, re.MULTILINE)


def new_session(settings=None, **options):
    """A session with these command-line options; `settings` holds the values of `--set`."""
    values = {"--set": tuple((settings or {}).items()), "--child": Child(), "--ranks": Ranks()}
    for name, value in options.items():
        values[f"--{name.replace('_', '-')}"] = value
    return Session(SimpleNamespace(getoption=values.get))


def gpu_path(folder):
    """The PATH of a machine on which nvidia-smi lists one GPU."""
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Tesla T4, 15360 MiB, 550.54'\n")
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def see_gpus(monkeypatch, *names):
    """Lets torch see GPUs with these names and no other."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: bool(names))
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(names))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: names[index])
