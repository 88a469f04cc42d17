"""Takes from a text where on a machine a file lies: records and pages are published, and a path tells who ran them where."""

import re
from pathlib import Path

from tunegrid import ROOT

LIBRARIES = "/site-packages/"
PATH = re.compile(r"(?<![\w.~:/-])(?:/[\w.+@%~-]*[\w+@%~-])+")  # absolute; neither a fraction nor part of an address
HOME = re.compile(r"/root|/(?:home|Users)/[^/]+")


def without_places(text: str) -> str:
    """The text with the last part of each absolute path; of one in the checkout or in a library, where it lies there."""
    return PATH.sub(lambda match: _shown(match.group()), text) if "/" in text else text


def _shown(path: str) -> str:
    if HOME.fullmatch(path) or path == str(Path.home()):
        return "~"
    if path.count("/") == 1:  # /2, or a top folder, which is everybody's
        return path
    if path.startswith(f"{ROOT}/"):
        return path.removeprefix(f"{ROOT}/")
    if LIBRARIES in path:
        return path.rpartition(LIBRARIES)[2]
    return path.rpartition("/")[2]
