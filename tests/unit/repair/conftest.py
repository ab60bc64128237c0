import gc
from collections.abc import Iterator

import pytest

from tests.tiny import write_tiny


@pytest.fixture
def _only_new_garbage() -> Iterator[None]:
    """Let `gc.collect` look at what the test makes only; else each call walks all modules of torch and transformers."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("llama"), "llama")
