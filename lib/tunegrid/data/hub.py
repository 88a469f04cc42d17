"""Asks the hub, before anything is read, whether it can be reached and at which commit a data set or checkpoint is.

Where it cannot be reached, the libraries are set to their caches, before they try for minutes.
"""

import os
import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

SECONDS = 5.0


@cache
def prefer_cache_if_unreachable() -> bool:
    """Whether the hub can be reached. If not, set HF_HUB_OFFLINE for this process: cached files load, others fail at once.

    Call it before huggingface_hub is imported, which reads the variable once. Behind a proxy, it is not checked.
    """
    if os.environ.get("HF_HUB_OFFLINE") or any(name.lower() == "https_proxy" for name in os.environ):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((host.hostname or "", host.port or 443), SECONDS).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
        return False
    return True


@cache
def commit_of(dataset: str, config: str | None) -> str | None:
    """The commit at which the hub's data set would be read now, from its cache if the hub cannot be reached; None: nowhere."""
    prefer_cache_if_unreachable()
    import datasets

    try:
        commit: str | None = datasets.load_dataset_builder(dataset, config, trust_remote_code=False).hash
    except Exception:  # whatever their HTTP client raises: reading the rows will say it
        return None
    return commit


@cache
def checkpoint_commit_of(checkpoint: str) -> str | None:
    """The commit at which the hub's checkpoint would be loaded now if nothing pins it, as for a data set; None: nowhere."""
    prefer_cache_if_unreachable()
    import huggingface_hub

    try:
        config = huggingface_hub.hf_hub_download(checkpoint, "config.json")
    except Exception:  # whatever their HTTP client raises: loading the model will say it
        return None
    return Path(config).parent.name  # .../snapshots/COMMIT/config.json
