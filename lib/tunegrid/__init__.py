"""tunegrid: did this fine-tune really work, and did it get worse? Asked as a test."""

import logging
import os
from pathlib import Path

ROOT = Path(__file__).parents[2]  # the checkout, or what a wheel installs in the same form, fixtures and benchmarks included
WHEEL = ROOT.name == "tunegrid_suite"  # pyproject.toml names a wheel's folder
DEFAULT_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "tunegrid") if WHEEL else ROOT / ".cache"

# Libraries' load reports and progress bars say nothing that the record does not. Set before any process of ours imports them.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
