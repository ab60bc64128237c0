"""Stop requests: where they are heard, where they wait, and what they cost before."""

import importlib
import sys
import threading

import pytest
import torch
from torch import nn

from minitron_cli import stopping
from minitron_cli.errors import Interrupted, MinitronError


def stopped() -> pytest.RaisesExc[Interrupted]:
    return pytest.raises(Interrupted, match="run the same command again to continue")


def test_a_forward_pass_ends_at_its_next_module_and_before_pays_nothing() -> None:
    ran = []

    class Layer(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ran.append(self.name)
            if self.name == "b":
                stopping.request_stop(15)
            return x

    hooks = nn.modules.module._global_forward_pre_hooks
    assert not hooks
    model = nn.Sequential(Layer("a"), Layer("b"), Layer("c"))
    with stopped():
        model(torch.zeros(1))
    assert ran == ["a", "b"]
    stopping.request_stop(2)
    assert len(hooks) == 1
    stopping.request_stop(None)
    assert not hooks


def test_an_import_ends_too_and_before_pays_nothing() -> None:
    finders = list(sys.meta_path)
    stopping.request_stop(15)
    stopping.request_stop(15)
    with stopping.deferred(), pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module")
    with stopped():
        importlib.import_module("no_such_module")
    stopping.request_stop(None)
    assert sys.meta_path == finders


def test_a_library_does_not_take_a_stop_for_a_failure_of_its_own() -> None:
    assert not issubclass(Interrupted, Exception)
    assert not issubclass(Interrupted, MinitronError)


def test_a_deferred_stop_waits_for_the_end_of_every_context() -> None:
    stopping.request_stop(15)
    with stopping.deferred():
        with stopping.deferred():
            stopping.raise_if_stopped()
        nn.Identity()(torch.zeros(1))
    with stopped():
        stopping.raise_if_stopped()


def test_an_interruptible_context_ends_at_once() -> None:
    stopping.request_stop(15)
    stopping.raise_if_interruptible()  # outside
    stopping.request_stop(None)
    with stopped(), stopping.interruptible():
        stopping.request_stop(15)
        stopping.raise_if_interruptible()
        pytest.fail("went on")
    stopping.raise_if_interruptible()
    with stopped(), stopping.interruptible():
        pytest.fail("began")


def test_what_another_thread_does_is_not_interrupted_in_the_main_thread() -> None:
    inside, done = threading.Event(), threading.Event()

    def load() -> None:
        with stopping.interruptible():
            inside.set()
            done.wait()

    thread = threading.Thread(target=load)
    thread.start()
    inside.wait()
    stopping.request_stop(15)
    stopping.raise_if_interruptible()
    stopping.request_stop(None)
    done.set()
    thread.join()
