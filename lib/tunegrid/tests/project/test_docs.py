"""The pages: each command in them is one that the code takes, and each link leads somewhere."""

import argparse
import json
import re
import shlex
from importlib import import_module

import pytest

from tunegrid import ROOT
from tunegrid import __main__ as product
from tunegrid.lab import __main__ as lab
from tunegrid.tests.sessions import collected_together

GUIDES = sorted((ROOT / "benchmarks" / "guides").glob("*.md"))
PAGES = [
    ROOT / "README.md",
    *GUIDES,
    *sorted((ROOT / "reports" / "evidence").glob("*.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "benchmarks/ci", "reports", "lib")),
    ROOT / "reports" / "CHANGELOG.md",
]
# What needs a network, or runs everything; and Ray's own command.
INSTALLING = ("pip", "uv", "python3", "source", ".ci/run", "ray", "benchmarks/ci/slurm.sh")
BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"


def blocks(language):
    """Every code block of the pages in a language."""
    return [
        block
        for page in PAGES
        for block in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    ]


def commands():
    """Every command of the pages' bash blocks, as words."""
    for line in "\n".join(blocks("bash")).replace("\\\n", " ").splitlines():
        for command in re.sub(r"\[[^\]]*\.\.\.\]", "", line).split("&&"):
            words = shlex.split(command, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                del words[0]
            if words and words[0] not in INSTALLING:
                yield words


def examples():
    """The files that the guides show."""
    block = re.compile(r"<!-- example: (\w+\.(?:py|toml)) -->\n```(?:python|toml)\n(.*?)```", re.DOTALL)
    return {name: code for guide in GUIDES for name, code in block.findall(guide.read_text())}


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """What a user's own files are named in the pages, with a file or folder that stands in for each."""
    folder = tmp_path_factory.mktemp("pages")
    for name, code in examples().items():
        (folder / name).write_text(code)
    full = json.loads(BASELINE.read_text())
    for row in full["benchmarks"]:
        row["extra_info"]["profile"] = "full"
    (folder / "full.json").write_text(json.dumps(full))
    (folder / "squad").mkdir()
    saved = {"reports/saved/.../0001_h100.json": folder / "full.json", "before.json": BASELINE, "DIR": folder}
    saved["junit.xml"] = folder / "junit.xml"  # pytest writes it although it only collects
    return saved | {name: folder / name for name in examples()}


def with_stand_ins(words, stand_ins):
    """A command in which each name of a user's file is that of its stand-in."""
    swapped = []
    for word in words:
        option, equals, value = word.rpartition("=")
        swapped.append(f"{option}{equals}{stand_ins.get(value, value)}" if word.startswith("--") else word)
    return swapped


def own_commands():
    """The package, the name and the arguments of each command of ours; `tunegrid run` is pytest, and replaces the process."""
    for words in commands():
        if words[0] == "tunegrid" and words[1] != "run":
            yield "tunegrid.commands", words[1], words[2:]
        elif words[:3] == ["python", "-m", "tunegrid.lab"]:
            yield "tunegrid.lab", words[3], words[4:]


@pytest.mark.slow
def test_the_pages_pytest_commands_collect(stand_ins):
    """Those of the project's own tests need only name files that exist."""
    wanted = [list(words) for words in dict.fromkeys(tuple(words[1:]) for words in commands() if words[0] == "pytest")]
    own = [words for words in wanted if any("lib/tunegrid/tests" in word for word in words)]
    assert [word for words in own for word in words if "/" in word and not (ROOT / word).exists()] == []
    suite = [
        [word for word in with_stand_ins(words, stand_ins) if word != "--list-cells"] for words in wanted if words not in own
    ]
    answers = collected_together(suite)
    assert len(suite) >= 20
    assert [(words, text) for words, (code, text) in zip(suite, answers, strict=True) if code] == []


def test_the_pages_commands_on_saved_runs_parse(monkeypatch):
    class Parsed(Exception):
        """Its command line was taken."""

    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser, arguments):
        parse(parser, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    assert {words[0] for words in commands()} == {"pytest", "python", "tunegrid"}
    wanted = list(own_commands())
    for package, name, arguments in wanted:
        assert name in (lab.COMMANDS if package == "tunegrid.lab" else product.COMMANDS)
        with pytest.raises(Parsed):
            import_module(f"{package}.{name}").main(arguments)
    assert len(wanted) >= 10


def anchor(heading):
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def without_code(page):
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def links(page):
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)) if not target.startswith("http")]


def leads_nowhere(page, link):
    """Whether a link names a file or a heading that is not there."""
    name, _, fragment = link.partition("#")
    target = page.parent / name if name else page
    if not target.exists():
        return True
    headings = re.findall(r"^#+ (.+)$", without_code(target), re.MULTILINE) if fragment else []
    return bool(fragment) and fragment not in map(anchor, headings)


def test_every_link_of_a_page_leads_somewhere(tmp_path):
    assert [(page.name, link) for page in PAGES for link in links(page) if leads_nowhere(page, link)] == []
    page = tmp_path / "page.md"
    page.write_text("# One\n\n```\n# two\n```\n")
    assert [leads_nowhere(page, link) for link in ("page.md", "#one", "page.md#two", "other.md")] == [False, False, True, True]
