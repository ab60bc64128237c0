import pytest
import torch

from tests.tiny import write_tiny


@pytest.fixture(scope="package", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("llama"), "llama")
