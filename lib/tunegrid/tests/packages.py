"""Wheels and checkouts of a small package that replaces a library, and git for the checkouts."""

import hashlib
import subprocess
from base64 import urlsafe_b64encode
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

BUILD = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def wheel(folder, version, rows, name="planted", needs=()):
    """Writes a wheel by hand, since a build would install tools; its package holds one number."""
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += "".join(f"Requires-Dist: {need}\n" for need in needs)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f"ROWS = {rows!r}\n",
        f"{info}/METADATA": metadata,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for file, text in files.items():
        digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        record += f"{file},sha256={digest},{len(text)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n"
    path = Path(folder) / f"{name}-{version}-py3-none-any.whl"
    with ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(file, text)
    return path.name


def pack(folder, name):
    """Writes a wheel from the files of an installed package."""
    package = distribution(name)
    with ZipFile(Path(folder) / f"{name}-{package.version}-py3-none-any.whl", "w") as archive:
        for file in package.files:
            if file.suffix != ".pyc" and file.name not in ("INSTALLER", "REQUESTED"):
                archive.write(file.locate(), file)


def checkout(repo, version, rows, name="planted"):
    """Makes a git repository of such a package; it builds offline. Returns the commit's hash."""
    git(repo.parent, "init", "--quiet", repo)
    build = (
        f"def build_wheel(folder, *_):\n    return wheel(folder, {version!r}, {rows!r}, {name!r})\n"
    )
    (repo / "backend.py").write_text(f"{Path(__file__).read_text()}\n\n{build}")
    (repo / "pyproject.toml").write_text(BUILD)
    git(repo, "add", "--all")
    git(repo, "commit", "--quiet", "-m", "planted")
    return git(repo, "rev-parse", "HEAD")


def git(repo, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    answer = subprocess.run(
        ["git", "-C", repo, *identity, *arguments], capture_output=True, text=True, check=True
    )
    return answer.stdout.strip()
