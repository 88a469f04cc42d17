"""Makes text from files, models and libraries safe to show.

After `defuse`, nothing in the text controls a terminal or a CI system. After `strip_places`, no
path reveals whose machine it is from.
"""

import re
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tunegrid import ROOT

# GitHub Actions reads `::name` at the start of a line as a command, even after blanks
WORKFLOW_COMMAND = re.compile(r"^(?=\s*::)")
# GitHub and Azure read `##name[` as a command anywhere in a line
OLD_WORKFLOW_COMMAND = re.compile(r"#(?=#\w*\[)")
LIBRARIES = "/site-packages/"
# Matches absolute paths, but not fractions or parts of an address
PATH = re.compile(r"(?<![\w.~:/-])(?:/[\w.+@%~-]*[\w+@%~-])+")
FOLDER_OPTION = re.compile(r"(--(?:data|checkpoint)-root[= ])/[^\s'\"`]+")
HOME = re.compile(r"/root|/(?:home|Users)/[^/]+")
# An address, with or without a scheme. After the colon, digits up to a non-word character are a
# port; anything else starts a password.
START = r"(?<![\w/.])(?:[A-Za-z][\w+.-]*:)?//"
ADDRESS = re.compile(START + r"[^\s/'\"<>][^\s'\"<>]*")
PASSWORD = re.compile(
    rf"({START})[^\s/:@'\"\[]*:(?!\d+(?:\W|$)|\s)(?:(?!//)[^\n@])*@(?:[^\s'\"@/.]*/[^\s'\"@/.]*@)?"
)
GIT = "git"  # a user name that everybody shares
GIT_TOKEN = re.compile(rf"(?<![\w/]){GIT}@[^\s@/]+@")


def defuse(text: str) -> str:
    """Put text on one line, with control characters escaped as in a Python string.

    No CI system reads the result as a command, and secrets are hidden.
    """
    letters = hide_secrets(text)
    line = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in letters
    )
    return OLD_WORKFLOW_COMMAND.sub("# ", WORKFLOW_COMMAND.sub(r"\\", line))


def defuse_lines(text: str) -> str:
    """Defuse each line of a text separately, which keeps its line breaks."""
    return "\n".join(map(defuse, text.split("\n")))


def annotation(level: str, title: str, message: str) -> str:
    """A line that GitHub shows as an annotation; `level` is error, warning or notice."""
    heading = defuse(title).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    text = defuse_lines(message).replace("%", "%25").replace("\n", "%0A")
    return f"::{level} title={heading}::{text}"


def say(text: str, *, error: bool = False, runner: bool = False) -> None:
    """Print lines; characters that the stream cannot encode are escaped.

    CI systems execute no line as a command, except an `annotation` printed with `runner`.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # closed, for example by `2>&-`
        return
    encoding = stream.encoding or "utf-8"
    content = (text if runner else defuse_lines(text)).encode(encoding, "backslashreplace")
    print(content.decode(encoding), file=stream, flush=True)


def strip_places(text: str) -> str:
    """The text as records keep it, without secrets and with shortened paths.

    An absolute path is cut to the part inside the checkout or a library, or else to its last
    component. A home folder becomes ~; a path after --data-root or --checkpoint-root becomes DIR.
    """

    def shown(match: re.Match[str]) -> str:
        path = match.group()
        if HOME.fullmatch(path) or path == str(Path.home()):
            return "~"
        if path.count("/") == 1:  # such as /2 or a top-level folder, which identify nobody
            return path
        if path.startswith(f"{ROOT}/"):
            return path.removeprefix(f"{ROOT}/")
        return path.rpartition(LIBRARIES if LIBRARIES in path else "/")[2]

    if "/" not in text:
        return text
    return PATH.sub(shown, FOLDER_OPTION.sub(r"\1DIR", hide_secrets(text)))


def hide_secrets(text: str) -> str:
    """Reduce each address in a text to scheme, host and path.

    Passwords, tokens, queries, fragments and users other than `git` are removed.
    """
    without_passwords = PASSWORD.sub(r"\1", text) if "//" in text else text
    return GIT_TOKEN.sub(f"{GIT}@", ADDRESS.sub(_public_address, without_passwords))


def _public_address(match: re.Match[str]) -> str:
    address = match.group().rstrip(").,;")
    end = match.group()[len(address) :]
    try:
        scheme, netloc, path, *_ = urlsplit(address)
    except ValueError:  # not an address, for example "//["
        return match.group()
    user, _, host = netloc.rpartition("@")
    if user == GIT:
        host = netloc
    name, colon, _ = host.partition(":")
    # A password whose start looks like a port
    if colon and "." not in name and name != "localhost" and "@" in path:
        host, path = path.rpartition("@")[2], ""
    return f"{scheme}:" * bool(scheme) + f"//{host}{path}{end}"
