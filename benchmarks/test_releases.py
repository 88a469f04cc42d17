"""A ladder of real bad releases: with each installed, its marker turns red; with the good release beside it, it stays green.

Each release has an environment of its own, as those of `tunegrid bisect`: the one package, and all else from here.
"""

import os
import re
import subprocess

import pytest

from benchmarks.releases import NoIndex, ladder, python_of
from fixtures.selection import MARKERS
from tunegrid import ROOT

pytestmark = pytest.mark.releases

RED = 1  # pytest's exit code where a test failed
GATE_ON = "numerics,quality,memory"


def installed(requirement):
    """A Python with this release; skips where no package index answers."""
    try:
        return python_of(requirement)
    except NoIndex as error:
        pytest.skip(f"{requirement} cannot be tried without a package index ({error})")


def run(python, release, *options):
    """The exit code of the marker's tests of a row, and what they said."""
    own = {name: text for name, text in os.environ.items() if name != "PYTHONPATH" and not name.startswith("PYTEST_")}
    chosen = ["--cells", ",".join(release.cells)] if release.cells else []
    chosen += ["-k", release.only] if release.only else []
    command = ["-q", "-n", "0", "-m", release.marker, *chosen, *options]
    answer = subprocess.run(
        [python, "-m", "pytest", *command], cwd=ROOT, env=own, capture_output=True, text=True, encoding="utf-8", check=False
    )
    return answer.returncode, answer.stdout + answer.stderr


@pytest.fixture
def release(request):
    if request.param.marker not in MARKERS:
        pytest.skip(f"{request.param.bad} is for `pytest -m {request.param.marker}` to see, which this suite does not have yet")
    return request.param


@pytest.fixture
def options(release, tmp_path):
    """Of the run with the good release, and of the one with the bad release."""
    if release.marker != "quick":
        return [], []
    path = tmp_path / "good.json"
    return [f"--benchmark-json={path}"], [f"--gate={path}", f"--gate-on={GATE_ON}"]


@pytest.mark.parametrize("release", ladder(), ids=lambda release: release.id, indirect=True)
def test_a_bad_release_turns_red_and_is_named(release, options):
    good, bad = (installed(requirement) for requirement in (release.good, release.bad))
    code, said = run(good, release, *options[0])
    assert code == 0, f"red with {release.good} already: {said[-2000:]}"
    code, said = run(bad, release, *options[1])
    assert code == RED, f"{release.bad} ({release.what}, {release.source}) passes {release.marker}: {said[-2000:]}"
    assert re.search(release.named, said), f"{release.bad} is red, but nothing says {release.named!r}: {said[-2000:]}"
