"""Files that anybody may have written are used, or refused in one sentence; seeds decide how they
are damaged.
"""

import csv
import gzip
import io
import json
import re
import shutil
import tomllib
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout, suppress
from random import Random
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fixtures.session import Session
from tunegrid.__main__ import main
from tunegrid.commands.export import row_frame
from tunegrid.data.splits import load_splits
from tunegrid.errors import InputError
from tunegrid.gate.gate import Run, gate
from tunegrid.gate.noise import load_noise
from tunegrid.gate.thresholds import THRESHOLDS, load_bounds, load_margins, load_tolerances
from tunegrid.grid.recipes import FULL_PROFILE, QUICK_PROFILE, Profile
from tunegrid.grid.tasks import QA, SA, SUM
from tunegrid.runs import examples
from tunegrid.runs.seal import add_seal
from tunegrid.tests.outputs import obeyed
from tunegrid.tests.pages import get_record
from tunegrid.tests.records import complete_json, sealed
from tunegrid.tests.small import read_rows

VALUES = (
    None,
    True,
    -1,
    0,
    3,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x1b[2J",
    "\n::error::x",
    "\ud800",
    "é" * 500,
    [],
    [None],
    [[1, [2]]],
    {},
    {"x": None},
    {"text": ["x"], "answer_start": [10**12]},
)
DEEP = b"[" * 100_000


def damaged(content: bytes, random: Random) -> bytes:
    """A file's bytes: none, cut, with some flipped, written over, twice, or of something else."""
    place = random.randrange(len(content) or 1)
    flipped = bytearray(content)
    for _ in range(random.choice([1, 8, 64])):
        if flipped:
            flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
    other = random.choice(
        [b"\0", DEEP, b"\xff\xfe", b"9" * 5000, b"PAR1", b"{}", random.randbytes(64)]
    )
    over = content[:place] + other + content[place + len(other) :]
    return random.choice(
        [b"", content[:place], bytes(flipped), bytes(flipped), over, content * 2, other]
    )


def spoil(path, how, random: Random):
    """Remove a file, put a folder in its place, or damage it."""
    if how not in ("gone", "folder"):
        path.write_bytes(damaged(path.read_bytes(), random))
        return
    path.unlink()
    if how == "folder":
        path.mkdir()


def places(node, path=()):
    """The path of every value of nested mappings and lists."""
    if path:
        yield path
    if isinstance(node, list):
        node = dict(enumerate(node))
    if isinstance(node, dict):
        for key, value in node.items():
            yield from places(value, (*path, key))


def changed(tree, random: Random, times=1):
    """A copy of nested mappings and lists with some values replaced, removed or misnamed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(times):
        *parents, last = random.choice(list(places(tree)))
        node = tree
        for key in parents:
            node = node[key]
        value = node.pop(last)
        match random.choice(["replaced", "replaced", "removed", "misnamed"]):
            case "replaced" if isinstance(node, list):
                node.insert(last, random.choice(VALUES))
            case "replaced":
                node[last] = random.choice(VALUES)
            case "misnamed" if isinstance(node, dict):
                node[random.choice(["", "x", "../x", "\x1b"])] = value
        if not tree:
            break
    return tree


def another_parquet(path, random):
    """The same file damaged, or with another column in it."""
    if random.random() < 0.5:
        path.write_bytes(damaged(path.read_bytes(), random))
        return
    columns = pq.read_table(path).to_pydict()
    name = random.choice(list(columns))
    other = [
        random.choice([[value] * len(columns[name]), [*columns[name][:-1], value]])
        for value in VALUES
    ]
    columns[random.choice([name, "other"])] = random.choice(
        [*other, columns[name][:-1], [1] * 40, [b"x"] * 40]
    )
    if random.random() < 0.3:
        del columns[name]
    try:
        pq.write_table(
            pa.table(columns), path, compression=random.choice(["zstd", "snappy", "none"])
        )
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        pq.write_table(pa.table({"id": [None] * 40}), path)  # of what Arrow cannot hold


def attacked(answer, seeds: int) -> Counter:
    """How many inputs, one a seed, were used and how many refused in a sentence; raises for the
    first other end.
    """
    counts: Counter[str] = Counter()
    for seed in range(seeds):
        try:
            answer(Random(seed))
            counts["used"] += 1
        except InputError as error:
            sentence = str(error)
            counts["refused"] += 1
            assert obeyed(sentence) == [], f"seed {seed}: {sentence}"
            assert len(sentence) < 1000, f"seed {seed}: {sentence}"
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    return counts


# Data folders that anybody may have written are used, or refused in one sentence.

CSV_KINDS = ("csv", "csv.gz")  # of files, which hold no answers with their places
OTHER_KINDS = ("jsonl", "json", "parquet", "saved")
TASKS = ((SA, ("train",)), (QA, ("train", "validation")), (SUM, ("train", "validation", "test")))


def data_kinds(task):
    """The kinds of files that can hold a task's rows."""
    return (*CSV_KINDS, *OTHER_KINDS) if task is SA else OTHER_KINDS


@pytest.fixture(scope="module")
def sound_data(tmp_path_factory):
    """A folder per task and kind of file, each with 60 rows a split."""
    import datasets

    root = tmp_path_factory.mktemp("data")
    for task, splits in TASKS:
        rows = {split: read_rows(f"{task.folder}/{split}")[:60] for split in splits}
        for kind in data_kinds(task):
            folder = root / kind / task.folder
            folder.mkdir(parents=True)
            for split, own in rows.items():
                if kind == "jsonl":
                    (folder / f"{split}.jsonl").write_text(
                        "".join(f"{json.dumps(row)}\n" for row in own)
                    )
                if kind == "json":
                    (folder / f"{split}.json").write_text(json.dumps(own))
                if kind in CSV_KINDS:
                    opened = gzip.open if kind == "csv.gz" else open
                    with opened(folder / f"{split}.{kind}", "wt", newline="") as file:
                        lines = csv.DictWriter(file, own[0])
                        lines.writeheader()
                        lines.writerows(own)
                if kind == "parquet":
                    datasets.Dataset.from_list(own).to_parquet(folder / f"{split}.parquet")
            if kind == "saved":
                saved = datasets.DatasetDict(
                    {split: datasets.Dataset.from_list(own) for split, own in rows.items()}
                )
                saved.save_to_disk(folder)
    return root


def other_data(folder, random):
    """The same folder with a file that is damaged, holds another row, is gone, or is a folder."""
    path = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    how = random.choice(["damaged", "damaged", "changed", "changed", "gone", "folder", "other"])
    if how == "changed" and path.suffix in (".jsonl", ".json"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        index = random.randrange(len(lines))
        lines[index] = json.dumps(changed(json.loads(lines[index]), random))
        path.write_text("\n".join(lines))
    elif how == "other" and path.suffix == ".parquet":
        another_parquet(path, random)
    else:
        spoil(path, how, random)


def test_data_folders(sound_data, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def answer(random):
        task, _ = random.choice(TASKS)
        kind = random.choice(data_kinds(task))
        shutil.rmtree(tmp_path / "root", ignore_errors=True)
        shutil.copytree(sound_data / kind / task.folder, tmp_path / "root" / task.folder)
        other_data(tmp_path / "root" / task.folder, random)
        splits = load_splits(task, Profile(id="full", data_root=tmp_path / "root"))
        assert splits.fingerprint

    assert attacked(answer, 25)["refused"] > 0


# Parquet beside a run that anybody may have written is used, or refused in one sentence.


def test_parquet_beside_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "STORE", tmp_path / "examples")
    # As of older files, whose content no hash holds
    monkeypatch.setattr(examples, "HASH_DIGITS", 16)
    record = get_record("bert_sa_lora", 36)
    path = tmp_path / "run.json"
    monkeypatch.setattr(examples, "HASH_DIGITS", 20)
    shutil.copytree(examples.STORE, tmp_path / "sound")
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")

    def answer(random):
        shutil.rmtree(tmp_path / "examples", ignore_errors=True)
        shutil.copytree(tmp_path / "sound", tmp_path / "examples")
        another_parquet(random.choice(sorted((tmp_path / "examples").iterdir())), random)
        row_frame([SimpleNamespace(path=path, records=[record])])
        gate(Run.make([record], path), Run.make([record], path))

    counts = attacked(answer, 60)
    assert counts["refused"] > counts["used"] > 0


# Runs of strangers: whatever is in them, a command answers with a sentence and writes to its target
# alone.

COMMANDS = {
    "export": "export IN -o OUT.csv",
    "export --rows": "export IN --rows -o OUT.parquet",
    "gate": "gate SOUND IN --format=markdown",
    "gate --numerics": "gate IN SOUND --numerics",
    "merge": "merge SOUND IN -o OUT.json",
    "merge --baseline": "merge IN -o OUT.json --baseline",
    "merge --journal": "merge --journal IN -o OUT.json",
    "page": "page IN SOUND -o OUT.html",
}
TARGET = re.compile(r"IN|OUT\.\w+|examples/OUT\.zip")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small sound run, its rows beside it, and a file that nobody may touch."""
    monkeypatch.setattr(examples, "STORE", tmp_path / "examples")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    kept = vars(examples.write(["a", "b"], {"accuracy": [100.0, 0.0]}, ["1", "0"]))
    record = complete_json(profile="full", examples=kept, scores={"accuracy": 50.0}, bounds={})
    record["data"] = record["data"] | {"rows": record["data"]["rows"] | {"test": 2}}
    row = {
        "name": "test_finetune[full]",
        "fullname": "benchmarks::test_finetune[full]",
        "extra_info": record,
    }
    run = {"benchmarks": [row], "machine_info": {"cpu": "a CPU"}, "commit_info": {"dirty": False}}
    (tmp_path / "SOUND").write_text(json.dumps(sealed(run)))
    (tmp_path / "gate.py").write_text("ours")
    return tmp_path


def mutated(run, random):
    """Its JSON with values replaced, removed or misnamed; of every tenth, the text is cut or
    overwritten somewhere.
    """
    text = json.dumps(changed(run, random, random.randint(1, 3)))
    if random.random() < 0.1:
        cut = random.randint(0, len(text))
        inserted = random.choice(["", "]", "[" * 100_000, "\\ud800", "\0"])
        text = text[:cut] + inserted + text[cut + 1 :]
    if random.random() < 0.7:  # by somebody who also made its seals anew
        with suppress(Exception):
            return json.dumps(sealed(json.loads(text)))
    return text


def unsealed(run):
    for part in (run, *run["benchmarks"]):
        del part["seal"]
    return run


def answered(words):
    """The one sentence of a command that refuses; empty for one that answers.

    Neither makes a terminal obey.
    """
    out = io.StringIO()
    err = io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as ended:
            code = ended.code
    sentence = err.getvalue().partition(": error: ")[2]
    assert sentence.count("\n") == (code == 2), sentence
    assert obeyed(out.getvalue() + err.getvalue()) == []
    assert code in (0, 1, 2, 6)  # 6: the gate could test nothing
    return sentence.strip() if code == 2 else ""


def make_journal(text):
    """A journal with the rows of a run, or with a text that is none."""
    try:
        return "\n".join(
            json.dumps(add_seal({"key": "k", "row": row})) for row in json.loads(text)["benchmarks"]
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return text


def untouched(folder):
    """Every file but the run that is read and the targets of commands."""
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
    return {name: content for name, content in files.items() if not TARGET.fullmatch(name)}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mutated_run_is_answered_in_a_sentence_and_nothing_else_is_written(name, folder):
    before = untouched(folder)
    run = unsealed(json.loads((folder / "SOUND").read_text()))
    command, *words = COMMANDS[name].split()
    words = [
        str(folder / word) if word.startswith(("IN", "OUT", "SOUND")) else word for word in words
    ]

    def answer(random):
        text = mutated(run, random)
        (folder / "IN").write_text(make_journal(text) if name == "merge --journal" else text)
        if sentence := answered([command, *words]):
            raise InputError(sentence)

    attacked(answer, 40)
    assert untouched(folder) == before


def test_no_record_names_a_file_elsewhere(folder):
    run = json.loads((folder / "SOUND").read_text())
    run["benchmarks"][0]["extra_info"]["examples"]["file"] = "../gate.py"
    (folder / "IN").write_text(json.dumps(run))
    assert "examples.file: String should match pattern" in answered(
        ["merge", str(folder / "IN"), "-o", str(folder / "OUT.json")]
    )
    assert (folder / "gate.py").read_text() == "ours"


# Threshold files and `--grid` files that anybody may have written are used, or refused in one
# sentence.


def estimates(path):
    noise = load_noise(path)
    return [
        noise.estimate(kind, *key, 50.0) for kind, known in noise.scores.items() for key in known
    ]


LOADERS = {
    "margins.toml": load_margins,
    "noise.toml": estimates,
    "numerics.toml": load_tolerances,
    "quick.toml": load_bounds,
}


def toml(value):
    """A value as TOML writes it; tables stand in braces."""
    if isinstance(value, dict):
        items = [f"{toml(str(name))} = {toml(item)}" for name, item in value.items()]
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08X}" for letter in value) + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)


def test_threshold_files(tmp_path):
    def answer(random):
        name = random.choice(list(LOADERS))
        path = tmp_path / name
        content = (THRESHOLDS / name).read_bytes()
        if random.random() < 0.6:
            tree = changed(tomllib.loads(content.decode()), random, random.choice([1, 1, 4]))
            content = "".join(
                f"{toml(str(key))} = {toml(value)}\n" for key, value in tree.items()
            ).encode("utf-8", "replace")
        else:
            content = damaged(content, random)
        path.write_bytes(content)
        LOADERS[name](path)

    counts = attacked(answer, 40)
    assert counts["refused"] > 0
    assert counts["used"] > 0


# --grid files

SOUND = """
from dataclasses import replace
from tunegrid.grid.backbones import BERT
from tunegrid.grid.methods import Lora
from tunegrid.grid.tasks import SA

def pytest_tunegrid_grid(grid):
    grid.add_method(Lora(id="mine", name="mine"), like="lora")
    grid.add_backbone(replace(BERT, id="other"), like="bert")
    grid.add_task(replace(SA, id="stars"), like="sa")
"""
NAMES = (
    '"mine"',
    '"lora"',
    '"other"',
    '"stars"',
    '"sa"',
    "BERT",
    "SA",
    "id=",
    "like=",
    "Lora(",
    "grid.",
)
WORDS = (
    "None",
    "3",
    "[]",
    "object()",
    "float('nan')",
    "'\\x1b[2J'",
    "'\\n::error::x'",
    "''",
    "grid",
    "lambda: 1",
    "",
)
ENDS = (
    "import sys; sys.exit()",
    "raise SystemExit('bye')",
    "exit(3)",
    "1 / 0",
    "import pytest; pytest.exit('bye')",
    "import pytest; pytest.skip('no', allow_module_level=True)",
    "raise BaseException",
    "raise GeneratorExit",
    "def f(): f()\n    f()",
    "raise ValueError('\\x1b[2J\\n::error::x')",
    "grid.tasks.clear()",
    "grid.methods = None",
    "raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})()",
    "grid.__dict__.clear()",
    "return 5",
    "yield 5",
)


def other_grid(random):
    """A sound file with a word replaced, which ends the program as it is read or as it is asked, or
    that is damaged.
    """
    how = random.choice(["word", "word", "word", "top", "asked", "asked", "damaged"])
    end = random.choice(ENDS)
    if how == "word":
        name = random.choice(NAMES)
        return SOUND.replace(name, random.choice(WORDS), random.choice([1, -1])).encode()
    if how == "top":
        return f"{end}\n{SOUND}".replace("\n    f()", "\nf()", 1).encode()
    if how == "asked":
        return f"{SOUND}    {end}\n".encode()
    return damaged(SOUND.encode(), random)


def test_grid_files(tmp_path, request):
    def answer(random):
        path = tmp_path / f"grid{random.random()}.py"
        path.write_bytes(other_grid(random))
        session = Session(request.config)
        session.grid_files = (path,)
        for profile in (QUICK_PROFILE, FULL_PROFILE):
            session.grid.cells(profile)

    counts = attacked(answer, 60)
    assert counts["refused"] > 0
    assert counts["used"] > 0
