"""The pages: each command in them is one that the code takes, and each error sentence of the code is in their table."""

import argparse
import ast
import json
import re
import shlex
from importlib import import_module

import pytest

from tunegrid import ROOT
from tunegrid import __main__ as product
from tunegrid.lab import __main__ as lab
from tunegrid.tests.sessions import collected_together

PAGES = ("README.md", "benchmarks/README.md", "reports/README.md", "lib/README.md")
# What needs a network, or runs everything; and Ray's own command, which lib/tunegrid/tests/hosts.py gives.
INSTALLING = ("pip", "python3", "source", ".ci/run", "ray")
BASELINE = ROOT / "reports" / "baselines" / "quick-cpu.json"


def commands():
    """Every command of the pages' bash blocks, as words."""
    for page in PAGES:
        for block in re.findall(r"^```bash\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                for command in re.sub(r"\[[^\]]*\.\.\.\]", "", line).split("&&"):
                    words = shlex.split(command, comments=True)
                    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                        del words[0]
                    if words and words[0] not in INSTALLING:
                        yield words


def examples():
    """The files that benchmarks/README.md shows."""
    block = re.compile(r"<!-- example: (\w+\.py) -->\n```python\n(.*?)```", re.DOTALL)
    return dict(block.findall((ROOT / "benchmarks" / "README.md").read_text()))


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
    saved = {"reports/saved/.../0001_h100.json": folder / "full.json", "before.json": BASELINE, "DIR": folder}
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


def test_every_command_is_one_that_this_test_knows():
    assert {words[0] for words in commands()} == {"pytest", "python", "tunegrid"}
    assert {tuple(words[:3]) for words in commands() if words[0] == "python"} == {("python", "-m", "tunegrid.lab")}


def pytest_commands():
    """The arguments of each pytest command, those of the project's own tests apart."""
    wanted = [list(words) for words in dict.fromkeys(tuple(words[1:]) for words in commands() if words[0] == "pytest")]
    return [[words for words in wanted if any("lib/tunegrid/tests" in word for word in words) is own] for own in (True, False)]


def test_the_pages_commands_on_own_tests_name_files_that_exist():
    own, suite = pytest_commands()
    paths = [word for words in own for word in words if word.startswith("lib/")]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert len(suite) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("loads_torch", [False, True])
def test_the_pages_pytest_commands_collect(stand_ins, loads_torch):
    asked = [words for words in pytest_commands()[1] if bool({"faults", "library_bugs"} & set(words)) is loads_torch]
    asked = [[word for word in with_stand_ins(words, stand_ins) if word != "--list-cells"] for words in asked]
    answers = collected_together(asked)
    assert [(words, text) for words, (code, text) in zip(asked, answers, strict=True) if code] == []
    assert all(re.search(r"\d tests? collected", text) for _, text in answers)


def test_the_pages_commands_on_saved_runs_parse(monkeypatch):
    class Parsed(Exception):
        """Its command line was taken."""

    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser, arguments):
        parse(parser, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    wanted = list(own_commands())
    for package, name, arguments in wanted:
        assert name in (lab.COMMANDS if package == "tunegrid.lab" else product.COMMANDS)
        with pytest.raises(Parsed):
            import_module(f"{package}.{name}").main(arguments)
    assert len(wanted) >= 10


def sentences():
    """Every error sentence of the code, with {} for what changes, by place; without those that only pass another's on."""
    for path in (path for folder in ("lib", "fixtures") for path in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())) if "tests" not in path.parts else ():
            name = getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""
            if name in ("InputError", "UsageError") and node.args:
                text = constant_parts(node.args[0])
                if len(re.sub(r"\{\}|--?[\w-]+|\brow\b|\W", "", text.replace("pytest_tunegrid_grid: ", ""))) > 3:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def constant_parts(node):
    """What of a string stays the same, with {} for the rest."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) else "{}"


def quoted():
    """The words that the table of error sentences quotes."""
    table = (ROOT / "benchmarks" / "README.md").read_text().partition("\n## Troubleshooting\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \| .+ \|$", table, re.MULTILINE)
    return [words for row in rows for words in re.findall(r"`([^`]+)`", row)]


def test_each_row_of_the_table_quotes_a_sentence_of_the_code():
    texts = [text for _, text in sentences()]
    assert [words for words in quoted() if not any(words in text for text in texts)] == []


def test_each_error_sentence_of_the_code_is_in_the_table():
    rows = quoted()
    assert {place: text for place, text in sentences() if not any(words in text for words in rows)} == {}
