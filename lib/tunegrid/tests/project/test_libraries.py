import hashlib
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest

from tunegrid.gate.numerics import unlike_libraries
from tunegrid.libraries import LoadedKernel, kernels_allowed, loaded_kernels, prepare_libraries
from tunegrid.record.record import KernelRecord

ELSEWHERE = (
    "kernels-community/quantization-bitsandbytes=/dev/null:"
    "kernels-community/quantization_bitsandbytes=/dev/null"
)
COMMIT = "c" * 40


@pytest.fixture
def switches(monkeypatch):
    """Neither switch is set, and what the test sets is taken back."""
    for name in ("USE_HUB_KERNELS", "LOCAL_KERNELS"):
        monkeypatch.setenv(name, "")
    return monkeypatch


@pytest.mark.parametrize(
    ("named", "result"),
    [
        ("", ELSEWHERE),
        ("acme/fast=/opt/fast", f"acme/fast=/opt/fast:{ELSEWHERE}"),
        # The user's own folder stays; the other spelling leads nowhere.
        (
            "kernels-community/quantization-bitsandbytes=/opt/q",
            "kernels-community/quantization-bitsandbytes=/opt/q:"
            "kernels-community/quantization_bitsandbytes=/dev/null",
        ),
        (ELSEWHERE, ELSEWHERE),
    ],
    ids=["none", "another", "its own", "twice"],
)
def test_libraries_are_told_to_take_no_code_from_the_hub(switches, named, result):
    switches.setenv("LOCAL_KERNELS", named)
    prepare_libraries()
    assert os.environ["USE_HUB_KERNELS"] == "0"
    assert os.environ["LOCAL_KERNELS"] == result
    assert not kernels_allowed()


@pytest.mark.parametrize("word", ["1", "yes", "ON", "True"])
def test_a_user_may_allow_it(switches, word):
    switches.setenv("USE_HUB_KERNELS", word)
    prepare_libraries()
    assert os.environ["USE_HUB_KERNELS"] == word
    assert os.environ["LOCAL_KERNELS"] == ""
    assert kernels_allowed()


def test_what_was_loaded_has_its_commit_and_the_digest_of_its_files(monkeypatch, tmp_path):
    snapshot = tmp_path / "kernels--acme--fast-gelu" / "snapshots" / COMMIT
    file = snapshot / "build" / "torch-cpu" / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text("fast")
    own = tmp_path / "own"
    own.mkdir()
    (own / "__init__.py").write_text("own")
    from_hub = ModuleType("from_hub")
    from_hub.__file__ = str(file)
    monkeypatch.setitem(sys.modules, "from_hub", from_hub)
    local = SimpleNamespace(
        repo_info=None,
        metadata=SimpleNamespace(name="own"),
        module=SimpleNamespace(__file__=str(own / "__init__.py")),
    )
    kernels = SimpleNamespace(get_loaded_kernels=lambda: [local])
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    hashes = [
        hashlib.sha256(text).hexdigest()[:16]
        for text in (b"build/torch-cpu/__init__.pyfast", b"__init__.pyown")
    ]
    assert loaded_kernels() == {
        "acme/fast-gelu": LoadedKernel(commit=COMMIT, digest=hashes[0]),
        "own": LoadedKernel(commit=None, digest=hashes[1]),
    }


def test_runs_are_told_apart_by_what_they_loaded():
    def run(**kernels):
        return SimpleNamespace(versions={}, libraries={}, kernels=kernels)

    old = KernelRecord(commit=COMMIT, digest="1" * 16)
    own = KernelRecord(commit=None, digest="2" * 16)
    assert unlike_libraries(run(fast=old), run(fast=old)) == ""
    assert unlike_libraries(run(fast=old), run(fast=own)) == (
        "kernel fast at 222222222222, it was cccccccccccc"
    )
    assert unlike_libraries(run(gone=old), run(new=own)) == (
        "no kernel gone, which the other run has; kernel new, which the other run lacks"
    )
