"""Source code of the Python standard library, and the English of its help: text that every machine with Python has.

What is held out is a fixed list of modules, the same in every version of Python, so that no version holds out a module
that a model trained on another version has seen. Modules that a later version adds, or moves code into, are trained on.
"""

import importlib
import sys
import sysconfig
from collections.abc import Iterator, Mapping
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

TOPICS = "pydoc_data.topics"
VALIDATION_TOPICS = frozenset({"calls", "debugger", "floating", "numeric-types", "strings", "truth", "yield"})
"""Topics of Python's help that are held out: a tenth of the prose of Python 3.11."""
NO_PROSE = ("::=", ">>>")
"""Marks of grammar and of sessions."""


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


def prose(split: Part, topics: Mapping[str, str] | None = None) -> dict[str, str]:
    """Sentences of each topic of Python's help on the language, by the topic's name, a paragraph to a line.

    Topics repeat each other: a paragraph stands in the first topic that has it, and one that is held out in no topic
    that is trained on. DataError if the library has no help.
    """
    topics = _topics() if topics is None else topics
    found, seen = {}, set[str]()
    for name in sorted(topics, key=lambda name: (name not in VALIDATION_TOPICS, name)):
        paragraphs = dict.fromkeys(one for one in _sentences(topics[name]) if one not in seen)
        seen |= paragraphs.keys()
        if paragraphs and split == ("validation" if name in VALIDATION_TOPICS else "train"):
            found[name] = "\n".join(paragraphs) + "\n"
    return found


def _topics() -> Mapping[str, str]:
    try:
        topics: Mapping[str, str] = importlib.import_module(TOPICS).topics
    except ModuleNotFoundError:
        raise DataError(f"this Python has no {TOPICS}, the text of its help; name files of your own instead") from None
    return topics


def _sentences(text: str) -> Iterator[str]:
    """Paragraphs that end as a sentence does, without line breaks; headings, grammar and code are left out."""
    for paragraph in text.split("\n\n"):
        line = " ".join(paragraph.split())
        if line.endswith((".", ":")) and not any(mark in line for mark in NO_PROSE):
            yield line
