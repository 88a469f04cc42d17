"""Files that anybody may have written are used, or refused in one sentence; seeds decide how they
are damaged.
"""

import io
import json
import re
import shutil
import tomllib
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout, suppress
from random import Random
from types import SimpleNamespace
from typing import NamedTuple

import pandas as pd
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
from tunegrid.grid.tasks import QA, SA, SUM, Task
from tunegrid.runs import examples
from tunegrid.runs.seal import add_seal
from tunegrid.tests.outputs import obeyed
from tunegrid.tests.pages import get_record
from tunegrid.tests.records import altered, complete, make_seeds, run_file, sealed
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
FOREIGN_BYTES = (b"\0", b"[" * 100_000, b"\xff\xfe", b"9" * 5000, b"PAR1", b"{}")


def damage(content: bytes, random: Random) -> bytes:
    """A file's bytes: none, cut, with some flipped, written over, twice, or of something else."""
    kind = random.choice(["none", "cut", "flip", "flip", "overwrite", "repeat", "replace"])
    position = random.randrange(len(content) or 1)
    foreign = random.choice([*FOREIGN_BYTES, random.randbytes(64)])
    match kind:
        case "none":
            return b""
        case "cut":
            return content[:position]
        case "flip" if content:
            flipped = bytearray(content)
            for _ in range(random.choice([1, 8, 64])):
                flipped[random.randrange(len(content))] ^= 1 << random.randrange(8)
            return bytes(flipped)
        case "overwrite":
            return content[:position] + foreign + content[position + len(foreign) :]
        case "repeat":
            return content * 2
    return foreign


def value_paths(node, path=()):
    """Yields the path of every value of nested mappings and lists."""
    if path:
        yield path
    if isinstance(node, list):
        node = dict(enumerate(node))
    if isinstance(node, dict):
        for key, value in node.items():
            yield from value_paths(value, (*path, key))


def mutate(tree, random: Random, times=1):
    """A copy of nested mappings and lists with some values replaced, removed or misnamed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(times):
        *parents, last = random.choice(list(value_paths(tree)))
        node = tree
        for key in parents:
            node = node[key]
        value = node.pop(last)
        match random.choice(["replace", "replace", "remove", "misname"]):
            case "replace" if isinstance(node, list):
                node.insert(last, random.choice(VALUES))
            case "replace":
                node[last] = random.choice(VALUES)
            case "misname" if isinstance(node, dict):
                node[random.choice(["", "x", "../x", "\x1b"])] = value
        if not tree:
            break
    return tree


def damage_file(path, random):
    path.write_bytes(damage(path.read_bytes(), random))


def change_column(path, random):
    """Puts another value in a column of a Parquet file, or in a column of its own."""
    columns = pq.read_table(path).to_pydict()
    name = random.choice(list(columns))
    points = columns[name]
    value = random.choice((*VALUES, b"x"))
    column = random.choice([[value] * len(points), [*points[:-1], value]])
    columns[random.choice([name, "added"])] = column
    if random.random() < 0.3:
        del columns[name]
    compression = random.choice(["zstd", "snappy", "none"])
    try:
        pq.write_table(pa.table(columns), path, compression=compression)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        pq.write_table(pa.table({"id": [None] * 40}), path)  # Arrow cannot hold that column


def attack(use_input, seeds: int) -> Counter:
    """Uses one input a seed, of which some must be used and some refused in a sentence."""
    counts: Counter[str] = Counter()
    for seed in range(seeds):
        try:
            use_input(Random(seed))
            counts["used"] += 1
        except InputError as error:
            sentence = str(error)
            counts["refused"] += 1
            assert obeyed(sentence) == [], f"seed {seed}: {sentence}"
            assert len(sentence) < 1000, f"seed {seed}: {sentence}"
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert counts["used"] > 0
    assert counts["refused"] > 0
    return counts


# Data folders


NESTED = ("jsonl", "json", "parquet", "saved")  # kinds of files that can hold SQuAD's answers
FLAT = ("csv", "csv.gz", *NESTED)


class DataSet(NamedTuple):
    task: Task
    splits: tuple[str, ...]
    kinds: tuple[str, ...]


DATA_SETS = (
    DataSet(SA, splits=("train",), kinds=FLAT),
    DataSet(QA, splits=("train", "validation"), kinds=NESTED),
    DataSet(SUM, splits=("train", "validation", "test"), kinds=FLAT),
)


def write_data(folder, kind, frames):
    """Writes tables, one for each split, as files of one kind."""
    import datasets

    folder.mkdir(parents=True)
    if kind == "saved":
        splits = {split: datasets.Dataset.from_pandas(frame) for split, frame in frames.items()}
        datasets.DatasetDict(splits).save_to_disk(folder)
        return
    for split, frame in frames.items():
        path = folder / f"{split}.{kind}"
        match kind:
            case "csv" | "csv.gz":
                frame.to_csv(path, index=False)
            case "jsonl":
                frame.to_json(path, orient="records", lines=True)
            case "json":
                frame.to_json(path, orient="records")
            case "parquet":
                frame.to_parquet(path)


@pytest.fixture(scope="module")
def sound_data(tmp_path_factory):
    """A folder per kind of file and task, each with 60 rows a split."""
    root = tmp_path_factory.mktemp("data")
    for task, splits, kinds in DATA_SETS:
        frames = {}
        for split in splits:
            frames[split] = pd.DataFrame(read_rows(f"{task.folder}/{split}")[:60])
        for kind in kinds:
            write_data(root / kind / task.folder, kind, frames)
    return root


def change_row(path, random):
    """Changes one row of a JSON Lines file, or something in a JSON file."""
    text = path.read_text()
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    index = random.randrange(len(lines))
    lines[index] = json.dumps(mutate(json.loads(lines[index]), random))
    path.write_text("\n".join(lines))


def spoil_folder(folder, random):
    """Damages or changes a file of the folder, removes it, or puts a folder in its place."""
    path = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    changes = {".jsonl": change_row, ".json": change_row, ".parquet": change_column}
    match random.choice(["damage", "damage", "change", "change", "remove", "folder"]):
        case "damage":
            damage_file(path, random)
        case "change":
            changes.get(path.suffix, damage_file)(path, random)
        case "remove":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()


def test_data_folders(sound_data, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    root = tmp_path / "root"

    def load_spoilt_folder(random):
        task, _, kinds = random.choice(DATA_SETS)
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(sound_data / random.choice(kinds) / task.folder, root / task.folder)
        spoil_folder(root / task.folder, random)
        load_splits(task, Profile(id="full", data_root=root))

    attack(load_spoilt_folder, 25)


def test_parquet_beside_a_run(tmp_path, monkeypatch):
    loose = tmp_path / "examples"
    sound = tmp_path / "sound"
    monkeypatch.setattr(examples, "STORE", sound)
    # As of older files, whose content no hash holds
    monkeypatch.setattr(examples, "HASH_DIGITS", 16)
    record = get_record("bert_sa_lora", 36)
    monkeypatch.setattr(examples, "HASH_DIGITS", 20)
    monkeypatch.setattr(examples, "STORE", tmp_path / "store")
    path = tmp_path / "run.json"

    def read_changed_rows(random):
        shutil.rmtree(loose, ignore_errors=True)
        shutil.copytree(sound, loose)
        file = random.choice(sorted(loose.iterdir()))
        if random.random() < 0.5:
            damage_file(file, random)
        else:
            change_column(file, random)
        row_frame([SimpleNamespace(path=path, records=[record])])
        gate(Run.make([record], path), Run.make([record], path))

    counts = attack(read_changed_rows, 60)
    assert counts["refused"] > counts["used"]


# Runs: whatever is in them, a command answers with a sentence and writes to its target alone.

COMMANDS = (
    "export IN -o OUT.csv",
    "export IN --rows -o OUT.parquet",
    "gate SOUND IN --format=markdown",
    "gate IN SOUND --numerics",
    "merge SEED1 IN -o OUT.json",
    "merge IN -o OUT.json --baseline",
    "merge --journal IN -o OUT.json",
    "page IN SOUND -o OUT.html",
)
TARGET = re.compile(r"IN|OUT\.\w+|examples/OUT\.zip")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two small sound runs, their rows, and a file that nobody may touch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(examples, "STORE", tmp_path / "examples")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    rows = vars(examples.write(["a", "b"], {"accuracy": [100.0, 0.0]}, ["1", "0"]))
    for name, seed in (("SOUND", 0), ("SEED1", 1)):
        record = complete(
            profile="full",
            examples=rows,
            scores={"accuracy": 50.0},
            bounds={},
            seeds=make_seeds(seed),
        )
        counts = {"train": 70, "validation": 15, "test": 2}
        run_file(tmp_path / name, [altered(record, "data.rows", counts)])
    (tmp_path / "gate.py").write_text("ours")
    return tmp_path


def mutated_text(run, random):
    """A run's JSON with values replaced, removed or misnamed; of every tenth, the text is cut or
    overwritten somewhere.
    """
    text = json.dumps(mutate(run, random, random.randint(1, 3)))
    if random.random() < 0.1:
        cut = random.randint(0, len(text))
        inserted = random.choice(["", "]", "[" * 100_000, "\\ud800", "\0"])
        text = text[:cut] + inserted + text[cut + 1 :]
    if random.random() < 0.7:  # by somebody who also made its seals anew
        with suppress(Exception):
            return json.dumps(sealed(json.loads(text)))
    return text


def run_command(line):
    """Runs a command, which must not make a terminal obey; raises InputError if it refuses."""
    out = io.StringIO()
    err = io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(line.split())
        except SystemExit as ended:
            code = ended.code
    sentence = err.getvalue().partition(": error: ")[2]
    assert sentence.count("\n") == (code == 2), sentence
    assert obeyed(out.getvalue() + err.getvalue()) == []
    assert code in (0, 1, 2, 6)  # 6: the gate could test nothing
    if code == 2:
        raise InputError(sentence.strip())


def journal_text(run_text):
    """A journal with the rows of a run; a text that is no run stays as it is."""
    try:
        rows = json.loads(run_text)["benchmarks"]
        return "\n".join(json.dumps(add_seal({"key": "k", "row": row})) for row in rows)
    except (ValueError, KeyError, TypeError, RecursionError):
        return run_text


def untouched(folder):
    """The content of every file but the run that is read and the targets of commands."""
    contents = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and not TARGET.fullmatch(name):
            contents[name] = path.read_bytes()
    return contents


@pytest.mark.parametrize("line", COMMANDS)
def test_a_mutated_run_is_answered_in_a_sentence_and_nothing_else_is_written(line, folder):
    before = untouched(folder)
    run = json.loads((folder / "SOUND").read_text())
    del run["seal"], run["benchmarks"][0]["seal"]

    def answer_mutated_run(random):
        text = mutated_text(run, random)
        (folder / "IN").write_text(journal_text(text) if "--journal" in line else text)
        run_command(line)

    attack(answer_mutated_run, 40)
    assert untouched(folder) == before


def test_no_record_names_a_file_elsewhere(folder):
    run = json.loads((folder / "SOUND").read_text())
    run["benchmarks"][0]["extra_info"]["examples"]["file"] = "../gate.py"
    (folder / "IN").write_text(json.dumps(run))
    with pytest.raises(InputError, match=r"examples\.file: String should match pattern"):
        run_command("merge IN -o OUT.json")
    assert (folder / "gate.py").read_text() == "ours"


# Threshold files


def load_estimates(path):
    noise = load_noise(path)
    for kind, samples in noise.scores.items():
        for key in samples:
            noise.estimate(kind, *key, 50.0)


LOADERS = {
    "margins.toml": load_margins,
    "noise.toml": load_estimates,
    "numerics.toml": load_tolerances,
    "quick.toml": load_bounds,
}


def toml(value):
    """A value as TOML writes it, with tables in braces."""
    if isinstance(value, dict):
        items = [f"{toml(str(name))} = {toml(item)}" for name, item in value.items()]
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(letter):08X}" for letter in value) + '"'
    return str(value).lower() if isinstance(value, bool) else repr(value)


def test_threshold_files(tmp_path):
    def load_changed_file(random):
        name = random.choice(list(LOADERS))
        path = tmp_path / name
        shutil.copyfile(THRESHOLDS / name, path)
        if random.random() < 0.4:
            damage_file(path, random)
        else:
            tree = mutate(tomllib.loads(path.read_text()), random, random.choice([1, 1, 4]))
            lines = [f"{toml(str(key))} = {toml(value)}\n" for key, value in tree.items()]
            path.write_text("".join(lines), "utf-8", "replace")
        LOADERS[name](path)

    attack(load_changed_file, 40)


# --grid files

SOUND_GRID = """
from dataclasses import replace
from tunegrid.grid.backbones import BERT
from tunegrid.grid.methods import Lora
from tunegrid.grid.tasks import SA

def pytest_tunegrid_grid(grid):
    grid.add_method(Lora(id="mine", name="mine"), like="lora")
    grid.add_backbone(replace(BERT, id="other"), like="bert")
    grid.add_task(replace(SA, id="stars"), like="sa")
"""
WORDS = (
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
REPLACEMENTS = (
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
ENDS = r"""
import sys; sys.exit()
raise SystemExit('bye')
exit(3)
1 / 0
import pytest; pytest.exit('bye')
import pytest; pytest.skip('no', allow_module_level=True)
raise BaseException
raise GeneratorExit
f = lambda: f(); f()
raise ValueError('\x1b[2J\n::error::x')
grid.tasks.clear()
grid.methods = None
raise type('E', (Exception,), {'__str__': lambda self: 1 / 0})()
grid.__dict__.clear()
return 5
yield 5
"""


def changed_grid(random):
    """A sound file with a word replaced, which ends the program when it is read or when its hook is
    called, or that is damaged.
    """
    end = random.choice(ENDS.strip().splitlines())
    match random.choice(["word", "word", "word", "read", "call", "call", "damage"]):
        case "word":
            word = random.choice(WORDS)
            text = SOUND_GRID.replace(word, random.choice(REPLACEMENTS), random.choice([1, -1]))
        case "read":
            text = f"{end}\n{SOUND_GRID}"
        case "call":
            text = f"{SOUND_GRID}    {end}\n"
        case "damage":
            return damage(SOUND_GRID.encode(), random)
    return text.encode()


def test_grid_files(tmp_path, request):
    def read_changed_grid(random):
        path = tmp_path / f"grid{random.random()}.py"
        path.write_bytes(changed_grid(random))
        session = Session(request.config)
        session.grid_files = (path,)
        for profile in (QUICK_PROFILE, FULL_PROFILE):
            session.grid.cells(profile)

    attack(read_changed_grid, 60)
