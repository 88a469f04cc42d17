"""Audits of a cell on several ranks: they train as one process would, and end with one model. All ranks ask together."""

import torch

from tunegrid.audits.evidence import Evidence
from tunegrid.audits.trained import in_one_batch
from tunegrid.grid.methods import Answer
from tunegrid.run.probe import is_plain, relative_gap, smallest, undisturbed

# Measured on quick cells: fp32 4e-7 nats and 3e-7 of the gradients' norm, bf16 1e-4 and 2e-3. A mean on each rank: 2e-2 to 3e-1
# nats where rows have targets of different lengths.
LOSS, COARSE_LOSS = 1e-4, 3e-3  # nats
GRADIENT, COARSE_GRADIENT = 1e-3, 3e-2  # of their norm


def ranks_train_as_one(evidence: Evidence) -> Answer:
    """Without dropout, the first update's loss and gradients are those of one process that has all its rows."""
    trainer = evidence.trainer
    if trainer.ranks.count == 1:
        return None
    group = next(iter(trainer.updates(0)))
    names = smallest({name: p for name, p in trainer.parameters.items() if p.requires_grad})
    with torch.enable_grad(), undisturbed(trainer):
        loss, ours = trainer.accumulated(group, names)
        alone, theirs = in_one_batch(trainer, [feature for features in group for feature in features], names)
    apart, gap = abs(float(loss) - alone), relative_gap(ours, theirs)
    plain = is_plain(trainer)
    same = apart <= (LOSS if plain else COARSE_LOSS) and gap <= (GRADIENT if plain else COARSE_GRADIENT)
    rows = sum(map(len, group))
    return same, f"{trainer.ranks.count} ranks, {rows} rows: loss off by {apart:.1e} nats, gradients by {gap:.1e} of their norm"


def ranks_end_alike(evidence: Evidence) -> Answer:
    """All ranks end with the same weights, bit for bit."""
    trainer = evidence.trainer
    if trainer.ranks.count == 1:
        return None
    trained = {name: evidence.after[name] for name, p in trainer.parameters.items() if p.requires_grad}
    first, *others = trainer.ranks.gathered(trained)
    strays = [rank for rank, other in enumerate(others, 1) if other != first]
    return not strays, f"{len(trained)} tensors" + (f"; rank {strays[0]} has others than the first" if strays else "")
