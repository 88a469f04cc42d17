"""Judges two runs by numerics, quality, memory, speed and instruments. Needs no torch.

The package itself is callable, as `tunegrid.commands.gate.gate`.
"""

import sys

from tunegrid import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
