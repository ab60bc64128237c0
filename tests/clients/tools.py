"""What the checks of fine-tuning, quantization and export share; needs only torch, safetensors and transformers."""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Case = dict[str, Any]
Outcome = dict[str, Any]


def report(
    root: Path, result: Path, packages: tuple[str, ...], checks: dict[str, Callable[[Path, Case], float]]
) -> None:
    """Run every check on every child of `root`, write the rows, and exit with 1 unless all are within their bound.

    A check returns the relative difference of the child's logits, which AssertionError says is too large.
    """
    torch.set_num_threads(1)
    cases = json.loads((root / "cases.json").read_text())
    rows = [
        {"model_type": case["model_type"], "check": name, **_outcome(check, root, case)}
        for case in cases
        for name, check in checks.items()
    ]
    versions = {name: version(name) for name in packages}
    result.write_text(json.dumps({"versions": versions, "rows": rows}, indent=2) + "\n")
    for row in rows:
        print(*row.values(), sep="  ")
    sys.exit(any(row["outcome"] != "works" for row in rows))


def _outcome(check: Callable[[Path, Case], float], root: Path, case: Case) -> Outcome:
    try:
        return {"outcome": "works", "error": check(root, case)}
    except Exception as e:
        return {"outcome": f"{type(e).__name__}: {str(e).strip().splitlines()[-1][:200] if str(e).strip() else ''}"}


def expected(root: Path, case: Case) -> dict[str, torch.Tensor]:
    return load_file(root / case["expected"])


def difference(logits: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference of logits, relative to theirs."""
    return float((logits.float() - wanted.float()).norm() / wanted.float().norm())


def within(error: float, bound: float) -> float:
    assert error <= bound, f"logits differ by {error:.2e}, more than {bound}"
    return error


def texts(root: Path, case: Case) -> list[str]:
    return [path.read_text() for path in sorted((root / case["text"]).iterdir())]
