"""Text of files, models and libraries as others see it: no terminal or CI obeys it, no path tells
whose machine it was.
"""

import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tunegrid import ROOT

# At the start of a line GitHub Actions takes `::name` for a command, blanks or not
COMMAND = re.compile(r"^(?=\s*::)")
# GitHub and Azure take `##name[` for one anywhere in a line
OLD_COMMAND = re.compile(r"#(?=#\w*\[)")
LIBRARIES = "/site-packages/"
# absolute; neither a fraction nor part of an address
PATH = re.compile(r"(?<![\w.~:/-])(?:/[\w.+@%~-]*[\w+@%~-])+")
HOME = re.compile(r"/root|/(?:home|Users)/[^/]+")
# An address, with a scheme or without; where its password begins, a port would end at a sign that
# is none of a number.
START = r"(?<![\w/.])(?:[A-Za-z][\w+.-]*:)?//"
ADDRESS = re.compile(START + r"[^\s/'\"<>][^\s'\"<>]*")
PASSWORD = re.compile(
    rf"({START})[^\s/:@'\"\[]*:(?!\d+(?:\W|$)|\s)(?:(?!//)[^\n@])*@(?:[^\s'\"@/.]*/[^\s'\"@/.]*@)?"
)
GIT = "git"  # whose user is everybody's
GIT_TOKEN = re.compile(rf"(?<![\w/]){GIT}@[^\s@/]+@")


def defuse(text: str) -> str:
    """Text on one line: control characters are written out, as in a Python string, and no CI takes
    it for a command.
    """
    letters = hide_secrets(text)
    line = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in letters
    )
    return OLD_COMMAND.sub("# ", COMMAND.sub(r"\\", line))


def defuse_lines(text: str) -> str:
    """The same for a text whose line breaks are our own."""
    return "\n".join(map(defuse, text.split("\n")))


def annotation(level: str, title: str, message: str) -> str:
    """A line that GitHub Actions does obey, at `level` error, warning or notice."""
    heading = defuse(title).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={heading}::{defuse_lines(message).replace('%', '%25').replace(chr(10), '%0A')}"


def say(text: str, *, error: bool = False, runner: bool = False) -> None:
    """Print lines, which no CI obeys but those of `annotation` (`runner`); what the encoding lacks
    is written out.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # it is closed, as by `2>&-`
        return
    encoding = stream.encoding or "utf-8"
    content = (text if runner else defuse_lines(text)).encode(encoding, "backslashreplace")
    print(content.decode(encoding), file=stream, flush=True)


def strip_places(text: str) -> str:
    """The text as it is recorded: of an absolute path what is in the checkout or a library, else
    its last part; no secrets.
    """

    def shown(match: re.Match[str]) -> str:
        path = match.group()
        if HOME.fullmatch(path) or path == str(Path.home()):
            return "~"
        if path.count("/") == 1:  # /2, or a top folder, which is everybody's
            return path
        if path.startswith(f"{ROOT}/"):
            return path.removeprefix(f"{ROOT}/")
        return path.rpartition(LIBRARIES if LIBRARIES in path else "/")[2]

    return PATH.sub(shown, hide_secrets(text)) if "/" in text else text


def hide_secrets(text: str) -> str:
    """The text with scheme, host and path of each address: no user, password, token, query or
    fragment.
    """
    without_passwords = PASSWORD.sub(r"\1", text) if "//" in text else text
    return GIT_TOKEN.sub(f"{GIT}@", ADDRESS.sub(_public_address, without_passwords))


def _public_address(match: re.Match[str]) -> str:
    address = match.group().rstrip(").,;")
    end = match.group()[len(address) :]
    try:
        scheme, netloc, path, *_ = urlsplit(address)
    except ValueError:  # no address, as "//["
        return match.group()
    user, _, host = netloc.rpartition("@")
    if user == GIT:
        host = netloc
    name, colon, _ = host.partition(":")
    # A password that begins as a port does
    if colon and "." not in name and name != "localhost" and "@" in path:
        host, path = path.rpartition("@")[2], ""
    return f"{scheme}:" * bool(scheme) + f"//{host}{path}{end}"
