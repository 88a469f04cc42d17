"""Judges one run against another: numerics, quality, memory, speed, instruments. Needs no torch.

Calling the package calls `tunegrid.commands.gate.gate`.
"""

import sys

from tunegrid import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
