"""A library's digest is that of the code which Python imports: real packages, installed by pip, changed under one version."""

import os
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from tunegrid.machine import PACKAGES, digest_of, library_digests
from tunegrid.tests.packages import Environment, checkout_of

NAME = "rouge_score"  # small, and imported by nothing that starts here
DIGEST = f"import json; from tunegrid.machine import digest_of; print(json.dumps(digest_of({NAME!r})))"


@pytest.fixture
def installed(tmp_path):
    """An environment, the checkout of a package, and the file with its code."""
    return Environment(tmp_path / "environment"), tmp_path / "checkout", checkout_of(tmp_path / "checkout", NAME, "ONE = 1\n")


def test_an_edited_checkout_and_each_wheel_of_one_version_have_digests_of_their_code(installed):
    environment, checkout, module = installed
    environment.install("-e", checkout)
    first = environment.says(DIGEST)
    (module.parent / "notes.md").write_text("1")  # no code
    assert environment.says(DIGEST) == first
    module.write_text("ONE = 2\n")
    second = environment.says(DIGEST)
    environment.install(checkout)  # as CI recipes install a commit
    assert environment.says(DIGEST) == second != first
    module.write_text("ONE = 1\n")
    assert environment.says(DIGEST) == second  # the wheel is a copy
    assert environment.says(DIGEST, checkout / "src") == first  # in front of the wheel
    inside = environment.packages / NAME / "__init__.py"
    inside.touch()
    assert environment.says(DIGEST) == second
    inside.write_text("ONE = 1 + 1\n")
    os.utime(inside, (0, 0))  # as `cp --preserve` leaves it
    assert environment.says(DIGEST) not in (first, second)


def test_every_library_here_has_a_digest_of_its_own_and_a_copy_of_its_files_the_same(tmp_path):
    digests = library_digests()
    assert digests.keys() == {package for package in PACKAGES if version(package)}
    assert len(set(digests.values())) == len(digests)
    assert digest_of("no_such_package") is None
    # peft's wheel holds nothing but its package, so that RECORD's hashes are those of the files.
    shutil.copytree(Path(find_spec("peft").origin).parent, tmp_path / "peft")
    code = "import json; from tunegrid.machine import digest_of; print(json.dumps(digest_of('peft')))"
    assert Environment(tmp_path / "environment").says(code, tmp_path) == digest_of("peft")
