"""A small package in the place of a library, which pip installs as a checkout (editable) or as a wheel."""

import inspect
import json
import os
import subprocess
import sys
import sysconfig
import venv
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile

from tunegrid import ROOT
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


def build_wheel(folder, config_settings=None, metadata_directory=None):
    """A wheel of the package beside this file, with the hashes that RECORD has."""
    [package] = Path("src").iterdir()
    return packed(folder, package.name, {str(path.relative_to("src")): path.read_bytes() for path in package.rglob("*.py")})


def build_editable(folder, config_settings=None, metadata_directory=None):
    """A wheel that points to it, as those of `pip install -e`."""
    [package] = Path("src").iterdir()
    return packed(folder, package.name, {f"__editable__.{package.name}.pth": str(Path("src").resolve()).encode()})


def packed(folder, name, files):
    info = f"{name}-1.0.dev0.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.dev0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {path: urlsafe_b64encode(sha256(data).digest()).decode().rstrip("=") for path, data in files.items()}
    record = "".join(f"{path},sha256={digests[path]},{len(data)}\n" for path, data in files.items())
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    wheel = Path(folder) / f"{name}-1.0.dev0-py3-none-any.whl"
    with ZipFile(wheel, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return wheel.name


def wheel(folder, version, rows, name="planted"):
    """A wheel of a package that holds one number, written by hand: building it installs nothing."""
    files = {
        f"{name}.py": f"ROWS = {rows!r}\n",
        f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{name}-{version}.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{name}-{version}.dist-info/RECORD"] = "".join(f"{file},,\n" for file in files)
    path = Path(folder) / f"{name}-{version}-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path.name


IMPORTS = """
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path
from zipfile import ZipFile
"""
BACKEND = "\n\n".join([IMPORTS, *map(inspect.getsource, (build_wheel, build_editable, packed))])


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


def checkout_of(folder, name, code):
    """The sources of a package of one module, whose version never changes; and the file with its code."""
    module = folder / "src" / name / "__init__.py"
    module.parent.mkdir(parents=True)
    module.write_text(code)
    (folder / "backend.py").write_text(BACKEND)
    (folder / "pyproject.toml").write_text(PYPROJECT.format(name=name, version="1.0.dev0"))
    return module


class Environment:
    """A virtual environment with what is installed here, and packages of its own in front of it."""

    def __init__(self, folder):
        """Made without pip, which this environment's own serves."""
        venv.EnvBuilder(symlinks=os.name != "nt").create(folder)
        paths = {name: Path(sysconfig.get_path(name, "venv", {"base": str(folder)})) for name in ("scripts", "purelib")}
        self.python, self.packages = paths["scripts"] / "python", paths["purelib"]
        shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        # It is read after the files of packages, whose names begin with "_" at the latest.
        (self.packages / "zz-shared.pth").write_text("".join(f"{path}\n" for path in shared))

    def install(self, *what):
        options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall", "--no-compile")
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install", *options, *map(str, what)]
        subprocess.run(command, check=True, capture_output=True)

    def says(self, code, *on_path):
        """What a Python of this environment prints as JSON."""
        return python_says(code, *on_path, python=self.python)


def python_says(code, *on_path, python=sys.executable):
    """What a Python with these folders in front prints as JSON."""
    done = subprocess.run([python, "-c", code], env=with_path(*on_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def with_path(*folders):
    """The environment of a process that is no part of this session, and imports from these folders before all others."""
    own = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    return own | {"PYTHONPATH": os.pathsep.join(map(str, (*folders, ROOT / "lib", ROOT)))}
