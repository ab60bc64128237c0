"""What the fast tests go through of many cases; the slow tests go through the others."""

from collections.abc import Iterable
from typing import Any

import pytest

from tests.tiny import FAMILY_OPTIONS

QUICK = ("gemma3_text", "gpt_neox", "llama", "phi3", "qwen3_moe")
"""Between them: biases, fused and stacked matrices, softcaps, sliding windows, offset norms and experts."""


def slow(*values: Any) -> Any:
    """A case of `parametrize`, of one value per name, that is left to the slow tests."""
    return pytest.param(*values, marks=pytest.mark.slow)


def first_quick(cases: Iterable[Any], count: int = 1) -> list[Any]:
    """Cases of `parametrize`, of which all but the first are left to the slow tests."""
    return [case if i < count else slow(case) for i, case in enumerate(cases)]


def each_family(names: Iterable[str] = sorted(FAMILY_OPTIONS)) -> pytest.MarkDecorator:
    """Parametrize `model_type` with every family, of which all but a few are left to the slow tests."""
    return pytest.mark.parametrize("model_type", [name if name in QUICK else slow(name) for name in names])


def quick_families(cases: Iterable[tuple[str, ...]]) -> list[Any]:
    """Cases of `parametrize` that begin with a family, of which those of all but a few are left to the slow tests."""
    return [case if case[0] in QUICK else slow(*case) for case in cases]
