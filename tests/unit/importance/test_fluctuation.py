"""FLAP's score (An et al. 2024) against a loop over tokens."""

import pytest
import torch

from minitron_cli.data.batches import Batch
from minitron_cli.scores.metric import Flap
from tests.tiny import tiny_model
from tests.unit.importance.calibration import samples, score, split

HEADS, NEURONS, LAYERS = 8, 48, 4


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", attention_bias=True, mlp_bias=True)


def inputs_of(model, batch):
    """Inputs of every o_proj and down_proj, one token after the other: name -> [tokens][features]."""
    seen, hooks = {}, []
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            hooks.append(module.register_forward_pre_hook(lambda _, args, name=name: seen.__setitem__(name, args[0])))
    with torch.no_grad():
        model(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
    for hook in hooks:
        hook.remove()
    mask = batch.loss_mask_BT
    chosen = [(b, t) for b, t in torch.cartesian_prod(*map(torch.arange, batch.input_ids_BT.shape)).tolist()]
    chosen = [at for at in chosen if mask is None or mask[at]]
    return {name: [inputs[b, t].double() for b, t in chosen] for name, inputs in seen.items()}


@torch.no_grad()
def written_without(module, tokens, features):
    """Mean over tokens of |W (x - mean x)|^2 restricted to some inputs, each input by itself, summed."""
    total = 0.0
    for feature in features:
        column = module.weight[:, feature].double()
        mean = sum(x[feature] for x in tokens) / len(tokens)
        total += sum(float((column * (x[feature] - mean)).square().sum()) for x in tokens) / len(tokens)
    return total


@pytest.mark.parametrize("is_masked", [False, True], ids=["all", "masked"])
def test_a_score_is_what_the_reader_no_longer_writes_once_the_mean_is_in_a_bias(model, is_masked):
    batch = samples(3)
    if is_masked:
        mask_BT = torch.rand(batch.input_ids_BT.shape, generator=torch.Generator().manual_seed(1)) < 0.4
        mask_BT[1] = False
        batch = Batch(batch.input_ids_BT, batch.position_ids_BT, batch.sample_ids, mask_BT)
        batches = [batch]
    else:
        batches = split(batch, [1, 2])
    scores = score(model, batches, layer_removal=False)
    inputs = inputs_of(model, batch)
    for axis, module, count, size in (("ffn", "mlp.down_proj", NEURONS, 1), ("head", "self_attn.o_proj", HEADS, 8)):
        found_LC = scores.select(axis, Flap())
        assert found_LC.shape == (LAYERS, count)
        for layer, entry in ((0, 0), (2, count - 1), (3, 5)):
            name = f"model.layers.{layer}.{module}"
            features = range(entry * size, (entry + 1) * size)
            expected = written_without(model.get_submodule(name), inputs[name], features)
            assert float(found_LC[layer, entry]) == pytest.approx(expected, rel=1e-5)
