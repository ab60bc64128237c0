"""FLAP's compensation: a matrix writes on average what it did, from the inputs that are left and a bias."""

from dataclasses import replace

import pytest
import torch

from minitron_cli.checkpoint import hf
from minitron_cli.errors import CheckpointError
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.layerwise.runner import ResidentWeights, StoredWeights
from minitron_cli.model.families import FAMILIES
from minitron_cli.model.reader_bias import check_writable, reader_biases
from minitron_cli.prune.transform import Repair
from minitron_cli.repair.bias import BIAS, put_biases, reader_means
from minitron_cli.repair.store import RepairStore
from tests.conformance.masked import random_survivors
from tests.conformance.test_families import plan_of, reload, write
from tests.quick import case_of
from tests.tiny import tiny_model
from tests.unit.importance.calibration import samples, split

BATCHES = split(samples(7, 25), [2, 4, 1])
SIZES = {"head": 4, "ffn": 20}
WITH_BIAS = {model_type: reader_biases(family) for model_type, family in FAMILIES.items()}
EVERY = pytest.mark.parametrize("model_type", [case_of(name) for name, found in WITH_BIAS.items() if found])


def prunable_axes(model_type):
    return [axis for axis in WITH_BIAS[model_type] if axis not in FAMILIES[model_type].not_prunable]


PRUNED = pytest.mark.parametrize("model_type", [case_of(t) for t in WITH_BIAS if prunable_axes(t)])


def parent_without_biases(path, model_type):
    flags = {bias.flag: False for bias in WITH_BIAS[model_type].values() if bias.flag}
    model = tiny_model(model_type, **flags)
    model.save_pretrained(path)
    return model, open_source_model(path)


def compensated(model, source, path, *, stored=False):
    """Plan that prunes hidden channels, heads and neurons, with biases from the batches; and the child."""
    sizes = {axis: SIZES[axis] for axis in prunable_axes(source.family.model_type)}
    sizes |= {} if "hidden" in source.family.not_prunable else {"hidden": 16}
    plan = replace(plan_of(model, random_survivors(model.config, 5, **sizes)), parent=source.shape)
    path.mkdir()
    store, loaded = RepairStore(path), hf.empty_model(source.path) if stored else model
    weights = ResidentWeights(model)
    if stored:
        weights = StoredWeights(loaded, source.family, source.checkpoint.read, "cpu")
    reader_means(
        loaded,
        source.family,
        BATCHES,
        weights,
        lambda means: put_biases(plan, source.checkpoint, means, store),
        scratch=path,
        activation_budget=10**9,
    )
    plan = plan.repaired(Repair(fitted=store.tensors(BIAS)))
    return plan, reload(write(source.checkpoint, plan, path / "child"))


def inputs_of(model, names):
    """Module -> its inputs [tokens, channels], fp64."""
    seen, hooks = {name: [] for name in names}, []
    for name, kept in seen.items():
        see = lambda _, args, kept=kept: kept.append(args[0].flatten(0, 1).double())  # noqa: E731
        hooks.append(model.get_submodule(name).register_forward_pre_hook(see))
    with torch.no_grad():
        for batch in BATCHES:
            model(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


@PRUNED
@torch.no_grad()
def test_the_mean_of_what_a_matrix_writes_stays(tmp_path, model_type):
    model, parent = parent_without_biases(tmp_path / "parent", model_type)
    plan, child = compensated(model, parent.with_biases(), tmp_path / "fit")
    templates = [WITH_BIAS[model_type][axis].weight.removesuffix(".weight") for axis in prunable_axes(model_type)]
    holds = parent.family.holds
    names = [template.format(layer=i) for template in templates for i in range(4) if holds(i, template)]
    assert names
    hidden = plan.at("hidden")
    for name, inputs in inputs_of(model, names).items():
        before, after = model.get_submodule(name).double(), child.get_submodule(name).double()
        kept = inputs[:, plan.indices(f"{name}.weight")[-1]]
        off = (before(inputs)[:, hidden] - after(kept)).mean(0)
        uncompensated = (before(inputs)[:, hidden] - after(kept) + after.bias).mean(0)
        assert float(off.abs().max()) < 1e-5 < float(uncompensated.abs().max())


@pytest.mark.slow
def test_one_layer_at_a_time_gives_the_same_biases(tmp_path):
    model, parent = parent_without_biases(tmp_path / "parent", "llama")
    resident, stored = (compensated(model, parent.with_biases(), tmp_path / str(s), stored=s)[0] for s in (False, True))
    fitted = resident.repair.fitted
    assert len(fitted.tensors) == 2 * 4
    for name in fitted.tensors:
        torch.testing.assert_close(stored.repair.fitted.read(name), fitted.read(name))


@EVERY
def test_biases_of_zeros_change_nothing_but_are_there(tmp_path, model_type):
    _, parent = parent_without_biases(tmp_path / "parent", model_type)
    source = parent.with_biases()
    source.shape.check(source.checkpoint.shapes)
    added = source.checkpoint.tensors.keys() - parent.checkpoint.tensors.keys()
    assert all(name.endswith(".bias") for name in added)
    assert not any(source.checkpoint.read(name).any() for name in added)
    assert {bias.bias for bias in WITH_BIAS[model_type].values()} <= set(source.shape.templates)
    assert source.with_biases().shape == source.shape


@pytest.mark.parametrize(
    ("model_type", "axes", "says"),
    [
        ("qwen2", {"ffn"}, "no bias of the matrix that reads neurons of a qwen2 model: use --repair least_squares"),
        ("mistral", {"head", "ffn"}, "reads neurons of a mistral"),
        ("gemma2", {"head", "ffn"}, "reads neurons of a gemma2"),
        ("qwen3_moe", {"ffn"}, "reads neurons of a qwen3_moe"),
        ("phi3", {"head"}, "reads heads of a phi3"),
    ],
)
def test_a_family_without_the_bias_is_refused(model_type, axes, says):
    with pytest.raises(CheckpointError, match=says):
        check_writable(FAMILIES[model_type], axes)
