"""Temporary replacement of modules' forward functions, for example to run a model without some of its layers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def bypassed(modules: "Iterable[nn.Module]") -> Iterator[None]:
    """Make modules return their input unchanged inside the context; they need no weights, and their hooks still run.

    Those of which `return_tuples` was told return it in a tuple, with None in place of attention weights.
    """
    modules = list(modules)
    plain, wrapping = ([m for m in modules if hasattr(m, TUPLES) == wraps] for wraps in (False, True))
    with replaced_forward(plain, _same), replaced_forward(wrapping, _and_no_weights):
        yield


TUPLES = "_returns_tuples"  # mark on a module


def return_tuples(modules: "Iterable[nn.Module]") -> None:
    """Tell `bypassed` that the callers of these modules take the first entry of what they return."""
    for module in modules:
        setattr(module, TUPLES, True)


def _same(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _and_no_weights(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    return hidden_states, None


@contextmanager
def replaced_forward(modules: "Iterable[nn.Module]", forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward function of modules inside the context."""
    modules = list(modules)
    for module in modules:
        module.forward = forward
    try:
        yield
    finally:
        for module in modules:
            del module.forward
