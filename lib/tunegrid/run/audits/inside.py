"""Looks from inside a forward pass at what stands in place of the libraries' code.

What stands there only while an update is made, or while an answer is generated, is seen by nobody who looks before and after.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from tunegrid.run.audits.probing import undisturbed
from tunegrid.run.training import Trainer
from tunegrid.run.untouched import MONITOR, Replaced


class _Seen(Exception):  # no error: what was to be seen was seen
    """The pass need not go on."""


def replaced_in(trainer: Trainer) -> list[Replaced]:
    """What stands in the libraries' place now, in an update, and in a prediction; ranks look only from outside."""
    found = MONITOR.replaced(trainer.model)
    if trainer.ranks.count == 1:
        if trainer.last_group:
            found += _inside(trainer, lambda: trainer.accumulated(trainer.last_group, []), training=True)
        found += _inside(trainer, lambda: trainer.codec.predict(trainer.model, trainer.features[:1], trainer.meter.device))
    return list(dict.fromkeys(found))


def _inside(trainer: Trainer, way: Callable[[], Any], *, training: bool = False) -> list[Replaced]:
    """What stands there when a way to the model's forward pass has come to it; the pass ends there, and changes nothing."""
    found: list[Replaced] = []

    def look(*_: Any) -> None:
        found.extend(MONITOR.inside(trainer.model))
        raise _Seen

    handle = register_module_forward_pre_hook(look)
    try:
        with undisturbed(trainer, training=training), torch.set_grad_enabled(training), suppress(_Seen):
            way()
    finally:
        handle.remove()
    return found
