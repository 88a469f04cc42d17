"""The seal of a run, a row or a journal's line: a digest of its content, which shows a change.

It is no signature: whoever changes a file can renew its seal. A run's seal covers its rows by their
seals. The canonical form is JSON with sorted keys, without blanks, in ASCII: RFC 8785 but for
letters outside of ASCII, and numbers as Python writes them.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

SEAL = "seal"


def add_seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its seal, SHA-256 in hex digits."""
    fields = {name: value for name, value in content.items() if name != SEAL}
    covered = dict(fields)
    if "benchmarks" in fields:
        covered["benchmarks"] = [row.get(SEAL) for row in fields["benchmarks"]]
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    return fields | {SEAL: hashlib.sha256(text.encode()).hexdigest()}


def check_seal(content: Mapping[str, Any]) -> Literal["sealed", "changed", "unsealed"]:
    """Checks whether the content is as it was sealed."""
    if SEAL not in content:
        return "unsealed"
    return "sealed" if add_seal(content)[SEAL] == content[SEAL] else "changed"
