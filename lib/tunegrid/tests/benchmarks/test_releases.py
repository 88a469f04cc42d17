"""The ladder of bad releases is sound, and says so where no index answers."""

import pytest
from benchmarks.library_invariants import INVARIANTS
from packaging.version import Version

from benchmarks.releases import NoIndex, ladder, python_of
from fixtures.selection import MARKERS
from tunegrid.errors import InputError
from tunegrid.grid.cells import STUDY_IDS
from tunegrid.machine import PACKAGES

COMING = {"stock", "equivalent", "merges"}


@pytest.mark.parametrize("release", ladder(), ids=lambda release: release.id)
def test_a_row_names_two_releases_of_one_watched_package_and_cells_that_there_are(release):
    (name, bad), (other, good) = (requirement.split("==") for requirement in (release.bad, release.good))
    assert name == other
    assert name in PACKAGES
    assert Version(bad) != Version(good)
    assert release.marker in {*MARKERS, *COMING}
    assert set(release.cells) <= set(STUDY_IDS)


def test_no_marker_has_a_release_twice():
    ids = [release.id for release in ladder()]
    assert len(set(ids)) == len(ids)


def test_an_invariant_that_a_row_names_is_there():
    named = [release.named for release in ladder() if release.marker == "library_bugs"]
    assert named
    assert set(named) <= set(INVARIANTS)


@pytest.mark.slow
def test_that_no_index_answers_is_told_from_a_release_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no uv, which has an index of its own
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(NoIndex, match=r"^peft 0\.19\.1 cannot be installed"):
        python_of("peft==0.19.1", tmp_path)
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    (wheels / "peft-0.18.0-py3-none-any.whl").touch()
    with pytest.raises(InputError, match=r"^peft 0\.19\.1 cannot be installed") as error:
        python_of("peft==0.19.1", tmp_path)
    assert not isinstance(error.value, NoIndex)
