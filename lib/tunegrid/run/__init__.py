"""Builds, trains, evaluates and measures a cell. Calling it calls `tunegrid.commands.run.run`."""

import sys

from tunegrid import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
