"""Text of files, models and libraries as others see it: no terminal or CI obeys it, no path tells whose machine it was."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from tunegrid import ROOT

COMMAND = re.compile(r"^(?=\s*::)")  # at the start of a line GitHub Actions takes `::name` for a command, blanks or not
OLD_COMMAND = re.compile(r"#(?=#\w*\[)")  # GitHub and Azure take `##name[` for one anywhere in a line
LIBRARIES = "/site-packages/"
PATH = re.compile(r"(?<![\w.~:/-])(?:/[\w.+@%~-]*[\w+@%~-])+")  # absolute; neither a fraction nor part of an address
HOME = re.compile(r"/root|/(?:home|Users)/[^/]+")


def visible(text: str) -> str:
    """Text on one line: control characters are written out, as in a Python string, and no CI takes it for a command."""
    shown = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return OLD_COMMAND.sub("# ", COMMAND.sub(r"\\", shown))


def visible_lines(text: str) -> str:
    """The same for a text whose line breaks are our own."""
    return "\n".join(map(visible, text.split("\n")))


def annotation(level: str, title: str, message: str) -> str:
    """A line that GitHub Actions does obey: an annotation of its own, whose texts are as visible ones are.

    Args:
        level: error, warning or notice.
        title: one line.
        message: its lines stay lines.
    """
    heading = visible(title).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={heading}::{visible_lines(message).replace('%', '%25').replace(chr(10), '%0A')}"


def tell_runner(commands: Iterable[str]) -> None:
    """Print lines that the runner of a CI obeys; each is from `annotation`, which leaves no text of a file to be a command."""
    for command in commands:
        _write(command, sys.stdout)


def say(text: str, *, error: bool = False) -> None:
    """Print lines; what the terminal's encoding lacks is written out."""
    _write(visible_lines(text), sys.stderr if error else sys.stdout)


def _write(text: str, stream: TextIO) -> None:
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)


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
