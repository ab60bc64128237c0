"""JSON from untrusted files: bounded size, no duplicate keys, no NaN, CheckpointError for everything else."""

import errno
import json
import math
import os
import stat
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from minitron_cli.errors import CheckpointError, shown

MAX_BYTES = 64 << 20


def load(path: Path, max_bytes: int = MAX_BYTES, *, finite: bool = True) -> dict[str, Any]:
    """JSON object in a regular file. CheckpointError for anything else; for NaN and infinity only if `finite`."""
    size = regular_size(path)
    if size > max_bytes:
        raise CheckpointError(
            f"{path} is {size:,} bytes: more than the {max_bytes:,} a metadata file may have; check the file"
        )
    return parse(path.read_bytes(), str(path), finite=finite)


def parse(content: bytes, where: str, *, finite: bool = True) -> dict[str, Any]:
    """JSON object in UTF-8 bytes. CheckpointError, which begins with `where`, for anything else."""
    numbers: dict[str, Any] = {"parse_constant": _no_constant, "parse_float": _finite} if finite else {}
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_no_duplicates, **numbers)
    except (ValueError, RecursionError) as e:
        reason = "it is nested too deeply" if isinstance(e, RecursionError) else str(e).splitlines()[0][:120]
        raise CheckpointError(f"{where} is not valid JSON ({reason}): restore the file") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds a JSON {type(value).__name__}, not an object: restore the file")
    return value


def regular_size(path: Path) -> int:
    """Size of a regular file, links followed. CheckpointError otherwise: a FIFO or device would block the reader."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: give the directory of a complete checkpoint") from None
    except OSError as e:
        if e.errno != errno.ELOOP:
            raise
        raise CheckpointError(f"{path} is a link that leads back to itself: put the file in its place") from None
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file: give the directory of a complete checkpoint")
    return status.st_size


def not_finite(value: Any, place: str = "") -> str | None:
    """Dotted place of the first NaN or infinity in a JSON value; None if there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next(filter(None, (not_finite(v, f"{place}.{k}" if place else str(k)) for k, v in inner)), None)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"key {shown(name, 60)} occurs twice")
    return value


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:40]} is too large")
    return number


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
