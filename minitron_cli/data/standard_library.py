"""The Python standard library's own source: text that every machine with Python has."""

import sys
import sysconfig
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from minitron_cli.errors import DataError

Split = Literal["train", "validation"]

TESTS = {"test", "tests", "idle_test"}
VALIDATION_SHARE = 0.03


def source_files(split: Split, root: Path | None = None) -> list[Path]:
    """The library's .py files in one split, sorted; a file's split depends on nothing but its path in the library."""
    root = root or Path(sysconfig.get_path("stdlib"))
    paths = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    files = [root / path for path in paths if _is_library(path) and _split(path) == split]
    if not files:
        raise DataError(f"{root}: holds no source of the standard library; name files of your own instead")
    return files


def _is_library(path: Path) -> bool:
    """Not a test, and of a module that Python documents as its own (site-packages and build leftovers are not)."""
    return path.with_suffix("").parts[0] in sys.stdlib_module_names and not TESTS & set(path.parts)


def _split(path: Path) -> Split:
    digest = blake2b(path.as_posix().encode(), digest_size=4).digest()
    return "validation" if int.from_bytes(digest) < VALIDATION_SHARE * 2**32 else "train"
