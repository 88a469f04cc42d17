"""bitsandbytes: importing it on a CPU with AVX512-bf16 takes compiled code from the hub.

If the package kernels is installed, as transformers 5.25 requires, the CPU backend asks it for the
repository `kernels-community/quantization-bitsandbytes` at import, and computes 4-bit layers with
what is there that day. No argument or variable of bitsandbytes forbids it, and USE_HUB_KERNELS=0,
transformers' own switch, is not read. Counts the hosts that an import looks up; looking up fails
here, so nothing is downloaded. A way out for bitsandbytes: read that switch, and pin a commit.
Exits with 1 if the import asks for a host, with 0 if not, with 2 if this CPU does not take the path
or kernels is not installed.
"""

import logging
import os
import socket
import sys
from importlib.util import find_spec

os.environ["USE_HUB_KERNELS"] = "0"
for name in ("HF_HUB_OFFLINE", "LOCAL_KERNELS"):
    os.environ.pop(name, None)
hosts = []


def look_up(host, *_, **__):
    """Note the host; there is no network here."""
    hosts.append(host)
    raise OSError(101, "Network is unreachable")


socket.getaddrinfo = look_up
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
import bitsandbytes  # noqa: E402
from bitsandbytes.functional import has_avx512bf16  # noqa: E402

print(
    f"bitsandbytes {bitsandbytes.__version__}: the import looks up {sorted(set(hosts)) or 'none'}"
)
if not find_spec("kernels") or not has_avx512bf16():
    sys.exit(2)
sys.exit(int(bool(hosts)))
