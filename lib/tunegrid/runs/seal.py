"""Seals runs, rows and journal lines with a digest of their content, to reveal later changes.

A seal is not a signature, because whoever changes a file can renew its seal. A run's seal covers
its rows by their seals. The digest is computed from ASCII JSON with sorted keys and no whitespace,
as in RFC 8785, except that non-ASCII characters are escaped and numbers are written as in Python.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

SEAL = "seal"


def add_seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its seal, a SHA-256 digest in hex."""
    fields = {name: value for name, value in content.items() if name != SEAL}
    covered = dict(fields)
    if "benchmarks" in fields:
        covered["benchmarks"] = [row.get(SEAL) for row in fields["benchmarks"]]
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return fields | {SEAL: hashlib.sha256(text.encode()).hexdigest()}


def check_seal(content: Mapping[str, Any]) -> Literal["sealed", "changed", "unsealed"]:
    """Checks whether the content still matches its seal."""
    if SEAL not in content:
        return "unsealed"
    return "sealed" if add_seal(content)[SEAL] == content[SEAL] else "changed"
