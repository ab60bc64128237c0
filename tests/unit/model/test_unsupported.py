"""What is said of a config that has no family: that it is no decoder, that it wraps one, or where to add it."""

import pytest
from transformers import CONFIG_MAPPING

from minitron_cli.errors import CheckpointError
from minitron_cli.model.families import family_of
from tests.tiny import tiny_config, tiny_model

SAYS = {
    "bert": "a bert model is an encoder, and only decoders are pruned",
    "modernbert": "a modernbert model is an encoder",
    "t5": "a t5 model is an encoder with a decoder",
    "bart": "a bart model is an encoder with a decoder",
    "vit": "a vit model is no language model",
    "paligemma": r"a wrapper .* around a text model \(gemma\), not supported yet: save the text part",
    "gemma3n": r"around a text model \(gemma3n_text\), which has no family table",
    "gpt2": r"model type 'gpt2' has no family table .*families/ \(docs/extending\.md\)",
    "mamba": "model type 'mamba' has no family table",
}


@pytest.mark.parametrize(
    ("model_type", "says"),
    [
        (
            "stablelm",
            r"is that of \w+, which has .* of the model's .* tensors, but not ",
        ),
        (
            "bitnet",
            r"is that of \w+, which has .*, but not \S*layers\.{}\S*sub_norm\.weight",
        ),
    ],
)
def test_the_nearest_table_is_named_with_what_does_not_fit(model_type, says):
    """Both have Llama's matrices: StableLM with biases of norms, BitNet with norms inside of blocks."""
    model = tiny_model(model_type)
    tensors = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    with pytest.raises(
        CheckpointError, match=f"model type '{model_type}' has no family table .*; the nearest table {says}"
    ):
        family_of(model.config, tensors)


def test_no_table_is_named_where_none_has_a_tensor():
    with pytest.raises(CheckpointError) as caught:
        family_of(tiny_config("stablelm"), {"odd.weight": (3, 5)})
    assert "nearest" not in str(caught.value)


@pytest.mark.parametrize("model_type", SAYS)
def test_a_model_without_a_family(model_type):
    with pytest.raises(CheckpointError, match=SAYS[model_type]) as caught:
        family_of(CONFIG_MAPPING[model_type]())
    assert ("families/" in str(caught.value)) == ("has no family table" in SAYS[model_type][:40])
