"""python -m benchmarks NAME [PART...]: run one benchmark, or all of them."""

import importlib
import sys
from pathlib import Path

APART = ("harness", "layer_major", "repair")  # two need a directory for a checkpoint: python -m benchmarks.repair

if __name__ == "__main__":
    found = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
    names, parts = (sys.argv[1:2] or [n for n in found if n not in APART]), sys.argv[2:]
    if unknown := set(names) - set(found):
        sys.exit(f"no benchmark {unknown.pop()!r}: choose among {', '.join(n for n in found if n not in APART)}")
    for name in names:
        importlib.import_module(f"benchmarks.{name}").main(parts)
