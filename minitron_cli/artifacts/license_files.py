"""License texts in a model directory. They go with every model that is made from it, and are no part of what it is."""

import re
from pathlib import Path

PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
"""Patterns of their names in a hub repository, where names have a case."""
_NAME = re.compile(r"(licen[cs]e|notice|copying|use_policy)(?![a-z])[\w.-]*", re.IGNORECASE)
_DATA = (".json", ".safetensors", ".jinja", ".model", ".masks")
MAX_BYTES = 1 << 20


def is_license(name: str) -> bool:
    """Whether a file of this name is a license text or a notice that a license asks to pass on."""
    return _NAME.fullmatch(name) is not None and not name.endswith(_DATA)


def license_files(directory: Path) -> tuple[str, ...]:
    """Names of the license texts of a model directory, of up to 1 MiB each."""
    files = (path for path in sorted(directory.iterdir()) if is_license(path.name) and path.is_file())
    return tuple(path.name for path in files if path.stat().st_size <= MAX_BYTES)
