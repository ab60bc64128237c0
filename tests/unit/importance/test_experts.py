"""Experts and their neurons through kills, shares of the samples, and one layer at a time."""

import pytest
import torch

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.importance.experts import Experts
from minitron_cli.importance.layer_major import collect_by_layer
from minitron_cli.importance.running_moments import Moments
from minitron_cli.layerwise.observer import Part, Tokens
from minitron_cli.layerwise.runner import StoredWeights
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.runtime_tensors import experts_module, runtime_tensor
from minitron_cli.model.shape import Shape
from tests.anatomy import anatomy
from tests.quick import EVERY_MIXTURE
from tests.tiny import tiny_model, write_tiny
from tests.unit.importance.calibration import Killed, calibrated, killed_after, samples, score, split

BATCHES = split(samples(5), [2, 2, 1])


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("mixtral"), "mixtral")


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.mark.slow
@EVERY_MIXTURE
@pytest.mark.parametrize("kill", [1, 2])
def test_a_killed_pass_goes_on_with_the_same_bits(model_type, kill, tmp_path):
    model = tiny_model(model_type)
    options = {"layer_removal": False, "pre_activation": True}
    undisturbed = score(model, BATCHES, **options)
    with pytest.raises(Killed):
        score(model, killed_after(BATCHES, kill), scratch=tmp_path, save_every_s=0, **options)
    assert_same_bits(score(model, BATCHES, scratch=tmp_path, **options).by_name, undisturbed.by_name)


def by_layer(path, scratch, read=None, model=None):
    model = model or hf.empty_model(path)
    family = family_of(model.config)
    weights = StoredWeights(model, family, read or Checkpoint.open(path).read, "cpu")
    run = calibrated(BATCHES, scratch=scratch, activation_budget=0, save_every_s=0)
    return collect_by_layer(model, family, weights, *run)


@pytest.mark.slow
def test_a_killed_pass_over_layers_goes_on_with_the_same_bits(mixtral, tmp_path):
    checkpoint = Checkpoint.open(mixtral)
    (tmp_path / "undisturbed").mkdir()
    undisturbed = by_layer(mixtral, tmp_path / "undisturbed")

    def read(name):
        if "layers.2.block_sparse_moe.experts.3" in name:
            raise Killed
        return checkpoint.read(name)

    with pytest.raises(Killed):
        by_layer(mixtral, tmp_path, read)
    assert_same_bits(by_layer(mixtral, tmp_path).by_name, undisturbed.by_name)


@pytest.mark.slow
def test_each_experts_weights_are_read_once_and_given_back(mixtral, tmp_path):
    checkpoint, model, names = Checkpoint.open(mixtral), hf.empty_model(mixtral), []

    def read(name):
        names.append(name)
        return checkpoint.read(name)

    by_layer(mixtral, tmp_path, read, model)
    assert sorted(names) == sorted(checkpoint.tensors)
    assert all(parameter.is_meta for parameter in model.parameters())


@EVERY_MIXTURE
def test_live_tensors_are_what_transformers_makes_of_the_stored_ones(model_type):
    model = tiny_model(model_type)
    family = FAMILIES[model_type]
    stored = hf.stored_tensors(model, Shape.of(family, model.config).tensors())
    for name, wanted in model.state_dict().items():
        found = runtime_tensor(family, name, wanted.to("meta"), stored.__getitem__, torch.device("cpu"))
        assert torch.equal(found, wanted), name
    module = model.get_submodule(experts_module(family).format(layer=3))
    assert module is model.model.layers[3].get_submodule(anatomy(model_type).experts)


def test_shares_of_the_samples_merge():
    model = tiny_model("qwen3_moe")
    observers = [Experts(FAMILIES["qwen3_moe"], sizes_of(model), Part(range(4), True), True) for _ in range(3)]
    for observer, batches in zip(observers, (BATCHES[:1], BATCHES[1:], BATCHES), strict=True):
        for batch in batches:
            watch(observer, model, batch)
    first, second, whole = observers
    first.merge(second.state())
    for name, tensor in whole.scores().items():
        torch.testing.assert_close(first.scores()[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


def test_an_observer_of_a_model_without_experts_sees_nothing():
    model = tiny_model("llama")
    observer = Experts(FAMILIES["llama"], sizes_of(model), Part(range(4), True))
    assert observer.watch(model, Tokens(BATCHES[0].input_ids_BT, BATCHES[0].position_ids_BT)) == []
    assert observer.state() == observer.scores() == {}


def sizes_of(model):
    return family_of(model.config).axis_sizes(model.config)


def watch(observer, model, batch):
    handles = observer.watch(model, Tokens(batch.input_ids_BT, batch.position_ids_BT))
    with torch.no_grad():
        model(batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
    for handle in handles:
        handle.remove()


def test_moments_of_nothing_merge_into_what_there_is():
    nothing, counted = torch.zeros(2, 1), torch.tensor([[0.0], [3.0]])
    a = Moments(nothing, torch.zeros(2, 4), torch.zeros(2, 4))
    b = Moments(counted, counted * torch.ones(4), counted * torch.ones(4))
    for merged in (a.merge(b), b.merge(a)):
        assert torch.equal(merged.mean, b.mean)
        assert torch.equal(merged.squares, b.squares)
    assert torch.equal(a.merge(b).aggregate("var"), torch.tensor([[0.0] * 4, [1.0] * 4]))
