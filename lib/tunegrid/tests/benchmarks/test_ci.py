"""The CI recipes are sound by the published schemas, and give options that pytest has."""

import re

import pytest
from check_jsonschema import main as check
from ruamel.yaml import YAML

from tunegrid import ROOT
from tunegrid.report.verdict import Rank

RECIPES = ROOT / "benchmarks" / "ci"
OWN, VERSIONS, GITHUB, MATRIX, NEWEST, CELLS, GITLAB = (
    *(ROOT / ".github" / "workflows" / name for name in ("quick.yml", "versions.yml")),
    *(
        RECIPES / name
        for name in ("github.yml", "github-matrix.yml", "newest.yml", "own-cells.yml", "gitlab.yml")
    ),
)


def read(path):
    return YAML(typ="safe").load(path.read_text())


@pytest.mark.parametrize(
    "path", [OWN, VERSIONS, GITHUB, MATRIX, NEWEST, CELLS], ids=lambda path: path.name
)
def test_a_workflow_is_sound_trusts_no_text_of_others_and_pins_its_actions(path):
    """A branch's name is untrusted text: as a variable it stays text.

    Whoever owns an action can move its tags.
    """
    check(["--builtin-schema", "vendor.github-workflows", str(path)], standalone_mode=False)
    steps = [step for job in read(path)["jobs"].values() for step in job.get("steps", ())]
    cached = [
        step["with"]["path"] for step in steps if str(step.get("uses")).startswith("actions/cache")
    ]
    assert set(cached) <= {"~/.cache/huggingface"}  # no tokenised rows of other code
    assert not [step["run"] for step in steps if "${{" in step.get("run", "")]
    actions = re.findall(r"uses: (?!\./)(.+)", path.read_text(encoding="utf-8"))
    assert [
        action
        for action in actions
        if not re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)
    ] == []


def test_the_gitlab_recipe_is_sound_and_warns_where_the_gate_cannot_tell():
    arguments = [
        "--builtin-schema",
        "vendor.gitlab-ci",
        "--data-transform",
        "gitlab-ci",
        str(GITLAB),
    ]
    check(arguments, standalone_mode=False)
    assert read(GITLAB)["tunegrid"]["allow_failure"] == {"exit_codes": Rank.CANNOT_TELL.exit_code}
    # No rows of other code
    assert read(GITLAB)["tunegrid"]["cache"]["paths"] == [".cache/pip", ".cache/huggingface"]


def test_pytest_has_every_option_that_the_recipes_give(pytestconfig):
    text = "".join(path.read_text() for path in (OWN, GITHUB, GITLAB, NEWEST, CELLS))
    for name in {"--gate", "--html", *re.findall(r"--[a-z-]+(?==)", text)}:
        pytestconfig.getoption(name)  # raises ValueError for an unknown one
