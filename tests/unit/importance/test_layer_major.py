"""A pass over one layer at a time gives the scores of the whole model, whatever is spilled or interrupted."""

import pytest
import torch

from minitron_cli import progress
from minitron_cli.checkpoint import hf
from minitron_cli.errors import CheckpointError, DataError, InputError, Interrupted
from minitron_cli.importance.layer_major import collect_by_layer
from minitron_cli.layerwise.runner import StoredWeights
from minitron_cli.model.families import family_of
from minitron_cli.scores.scores import Scores
from tests.by_table import opened
from tests.conformance.test_families import ONE_ROW
from tests.quick import each_family, first_quick
from tests.tiny import write_tiny
from tests.unit.importance.calibration import Killed, calibrated, samples, score, split

BATCHES = split(samples(5, 25), [2, 3])


def by_layer(
    path, scratch, batches=BATCHES, *, activation_budget=10**9, dtype="auto", read=None, model=None, **options
):
    model = model or hf.empty_model(path, dtype=dtype)
    family = family_of(model.config)
    scratch.mkdir(exist_ok=True)
    weights = StoredWeights(model, family, read or opened(path).read, "cpu")
    run = calibrated(batches, scratch=scratch, activation_budget=activation_budget, **options)
    return collect_by_layer(model, family, weights, *run)


def resident(path, batches=BATCHES, *, dtype="auto", **options) -> Scores:
    return score(hf.load_model(path, dtype=dtype), batches, **options)


def assert_same_bits(found, expected):
    assert found.by_name.keys() == expected.by_name.keys()
    assert [name for name in expected.by_name if not torch.equal(found.by_name[name], expected.by_name[name])] == []


@pytest.mark.parametrize("tied", first_quick([True, False]), ids=["tied", "untied"])
@each_family()
def test_scores_are_those_of_the_whole_model(model_type, tied, tmp_path):
    path = write_tiny(tmp_path / "model", model_type, tie_word_embeddings=tied)
    check_scores(path, tmp_path / "scratch")


def check_scores(path, scratch):
    options = {"blocks": (2,), "block_distances": (1, 3), "pre_activation": True}
    options |= {"removal_samples": 3, "removal_positions": 5}
    expected, found = resident(path, **options), by_layer(path, scratch, **options)
    assert found.by_name.keys() == expected.by_name.keys()
    rounding = 1e-5 if hf.load_config(path).model_type in ONE_ROW else 1e-6
    for name, tensor in expected.by_name.items():
        torch.testing.assert_close(found.by_name[name], tensor, rtol=rounding, atol=rounding / 10, msg=name)


@pytest.mark.parametrize("model_type", first_quick(["gemma2", "granite", "llama"]))  # two scale embeddings
def test_scores_are_those_of_the_whole_model_in_bf16(model_type, tmp_path):
    path = write_tiny(tmp_path / "model", model_type)
    expected, found = (
        resident(path, dtype=torch.bfloat16),
        by_layer(path, tmp_path / "scratch", dtype=torch.bfloat16),
    )
    for name, tensor in expected.by_name.items():
        torch.testing.assert_close(found.by_name[name], tensor, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0, 10_000])
def test_spilling_does_not_change_the_scores(llama, tmp_path, budget):
    options = {"blocks": (2,), "block_distances": (1, 3)}
    held = by_layer(llama, tmp_path / "held", **options)
    spilled = by_layer(llama, tmp_path / "spilled", activation_budget=budget, **options)
    assert_same_bits(spilled, held)
    assert not list((tmp_path / "spilled").iterdir()), "what was spilled was removed when it was read"


def test_each_weight_is_read_once_and_only_one_layer_is_held(llama, tmp_path):
    checkpoint, model, names = opened(llama), hf.empty_model(llama), []

    def read(name):
        held = [n for n, parameter in model.named_parameters() if not parameter.is_meta]
        assert all(n.startswith("model.norm") and name.startswith("lm_head") for n in held)
        names.append(name)
        return checkpoint.read(name)

    by_layer(llama, tmp_path, read=read, model=model)
    assert sorted(names) == sorted(checkpoint.tensors)
    assert all(parameter.is_meta for parameter in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0, 10**9])
@pytest.mark.parametrize("kills", [[2, 3, 5], [1], [3], [5]], ids=str)
def test_a_killed_pass_goes_on_after_the_last_layer_with_the_same_bits(llama, tmp_path, kills, budget):
    undisturbed = by_layer(llama, tmp_path / "undisturbed", blocks=(2,), block_distances=(1, 3))
    checkpoint = opened(llama)
    options = {"blocks": (2,), "block_distances": (1, 3), "activation_budget": budget, "save_every_s": 0}
    done = -1
    for kill in kills:

        def read(name, kill=kill):
            if f"model.layers.{kill - 1}." in name or (kill == 5 and name == "lm_head.weight"):
                raise Killed
            return checkpoint.read(name)

        with pytest.raises(Killed):
            by_layer(llama, tmp_path / "scratch", read=read, **options)
        done = kill - 2
    names = []
    again = by_layer(llama, tmp_path / "scratch", read=lambda n: (names.append(n), checkpoint.read(n))[1], **options)
    assert_same_bits(again, undisturbed)
    assert not any(f"model.layers.{i}." in name for name in names for i in range(done + 1))


@pytest.mark.slow
def test_a_stop_request_saves_after_the_layer(llama, tmp_path):
    checkpoint = opened(llama)

    def read(name):
        if name == "model.layers.2.mlp.down_proj.weight":
            progress.request_stop(15)
        return checkpoint.read(name)

    with pytest.raises(Interrupted):
        by_layer(llama, tmp_path, read=read)
    progress.request_stop(None)
    assert_same_bits(by_layer(llama, tmp_path), by_layer(llama, tmp_path / "undisturbed"))


@pytest.mark.slow
def test_without_resume_the_pass_starts_over(llama, tmp_path):
    def read(name):
        if "layers.3" in name:
            raise Killed
        return opened(llama).read(name)

    with pytest.raises(Killed):
        by_layer(llama, tmp_path, read=read, save_every_s=0)
    other = split(samples(4, seed=1), [4])
    assert_same_bits(by_layer(llama, tmp_path, other, resume=False), by_layer(llama, tmp_path / "new", other))


@pytest.mark.slow
def test_the_state_of_the_other_mode_is_left_alone(llama, tmp_path):
    """Whether a model fits may change between a kill and the next try."""

    def read(name):
        if "layers.3" in name:
            raise Killed
        return opened(llama).read(name)

    def killed():
        yield BATCHES[0]
        raise Killed

    with pytest.raises(Killed):
        by_layer(llama, tmp_path, read=read, save_every_s=0)
    assert_same_bits(resident(llama, scratch=tmp_path), resident(llama))
    with pytest.raises(Killed):
        resident(llama, killed(), scratch=tmp_path, save_every_s=0)
    assert_same_bits(by_layer(llama, tmp_path), by_layer(llama, tmp_path / "new"))


def test_damage_is_named_at_its_layer(llama, tmp_path):
    def read(name):
        tensor = opened(llama).read(name)
        return tensor.fill_(float("nan")) if name == "model.layers.1.mlp.up_proj.weight" else tensor

    with pytest.raises(CheckpointError, match=r"from decoder layer 1 on.*check the checkpoint"):
        by_layer(llama, tmp_path, read=read)


def test_without_layer_removal_the_head_is_not_read(llama, tmp_path):
    def read(name):
        assert name != "lm_head.weight"
        return opened(llama).read(name)

    found = by_layer(llama, tmp_path, read=read, layer_removal=False)
    assert "layer.perplexity" not in found.by_name


def test_an_empty_set_is_an_error(llama, tmp_path):
    with pytest.raises(DataError, match="give at least one"):
        by_layer(llama, tmp_path, [])


def test_a_block_must_leave_a_layer(llama, tmp_path):
    with pytest.raises(InputError, match="4 layers cannot be removed from 4"):
        by_layer(llama, tmp_path, blocks=(4,))
