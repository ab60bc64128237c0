"""Run one benchmark or all: python -m benchmarks [NAME [PART...]]."""

import importlib
import sys
from pathlib import Path

EXCLUDED = ("harness", "layer_major", "repair")  # no benchmark, or run with a directory: python -m benchmarks.repair D

if __name__ == "__main__":
    found = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
    names, parts = (sys.argv[1:2] or [n for n in found if n not in EXCLUDED]), sys.argv[2:]
    if unknown := set(names) - set(found):
        sys.exit(f"no benchmark {unknown.pop()!r}: choose from {', '.join(n for n in found if n not in EXCLUDED)}")
    for name in names:
        importlib.import_module(f"benchmarks.{name}").main(parts)
