import pytest

from tests.tiny import write_tiny


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("llama"), "llama")
