"""A training in a process of its own, whose strings have other hashes: `python -m benchmarks.equivalent.processes FILE`."""

import hashlib
import importlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.equivalent import training
from benchmarks.equivalent.bench import Bench, Setting
from benchmarks.equivalent.compare import Fields
from tunegrid import ROOT
from tunegrid.data.splits import load_splits
from tunegrid.grid.cells import STUDY
from tunegrid.grid.profiles import QUICK_PROFILE
from tunegrid.run.build import load_tokenizer

SECONDS = 300


def here() -> Setting:
    """A shuffled training in this process."""
    return _summed


def elsewhere(hash_seed: int) -> Setting:
    """The same in another process, with this seed of Python's hashes."""

    def run(bench: Bench) -> Fields:
        path = bench.new_folder("asked") / "asked.json"
        plant = f"{bench.plant.__module__}:{bench.plant.__name__}" if bench.plant else None  # type: ignore[attr-defined]
        path.write_text(json.dumps({"cell": bench.cell.id, "folder": str(path.parent), "plant": plant}), encoding="utf-8")
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'lib'}"}
        command = [sys.executable, "-m", "benchmarks.equivalent.processes", str(path)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=SECONDS)
        answer: Fields = json.loads(path.with_name("answer.json").read_text(encoding="utf-8"))
        return answer

    return run


def _summed(bench: Bench) -> Fields:
    fields = training.shuffled()(bench)
    bits = b"".join(tensor.contiguous().numpy().tobytes() for _, tensor in sorted(fields["weights"].items()))
    return {"losses": fields["losses"], "order": fields["order"], "weights": hashlib.sha256(bits).hexdigest()}


def main(path: Path) -> None:
    """Train what a file asks for, and leave the answer beside it."""
    import pytest

    asked = json.loads(path.read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    cell = STUDY.cell(asked["cell"], QUICK_PROFILE)
    cell = replace(cell, profile=replace(cell.profile, feature_cache=None))
    with pytest.MonkeyPatch.context() as monkeypatch:
        if asked["plant"]:
            module, _, name = asked["plant"].partition(":")
            getattr(importlib.import_module(module), name)(monkeypatch)
        splits = load_splits(cell.task, cell.profile)
        device = torch.device("cpu")
        bench = Bench(cell=cell, tokenizer=load_tokenizer(cell), splits=splits, device=device, folder=path.parent)
        path.with_name("answer.json").write_text(json.dumps(_summed(bench)), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
