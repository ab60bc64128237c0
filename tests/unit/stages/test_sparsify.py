"""The sparsify stage: what it writes, keeps, refuses and says."""

import json
import shutil
from functools import partial
from pathlib import Path
from statistics import median

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minitron_cli import api, progress
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.cli import tables
from minitron_cli.cost.derive import spent
from minitron_cli.errors import CheckpointError, DataError, InputError, Interrupted
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.model.serving import zeros
from minitron_cli.results.sparsify import SparsifyResult
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.sparse.mask_file import MASKS, MaskFile
from minitron_cli.sparse.outliers import OutlierPass
from minitron_cli.sparse.pattern import Pattern
from minitron_cli.sparse.result_parts import serving_findings
from minitron_cli.sparse.store import LayerStore
from minitron_cli.stages import sparsify
from tests.tiny import tiny_config
from tests.unit.stages.place import context, data, write_place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    write_place(root, num_hidden_layers=2)
    return root


def made(place, root, *, text=True, **config):
    settings = SparsifyConfig(**{"samples": 8, "batch_size": 4, "effect_blocks": 4, **config})
    return sparsify.run(context(root), open_source_model(place / "model"), settings, data(place) if text else None)


def files(artifact):
    names = {path.name: path.read_bytes() for path in artifact.path.iterdir() if path.is_file()}
    return {name: content for name, content in names.items() if name != "run.json"}


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["4:4", pytest.param("0%", marks=pytest.mark.slow)])
def test_nothing_to_prune_leaves_the_parents_bits(place, tmp_path, metric, pattern):
    artifact = made(place, tmp_path, metric=metric, pattern=pattern, repair="least_squares")
    parent, child = Checkpoint.open(place / "model"), Checkpoint.open(artifact.path)
    for name in child.tensors:
        assert torch.equal(child.read(name).view(torch.uint8), parent.read(name).view(torch.uint8)), name
    assert artifact.result(SparsifyResult).sparsity == 0


def test_the_checkpoint_loads_with_plain_transformers_and_only_the_scope_changes(place, tmp_path):
    artifact = made(place, tmp_path, metric="sparsegpt", repair="least_squares")
    result, masks = artifact.result(SparsifyResult), MaskFile.beside(artifact.path)
    parent, child = Checkpoint.open(place / "model"), Checkpoint.open(artifact.path)
    model = AutoModelForCausalLM.from_pretrained(artifact.path)
    weights = dict(model.named_parameters())
    assert set(masks.specs) == set(result.matrices)
    masks.check(child.read)
    for name in child.tensors:
        assert torch.equal(weights[name], child.read(name))
        if name not in masks:
            assert torch.equal(child.read(name), parent.read(name)), name
    assert not any(key in name for name in masks.specs for key in ("embed", "norm", "lm_head", "bias"))
    assert result.sparsity == result.layer_sparsity[0] == 0.5
    assert result.checks[-1] == "zeros"
    assert child.config == json.loads((artifact.path / "config.json").read_text())


@pytest.mark.slow
def test_least_squares_brings_matrices_and_the_model_nearer(place, tmp_path):
    result = made(place, tmp_path, metric="wanda", repair="least_squares", samples=64).result(SparsifyResult)
    assert result.is_repaired
    for matrix in result.matrices.values():
        assert matrix.error_after <= matrix.error_before
    before, after = ([getattr(m, f"error_{when}") for m in result.matrices.values()] for when in ("before", "after"))
    assert median(after) < median(before)
    assert result.effect.after.kl < result.effect.before.kl
    assert result.effect.after.kl_stderr > 0


def test_magnitude_needs_no_text_and_costs_no_flops(place, tmp_path):
    artifact = made(place, tmp_path, metric="magnitude", text=False)
    result = artifact.result(SparsifyResult)
    assert result.calibration is None
    assert result.effect is None
    assert not spent(artifact)


@pytest.mark.slow
def test_what_was_spent_counts_two_passes_and_the_effect(place, tmp_path):
    artifact = made(place, tmp_path, metric="wanda")
    result = artifact.result(SparsifyResult)
    calibration, effect = spent(artifact)
    assert calibration.flops == 2 * 8 * 16 * result.model.decoder_flops
    assert effect.flops >= 2 * result.effect.read * result.model.flops


def test_layers_may_have_shares_of_their_own(place, tmp_path):
    result = made(place, tmp_path, metric="magnitude", pattern="50%", layer_amounts=(0.25, 0.75), text=False).result(
        SparsifyResult
    )
    assert result.layer_sparsity == pytest.approx((0.25, 0.75), abs=1e-3)
    assert result.sparsity == pytest.approx(0.5, abs=1e-3)


def outliers_by_hand(path, batches, times):
    """Share of outliers of each layer of a loaded model: every matrix's entries one after the other."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    squares, handles = {}, []

    def see(name, _, args):
        squares[name] = squares.get(name, 0) + args[0].double().square().sum((0, 1))

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "layers" in name:
            handles.append(module.register_forward_pre_hook(partial(see, name)))
    with torch.inference_mode():
        for batch in batches:
            model(batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
    for layer in range(model.config.num_hidden_layers):
        scores = [
            abs(weight) * norm
            for name, square in squares.items()
            if f"layers.{layer}." in name
            for row in model.get_submodule(name).weight.tolist()
            for weight, norm in zip(row, square.sqrt().tolist(), strict=True)
        ]
        mean = sum(scores) / len(scores)
        yield sum(score > times * mean for score in scores) / len(scores)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["50%", "4:8"])
def test_layers_with_more_outliers_lose_less_and_all_together_what_they_should(place, tmp_path, monkeypatch, pattern):
    seen = {}

    def noted(model, shape, batches, **options):
        seen["batches"] = batches
        return OutlierPass(model, shape, batches, **options)

    monkeypatch.setattr(sparsify, "OutlierPass", noted)
    owl = {"kind": "owl", "outlier": 2.5, "spread": 0.2}
    artifact = made(place, tmp_path, metric="wanda", pattern=pattern, layer_amounts=owl, effect_blocks=0)
    result = artifact.result(SparsifyResult)
    wanted = list(outliers_by_hand(place / "model", seen["batches"], 2.5))
    assert result.layer_outliers == pytest.approx(wanted, abs=1e-9)
    few, many = sorted(range(2), key=wanted.__getitem__)
    assert result.layer_sparsity[few] > 0.5 > result.layer_sparsity[many]
    assert 0.5 - 1 / 32 < result.sparsity <= 0.5, "whole weights of rows of 32"
    masks = MaskFile.beside(artifact.path)
    masks.check(Checkpoint.open(artifact.path).read)
    assert {str(spec.pattern) for spec in masks.specs.values()} == set(result.layer_patterns)
    assert [table.title for table in tables.tables(artifact)][1] == "Zeros of each layer, by their outliers (OWL)"
    calibration = spent(artifact)[0]
    assert calibration.flops == 3 * 8 * 16 * result.model.decoder_flops


@pytest.mark.slow
def test_a_run_that_is_stopped_in_the_middle_of_a_layer_resumes_to_the_same_bytes(place, tmp_path, monkeypatch):
    options = {"metric": "sparsegpt", "repair": "least_squares"}
    whole = made(place, tmp_path / "whole", **options)
    put = LayerStore.put

    def stop(self, layer, tensors):
        if layer == 1:
            progress.request_stop("stop")
            raise Interrupted("stopped")
        put(self, layer, tensors)

    monkeypatch.setattr(LayerStore, "put", stop)
    with pytest.raises(Interrupted):
        made(place, tmp_path / "killed", **options)
    progress.request_stop(None)
    monkeypatch.setattr(LayerStore, "put", put)
    resumed = made(place, tmp_path / "killed", **options)
    assert files(resumed) == files(whole)
    assert not list((tmp_path / "killed" / "sparsify").glob(".*scratch*"))


@pytest.mark.slow
def test_results_are_the_same_for_any_batch_size(place, tmp_path):
    masks = [
        Checkpoint.open(made(place, tmp_path / str(size), metric="wanda", batch_size=size).path) for size in (2, 8)
    ]
    for name in masks[0].tensors:
        same = (masks[0].read(name) == masks[1].read(name)).float().mean()
        assert same > 0.999, name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"pattern": "3:2"}, "3:2 keeps 3 of 2 weights: keep from 1 to 2 of them"),
        ({"pattern": "half"}, "is not a pattern of zeros: write N:M such as 2:4"),
        (
            {"pattern": "2:4", "layer_amounts": (0.5, 0.5)},
            "layer_amounts has 50%, and the pattern is 2:4: write N:4 for each layer, or add --pattern 50%",
        ),
        ({"pattern": "50%", "layer_amounts": (0.5, 1.5)}, "a share of zeros is at least 0 and below 1"),
        (
            {"pattern": "50%", "layer_amounts": (0.5, "2:4")},
            "has 2:4, and the pattern is 50%: write a share of zeros for each layer, or add --pattern 2:4",
        ),
        ({"pattern": "50%", "layer_amounts": "dsnot"}, "'dsnot' is unknown: write uniform, owl, or a list"),
        (
            {"layer_amounts": "owl"},
            "layer_amounts.spread is 0.08, less than half a weight of 4, so that all layers would keep 2:4: write the "
            "pattern as 4:8 or 8:16, or set a spread of at least 0.125",
        ),
        ({"pattern": "1:2", "layer_amounts": "owl"}, "write the pattern as 4:8 or 8:16, or set a sp"),
        ({"pattern": 1.5}, "a share of zeros is at least 0 and below 1"),
        ({"pattern": "95%", "layer_amounts": "owl"}, "no layer's share can differ that much from 95%: lower the spr"),
        ({"repair": "least_squares", "samples": 2}, "a repair needs at least 4 samples"),
    ],
)
def test_settings_that_cannot_be(config, message):
    with pytest.raises(ValueError, match=message):
        SparsifyConfig(**config)


@pytest.mark.parametrize("share", [0.5, 0, 0.25])
def test_a_number_is_a_share_of_zeros(share):
    assert SparsifyConfig(pattern=share).pattern == str(Pattern.parse(f"{100 * share}%"))


def test_rounds_need_text_to_train_on(place, tmp_path):
    config = SparsifyConfig(metric="magnitude", rounds=2, round_tokens=64)
    with pytest.raises(InputError, match="trains between rounds and needs text"):
        api.sparsify(context(tmp_path), place / "model", config)


@pytest.mark.slow
def test_a_sparse_model_is_pruned_further_by_hand(place, tmp_path):
    first = made(place, tmp_path, metric="magnitude", pattern="3:4", text=False)
    for pattern, metric in (("2:4", "sparsegpt"), ("60%", "wanda")):
        config = SparsifyConfig(metric=metric, pattern=pattern, samples=8, effect_blocks=0)
        after = sparsify.run(context(tmp_path), open_source_model(first.path), config, data(place))
        masks, before = MaskFile.beside(after.path), MaskFile.beside(first.path)
        masks.check(Checkpoint.open(after.path).read)
        for name in before.specs:
            assert not (masks.read(name) & ~before.read(name)).any()
    config = SparsifyConfig(metric="magnitude", pattern="3:8")
    with pytest.raises(InputError, match=r"is sparse already \(3:4\), and 3:8 by magnitude cannot keep all its zeros"):
        sparsify.run(context(tmp_path), open_source_model(first.path), config)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("metric", ["wanda", "sparsegpt"])
def test_activations_that_are_not_finite_are_said_with_their_layer(place, tmp_path, metric):
    shutil.copytree(place / "model", tmp_path / "model")
    state = load_file(tmp_path / "model" / "model.safetensors")
    state["model.layers.1.post_attention_layernorm.weight"].fill_(3e38)
    save_file(state, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    config = SparsifyConfig(metric=metric, samples=8, effect_blocks=0)
    with pytest.raises(CheckpointError, match="activations are not finite from decoder layer 1 on"):
        sparsify.run(context(tmp_path), open_source_model(tmp_path / "model"), config, data(place))


def test_a_repair_is_refused_where_the_text_has_no_samples_to_hold_out():
    config = SparsifyConfig(repair="least_squares")
    with pytest.raises(DataError, match=r"at least 4 samples.*has 3 blocks of 16 tokens: add text, lower --sequence-l"):
        config.fitted(16, 3)
    assert config.fitted(16, 4).samples == 4
    assert config.fitted(1 << 20, 100).samples == 4, "long blocks are not too few"
    assert SparsifyConfig().fitted(16, 3).samples == 3


def test_inputs_that_cannot_be(place, tmp_path):
    refused = [
        (
            {"pattern": "3:7"},
            InputError,
            "self_attn.q_proj.weight has 32 inputs, which are no whole number of gr",
        ),
        ({"metric": "wanda", "text": False}, InputError, "wanda needs calibration text: give some with --data"),
        ({"metric": "magnitude", "repair": "least_squares", "text": False}, InputError, "least_squares needs calibra"),
        ({"pattern": "50%", "layer_amounts": (0.5,)}, InputError, "has 1 entries, and the model 2 layers"),
        ({"samples": 100_000}, DataError, "lower sparsify.samples or data.sequence_length, or add text"),
    ]
    for config, kind, message in refused:
        with pytest.raises(kind, match=message):
            made(place, tmp_path, **config)
    artifact = made(place, tmp_path, metric="magnitude", text=False)
    with pytest.raises(InputError, match="is sparse already, and 2:4 makes no more of its weights zero"):
        sparsify.run(context(tmp_path), open_source_model(artifact.path), SparsifyConfig(metric="magnitude"))


@pytest.mark.slow
def test_the_tables_say_what_servers_make_of_it(place, tmp_path):
    shown = {table.title: table for table in tables.tables(made(place, tmp_path, metric="wanda"))}
    title = "Sparse: 2:4 by wanda, 50.0 % of the matrices' weights are zero"
    assert title in shown
    assert shown[title].rows[0][0] == "self_attn.q_proj"
    assert [row[0] for row in shown["Serving"].rows] == ["vLLM", "TensorRT-LLM", "torch"]


def keeps_2_of_4(text):
    """Whether every mask with a pattern keeps at most 2 of each aligned 4, by counting in the worst one."""
    pattern = Pattern.parse(text)
    if pattern.group is None:
        return False
    scores = [torch.randn(64, 12 * pattern.group), -torch.arange(12.0 * pattern.group)[None]]
    return all(int(pattern.keep(one).unflatten(-1, (-1, 4)).sum(-1).max()) <= 2 for one in scores)


@pytest.mark.parametrize("text", ["2:4", "1:4", "1:2", "2:8", "1:8", "2:16", "4:8", "3:4", "3:8", "2:2", "2:6", "50%"])
def test_torch_runs_what_keeps_at_most_2_of_each_4_of_the_right_sizes_and_nothing_else(text):
    shape = open_shape(hidden_size=64, intermediate_size=128, num_key_value_heads=8)
    level = "ok" if keeps_2_of_4(text) else "slower"
    assert [found.level for found in zeros(shape, text)] == ["slower", "slower", level]
    assert [found.level for found in zeros(open_shape(), text)] == ["slower", "slower", "slower"]


def test_dense_layers_do_not_count_for_servers():
    shape = open_shape(hidden_size=64, intermediate_size=128, num_key_value_heads=8)

    def levels(*texts):
        return [found.level for found in serving_findings(shape, list(map(Pattern.parse, texts)))]

    assert levels("2:4", "4:4") == levels("4:4", "1:4") == ["slower", "slower", "ok"]
    assert levels("2:4", "3:4") == ["slower", "slower", "slower"]
    assert levels("4:4", "4:4") == levels("0%") == []


def open_shape(**options):
    from minitron_cli.model.families import FAMILIES
    from minitron_cli.model.shape import Shape

    return Shape.of(FAMILIES["llama"], tiny_config("llama", **options))


def test_a_damaged_mask_file_is_noticed(place, tmp_path):
    artifact = made(place, tmp_path, metric="magnitude", text=False)
    copy = tmp_path / "copy"
    shutil.copytree(artifact.path, copy)
    assert Path(copy / MASKS).is_file()
    child = Checkpoint.open(copy)
    name = next(iter(MaskFile.beside(copy).specs))
    with pytest.raises(Exception, match="pruned weights of"):
        MaskFile.beside(copy).check(lambda n: torch.ones_like(child.read(n)) if n == name else child.read(n))
