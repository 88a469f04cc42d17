"""A small package in the place of a library, as a wheel or as a checkout that pip builds one of."""

import inspect
from pathlib import Path
from zipfile import ZipFile

from tunegrid.tests.repositories import git

PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "{name}"
version = "{version}"
"""


def wheel(folder, version, rows, name="planted"):
    """A wheel of a package that holds one number, written by hand: building it installs nothing."""
    files = {
        f"{name}/__init__.py": f"ROWS = {rows!r}\n",
        f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{name}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{name}-{version}.dist-info/RECORD"] = "".join(f"{file},,\n" for file in files)
    path = Path(folder) / f"{name}-{version}-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path.name


COUNTED = f"""
from zipfile import ZipFile
from pathlib import Path

{inspect.getsource(wheel)}

def build_wheel(folder, config_settings=None, metadata_directory=None):
    Path("built-here").touch()  # as builds write into their folder
    return wheel(folder, "VERSION", int(Path("rows.txt").read_text()))
"""


def repository(folder, version):
    """A checkout of `planted` whose number stands in rows.txt, with git and without a commit."""
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "backend.py").write_text(COUNTED.replace("VERSION", version))
    (folder / "pyproject.toml").write_text(PYPROJECT.format(name="planted", version=version))
    return folder
