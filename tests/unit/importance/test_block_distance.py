"""Distances between the ends of blocks of layers, against hidden states that transformers returns."""

import math

import pytest
import torch

from minitron_cli.data.batches import Batch
from minitron_cli.errors import ArtifactError, DataError
from minitron_cli.importance.block_distance import BlockDistance
from minitron_cli.importance.collect import observe
from minitron_cli.layerwise.observer import decoder_layers
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.plan import make_plan
from minitron_cli.scores.scores import Scores
from tests.tiny import tiny_model
from tests.unit.importance.calibration import Killed, killed_after, samples, score, split

LAYERS, LENGTHS = 4, (1, 2, 4 - 1)
OPTIONS = {"layer_removal": False, "block_distances": LENGTHS}
KINDS = ("block_cosine", "block_angle")


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@torch.no_grad()
def states(model, batch):
    """Hidden states before every layer and after the last, without the final norm, token by token in fp64."""
    seen = []
    layers = decoder_layers(model, family_of(model.config))
    hooks = [layer.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for layer in layers]
    hooks.append(layers[-1].register_forward_hook(lambda _, args, output: seen.append(output)))
    model.model(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
    for hook in hooks:
        hook.remove()
    return [state.double() for state in seen]


def brute_force(model, batch, counts_BT):
    """Scores by loops over blocks and tokens."""
    hidden, found = states(model, batch), {}
    for n in LENGTHS:
        for kind in KINDS:
            found[f"layer.{kind}={n}"] = torch.tensor(
                [
                    sum(distance(kind, hidden[i][b, t], hidden[i + n][b, t]) for b, t in counts_BT.nonzero().tolist())
                    / int(counts_BT.sum())
                    for i in range(LAYERS - n + 1)
                ]
            )
    return found


def distance(kind, before_D, after_D):
    cosine = float(before_D @ after_D / before_D.norm() / after_D.norm())
    return 1 - cosine if kind == "block_cosine" else math.acos(cosine) / math.pi


def of_blocks(scores):
    return {name: t for name, t in scores.by_name.items() if any(kind in name for kind in KINDS)}


@pytest.mark.parametrize("sizes", [[5], [2, 3], [1] * 5], ids=str)
def test_distances_are_those_of_a_loop_over_tokens(model, sizes):
    batch = samples(5)
    mask_BT = torch.rand(batch.input_ids_BT.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    masked = Batch(batch.input_ids_BT, batch.position_ids_BT, batch.sample_ids, loss_mask_BT=mask_BT)
    rows = torch.arange(5).split(sizes)
    parts = [Batch(batch.input_ids_BT[r], batch.position_ids_BT[r], (), mask_BT[r]) for r in rows]
    counts_BT = mask_BT & (torch.arange(5) < 3)[:, None]
    found = of_blocks(score(model, parts, removal_samples=3, **OPTIONS))
    torch.testing.assert_close(found, brute_force(model, masked, counts_BT), rtol=1e-5, atol=1e-6)


def test_a_block_of_one_layer_is_its_block_importance(model):
    found = score(model, split(samples(4), [2, 2]), **OPTIONS)
    torch.testing.assert_close(found.layers("block_cosine=1"), found.layers("block_importance"), rtol=1e-5, atol=1e-6)


def test_a_killed_pass_and_processes_agree_with_one(model, tmp_path):
    batches = split(samples(6), [2, 2, 2])
    expected = of_blocks(score(model, batches, **OPTIONS))
    with pytest.raises(Killed):
        score(model, killed_after(batches, 1), scratch=tmp_path, save_every_s=0, **OPTIONS)
    resumed = of_blocks(score(model, batches, scratch=tmp_path, **OPTIONS))
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)
    parts = [BlockDistance(LAYERS, family_of(model.config), LENGTHS) for _ in range(2)]
    for i, batch in enumerate(batches):
        with torch.inference_mode():
            observe(model, [parts[i % 2]], batch)
    parts[0].merge(parts[1].state())
    torch.testing.assert_close(parts[0].scores(), expected)


def test_the_block_whose_ends_are_nearest_goes(model):
    parent = Shape.of(family_of(model.config), model.config)
    scores = Scores({"layer.block_cosine=2": torch.tensor([0.3, 0.1, 0.2])})
    plan = make_plan(parent, parent.resize(layer=2), scores, Ranking(layers="block_cosine"))
    assert plan.kept["layer"].tolist() == [0, 3]
    with pytest.raises(
        ArtifactError, match=r"no block_angle of 2 layers: .* `minitron importance block_distances=\[2\]`"
    ):
        make_plan(parent, parent.resize(layer=2), scores, Ranking(layers="block_angle"))


def test_samples_without_a_scored_token_are_an_error(model):
    batch = samples(2)
    nothing = Batch(
        batch.input_ids_BT, batch.position_ids_BT, batch.sample_ids, torch.zeros_like(batch.input_ids_BT).bool()
    )
    seen = BlockDistance(LAYERS, family_of(model.config), LENGTHS)
    with torch.inference_mode():
        observe(model, [seen], nothing)
    with pytest.raises(DataError, match=r"raise importance\.removal_samples"):
        seen.scores()
