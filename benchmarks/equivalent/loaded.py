"""Settings that read rows: with worker processes and without, streamed from files and from memory, stopped and gone on with."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import datasets
import torch
from torch.utils.data import DataLoader

from benchmarks.equivalent.bench import Bench, Setting
from benchmarks.equivalent.compare import Fields

ROWS, FILES, BLOCK = 40, 4, 6  # rows, the files they stand in, and how many are tokenised at once
STOP = 15  # rows behind which reading stops: in the middle of a file and of a block


def batched(workers: int) -> Setting:
    """Batches of torch's loader over our features, shuffled from a seed, and the next random number afterwards."""

    def ask(bench: Bench) -> Fields:
        features, codec = bench.features(24), bench.codec()
        torch.manual_seed(7)
        loader = DataLoader(features, batch_size=5, shuffle=True, collate_fn=codec.collate, num_workers=workers)  # type: ignore[arg-type, var-annotated]
        batches = [{name: tensor.clone() for name, tensor in batch.items()} for _ in range(2) for batch in loader]
        return {"batches": batches, "next random number": float(torch.rand(()))}

    return ask


def in_memory(shuffled: bool = False) -> Setting:
    """Rows and tokens of a data set in memory, mapped in blocks."""

    def ask(bench: Bench) -> Fields:
        table = datasets.Dataset.from_list(_rows(bench))
        rows: Iterable[Any] = table.map(_tokens(bench), batched=True, batch_size=BLOCK)
        return _sorted(rows) if shuffled else _told(rows)

    return ask


def streamed(*, stopped: bool = False, workers: int = 0, buffer: int = 0) -> Setting:
    """The same rows streamed from their files, mapped in the same way.

    Args:
        stopped: reading stops on the way, and another stream goes on from its state.
        workers: of torch's loader, which share the files; 0 reads without a loader.
        buffer: of rows that are shuffled; 0 leaves them in order.
    """

    def ask(bench: Bench) -> Fields:
        make = _stream(bench, buffer)
        if workers:
            loaded = DataLoader(make(), batch_size=None, num_workers=workers)
            return _sorted(loaded)
        if not stopped:
            return _sorted(make()) if buffer else _told(make())
        first = make()
        rows = [row for _, row in zip(range(STOP), first, strict=False)]
        rest = make()
        rest.load_state_dict(first.state_dict())
        return _sorted([*rows, *rest]) if buffer else _told([*rows, *rest])

    return ask


def _stream(bench: Bench, buffer: int) -> Callable[[], Any]:
    folder, rows, each = bench.new_folder("files"), _rows(bench), ROWS // FILES
    paths = [folder / f"{number}.jsonl" for number in range(FILES)]
    for number, path in enumerate(paths):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[number * each : (number + 1) * each]), encoding="utf-8")
    names = [str(path) for path in paths]

    def make() -> Any:
        stream = datasets.load_dataset("json", data_files=names, split="train", streaming=True, trust_remote_code=False)
        stream = stream.shuffle(seed=0, buffer_size=buffer) if buffer else stream
        return stream.map(_tokens(bench), batched=True, batch_size=BLOCK)

    return make


def _rows(bench: Bench) -> list[dict[str, Any]]:
    return [{"row": number, "text": bench.codec().text(row)} for number, row in enumerate(bench.splits.train[:ROWS])]


def _tokens(bench: Bench) -> Callable[[Any], Any]:
    tokenizer = bench.tokenizer
    return lambda block: {"ids": tokenizer(block["text"], truncation=True, max_length=64)["input_ids"]}


def _told(rows: Iterable[Any]) -> Fields:
    found = list(rows)
    return {"row ids": [int(row["row"]) for row in found], "token ids": [list(map(int, row["ids"])) for row in found]}


def _sorted(rows: Iterable[Any]) -> Fields:
    """The same by row: readers side by side, and shuffled ones, have another order."""
    return _told(sorted(rows, key=lambda row: int(row["row"])))
