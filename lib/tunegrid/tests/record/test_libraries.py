"""A library's digest is that of the code which Python imports, of a checkout or of a wheel that pip
installed.
"""

import os
import subprocess
import sys
from importlib.metadata import version

from tunegrid.machine import PACKAGES, library_digests, package_digest
from tunegrid.tests.packages import wheel
from tunegrid.tests.sessions import SOURCES, environment

CODE = "from tunegrid.machine import package_digest; print(package_digest('planted'))"


def digest(folder):
    """What a Python says that imports from this folder first."""
    variables = environment(PYTHONPATH=f"{folder}{os.pathsep}{SOURCES}")
    return subprocess.run(
        [sys.executable, "-c", CODE], env=variables, capture_output=True, text=True, check=True
    ).stdout


def test_an_edited_checkout_and_each_wheel_of_one_version_have_digests_of_their_code(tmp_path):
    module = tmp_path / "checkout" / "planted" / "__init__.py"
    module.parent.mkdir(parents=True)
    module.write_text("ROWS = 1\n")
    first = digest(tmp_path / "checkout")
    (module.parent / "notes.md").write_text("1")  # no code
    assert digest(tmp_path / "checkout") == first
    module.write_text("ROWS = 2\n")
    second = digest(tmp_path / "checkout")
    site = tmp_path / "site"
    wheel_path = tmp_path / wheel(tmp_path, "1.0", 2)
    options = ["--quiet", "--no-deps", "--no-index", "--target", site]
    command = [sys.executable, "-m", "pip", "install", *options, wheel_path]
    subprocess.run(command, check=True, capture_output=True)
    assert digest(site) == second != first
    inside = site / "planted" / "__init__.py"
    inside.touch()
    assert digest(site) == second
    inside.write_text("ROWS = 1\n")
    os.utime(inside, (0, 0))  # as `cp --preserve` leaves it: the size is the same, too
    assert digest(site) == first


def test_every_library_here_has_a_digest_of_its_own():
    digests = library_digests()
    assert digests.keys() == {package for package in PACKAGES if version(package)}
    assert len(set(digests.values())) == len(digests)
    assert package_digest("no_such_package") is None
