"""A cell at work: build, train, evaluate, measure. Called, it is `tunegrid.commands.run.run`."""

import sys

from tunegrid import CallablePackage

sys.modules[__name__].__class__ = CallablePackage
