"""Training of gates: targets are met, what is useless goes, and a killed training ends in the same bits."""

import pytest
import torch

from minitron_cli import progress
from minitron_cli.errors import Interrupted
from minitron_cli.importance.learned_masks import LearnedMasks
from minitron_cli.layerwise.resume import SavedState
from minitron_cli.learned.gates import Gates, Target, of_heads, scores, targets
from minitron_cli.learned.lagrangian import Lagrangian, gaps
from minitron_cli.learned.training import GateTraining, learned_scores
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from tests.tiny import tiny_model
from tests.unit.distill.small import LENGTH, TinyBlocks

USELESS = slice(0, 48, 2)


def config(**options):
    return LearnedMasks(**{"shape": {"ffn": 40}, "rate": 0.2, "warmup": 0.7} | options)


def trained(goals, loss, steps, **options):
    """Gates after some steps on a loss of their values."""
    gates = Gates(goals)
    training = GateTraining(gates, config(**options), steps)
    for _ in range(steps):
        training.step(lambda _: loss(gates.values))
    return gates


def test_the_price_is_its_formula():
    gates = Gates({"ffn": Target((2, 4), 1)})
    lagrangian = Lagrangian(gates)
    with torch.no_grad():
        lagrangian.linear["ffn"].copy_(torch.tensor([2.0, -1.0]))
        lagrangian.square["ffn"].copy_(torch.tensor([0.5, 3.0]))
    for way, gap in ((1.0, 0.95 - 0.25), (0.0, 0.95 - 1)):
        price = lagrangian(gates, way)
        assert price.item() == pytest.approx((2 - 1) * gap + (0.5 + 3) * gap**2, rel=1e-4)
    lagrangian.zero_grad()
    price.backward()
    lagrangian.ascend_(0.1)
    assert lagrangian.linear["ffn"].tolist() == pytest.approx([2 + 0.1 * gap, -1 + 0.1 * gap])


@pytest.mark.slow
def test_every_row_meets_its_target_and_keeps_what_the_loss_needs():
    worth = torch.tensor([[1.0, 0.5, 0.1, 0.0], [0.0, 0.1, 0.5, 1.0]])
    goals = {"ffn": Target((2, 4), 2), "layer": Target((4,), 3)}
    weight_L = torch.tensor([1.0, 1.0, 0.01, 1.0])

    def loss(values):
        return ((1 - values["ffn"]) * worth).sum() + ((1 - values["layer"]) * weight_L).sum()

    gates = trained(goals, loss, 300, rate=0.1, warmup=0.5)
    assert all(gap.abs().max() < 0.005 for gap in gaps(gates).values())
    kept = {axis: mean.topk(goals[axis].kept).indices.sort().values for axis, mean in gates.means().items()}
    assert kept["ffn"].tolist() == [[0, 1], [2, 3]]
    assert kept["layer"].tolist() == [0, 1, 3]


@torch.no_grad()
def written_by(model, count=64):
    """Blocks that the model itself has written, so that whatever it loses costs it."""
    blocks, draw = TinyBlocks(count), torch.Generator().manual_seed(0)
    positions = torch.stack([blocks.positions(i) for i in range(count)])
    for t in range(1, LENGTH):
        logits = model(blocks.ids[:, :t], position_ids=positions[:, :t], use_cache=False).logits[:, -1]
        blocks.ids[:, t] = torch.multinomial(logits.softmax(-1), 1, generator=draw)[:, 0]
    return blocks


@pytest.fixture
def model():
    """A model in which every other neuron writes nothing, and neither does one query head of each group."""
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight *= 3  # so that the others matter
            layer.self_attn.o_proj.weight *= 3
            layer.mlp.down_proj.weight[:, USELESS] = 0
            layer.self_attn.o_proj.weight.view(32, 2, 4, 8)[:, :, 1] = 0
        model.lm_head.weight *= 2
    return model


@pytest.mark.slow
def test_useless_neurons_and_heads_of_a_model_go_first(model, tmp_path):
    parent = Shape.of(family_of(model.config), model.config)
    settings = config(shape={"ffn": 24, "head": 6}, tokens=60 * 16 * LENGTH, batch_size=16)
    found = learned_scores(model, parent, settings, written_by(model), SavedState(tmp_path / "s", 1e9), resume=False)
    assert {name: tuple(t.shape) for name, t in found.items()} == {"ffn.learned": (4, 48), "head.learned": (4, 8)}
    is_lost_LF = found["ffn.learned"].argsort(-1).argsort(-1) < 24
    assert is_lost_LF[:, USELESS].float().mean() > 0.9
    assert (found["head.learned"].view(4, 2, 4).argmin(-1) == 1).float().mean() > 0.6  # a quarter by chance


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_bits(model, tmp_path):
    blocks = TinyBlocks()
    parent = Shape.of(family_of(model.config), model.config)
    settings = config(shape={"hidden": 24, "layer": 3}, tokens=6 * 4 * LENGTH, batch_size=4)
    whole = learned_scores(model, parent, settings, blocks, SavedState(tmp_path / "whole", 1e9), resume=True)
    steps = []
    hook = model.model.register_forward_pre_hook(lambda *_: (steps.append(1), len(steps) == 4 and stop(), None)[-1])
    saved = SavedState(tmp_path / "killed", 0)
    with pytest.raises(Interrupted):
        learned_scores(model, parent, settings, blocks, saved, resume=True)
    progress.request_stop(None)
    again = learned_scores(model, parent, settings, blocks, saved, resume=True)
    hook.remove()
    assert len(steps) < 2 * 6 + 2
    assert all(torch.equal(again[name], score) for name, score in whole.items())


def stop():
    progress.request_stop(15)


def test_heads_of_a_group_share_its_gate():
    parent = Shape.of(family_of(tiny_model("llama").config), tiny_model("llama").config)  # 8 heads in 2 groups
    goals = targets(parent, parent.resize(head=2, kv_head=1))
    assert goals == {"group": Target((4, 2), 1), "head": Target((4, 2, 4), 2)}
    means = {"group": torch.rand(4, 2), "head": torch.rand(4, 2, 4)}
    heads = scores(means, parent)["head.learned"]
    assert heads.shape == (4, 8)
    assert float(heads[1, 6]) == pytest.approx(float(means["group"][1, 1] * means["head"][1, 1, 2]))
    assert of_heads({"group": means["group"]}).shape == (4, 2, 1)
