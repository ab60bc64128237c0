"""The statistics of a repair: against hooks in plain torch; one layer's at a time; killed and resumed."""

import gc
import weakref

import pytest
import torch

from minitron_cli.checkpoint import hf
from minitron_cli.errors import CheckpointError, DataError
from minitron_cli.layerwise.runner import ResidentWeights, StoredWeights
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.repair.gram import NormMoments
from minitron_cli.repair.norm_statistics import second_moments
from tests.by_table import opened
from tests.quick import each_family, first_quick
from tests.tiny import write_tiny
from tests.unit.importance.calibration import Killed, samples, split

BATCHES = split(samples(6, 25), [2, 3, 1])


def collect(path, scratch, *, stored=True, finish=None, batches=BATCHES, activation_budget=10**9, **options):
    """M, and a copy of what `finish` was told: (layer, norms) one after the other."""
    model = hf.empty_model(path) if stored else hf.load_model(path)
    family, told = family_of(model.config), []
    weights = StoredWeights(model, family, opened(path).read, "cpu") if stored else ResidentWeights(model)
    scratch.mkdir(exist_ok=True)

    def note(layer, norms):
        told.append((layer, dict(norms)))

    moments = second_moments(
        model,
        family,
        batches,
        weights,
        finish or note,
        scratch=scratch,
        activation_budget=activation_budget,
        **options,
    )
    return moments, told


def seen_by_hooks(path, modules, batches=BATCHES):
    """Module -> its inputs, [samples, tokens, channels] in fp64, from one forward of the whole model per batch."""
    model, seen = hf.load_model(path), {name: [] for name in modules}
    for name in modules:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: seen[name].append(args[0].double())
        )
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
    return {name: torch.cat(parts) for name, parts in seen.items()}


# Cohere's attention and MLP read the same norm, Nemotron-H has one of both, and OLMo's and EXAONE's read the stream
NORMS_BEFORE_BLOCKS = {
    "cohere": 1,
    "cohere2": 1,
    "exaone4": 0,
    "flex_olmo": 0,
    "nemotron_h": 1,
    "olmo2": 0,
    "olmo3": 0,
}


@each_family()
def test_the_sums_are_those_of_the_activations(model_type, tmp_path, subtests):
    path = write_tiny(tmp_path / "model", model_type)
    for stored in (True, False):
        with subtests.test(stored=stored):
            check_sums(model_type, path, *collect(path, tmp_path / f"{stored=}", stored=stored))


def check_sums(model_type, path, moments, told):
    assert [layer for layer, _ in told] == [0, 1, 2, 3, 4]
    norms = {name: found for _, some in told for name, found in some.items()}
    if FAMILIES[model_type].norms_without_weight:  # nothing could be scaled
        assert not norms
        return
    assert len(norms) == 4 * NORMS_BEFORE_BLOCKS.get(model_type, 2) + 1
    inputs = seen_by_hooks(path, [name.removesuffix(".weight") for name in norms])
    total = 0
    for name, found in norms.items():
        x = inputs[name.removesuffix(".weight")].flatten(0, 1)
        x = x / x.square().mean(-1, keepdim=True).sqrt()
        torch.testing.assert_close(found.sum_DD.double(), x.T @ x, rtol=1e-4, atol=1e-4, msg=name)
        assert found.tokens == 6 * 25
        total = total + x.T @ x
    torch.testing.assert_close(moments, total, rtol=1e-4, atol=1e-3)


def test_batch_sizes_and_spilling_leave_no_trace(llama, tmp_path):
    one, told = collect(llama, tmp_path / "one")
    other, told_other = collect(llama, tmp_path / "other", batches=split(samples(6, 25), [6]), activation_budget=0)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    name = "model.layers.2.input_layernorm.weight"
    torch.testing.assert_close(told[2][1][name].sum_DD, told_other[2][1][name].sum_DD, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("_only_new_garbage")
def test_never_more_than_one_layers_moments_are_alive(llama, tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), []
    make = NormMoments.empty.__func__

    def empty(cls, size, device):
        gc.collect()
        moments = make(cls, size, device)
        alive.add(moments)
        most.append(len(alive))
        return moments

    monkeypatch.setattr(NormMoments, "empty", classmethod(empty))
    collect(llama, tmp_path, finish=lambda *_: None)
    assert len(most) == 4 * 2 + 1
    assert max(most) == 2


@pytest.mark.parametrize("kill", first_quick([1, 0, 3, 4]))
@pytest.mark.parametrize("budget", [0, 10**9])
def test_a_killed_pass_goes_on_with_the_same_bits(llama, tmp_path, kill, budget):
    expected, told = collect(llama, tmp_path / "undisturbed")
    first = []

    def dying(layer, norms):
        if layer == kill:
            raise Killed
        first.append((layer, dict(norms)))

    options = {"save_every_s": 0, "activation_budget": budget}
    with pytest.raises(Killed):
        collect(llama, tmp_path / "scratch", finish=dying, **options)
    found, later = collect(llama, tmp_path / "scratch", **options)
    assert torch.equal(found, expected)
    assert [layer for layer, _ in later] == list(range(kill, 5)), "what was finished is not done again"
    for (_, norms), (_, wanted) in zip(first + later, told, strict=True):
        assert all(torch.equal(norms[name].sum_DD, wanted[name].sum_DD) for name in wanted)


def test_no_samples(llama, tmp_path):
    with pytest.raises(DataError, match="calibration set is empty"):
        collect(llama, tmp_path, batches=[])


def test_damaged_weights_are_refused(llama, tmp_path):
    model = hf.load_model(llama)
    model.model.layers[2].mlp.up_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "damaged")
    with pytest.raises(CheckpointError, match="from decoder layer 2"):
        collect(tmp_path / "damaged", tmp_path / "scratch")
