"""Builds, trains, evaluates and measures a cell. Called, it is `tunegrid.commands.run.run`."""

import sys

from tunegrid import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
