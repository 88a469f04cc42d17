"""Files of strangers: sound ones, damaged in ways that a seed decides; and whether whoever reads them answers in a sentence."""

import json
from collections import Counter
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from tunegrid.errors import InputError
from tunegrid.tests.outputs import obeyed

VALUES = (
    *(None, True, -1, 0, 3, 10**30, 0.5, float("nan"), float("inf"), "", "x", "\x1b[2J", "\n::error::x", "\ud800", "é" * 500),
    *([], [None], [[1, [2]]], {}, {"x": None}, {"text": ["x"], "answer_start": [10**12]}),
)
DEEP = b"[" * 100_000


def damaged(content: bytes, random: Random) -> bytes:
    """A file's bytes: none, cut, with some flipped, written over, twice, or of something else."""
    place = random.randrange(len(content) or 1)
    flipped = bytearray(content)
    for _ in range(random.choice([1, 8, 64])):
        if flipped:
            flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
    other = random.choice([b"\0", DEEP, b"\xff\xfe", b"9" * 5000, b"PAR1", b"{}", random.randbytes(64)])
    over = content[:place] + other + content[place + len(other) :]
    return random.choice([b"", content[:place], bytes(flipped), bytes(flipped), over, content * 2, other])


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
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
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
    other = [random.choice([[value] * len(columns[name]), [*columns[name][:-1], value]]) for value in VALUES]
    columns[random.choice([name, "other"])] = random.choice([*other, columns[name][:-1], [1] * 40, [b"x"] * 40])
    if random.random() < 0.3:
        del columns[name]
    try:
        pq.write_table(pa.table(columns), path, compression=random.choice(["zstd", "snappy", "none"]))
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        pq.write_table(pa.table({"id": [None] * 40}), path)  # of what Arrow cannot hold


def attacked(answer, seeds: int) -> Counter:
    """How many inputs, one a seed, were used and how many refused in a sentence; raises for the first other end."""
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
