from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny import tiny_model

TEXT = Path(__file__).read_text() * 3


@pytest.fixture(scope="module", autouse=True)
def _no_network(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        yield


@pytest.fixture(scope="package")
def tokenizer():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        [TEXT], trainers.BpeTrainer(vocab_size=320, special_tokens=["<eos>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


@pytest.fixture(scope="package")
def model(tokenizer):
    return tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=512)


class Blocks:
    """Packed blocks in memory; a new document starts wherever token 0 stands."""

    def __init__(self, tokens_NT):
        self.tokens_NT = tokens_NT

    def __len__(self):
        return len(self.tokens_NT)

    def tokens(self, i):
        return self.tokens_NT[i]

    def text(self, i):
        return self.tokens_NT[i]

    def loss_mask(self, i):
        return None

    def text_mask(self, i):
        return None

    def documents(self, i):
        starts = self.tokens_NT == 0
        starts[:, 0] = True
        return starts.flatten().cumsum(0).view(starts.shape)[i]

    def positions(self, i):
        positions, start = [], 0
        for t, token in enumerate(self.tokens_NT[i].tolist()):
            start = t if token == 0 else start
            positions.append(t - start)
        return torch.tensor(positions)


@pytest.fixture
def blocks(model):
    generator = torch.Generator().manual_seed(0)
    tokens_NT = torch.randint(1, model.config.vocab_size, (5, 24), generator=generator)
    tokens_NT[:, 0] = 0
    tokens_NT[2, 9] = 0  # two documents in one block
    return Blocks(tokens_NT)
