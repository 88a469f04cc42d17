"""The seal of a run, of each of its rows and of each line of a journal: a digest of all that is in it.

It shows that a file was changed since it was written. It is no signature: whoever changes a file
can also make its seal anew. The canonical form is JSON with sorted keys, without blanks, in ASCII:
RFC 8785 but for numbers, which are as Python writes them, and for letters outside of ASCII.
"""

import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import Any

SEAL = "seal"


class Seal(Enum):
    """What a seal says of the content that has it."""

    HOLDS = "as it was written"
    BROKEN = "changed since it was written"
    MISSING = "unsealed"


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical form of all but the seal, in hex digits."""
    fields = {name: value for name, value in content.items() if name != SEAL}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def add_seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its seal."""
    return {**content, SEAL: digest(content)}


def check_seal(content: Mapping[str, Any]) -> Seal:
    """What the seal says."""
    if SEAL not in content:
        return Seal.MISSING
    return Seal.HOLDS if content[SEAL] == digest(content) else Seal.BROKEN
