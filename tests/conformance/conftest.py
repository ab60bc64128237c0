"""What every test of families starts from: the same tokens, and no bars."""

import pytest
import torch
from torch import Tensor
from transformers.utils import logging

from tests.tiny import BASE


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    logging.disable_progress_bar()


@pytest.fixture
def tokens() -> Tensor:
    """More tokens than a window holds, and more than there are samples, [sample, token]."""
    return torch.randint(1, BASE["vocab_size"], (3, 17), generator=torch.Generator().manual_seed(5))
