"""Plants of readers: each breaks the row of the table that names it."""

from typing import Any

import datasets
import torch
from torch.utils.data import dataloader


def workers_draw_a_number_more(monkeypatch: Any) -> None:
    """A loader with workers takes one random number more than one without, so that its order is another."""
    init = dataloader._MultiProcessingDataLoaderIter.__init__

    def drawing(self: Any, loader: Any) -> None:
        torch.rand(())
        init(self, loader)

    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "__init__", drawing)


def state_is_not_taken_up(monkeypatch: Any) -> None:
    """A stream that is to go on from a state starts anew: rows come twice."""
    monkeypatch.setattr(datasets.IterableDataset, "load_state_dict", lambda self, state: None)


def every_worker_reads_everything(monkeypatch: Any) -> None:
    """Workers do not know of each other, so that each reads all files."""
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: None)


def blocks_lose_their_rest(monkeypatch: Any) -> None:
    """The last block of a stream, which is not full, is dropped."""
    mapped = datasets.IterableDataset.map
    monkeypatch.setattr(
        datasets.IterableDataset, "map", lambda self, *args, **options: mapped(self, *args, **options, drop_last_batch=True)
    )
