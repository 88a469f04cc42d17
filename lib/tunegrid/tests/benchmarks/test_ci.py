"""The CI recipes are sound by the published schemas, and give options that pytest has."""

import re

import pytest
from check_jsonschema import main as check
from ruamel.yaml import YAML

from tunegrid import ROOT
from tunegrid.report.verdict import Rank

RECIPES = ROOT / "benchmarks" / "ci"
QUICK = ROOT / ".github" / "workflows" / "quick.yml"
VERSIONS = ROOT / ".github" / "workflows" / "versions.yml"
GITHUB = RECIPES / "github.yml"
MATRIX = RECIPES / "github-matrix.yml"
NEWEST = RECIPES / "newest.yml"
CELLS = RECIPES / "own-cells.yml"
GITLAB = RECIPES / "gitlab.yml"


def read_sound(path, schema, *options):
    """A recipe's content; checks that it is as a published schema says."""
    arguments = ["--builtin-schema", f"vendor.{schema}", *options, str(path)]
    assert not check(arguments, standalone_mode=False)  # the exit code
    return YAML(typ="safe").load(path.read_text())


@pytest.mark.parametrize(
    "path", [QUICK, VERSIONS, GITHUB, MATRIX, NEWEST, CELLS], ids=lambda path: path.name
)
def test_a_workflow_is_sound_trusts_no_text_of_others_and_pins_its_actions(path):
    """A branch's name is untrusted text: as a variable it stays text.

    Whoever owns an action can move its tags.
    """
    for job in read_sound(path, "github-workflows")["jobs"].values():
        for step in job.get("steps", ()):
            assert "${{" not in step.get("run", "")
            if step.get("uses", "").startswith("actions/cache"):
                # No tokenised rows of other code
                assert step["with"]["path"] == "~/.cache/huggingface"
    for action in re.findall(r"uses: (?!\./)(.+)", path.read_text()):
        assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action)


def test_the_gitlab_recipe_is_sound_and_warns_where_the_gate_cannot_tell():
    recipe = read_sound(GITLAB, "gitlab-ci", "--data-transform", "gitlab-ci")["tunegrid"]
    assert recipe["allow_failure"] == {"exit_codes": Rank.CANNOT_TELL.exit_code}
    # No rows of other code
    assert recipe["cache"]["paths"] == [".cache/pip", ".cache/huggingface"]


def test_pytest_has_every_option_that_the_recipes_give(pytestconfig):
    text = "".join(path.read_text() for path in (QUICK, GITHUB, GITLAB, NEWEST, CELLS))
    for name in {"--gate", "--html", *re.findall(r"--[a-z-]+(?==)", text)}:
        pytestconfig.getoption(name)  # raises ValueError for an unknown one
