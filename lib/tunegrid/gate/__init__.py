"""Two runs judged: by numerics, quality, memory, speed and instruments. Needs no torch.

Called, it is `tunegrid.commands.gate.gate`.
"""

import sys

from tunegrid import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
