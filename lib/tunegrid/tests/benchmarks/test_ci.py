"""The CI recipes: sound by the published schemas; their shell parts do what they should, with stand-ins for pip and pytest."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from check_jsonschema import main as check
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

from tunegrid import ROOT
from tunegrid.results.judgements import Outcome
from tunegrid.tests.repositories import git

RECIPES = ROOT / "benchmarks" / "ci"
OWN, LOWEST, GITHUB, MATRIX, NEWEST, GITLAB, SLURM = (
    *(ROOT / ".github" / "workflows" / name for name in ("quick.yml", "lowest.yml")),
    *(RECIPES / name for name in ("github.yml", "github-matrix.yml", "newest.yml", "gitlab.yml", "slurm.sh")),
)
# The extras that jobs install together. Trackers ask for other releases of what all share, as MLflow for an older pyarrow.
LOCKED = ("cluster", "dev")
# Writes the run and the page, and ends as it is told to; fails as pytest does where the baseline or the folder is missing.
PYTEST = """
for argument; do case "$argument" in
  --gate=*) [ -f "${argument#*=}" ] || exit 4;;
  --benchmark-json=*|--html=*) echo . > "${argument#*=}" || exit 4;;
esac; done
code="$(sed -n "$(grep -c ^pytest "$LOG")p" "$CODES" 2>/dev/null)"; exit "${code:-0}"
"""
# What each stand-in does when it has written down its words. pip also says which version stands where it installs from.
TOOLS = {
    "pip": 'for last; do :; done; [ ! -f "$last/VERSION" ] || echo "version $(cat "$last/VERSION")" >> "$LOG"',
    "pytest": PYTEST,
    "python": f'exec env PYTHONPATH="{ROOT}" "{sys.executable}" "$@"',
}


def read(path):
    return YAML(typ="safe").load(path.read_text())


def shell_steps(job, expressions):
    """The shell parts of a GitHub job, each with its variables; an `if` that is false leaves a step out."""

    def text(value):
        return re.sub(r"\$\{\{ *(.*?) *\}\}", lambda match: str(expressions.get(match[1], "")), str(value))

    for step in job["steps"]:
        if "run" in step and expressions.get(str(step.get("if", "")).strip("${ }"), True):
            yield step["run"], {name: text(value) for name, value in (job.get("env", {}) | step.get("env", {})).items()}


class Machine:
    """A folder with stand-ins on its path, and a log of their calls."""

    def __init__(self, folder, tools=TOOLS):
        self.folder, self.log = folder, folder / "log.txt"
        (folder / "bin").mkdir()
        self.log.touch()
        for name, body in tools.items():
            tool = folder / "bin" / name
            tool.write_text(f'#!/bin/bash\n{{ printf {name}; printf " %q" "$@"; echo; }} >> "$LOG"\n{body}\n')
            tool.chmod(0o755)

    def run(self, script, **variables):
        """Run a script as GitHub does, in this folder; return the exit code."""
        own = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "LOG": str(self.log), "CODES": str(self.folder / "codes")}
        return subprocess.run(
            ["bash", "-e", "-c", script], cwd=self.folder, env=os.environ | own | variables, check=False
        ).returncode

    def calls(self):
        """Each call as its words, without the folder."""
        return [shlex.split(line) for line in self.log.read_text().replace(str(self.folder), "WORK").splitlines()]


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


@pytest.fixture
def library(tmp_path):
    """A library's checkout with two commits, 1 and 2; and the first one's name."""
    repo = tmp_path / "library"
    repo.mkdir()
    git(repo, "init", "--quiet")
    for version in ("1", "2"):
        (repo / "VERSION").write_text(version)
        git(repo, "add", ".")
        git(repo, "commit", "--quiet", "-m", version)
    return repo, git(repo, "rev-parse", "HEAD~1")


# YAML


@pytest.mark.parametrize("path", [OWN, LOWEST, GITHUB, MATRIX, NEWEST], ids=lambda path: path.name)
def test_a_workflow_is_sound_trusts_no_text_of_others_and_pins_its_actions(path):
    """A branch's name is untrusted text: as a variable it stays text. Whoever owns an action can move its tags."""
    check(["--builtin-schema", "vendor.github-workflows", str(path)], standalone_mode=False)
    scripts = [step["run"] for job in read(path)["jobs"].values() for step in job.get("steps", ()) if "run" in step]
    steps = [step for job in read(path)["jobs"].values() for step in job.get("steps", ())]
    cached = [step["with"]["path"] for step in steps if str(step.get("uses")).startswith("actions/cache")]
    assert set(cached) <= {"~/.cache/huggingface"}  # no tokenised rows of other code
    assert scripts
    assert not [script for script in scripts if "${{" in script]
    actions = re.findall(r"uses: (?!\./)(.+)", path.read_text(encoding="utf-8"))
    assert actions
    assert [action for action in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)] == []


def test_the_gitlab_recipe_is_sound_and_warns_where_the_gate_cannot_tell():
    arguments = ["--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci", str(GITLAB)]
    check(arguments, standalone_mode=False)
    assert read(GITLAB)["tunegrid"]["allow_failure"] == {"exit_codes": Outcome.CANNOT_TELL.exit_code}
    assert read(GITLAB)["tunegrid"]["cache"]["paths"] == [".cache/pip", ".cache/huggingface"]  # no rows of other code


def test_the_matrix_runs_all_shards_of_what_the_called_workflow_takes():
    cells = read(MATRIX)["jobs"]["cells"]
    assert cells["with"]["shard"] == "${{ matrix.part }}/${{ strategy.job-total }}"
    parts = cells["strategy"]["matrix"]["part"]
    assert parts == list(range(1, len(parts) + 1))
    assert set(cells["with"]) <= set(read(GITHUB)["on"]["workflow_call"]["inputs"])


# Locked versions


def locked(python):
    """The versions in constraints.txt for a Python on Linux."""
    lines = (RECIPES / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    machine = {"python_full_version": f"{python}.0", "sys_platform": "linux", "platform_machine": "x86_64"}
    return {pin.name: str(pin.specifier)[2:] for pin in pins if not pin.marker or pin.marker.evaluate(machine)}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_locked_versions_are_of_every_package_that_pyproject_asks_for_and_as_it_asks(python):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [text for name in LOCKED for text in project["optional-dependencies"][name]]
    wanted, versions = map(Requirement, [*project["dependencies"], *extras]), locked(python)
    assert [str(one) for one in wanted if not one.specifier.contains(versions.get(canonicalize_name(one.name), "0"))] == []


def test_locked_versions_are_those_that_measured_the_committed_baseline():
    [row, *_] = json.loads((ROOT / "reports" / "baselines" / "quick-cpu.json").read_text())["benchmarks"]
    measured = {canonicalize_name(name): version.partition("+")[0] for name, version in row["extra_info"]["versions"].items()}
    del measured["python"]
    assert {name: version for name, version in locked("3.11").items() if name in measured} == measured


def test_every_dependency_has_a_lower_bound_which_a_job_installs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert [name for name in sum(extras.values(), project["dependencies"]) if ">=" not in name] == []
    scripts = [step["run"] for step in read(LOWEST)["jobs"]["lowest"]["steps"] if "run" in step]
    assert any(f"--resolution lowest-direct --torch-backend cpu -e '.[{','.join(LOCKED)}]'" in script for script in scripts)
    assert read(LOWEST)["jobs"]["lowest"]["steps"][1]["with"]["python-version"] == project["requires-python"].removeprefix(">=")


# Shell


def test_our_own_workflow_runs_the_grid_by_the_committed_baseline(machine):
    baseline = machine.folder / "reports" / "baselines" / "quick-cpu.json"
    baseline.parent.mkdir(parents=True)
    baseline.touch()
    for script, variables in shell_steps(read(OWN)["jobs"]["quick"], {}):
        assert machine.run(script, **variables) == 0
    assert machine.calls()[-1] == [
        *("pytest", "-m", "quick", "-n", "auto", "--gate=reports/baselines/quick-cpu.json"),
        *("--benchmark-json=run/run.json", "--html=run/page.html"),
    ]
    assert (ROOT / "reports" / "baselines" / "quick-cpu.json").is_file()


def github(machine, expressions, codes=()):
    """Run the recipe's shell parts until one fails; return the last exit code."""
    (machine.folder / "tunegrid").mkdir()
    (machine.folder / "codes").write_text("\n".join(map(str, codes)))
    for script, variables in shell_steps(read(GITHUB)["jobs"]["gate"], expressions):
        code = machine.run(script, **variables)
        if code:
            return code
    return 0


def github_expressions(base, **changes):
    named = {"inputs.profile || 'quick'": "quick", "inputs.cells": "", "inputs.baseline": ""}
    return named | {"github.event.pull_request.base.sha || github.event.before": base} | changes


INSTALL = ["pip", "install", "--no-deps", "--force-reinstall"]
RUN = ["pytest", "-m", "quick", "-n", "auto"]
COUNTS = "--gate-on=numerics,quality,memory"  # a library's change of arithmetic fails its job


@pytest.mark.parametrize(("codes", "code"), [([1, 0], 0), ([0, 1], 1), ([2], 1), ([1, 4], 4), ([0, 6], 6)])
def test_github_measures_the_base_commit_and_then_the_pull_request_and_ends_as_the_gate_does(machine, library, codes, code):
    assert github(machine, github_expressions(library[1]), codes) == code  # that the base commit misses a bound is no failure
    expected = [
        ["pip", "install", "-e", "./tunegrid"],
        [*INSTALL, "./base"],
        ["version", "1"],
        [*RUN, "--benchmark-json=../run/before.json"],
        [*INSTALL, "./library"],
        ["version", "2"],
        [*RUN, "--gate=../run/before.json", COUNTS, "--benchmark-json=../run/after.json", "--html=../run/page.html"],
    ]
    assert machine.calls() == (expected[:4] if codes == [2] else expected)


def test_github_runs_the_part_that_is_asked_for_by_locked_versions_against_a_given_baseline(machine, library):
    repo, base = library
    (repo / "before.json").touch()
    part = {"inputs.cells": "a,b", "inputs.profile || 'quick'": "full", "inputs.shard": "2/3"}
    given = {"inputs.baseline": "before.json", "!inputs.baseline": False}
    assert github(machine, github_expressions(base, **part, **given)) == 0
    words = ["pytest", "-m", "full", "-n", "auto", "--cells=a,b", "--shard=2/3", "--gate=../library/before.json", COUNTS]
    [measured] = [call for call in machine.calls() if call[0] == "pytest"]
    assert measured == [*words, "--benchmark-json=../run/after.json", "--html=../run/page.html"]
    [script] = [text for text, _ in shell_steps(read(GITHUB)["jobs"]["gate"], {}) if "-e ./tunegrid" in text]
    assert machine.run(script, CONSTRAINTS="a b.txt") == 0
    assert machine.calls()[-1] == ["pip", "install", "-c", "a b.txt", "-e", "./tunegrid"]


@pytest.mark.parametrize(("codes", "code"), [([1, 0], 0), ([0, 1], 1), ([2], 1), ([0, 6], 6)])
def test_newest_measures_the_releases_and_then_the_pre_releases(machine, codes, code):
    (machine.folder / "codes").write_text("\n".join(map(str, codes)))
    recipe = read(NEWEST)
    for script, variables in shell_steps(recipe["jobs"]["newest"], {}):
        ended = machine.run(script, **variables, **recipe["env"])
        if ended:
            break
    expected = [
        ["pip", "install", "--upgrade", "--upgrade-strategy", "eager", "-e", "."],
        [*RUN, "--benchmark-json=run/before.json"],
        ["pip", "install", "--pre", "--upgrade", "-e", ".", *recipe["env"]["LIBRARIES"].split()],
        [*RUN, "--gate=run/before.json", COUNTS, "--benchmark-json=run/after.json", "--html=run/page.html"],
    ]
    calls = [call for call in machine.calls() if call != ["pip", "freeze"]]
    assert (ended, calls) == (code, expected[:2] if codes == [2] else expected)


@pytest.mark.parametrize(("codes", "code"), [([1, 0], 0), ([0, 1], 1), ([2], 1)])
def test_gitlab_measures_the_base_commit_and_then_the_merge_request(machine, library, tmp_path, codes, code):
    repo, base = library
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "--quiet")
    git(origin, "commit", "--quiet", "--allow-empty", "-m", "tunegrid")
    (machine.folder / "codes").write_text("\n".join(map(str, codes)))
    job = read(GITLAB)["tunegrid"]
    own = {
        "WORK": str(tmp_path / "work"),
        "PROFILE": job["variables"]["PROFILE"],
        "TUNEGRID_URL": origin.as_uri(),
        "CI_PROJECT_DIR": str(repo),
        "CI_MERGE_REQUEST_DIFF_BASE_SHA": base,
    }
    script = "\n".join(["set -o pipefail", f"cd {repo}", *job["script"]])
    assert machine.run(script, **own) == code
    run = "WORK/library/run"
    expected = [
        ["pip", "install", "-e", "."],
        [*INSTALL, "WORK/work/base"],
        ["version", "1"],
        [*RUN, f"--benchmark-json={run}/before.json"],
        [*INSTALL, "WORK/library"],
        ["version", "2"],
        [
            *(*RUN, f"--gate={run}/before.json", COUNTS, f"--benchmark-json={run}/after.json"),
            *(f"--html={run}/page.html", f"--junitxml={run}/junit.xml"),
        ],
    ]
    assert machine.calls() == (expected[:4] if codes == [2] else expected)


def test_the_matrix_merges_its_parts_and_ends_as_the_gate_does(tmp_path):
    machine = Machine(tmp_path, {"tunegrid": 'case "$*" in "gate "*) exit 6;; esac'})
    for folder in ("tunegrid", "parts/tunegrid-part-1", "parts/tunegrid-part-2"):
        (tmp_path / folder).mkdir(parents=True)
        for name in ("before", "after"):
            (tmp_path / folder / f"{name}.json").touch()
    [(script, variables)] = [step for step in shell_steps(read(MATRIX)["jobs"]["merge"], {}) if "gate" in step[0]]
    assert machine.run(script, **variables) == 6
    parts = {name: [f"../parts/tunegrid-part-{part}/{name}.json" for part in (1, 2)] for name in ("before", "after")}
    runs = ["../run/before.json", "../run/after.json"]
    assert machine.calls() == [
        *(["tunegrid", "merge", *parts[name], "-o", f"../run/{name}.json"] for name in parts),
        ["tunegrid", "page", *runs[::-1], "-o", "../run/page.html"],
        ["tunegrid", "gate", "--on", "numerics,quality,memory", *runs],
    ]


def test_pytest_has_every_option_that_the_recipes_give(pytestconfig):
    text = "".join(path.read_text() for path in (OWN, GITHUB, GITLAB, NEWEST))
    options = set(re.findall(r"--[a-z-]+(?==)", text))
    assert {"--gate", "--gate-on", "--html", "--cells", "--shard", "--benchmark-json", "--junitxml"} <= options
    for name in options:
        pytestconfig.getoption(name)  # raises ValueError for an unknown one


# Slurm's part, one job after the other. A script is copied before it runs, as Slurm does.
SBATCH = """
for argument; do case "$argument" in
  --array=*) array="${argument#*=}";;
  --output=*) output="${argument#*=}";;
  --*) ;;
  *) break;;
esac; shift; done
script=$(mktemp -p "$WORK"); cp "$1" "$script"; shift
tasks=$(for part in ${array//,/ }; do seq "${part%-*}" "${part#*-}"; done)
[ -n "$array" ] || { bash "$script" "$@" > "$output" 2>&1; exit 0; }
for task in $tasks; do
  SLURM_ARRAY_TASK_ID=$task SLURM_ARRAY_TASK_COUNT=$(wc -w <<< "$tasks") SLURM_CPUS_PER_TASK=8 \
    bash "$script" "$@" > "${output/\\%a/$task}" 2>&1
done
echo "41;cluster"
"""
SRUN = 'shift; exec "$@"'


def test_a_slurm_array_runs_the_shards_one_of_them_alone_and_a_dependent_job_merges_them(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    machine = Machine(tmp_path, TOOLS | {"sbatch": SBATCH, "srun": SRUN, "tunegrid": ""})

    def submit(**variables):
        machine.log.write_text("")
        code = machine.run(f"{SLURM} -m full", WORK=str(tmp_path), **variables)
        named = ("sbatch", "srun", "tunegrid")
        return code, {name: [call[1:] for call in machine.calls() if call[0] == name] for name in named}

    assert submit() == (1, {"sbatch": [], "srun": [], "tunegrid": []})  # no number of shards
    code, calls = submit(SHARDS="3")
    array, merge = calls["sbatch"]
    assert code == 0
    assert array[:5] == ["--parsable", "--array=1-3", "--gpus=1", "--output=WORK/run/shard-%a.txt", str(SLURM)]
    assert merge[:4] == ["--dependency=afterany:41", "--cpus-per-task=1", "--time=1:00:00", "--output=WORK/run/merge.txt"]
    wanted = ["--cpus-per-task=8", "pytest", "-m", "full", "--shard"]
    assert calls["srun"] == [
        [*wanted, f"{task}/3", "--resume", f"--benchmark-json=WORK/run/shard-{task}.json"] for task in (1, 2, 3)
    ]
    assert calls["tunegrid"] == [["merge", *(f"WORK/run/shard-{task}.json" for task in (1, 2, 3)), "-o", "WORK/run/run.json"]]
    code, calls = submit(SHARDS="3", ONLY="2", GPUS="")
    assert [call[5] for call in calls["srun"]] == ["2/3"]
    assert calls["sbatch"][0][:3] == ["--parsable", "--array=2", "--output=WORK/run/shard-%a.txt"]
