"""The landscape stage: real models stay as they are, and what cannot be compared is refused."""

import hashlib
import json
import math
import shutil

import pytest
import torch

from minitron_cli import api, progress
from minitron_cli.checkpoint import hf
from minitron_cli.cli import tables
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.distill.trainer import train
from minitron_cli.errors import DryRunStop, InputError, Interrupted
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.landscape.config import LandscapeConfig
from minitron_cli.landscape.directions import plain_scale
from minitron_cli.landscape.loss import FixedLoss
from minitron_cli.price.landscape import evaluations
from minitron_cli.report.view import Table
from minitron_cli.results.landscape import LandscapeResult
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.stages import landscape, sparsify
from tests.tiny import write_tiny
from tests.unit.stages.place import context, data, write_place

SMALL = {"learning_rate": 1e-2, "warmup_steps": 2, "losses": (CrossEntropy(),)}
QUICK = {"directions": 4, "blocks": 2, "subspace": "last", "line_points": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write_place(root, num_hidden_layers=2)
    shutil.copytree(root / "model", root / "wider")
    for name in ("model.safetensors", "config.json"):
        (root / "wider" / name).unlink()
    write_tiny(root / "wider", vocab_size=300, num_hidden_layers=2, intermediate_size=64)
    shutil.copytree(root / "model", root / "other")
    blocks = blocks_of(context(root / "w"), data(root), "train", root / "model")
    for seed, name in enumerate(("model", "other")):  # around random weights there is no basin
        model = hf.load_model(root / name, dtype=torch.float32)
        config = DistillConfig(steps=25, batch_size=16, micro_batch_size=16, seed=seed, **SMALL)
        train(model, None, blocks, None, config, None)
        model.save_pretrained(root / name)
    return root


def opened(place, *names):
    return {name: open_source_model(place / name) for name in names}


def measured(place, root, *names, **config):
    found = landscape.run(context(root), opened(place, *names), data(place), LandscapeConfig(**QUICK | config))
    return found, found.result(LandscapeResult)


def digests(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()}


@pytest.mark.slow
def test_two_models_have_radii_sharpness_and_a_line(place, tmp_path):
    before = digests(place / "model")
    artifact, result = measured(place, tmp_path, "model", "other")
    radii = json.loads((artifact.path / "radii.json").read_text())
    assert {name: len(some) for name, some in radii.items()} == {"model": 4, "other": 4}
    assert all(one.dimension == result.models["model"].dimension for one in result.models.values())
    assert result.lines[0].losses[0] == pytest.approx(result.models["model"].loss, rel=1e-5)
    assert result.lines[0].losses[-1] == pytest.approx(result.models["other"].loss, rel=1e-5)
    assert digests(place / "model") == before
    shown = list(tables.tables(artifact))
    assert all(isinstance(table, Table) for table in shown)
    assert len(shown[0].rows) == 2
    assert (artifact.path / "landscape.svg").read_text().count("<svg") == 1


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["filter", "none"])
def test_the_plane_at_its_corners_has_the_losses_of_the_models(place, tmp_path, scale):
    third = tmp_path / "third"
    shutil.copytree(place / "model", third)
    model = hf.load_model(third, dtype=torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9)
    model.save_pretrained(third)
    models = opened(place, "model", "other") | {"third": open_source_model(third)}
    config = LandscapeConfig(**QUICK | {"directions": 2, "line_points": 2, "plane": 3, "scale": scale})
    artifact = landscape.run(context(tmp_path / "w"), models, data(place), config)
    result = artifact.result(LandscapeResult)
    plane, loss = result.plane, {label: one.loss for label, one in result.models.items()}
    assert plane.shares == (-0.5, 0, 0.5, 1, 1.5)
    at = {(a, b): plane.losses[j][i] for i, a in enumerate(plane.shares) for j, b in enumerate(plane.shares)}
    assert [at[0, 0], at[1, 0], at[0, 1]] == pytest.approx([loss[label] for label in plane.models], rel=1e-5)
    assert at[0.5, 0] != pytest.approx(at[0, 0.5], rel=1e-4)
    titles = [table.title for table in tables.tables(artifact)]
    assert any(title.startswith("Loss on the plane: model, and shares of the way to other") for title in titles)
    assert "distance" in (artifact.path / "landscape.svg").read_text()


@pytest.mark.slow
def test_a_plane_through_a_sparse_model_has_its_corners_where_the_models_are(place, tmp_path):
    dense = opened(place, "model", "other")
    made = sparsify.run(context(tmp_path), dense["model"], SparsifyConfig(metric="magnitude", pattern="50%"), None)
    models = {"sparse": open_source_model(made.path), **dense}
    config = LandscapeConfig(**QUICK | {"directions": 2, "line_points": 2, "plane": 2, "subspace": "kept"})
    corners = landscape.run(context(tmp_path), models, data(place), config).result(LandscapeResult).plane.corners
    weights = [dict(hf.load_model(one.path, dtype=torch.float32).named_parameters()) for one in models.values()]
    for i in range(3):
        for j in range(i):
            squares = (float((weights[i][name] - weights[j][name]).square().sum()) for name in weights[0])
            assert math.dist(corners[i], corners[j]) == pytest.approx(math.sqrt(sum(squares)), rel=1e-4)


@pytest.mark.slow
def test_lines_begin_at_the_model_that_is_given_first(place, tmp_path):
    for names in (("model", "other"), ("other", "model")):
        _, result = measured(place, tmp_path, *names)
        assert (result.lines[0].start, result.lines[0].end) == names
        assert result.lines[0].losses[0] == pytest.approx(result.models[names[0]].loss, rel=1e-5)


@pytest.mark.slow
def test_a_line_moves_the_bias_of_routers_which_is_a_buffer(tmp_path):
    write_place(tmp_path, "deepseek_v3")
    shutil.copytree(tmp_path / "model", tmp_path / "other")
    model = hf.load_model(tmp_path / "other", dtype=torch.float32)
    biases = [b for name, b in model.named_buffers() if name.endswith("e_score_correction_bias")]
    assert biases
    for bias in biases:
        bias[: len(bias) // 2] += 10
    model.save_pretrained(tmp_path / "other")
    blocks = blocks_of(context(tmp_path), data(tmp_path), "validation", tmp_path / "model")
    config, models = LandscapeConfig(**QUICK), opened(tmp_path, "model", "other")
    (line,) = landscape._Measuring(context(tmp_path), models, config, blocks)._lines()
    there = FixedLoss(hf.load_model(tmp_path / "other", dtype=torch.float32), blocks, config.blocks, "cpu")()
    assert line.losses[0] != pytest.approx(there, rel=1e-4)
    assert line.losses[-1] == pytest.approx(there, rel=1e-5)


@pytest.mark.parametrize("model_type", ["mixtral", "gpt_oss"])
def test_rows_of_experts_are_those_of_their_outputs(tmp_path, model_type):
    """A row of experts in one tensor, times a number, has a step times that number."""
    write_tiny(tmp_path, model_type)
    model = hf.load_model(tmp_path, dtype=torch.float32)
    name, experts = next((n, m) for n, m in model.named_modules() if n.endswith("experts"))
    for matrix in ("gate_up_proj", "down_proj"):
        weight = getattr(experts, matrix).data
        outputs = 2 if model_type == "gpt_oss" else 1
        factors = torch.arange(1, weight.shape[outputs] + 1.0).view(*(-1 if d == outputs else 1 for d in range(3)))
        dims = landscape.directions.row_dims(experts, weight)
        of_row, of_scaled = (
            landscape.directions.filter_scale({"w": w}, {"w": torch.ones_like(w)}, {"w": dims})["w"]
            for w in (weight, weight * factors)
        )
        assert len(of_row.unique()) > weight.shape[0], name
        torch.testing.assert_close(of_scaled, of_row * factors)


@pytest.mark.slow
def test_a_plane_needs_three_models(place, tmp_path):
    with pytest.raises(InputError, match="a plane goes through three models, not 2: give three, or leave --plane out"):
        measured(place, tmp_path, "model", "other", plane=3)


@pytest.mark.slow
def test_a_model_and_itself_have_the_same_radii_and_a_flat_line(place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "copy")
    models = {"a": open_source_model(place / "model"), "b": open_source_model(tmp_path / "copy")}
    config = LandscapeConfig(**QUICK)
    artifact = landscape.run(context(tmp_path / "w"), models, data(place), config)
    result = artifact.result(LandscapeResult)
    assert result.models["a"] == result.models["b"]
    assert result.lines[0].barrier == 0
    assert len(set(result.lines[0].losses)) == 1


@pytest.mark.slow
def test_a_measurement_leaves_the_model_bit_by_bit(place, tmp_path):
    blocks = blocks_of(context(tmp_path), data(place), "validation", place / "model")
    model = hf.load_model(place / "model", dtype=torch.float32)
    before = {name: p.clone() for name, p in model.named_parameters()}
    loss, weights = FixedLoss(model, blocks, 2, "cpu"), dict(model.named_parameters())
    at = landscape.Coordinates(weights, plain_scale(weights, {}))
    landscape.measure.radii(loss, at, 0.1, range(2), 0)
    landscape.measure.sharpness(loss, weights, loss.gradient(weights), 0.05)
    for name, p in model.named_parameters():
        assert torch.equal(p.view(torch.int32), before[name].view(torch.int32)), name
        assert p.grad is None


def test_the_loss_and_its_gradient_are_torchs(place, tmp_path):
    blocks = blocks_of(context(tmp_path), data(place), "validation", place / "model")
    model = hf.load_model(place / "model", dtype=torch.float32)
    loss, weights = FixedLoss(model, blocks, 1, "cpu"), dict(model.named_parameters())
    ids, positions = blocks.tokens(0)[None], blocks.positions(0)[None]
    scored = positions[0, 1:] != 0
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, :-1][scored]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:][scored])
    expected.backward()
    assert loss() == pytest.approx(expected.item(), rel=1e-5)
    wanted = {name: p.grad.clone() for name, p in weights.items()}
    found = loss.gradient(weights)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["filter", "curvature"])
def test_scales_move_the_same_weights(place, tmp_path, scale):
    _, plain = measured(place, tmp_path, "model")
    _, scaled = measured(place, tmp_path, "model", scale=scale)
    assert scaled.models["model"].dimension == plain.models["model"].dimension
    assert scaled.models["model"].median_radius != plain.models["model"].median_radius


@pytest.mark.slow
def test_zeros_of_a_mask_are_not_moved_and_a_dense_model_is_not_compared(place, tmp_path):
    made = sparsify.run(
        context(tmp_path),
        open_source_model(place / "model"),
        SparsifyConfig(metric="magnitude", pattern="50%"),
        None,
    )
    sparse, dense = open_source_model(made.path), open_source_model(place / "model")
    config = LandscapeConfig(**QUICK | {"subspace": "all", "directions": 2})
    with pytest.raises(InputError, match=r"free weights .* do not compare"):
        landscape.run(context(tmp_path), {"dense": dense, "sparse": sparse}, data(place), config)
    found = landscape.run(context(tmp_path), {"sparse": sparse}, data(place), config).result(LandscapeResult)
    zeros = sum(spec.zeros for spec in landscape.ParameterMasks.of(sparse).file.specs.values())
    assert found.models["sparse"].dimension == dense.shape.parameters() - zeros
    both = {"dense": dense, "sparse": sparse}
    kept = landscape.run(context(tmp_path), both, data(place), config.model_copy(update={"subspace": "kept"}))
    models = kept.result(LandscapeResult).models
    assert models["dense"].dimension == models["sparse"].dimension == dense.shape.parameters() - zeros
    alone = landscape.run(context(tmp_path), {"dense": dense}, data(place), config).result(LandscapeResult).models
    assert models["sparse"].median_radius == found.models["sparse"].median_radius, "it moves what it moved alone"
    assert models["dense"].median_radius != alone["dense"].median_radius, "what the other lost stays"


@pytest.mark.slow
def test_what_two_masks_keep_is_moved(place, tmp_path):
    sparse = [
        open_source_model(
            sparsify.run(
                context(tmp_path / str(share)),
                open_source_model(place / "model"),
                SparsifyConfig(metric="magnitude", pattern=f"{share}%"),
                None,
            ).path
        )
        for share in (30, 60)
    ]
    name = "model.layers.0.mlp.up_proj.weight"
    weights = {name: torch.empty(sparse[0].checkpoint.shapes[name])}
    kept = [landscape.ParameterMasks.of(model).kept(name, weights[name].shape) for model in sparse]
    assert not torch.equal(*kept)
    assert torch.equal(landscape._kept_by_all(sparse, weights)[name], kept[0] * kept[1])


def test_models_of_unlike_shape_are_refused(place, tmp_path):
    with pytest.raises(InputError, match="model and wider are of unlike shape"):
        measured(place, tmp_path, "model", "wider")


@pytest.mark.slow
def test_an_estimate_that_cannot_be_trusted_is_said(place, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(progress, "warn", said.append)
    _, result = measured(place, tmp_path, "model")
    assert not result.models["model"].is_trusted
    assert "it is a lower bound, far too low, and compares with nothing" in said[0]
    assert result.log_ratio("model") is None


@pytest.mark.slow
def test_a_killed_measurement_goes_on_where_it_was(place, tmp_path, monkeypatch):
    monkeypatch.setattr(landscape, "PART", 2)
    whole, _ = measured(place, tmp_path / "whole", "model")
    real, calls = landscape.measure.radii, []

    def killed(loss, at, cutoff, numbers, seed):
        calls.append(list(numbers))
        if len(calls) == 2:
            raise Interrupted(2)
        return real(loss, at, cutoff, numbers, seed)

    monkeypatch.setattr(landscape.measure, "radii", killed)
    with pytest.raises(Interrupted):
        measured(place, tmp_path / "killed", "model")
    resumed, _ = measured(place, tmp_path / "killed", "model")
    assert calls == [[0, 1], [2, 3], [2, 3]]
    for name in ("radii.json", "result.json", "landscape.svg"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()


@pytest.mark.slow
def test_a_dry_run_says_about_how_many_evaluations_there_are(place, tmp_path, monkeypatch):
    config = LandscapeConfig(**QUICK)
    with pytest.raises(DryRunStop) as stop:
        landscape.run(context(tmp_path, dry_run=True), opened(place, "model", "other"), data(place), config)
    expected = evaluations(config, 2)
    assert stop.value.price.what == f"about {expected:,} evaluations of 2 x 16 tokens"
    assert stop.value.price.tokens == expected * 2 * 16
    real, calls = FixedLoss.__call__, []
    monkeypatch.setattr(FixedLoss, "__call__", lambda self: (calls.append(1), real(self))[1])
    measured(place, tmp_path, "model", "other")
    assert 0.6 * len(calls) < expected < 1.7 * len(calls)
    assert evaluations(config.model_copy(update={"plane": 3}), 3) - evaluations(config, 3) == 25


@pytest.mark.slow
def test_the_api_takes_directories(place, tmp_path):
    with api.workspace(tmp_path / "w", device="cpu") as here:
        made = api.landscape(here, {"m": place / "model"}, data(place), LandscapeConfig(**QUICK))
    assert made.stage == "landscape"
