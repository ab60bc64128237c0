"""The decoder inside a causal language model of transformers."""

from typing import Any


def decoder_of(model: Any) -> Any:
    """Module that makes the final hidden states of token ids. Llama 4's `get_decoder` gives the model itself."""
    decoder = model.get_decoder()
    return model.model if decoder is model else decoder
