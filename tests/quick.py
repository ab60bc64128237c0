"""What the fast tests go through of many cases; the slow tests go through the others."""

from collections.abc import Iterable
from typing import Any

import pytest

from minitron_cli.model.families import FAMILIES
from tests.tiny import FAMILY_OPTIONS, tiny_config

QUICK = ("llama", "qwen3_moe")
"""A family of dense layers, and one of experts in stacked matrices; the others go through the slow tests."""

WHOLE = frozenset({*QUICK, "gemma2", "gemma3_text", "gpt_neox", "mixtral", "nemotron", "olmo2", "phi3"})
"""Besides: soft caps, sliding windows and offset norms, biases and fused matrices, an expert per matrix, offset layer
norms, norms over all heads and of outputs, joined rows."""

APART = frozenset(FAMILIES) - WHOLE
"""Families whose whole matrix runs in `make conformance`; `make test` goes through their cheapest cases."""


def slow(*values: Any) -> Any:
    """A case of `parametrize`, of one value per name, that is left to the slow tests."""
    return pytest.param(*values, marks=pytest.mark.slow)


def case_of(model_type: str, *values: Any) -> Any:
    """A case of `parametrize` that begins with a family: fast, left to the slow tests, or to `make conformance`."""
    if model_type in QUICK:
        return (model_type, *values) if values else model_type
    mark = pytest.mark.conformance if model_type in APART else pytest.mark.slow
    return pytest.param(model_type, *values, marks=mark)


def first_quick(cases: Iterable[Any], count: int = 1) -> list[Any]:
    """Cases of `parametrize`, of which all but the first are left to the slow tests."""
    return [case if i < count else slow(case) for i, case in enumerate(cases)]


def each_family(names: Iterable[str] = sorted(FAMILY_OPTIONS)) -> pytest.MarkDecorator:
    """Parametrize `model_type` with every family, of which all but a few are left to the slow tests."""
    return pytest.mark.parametrize("model_type", [case_of(name) for name in names])


def every_family(names: Iterable[str] = sorted(FAMILIES)) -> pytest.MarkDecorator:
    """Parametrize `model_type` with every family, for a check so cheap that `make test` makes it for all of them."""
    return pytest.mark.parametrize("model_type", [name if name in QUICK else slow(name) for name in names])


def quick_families(cases: Iterable[tuple[str, ...]]) -> list[Any]:
    """Cases of `parametrize` that begin with a family, of which those of all but a few are left to the slow tests."""
    return [case_of(*case) for case in cases]


CARRYING = frozenset(
    {"bamba", "falcon_h1", "granitemoehybrid", "jamba", "lfm2", "nemotron_h", "qwen3_5_text", "qwen3_next"}
)
"""Families with layers in which a token is computed from those before it whatever its position says."""


BY_PLACE = frozenset({"llama4_text"})
"""Families in which a token's place in its block matters, whatever its position says."""


def without(*names: str) -> list[str]:
    """Every family but these."""
    return sorted(FAMILY_OPTIONS.keys() - set(names))


MIXTURES = sorted(
    n for n, f in FAMILIES.items() if "expert" in f.sizes and len(set(f.of_model(tiny_config(n)).layers)) < 2
)
"""Families whose tiny models have experts in every layer."""

EVERY_MIXTURE = pytest.mark.parametrize(
    "model_type", [pytest.param(name, marks=pytest.mark.conformance) if name in APART else name for name in MIXTURES]
)
