"""Can the hub be reached? In: nothing. Out: if not, the libraries are set to their caches, before they try for minutes."""

import os
import socket
from functools import cache
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
