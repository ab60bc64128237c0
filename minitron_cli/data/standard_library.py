"""Source code of the Python standard library: text that every machine with Python has."""

import sys
import sysconfig
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from minitron_cli.errors import DataError

Part = Literal["train", "validation"]

TESTS = {"test", "tests", "idle_test"}
VALIDATION_SHARE = 0.03


def source_files(split: Part, root: Path | None = None) -> list[Path]:
    """The library's .py files in one split, sorted. A file's split depends only on its path in the library."""
    root = root or Path(sysconfig.get_path("stdlib"))
    files = [path for path in _library_files(root) if _split(path.relative_to(root)) == split]
    if not files:
        raise DataError(f"{root}: holds no source of the standard library; name files of your own instead")
    return sorted(files)


def _library_files(root: Path) -> Iterator[Path]:
    """Files of the standard modules (not site-packages, not build leftovers), without tests."""
    for module in root.iterdir():
        if module.stem in sys.stdlib_module_names:
            found = [module] if module.suffix == ".py" else module.rglob("*.py")
            yield from (path for path in found if not TESTS & set(path.relative_to(root).parts))


def _split(path: Path) -> Part:
    digest = blake2b(path.as_posix().encode(), digest_size=4).digest()
    return "validation" if int.from_bytes(digest) < VALIDATION_SHARE * 2**32 else "train"
