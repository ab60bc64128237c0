"""Source code of the Python standard library: text that every machine with Python has.

What is held out is a fixed list of modules, the same in every version of Python, so that no version holds out a module
that a model trained on another version has seen. Modules that a later version adds, or moves code into, are trained on.
"""

import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from minitron_cli.errors import DataError

Part = Literal["train", "validation"]

TESTS = {"test", "tests", "idle_test"}
VALIDATION = frozenset(
    {
        "asyncio.mixins",
        "ctypes.wintypes",
        "distutils.log",
        "encodings.cp037",
        "encodings.cp437",
        "idlelib.autocomplete",
        "idlelib.tooltip",
        "lib2to3.fixes.fix_exec",
        "lib2to3.fixes.fix_filter",
        "linecache",
        "os",
        "py_compile",
        "shlex",
        "sre_compile",
        "tkinter.dialog",
        "tracemalloc",
        "unittest",
        "venv",
        "weakref",
        "wsgiref",
        "xml.etree.ElementPath",
        "xml.sax.xmlreader",
    }
)
"""Modules that are held out: 3 % of those of Python 3.11, drawn by a hash. The shipped teacher has not seen them."""


def source_files(split: Part, root: Path | None = None) -> list[Path]:
    """The library's .py files in one split, sorted. A file's split depends only on its module's name."""
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
    """Split of a file, by its path in the library: `json/__init__.py` and `json.py` are the module json."""
    parts = path.parent.parts if path.stem == "__init__" else path.with_suffix("").parts
    return "validation" if ".".join(parts) in VALIDATION else "train"
