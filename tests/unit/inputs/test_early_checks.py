"""What needs no forward pass is found when a model is opened."""

import json

import pytest
from safetensors.torch import load_file, save_file

from minitron_cli.errors import CheckpointError
from minitron_cli.inputs.source_model import open_source_model
from tests.tiny import write_tiny


def test_a_head_that_differs_from_the_embedding_it_is_tied_to(tmp_path):
    path = write_tiny(tmp_path, num_hidden_layers=1, tie_word_embeddings=True)
    tensors = load_file(path / "model.safetensors")
    copy = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": copy}, path / "model.safetensors", metadata={"format": "pt"})
    open_source_model(path)
    copy[-1, -1] += 1
    save_file(tensors | {"lm_head.weight": copy}, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"differs from model\.embed_tokens\.weight .* set tie_word_embeddings"):
        open_source_model(path)


@pytest.mark.parametrize("content", ["{", "[]", '{"max_new_tokens": "x"}', '{"cache_implementation": 7}'])
def test_an_invalid_generation_config(content, tmp_path):
    path = write_tiny(tmp_path, num_hidden_layers=1)
    (path / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"generation_config\.json .*(restore the file|fix the field, or remove)"):
        open_source_model(path)


BIDIRECTIONAL = {"gemma3_text": {"use_bidirectional_attention": True}, "llama": {"is_causal": False}}


@pytest.mark.parametrize("model_type", BIDIRECTIONAL)
def test_a_model_that_sees_the_future(model_type, tmp_path):
    path = write_tiny(tmp_path, model_type, num_hidden_layers=2)
    config = json.loads((path / "config.json").read_text()) | BIDIRECTIONAL[model_type]
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"attend to later ones.*not a causal language model"):
        open_source_model(path)
