"""Data folders that anybody may have written are used, or refused in one sentence."""

import csv
import json
import shutil

import pytest

from tunegrid.data.splits import load_splits
from tunegrid.grid.recipes import Profile
from tunegrid.grid.tasks import QA, SA, SUM
from tunegrid.tests.small import rows_of
from tunegrid.tests.strangers import another_parquet, attacked, changed, spoil

KINDS = ("csv", "jsonl", "parquet", "saved")  # of files; a CSV holds no answers with their places
TASKS = ((SA, ("train",)), (QA, ("train", "validation")), (SUM, ("train", "validation", "test")))


@pytest.fixture(scope="module")
def sound_data(tmp_path_factory):
    """A folder per task and kind of file, each with 60 rows a split."""
    import datasets

    root = tmp_path_factory.mktemp("data")
    for task, splits in TASKS:
        rows = {split: rows_of(f"{task.folder}/{split}")[:60] for split in splits}
        for kind in KINDS if task is SA else KINDS[1:]:
            folder = root / kind / task.folder
            folder.mkdir(parents=True)
            for split, own in rows.items():
                if kind == "jsonl":
                    (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in own))
                if kind == "csv":
                    with (folder / f"{split}.csv").open("w", newline="") as file:
                        lines = csv.DictWriter(file, own[0])
                        lines.writeheader()
                        lines.writerows(own)
                if kind == "parquet":
                    datasets.Dataset.from_list(own).to_parquet(folder / f"{split}.parquet")
            if kind == "saved":
                saved = datasets.DatasetDict({split: datasets.Dataset.from_list(own) for split, own in rows.items()})
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
        kind = random.choice(KINDS if task is SA else KINDS[1:])
        shutil.rmtree(tmp_path / "root", ignore_errors=True)
        shutil.copytree(sound_data / kind / task.folder, tmp_path / "root" / task.folder)
        other_data(tmp_path / "root" / task.folder, random)
        splits = load_splits(task, Profile(id="full", data_root=tmp_path / "root"))
        assert splits.fingerprint

    assert attacked(answer, 25)["refused"] > 0
