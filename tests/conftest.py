"""What every test starts from: one thread, no network, a cache of its own, no stop request left over."""

import fcntl
import gc
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # these are read when torch and the hub's client are imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every subprocess compiles the package again

import pytest

from minitron_cli import progress
from minitron_cli.errors import InputError
from scripts import real_models

REAL_MODELS = real_models.default_root()  # before tests get a cache of their own
MEMORY = Path("/dev/shm")
ROOM_BYTES = 4 << 30

sys.dont_write_bytecode = False  # or every worker rewrites and compiles all tests again
gc.disable()  # until all is imported and collected: nearly all of that lives to the end


def pytest_configure() -> None:
    """Put temporary directories in memory where there is room: tests sync thousands of files, each in milliseconds."""
    if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > ROOM_BYTES:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_flush_of_drives() -> Iterator[None]:
    """No test outlives a power failure, and on macOS each of thousands of flushes takes milliseconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(fcntl, "F_FULLFSYNC", raising=False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Whatever the environment says: a fork must not find a pool whose threads stayed behind."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_work_without_a_trace() -> Iterator[None]:
    """A large part of making a tiny model leaves no trace, and is left out.

    torch draws initial weights on the meta device, which holds none, operator by operator in Python; transformers
    writes every config as text for a line of its log that is not shown.
    """
    from torch import nn
    from transformers import GenerationConfig, PretrainedConfig

    with pytest.MonkeyPatch.context() as patch:
        for kind in (nn.Linear, nn.Embedding):
            patch.setattr(kind, "reset_parameters", _unless_on_meta(kind.reset_parameters))
        for config in (PretrainedConfig, GenerationConfig):
            patch.setattr(config, "__repr__", object.__repr__)
        yield


def _unless_on_meta(reset: Callable[[Any], None]) -> Callable[[Any], None]:
    def reset_parameters(module: Any) -> None:
        if not module.weight.is_meta:
            reset(module)

    return reset_parameters


@pytest.fixture(autouse=True)
def _nothing_left_over() -> Iterator[None]:
    yield
    progress.request_stop(None)
    progress.show_on(None)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what lives to the end: libraries, tests and their parameters; and call it seldom."""
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session")
def real_model() -> Callable[[str], Path]:
    """`real_model("gemma-3-270m")`, the directory of a pretrained model; for tests marked `real` with its name."""
    return partial(real_models.real_model, root=REAL_MODELS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for marker in item.iter_markers("real"):
            _skip_without(marker.args, item)
        if "network" in item.keywords and os.environ["HF_HUB_OFFLINE"] not in ("", "0"):
            item.add_marker(pytest.mark.skip(reason="HF_HUB_OFFLINE is set"))
    if not (marked := [item for item in items if "gpu" in item.keywords]):
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no accelerator here"))


def _skip_without(names: tuple[str, ...], item: pytest.Item) -> None:
    try:
        for name in names:
            real_models.real_model(name, REAL_MODELS)
    except InputError as e:
        item.add_marker(pytest.mark.skip(reason=str(e)))
