"""Merged layers against LaCo's formula (Yang et al. 2024, eq. 2), as they are written."""

import pytest
import torch

from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.model.families import FAMILIES
from minitron_cli.model.shape import Shape
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.transform import Repair
from minitron_cli.repair.merge import MERGED, dropped_after, put_merged
from minitron_cli.repair.store import RepairStore
from tests.conformance.test_families import reload, write
from tests.tiny import tiny_model


@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_a_layer_gets_the_differences_of_the_dropped_ones_after_it(tmp_path, model_type):
    model = tiny_model(model_type, num_hidden_layers=6)
    model.save_pretrained(tmp_path / "parent")
    parent, store = Checkpoint.open(tmp_path / "parent"), RepairStore(tmp_path / "store")
    store.directory.mkdir()
    shape = Shape.of(FAMILIES[model_type], model.config)
    width = {"ffn": torch.arange(0, 48, 2).expand(6, *(() if model_type == "llama" else (6,)), 24)}
    plan = PrunePlan(shape, {"layer": torch.tensor([0, 3, 4])} | width)
    put_merged(plan, parent, store)
    written = write(parent, plan.repaired(Repair(fitted=store.tensors(MERGED))), tmp_path / "child")
    reload(written)
    child, runs = Checkpoint.open(written), {0: (0, 1, 2), 1: (3,), 2: (4, 5)}
    for name in child.tensors:
        match = shape.family.match(name)
        if "layer" not in match.at:
            assert torch.equal(child.read(name), parent.read(name))
            continue
        own, *others = (parent.read(match.template.format(**match.at | {"layer": i})) for i in runs[match.at["layer"]])
        summed = own + sum((other - own for other in others), torch.zeros_like(own))
        for dim, index in enumerate(match.layout.indices({"ffn": torch.arange(0, 48, 2)}.get, shape.sizes)):
            summed = summed if index is None else summed.index_select(dim, index)
        torch.testing.assert_close(child.read(name), summed, rtol=1e-6, atol=1e-6)


def test_a_layer_takes_all_dropped_ones_up_to_the_next_that_stays():
    shape = Shape.of(FAMILIES["llama"], tiny_model("llama", num_hidden_layers=6).config)
    assert dropped_after(PrunePlan(shape, {})) == {}
    assert dropped_after(PrunePlan(shape, {"layer": torch.tensor([1, 2, 5])})) == {2: range(3, 5)}
    assert dropped_after(PrunePlan(shape, {"layer": torch.tensor([0, 3])})) == {0: range(1, 3), 3: range(4, 6)}
