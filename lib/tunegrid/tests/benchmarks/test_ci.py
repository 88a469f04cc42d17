"""The CI recipes: sound by the published schemas; their shell parts do what they should, with stand-ins for pip and pytest."""

import os
import re
import subprocess
import sys

import pytest
from check_jsonschema import main as check
from ruamel.yaml import YAML

from tunegrid import ROOT
from tunegrid.results.judgements import Outcome
from tunegrid.tests.packages import git

RECIPES = ROOT / "benchmarks" / "ci"
OWN, LOWEST, GITHUB, MATRIX, NEWEST, CELLS, GITLAB, SLURM = (
    *(ROOT / ".github" / "workflows" / name for name in ("quick.yml", "lowest.yml")),
    *(RECIPES / name for name in ("github.yml", "github-matrix.yml", "newest.yml", "own-cells.yml", "gitlab.yml", "slurm.sh")),
)
# The extras that jobs install together. Trackers ask for other releases of what all share, as MLflow for an older pyarrow.
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
    "tunegrid": 'case "$*" in "gate "*) exit 6;; esac',
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

    def __init__(self, folder, tools):
        self.folder, self.log = folder, folder / "log.txt"
        (folder / "bin").mkdir()
        self.log.touch()
        for name, body in tools.items():
            tool = folder / "bin" / name
            tool.write_text(f'#!/bin/bash\n{{ printf {name}; printf " %q" "$@"; echo; }} >> "$LOG"\n{body}\n')
            tool.chmod(0o755)

    def run(self, *steps):
        """Run scripts with variables as GitHub does, in this folder, until one fails; return its exit code, and the calls."""
        own = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "LOG": str(self.log), "CODES": str(self.folder / "codes")}
        for script, variables in steps:
            command = ["bash", "-e", "-c", script]
            code = subprocess.run(command, cwd=self.folder, env=os.environ | own | variables, check=False).returncode
            if code:
                break
        return code, self.log.read_text().replace(str(self.folder), "WORK").replace("\\,", ",").splitlines()


@pytest.fixture
def machine(tmp_path):
    """With a library's checkout of two commits, 1 and 2."""
    git(tmp_path, "init", "--quiet", "library")
    for version in ("1", "2"):
        (tmp_path / "library" / "VERSION").write_text(version)
        git(tmp_path / "library", "add", ".")
        git(tmp_path / "library", "commit", "--quiet", "-m", version)
    return Machine(tmp_path, TOOLS)


@pytest.mark.parametrize("path", [OWN, LOWEST, GITHUB, MATRIX, NEWEST, CELLS], ids=lambda path: path.name)
def test_a_workflow_is_sound_trusts_no_text_of_others_and_pins_its_actions(path):
    """A branch's name is untrusted text: as a variable it stays text. Whoever owns an action can move its tags."""
    check(["--builtin-schema", "vendor.github-workflows", str(path)], standalone_mode=False)
    steps = [step for job in read(path)["jobs"].values() for step in job.get("steps", ())]
    cached = [step["with"]["path"] for step in steps if str(step.get("uses")).startswith("actions/cache")]
    assert set(cached) <= {"~/.cache/huggingface"}  # no tokenised rows of other code
    assert not [step["run"] for step in steps if "${{" in step.get("run", "")]
    actions = re.findall(r"uses: (?!\./)(.+)", path.read_text(encoding="utf-8"))
    assert [action for action in actions if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)] == []


def test_the_gitlab_recipe_is_sound_and_warns_where_the_gate_cannot_tell():
    arguments = ["--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci", str(GITLAB)]
    check(arguments, standalone_mode=False)
    assert read(GITLAB)["tunegrid"]["allow_failure"] == {"exit_codes": Outcome.CANNOT_TELL.exit_code}
    assert read(GITLAB)["tunegrid"]["cache"]["paths"] == [".cache/pip", ".cache/huggingface"]  # no rows of other code


# Shell

RUN, JUDGED = "pytest -m quick -n auto", "--gate-on=numerics,quality,memory"  # a library's change of arithmetic fails its job
AGAIN = "pip install --no-deps --force-reinstall"


def github(machine, **changes):
    (machine.folder / "tunegrid").mkdir()
    base = git(machine.folder / "library", "rev-parse", "HEAD~1")
    expressions = {"inputs.profile || 'quick'": "quick", "github.event.pull_request.base.sha || github.event.before": base}
    return [*shell_steps(read(GITHUB)["jobs"]["gate"], expressions | {"inputs.baseline": ""} | changes)]


def newest(machine):
    return [(script, own | read(NEWEST)["env"]) for script, own in shell_steps(read(NEWEST)["jobs"]["newest"], {})]


def gitlab(machine):
    git(machine.folder, "init", "--quiet", "origin")
    git(machine.folder / "origin", "commit", "--quiet", "--allow-empty", "-m", "tunegrid")
    job, library = read(GITLAB)["tunegrid"], machine.folder / "library"
    own = {"WORK": str(machine.folder / "work"), "PROFILE": job["variables"]["PROFILE"], "CI_PROJECT_DIR": str(library)}
    own |= {"TUNEGRID_URL": (machine.folder / "origin").as_uri()}
    own |= {"CI_MERGE_REQUEST_DIFF_BASE_SHA": git(library, "rev-parse", "HEAD~1")}
    return [("\n".join(["set -o pipefail", f"cd {library}", *job["script"]]), own)]


CALLS = {
    github: f"""pip install -e ./tunegrid
{AGAIN} ./base
version 1
{RUN} --benchmark-json=../run/before.json
{AGAIN} ./library
version 2
{RUN} --gate=../run/before.json {JUDGED} --benchmark-json=../run/after.json --html=../run/page.html""",
    newest: f"""pip install --upgrade --upgrade-strategy eager -e .
{RUN} --benchmark-json=run/before.json
pip install --pre --upgrade -e . {read(NEWEST)["env"]["LIBRARIES"]}
{RUN} --gate=run/before.json {JUDGED} --benchmark-json=run/after.json --html=run/page.html""",
    gitlab: f"""pip install -e .
{AGAIN} WORK/work/base
version 1
{RUN} --benchmark-json=OUT/before.json
{AGAIN} WORK/library
version 2
{RUN} --gate=OUT/before.json {JUDGED} --benchmark-json=OUT/after.json --html=OUT/page.html --junitxml=OUT/junit.xml""",
}


@pytest.mark.parametrize(("codes", "code"), [([1, 0], 0), ([0, 1], 1), ([2], 1), ([0, 6], 6)])
@pytest.mark.parametrize("recipe", CALLS, ids=lambda recipe: recipe.__name__)
def test_a_recipe_measures_before_and_after_and_ends_as_the_gate_does(machine, recipe, codes, code):
    (machine.folder / "codes").write_text("\n".join(map(str, codes)))
    ended, calls = machine.run(*recipe(machine))
    expected = CALLS[recipe].replace("OUT", "WORK/library/run").splitlines()
    if codes == [2]:  # the first run ends with an error; that it misses a bound would be none
        del expected[next(i for i, call in enumerate(expected) if call.startswith("pytest")) + 1 :]
    assert (ended, [call for call in calls if call != "pip freeze"]) == (code, expected)


def test_pytest_has_every_option_that_the_recipes_give(pytestconfig):
    text = "".join(path.read_text() for path in (OWN, GITHUB, GITLAB, NEWEST, CELLS))
    for name in {"--gate", "--html", *re.findall(r"--[a-z-]+(?==)", text)}:
        pytestconfig.getoption(name)  # raises ValueError for an unknown one
