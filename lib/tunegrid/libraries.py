"""Which code of each library Python imports here: its version, and sixteen hex digits, as two commits may have one version.

A wheel's RECORD lists the hash of each file that was installed: these are taken, and only files changed since are read. Of a
checkout (an editable installation, a folder on PYTHONPATH) all code is read. Equal code has equal digits on every machine. No
library is imported.
"""

import base64
import hashlib
import json
import platform
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path

PACKAGES = (
    *("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "evaluate", "tokenizers"),
    *("numpy", "scipy", "rouge_score", "nltk"),  # scores and quantiles
)
CODE = re.compile(r"\.(py|so|pyd|dll|dylib)(\.\d+)*$")  # what Python and the loader read
HUB = re.compile(r"(?:kernels|models)--(.+)--(.+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]")  # a file in the hub's cache
LARGE = 64 * 2**20  # bytes: of a larger file in a checkout, as a torch built in place has, size and time stand for the content


@cache
def versions() -> dict[str, str | None]:
    """Python's and the libraries' versions; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def library_digests() -> dict[str, str]:
    """The digits of each library that is installed."""
    digests = {package: digest_of(package) for package in PACKAGES}
    return {package: digest for package, digest in digests.items() if digest is not None}


@cache
def digest_of(package: str) -> str | None:
    """The digits of one library; None where Python finds none of this name."""
    folder = import_folder(package)
    if folder is None:
        return None
    hashes = dict(_of_wheel(package, folder)) or dict(_of_checkout(folder))
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]


def hub_code() -> list[str]:
    """Repository and commit of each module that this process imported from the hub's cache, as the package `kernels` does."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return ["{}/{} at commit {}".format(*hub.groups()) for file in files if file and (hub := HUB.search(file))]


def import_folder(package: str) -> Path | None:
    """The folder that Python would import a library from, or has; None where it finds none."""
    spec = find_spec(package)
    return Path(spec.origin).parent.resolve() if spec and spec.origin else None


def _of_wheel(package: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Paths and hashes of a wheel's code as it lies on the disk; nothing where no wheel put it into this folder."""
    try:
        wheel = distribution(package)
    except PackageNotFoundError:
        return
    files = {file.as_posix(): file for file in wheel.files or ()}
    record = next((file for path, file in files.items() if path.endswith(".dist-info/RECORD")), None)
    if folder != Path(str(wheel.locate_file(package))).resolve() or f"{package}/__init__.py" not in files or record is None:
        return
    installed = Path(str(record.locate())).stat().st_mtime
    for path, file in files.items():
        if CODE.search(path) and not path.startswith(".."):  # a script, which names the environment's Python
            place = Path(str(file.locate()))
            if not place.is_file():  # Python 3.12 lists no such file
                continue
            found = place.stat()
            if file.hash and found.st_size == file.size and found.st_mtime <= installed:  # as it was installed
                yield path, f"{file.hash.mode}={file.hash.value}"
            else:
                yield path, _hash(place)


def _of_checkout(folder: Path) -> Iterator[tuple[str, str]]:
    """Paths and hashes of the code in a folder, as a wheel of it would list them."""
    for path in folder.rglob("*"):
        if CODE.search(path.name) and path.is_file():
            found = path.stat()
            content = _hash(path) if found.st_size <= LARGE else f"{found.st_size} {found.st_mtime_ns}"
            yield path.relative_to(folder.parent).as_posix(), content


def _hash(path: Path) -> str:
    """A file's hash as RECORD has it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return f"sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"
