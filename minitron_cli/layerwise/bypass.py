"""Temporary replacement of modules' forward functions, for example to run a model without some of its layers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def bypassed(modules: "Iterable[nn.Module]") -> Iterator[None]:
    """Make modules return their input unchanged inside the context; they need no weights, and their hooks still run."""
    with replaced_forward(modules, _same):
        yield


def _same(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


@contextmanager
def replaced_forward(modules: "Iterable[nn.Module]", forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replace the forward function of modules inside the context."""
    modules = list(modules)
    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module in modules:
            del module.forward
