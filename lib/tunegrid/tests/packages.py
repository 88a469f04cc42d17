"""A wheel of a small package in the place of a library, and git for checkouts."""

import subprocess
from pathlib import Path
from zipfile import ZipFile


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


def git(repo, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    answer = subprocess.run(["git", "-C", repo, *identity, *arguments], capture_output=True, text=True, check=True)
    return answer.stdout.strip()
