"""Settings that train a few updates."""

import time
from typing import Any

import torch

from benchmarks.equivalent.bench import SILENT, Bench, Setting, learned, still
from benchmarks.equivalent.compare import Fields
from tunegrid.run.checkpoint import Checkpoints
from tunegrid.run.ranks import ALONE, Ranks
from tunegrid.run.sharded import blocks
from tunegrid.run.training import Trainer

UPDATES = 3


def trained(
    *,
    rows: int = 10,
    dropout: bool = True,
    attention: str | None = None,
    seed: int = 0,
    together: type[Ranks] | None = None,
    **recipe: Any,
) -> Setting:
    """A few updates on the same rows in the same order; by default four rows an update, so that the last one has two.

    Args:
        rows: how many there are.
        dropout: whether it drops.
        attention: how transformers computes it.
        seed: of the run.
        together: what kind of ranks share it; None: one process.
        recipe: its fields.
    """
    fields = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": UPDATES} | recipe

    def train(bench: Bench) -> Fields:
        cell = bench.cell_with(seed=seed, **fields)
        ranks = together(bench.ranks.rank, bench.ranks.count) if together else ALONE
        trainer = bench.trainer(cell, rows, model=bench.model(cell, dropout=dropout, attention=attention), ranks=ranks)
        if not dropout:
            still(trainer.sharded_model)
        return course(trainer)

    return train


def course(trainer: Trainer) -> Fields:
    """What a training leaves: losses, norms, rates, the first update's gradients, how far weights moved, the weights."""
    start = learned(trainer)
    trainer.run(SILENT)
    weights = learned(trainer)
    return {
        "losses": [*trainer.log.losses],
        "norms": [float(norm) for norm in trainer.log.gradient_norms if norm is not None],
        "rates": [float(rate) for rates in trainer.log.group_rates for rate in rates],
        "order": trainer.log.order,
        "moves": {name: weights[name] - start[name] for name in weights},
        "weights": weights,
    }


def differentiated(*, rows: int = 6, dropout: bool = False, attention: str | None = None, **recipe: Any) -> Setting:
    """The loss and the gradients of one batch; nothing is applied."""

    def ask(bench: Bench) -> Fields:
        cell = bench.cell_with(**{"per_device_train_batch_size": rows, "gradient_accumulation_steps": 1} | recipe)
        trainer = bench.trainer(cell, rows, model=bench.model(cell, dropout=dropout, attention=attention))
        trainer.model.train()
        torch.manual_seed(0)
        names = [name for name, p in trainer.stepped.items() if p.requires_grad]
        loss, gradients = trainer.accumulated([trainer.features], names)
        reached = {name: one for name, one in zip(names, gradients, strict=True) if one.any()}
        return {"loss": float(loss), "gradients": reached}

    return ask


def compiled(*, rows: int = 4) -> Setting:
    """The same with the model's first layer compiled, and how long compiling it and one update took."""

    def ask(bench: Bench) -> Fields:
        from torch._inductor import config  # seconds, which no other row needs
        from torch._inductor.utils import fresh_inductor_cache

        torch.compiler.reset()
        cell = bench.cell_with(per_device_train_batch_size=rows, gradient_accumulation_steps=1)
        trainer = bench.trainer(cell, rows, model=bench.model(cell, dropout=False))
        trainer.model.train()
        names = [name for name, p in trainer.stepped.items() if p.requires_grad]
        blocks(trainer.model)[0].compile()
        began = time.perf_counter()
        # What an earlier run compiled is not this compiler's work; nor do its own processes pay for one layer.
        with fresh_inductor_cache(), config.patch(compile_threads=1):
            loss, gradients = trainer.accumulated([trainer.features], names)
        reached = {name: one for name, one in zip(names, gradients, strict=True) if one.any()}
        return {"loss": float(loss), "gradients": reached, "seconds": time.perf_counter() - began}

    return ask


# Resumed


class Stopped(Exception):
    """Training ends here."""


def interrupted(after: int = 2, **recipe: Any) -> Setting:
    """The same as `trained`, but stopped after some updates and taken up again by another trainer, from its file."""
    fields = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "max_steps": UPDATES} | recipe

    def train(bench: Bench) -> Fields:
        cell = bench.cell_with(**fields)
        path = bench.new_folder("kept") / "training.safetensors"
        first = Checkpoints(path=path, every_seconds=0.0)

        def save_and_stop(trainer: Trainer) -> None:
            first.save_if_due(trainer)
            if trainer.log.updates == after:
                raise Stopped

        start = bench.trainer(cell, 10, after_update=save_and_stop)
        began = learned(start)
        try:
            start.run(SILENT)
        except Stopped:
            first.release()
        again, kept = bench.trainer(cell, 10), Checkpoints(path=path, every_seconds=1e9, resume=True)
        kept.restore(again)
        assert again.log.updates == after, "it goes on where it stopped"
        fields_of_the_rest = course(again)
        kept.release()
        weights = fields_of_the_rest["weights"]
        return {**fields_of_the_rest, "moves": {name: weights[name] - began[name] for name in weights}}

    return train


def shuffled(**recipe: Any) -> Setting:
    """A training whose rows are ordered as in a run, by the seed."""

    def train(bench: Bench) -> Fields:
        seed = recipe.get("seed", 0)
        rest = {name: value for name, value in recipe.items() if name != "seed"}
        cell = bench.cell_with(seed=seed, **{"per_device_train_batch_size": 4, "max_steps": UPDATES} | rest)
        return course(bench.trainer(cell, 24, kind=Trainer))

    return train
