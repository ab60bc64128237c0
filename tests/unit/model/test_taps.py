"""A tap is right if switching off the channel it shows is the same as switching off the channel."""

import torch

from minitron_cli.model.families import FAMILIES
from minitron_cli.model.taps import READ, layer_module, taps
from tests.anatomy import anatomy
from tests.quick import every_family
from tests.tiny import tiny_model


@every_family()
def test_each_axis_is_seen_where_it_is_consumed(model_type):
    found = [(tap.axis, tap.module, tap.side) for tap in taps(FAMILIES[model_type])]
    sides = dict.fromkeys(READ, "input")
    wanted = [(axis, module, sides.get(axis, "output")) for axis, module in anatomy(model_type).taps()]
    assert sorted(found) == sorted(wanted)


IN_PROJ = {"bamba": 224, "falcon_h1": 176, "granitemoehybrid": 224, "nemotron_h": 176}
"""Outputs of a state space's first matrix: twice the inputs x, 2 groups of B and C with 5 states each, and 12 heads."""


@every_family()
def test_taps_are_modules_and_show_the_axis(model_type):
    model = tiny_model(model_type)
    family, seen = FAMILIES[model_type].of_model(model.config), {}

    def watch(name, module, side):
        if side == "input":
            module.register_forward_pre_hook(lambda _, args: seen.update({name: args[0].reshape(2, 5, -1).shape}))
        else:
            module.register_forward_hook(lambda _, args, output: seen.update({name: output.reshape(2, 5, -1).shape}))

    widths = {
        "head": 32 if model_type in ("gpt_neox", "olmoe") else 64,
        "ffn": 48,
        "shared_ffn": 48 if model_type == "llama4_text" else 96,
        "mlp_ffn": 48,
        "q_rank": 24,
        "kv_rank": 16,
        "hidden": 32,
    }
    widths |= dict.fromkeys(("mamba_head", "mamba_dim"), IN_PROJ.get(model_type))
    expected = {}
    for tap in taps(FAMILIES[model_type]):
        for layer in range(4 if "{layer}" in tap.module else 1):
            if "{layer}" in tap.module and not family.holds(layer, tap.module):
                continue
            name = tap.module.format(layer=layer)
            watch(name, model.get_submodule(name), tap.side)
            expected[name] = (2, 5, widths[tap.axis])
    with torch.no_grad():
        model(torch.ones(2, 5, dtype=torch.long), use_cache=False)
    assert seen == expected


@every_family()
def test_the_decoder_layer(model_type):
    model = tiny_model(model_type)
    names = [layer_module(FAMILIES[model_type]).format(layer=i) for i in range(4)]
    assert [model.get_submodule(name) for name in names] == list(anatomy(model_type).layers(model))
