"""The grid as pytest parameters."""

import pytest

from lib.grid.backbones import BACKBONES
from lib.grid.methods import METHODS
from lib.grid.tasks import TASKS


def cells(profile):
    """The grid as parameters, heaviest task first; ids are the study's."""
    mark = getattr(pytest.mark, profile)
    prefix = "" if profile == "quick" else f"{profile}-"
    return [
        pytest.param(profile, backbone.id, task.id, method.id, marks=mark, id=f"{prefix}{backbone.id}_{task.id}_{method.id}")
        for task in reversed(TASKS)
        for backbone in BACKBONES
        for method in METHODS
    ]
