"""JSON whose bytes depend on the value alone, and the digests of such bytes."""

import hashlib
import json
from typing import Any


def compact(value: Any) -> bytes:
    """JSON for hashing: the same bytes for the same value. Tuples become lists; ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def pretty(value: Any) -> bytes:
    """JSON for reading, indented by two spaces: the same bytes for the same value. ValueError for NaN and infinity."""
    return (json.dumps(value, sort_keys=True, indent=2, allow_nan=False) + "\n").encode()


def digest(value: Any) -> str:
    """SHA-256 of the value's compact JSON, in hexadecimal."""
    return hashlib.sha256(compact(value)).hexdigest()
