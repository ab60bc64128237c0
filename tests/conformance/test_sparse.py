"""Every family, metric and pattern: zeros where they belong, by inputs that transformers' own modules show."""

from collections import defaultdict
from typing import ClassVar, Literal, get_args

import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_cli import progress
from minitron_cli.checkpoint import document_masks, hf
from minitron_cli.choices import MetricName
from minitron_cli.figures import Figure
from minitron_cli.layerwise.activation_store import ActivationStore
from minitron_cli.layerwise.expert_forward import each_expert
from minitron_cli.layerwise.layer_loop import run_layers
from minitron_cli.layerwise.resume import SavedState
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.layout import parse
from minitron_cli.model.linear_layers import input_groups
from minitron_cli.model.residual_stream import HIDDEN, norm_of
from minitron_cli.model.runtime_tensors import disk_tensors, experts_module
from minitron_cli.model.shape import Shape
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.sparse.layer_pass import Method, SparsifyPass, mask_specs, matrices
from minitron_cli.sparse.metrics import AnyMetric, Wanda
from minitron_cli.sparse.metrics.base import InputSums, Sparse, SparseMetric
from minitron_cli.sparse.pattern import Pattern
from minitron_cli.sparse.store import LayerStore
from tests.by_table import opened
from tests.quick import each_family
from tests.tiny import tiny_model
from tests.unit.importance.calibration import samples, split

METRICS = [metric() for metric in get_args(get_args(AnyMetric)[0])]
PATTERNS = ["2:4", "4:8", "50%"]
EVERY_FAMILY = each_family(sorted(FAMILIES))
BATCHES = split(samples(5, 24), [2, 3])


class ToyMetric(SparseMetric):
    """Keeps what is largest in a row when every weight is divided by its column's mean: one file is all it takes."""

    kind: Literal["toy"] = "toy"
    figure: ClassVar[Figure] = Figure("toy score")
    needs: ClassVar[Literal["squares"]] = "squares"
    is_share_of_line: ClassVar[bool] = True

    def sparse(self, weight_OI, inputs, pattern, lost_OI=None):
        return Sparse(pattern.keep(weight_OI.float().abs() / weight_OI.float().abs().mean(0), self.axis(pattern, 1)))


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Directory of the tiny model of a family, with a few layers."""
    known = {}

    def get(model_type, layers=2):
        if (model_type, layers) not in known:
            known[model_type, layers] = path = tmp_path_factory.mktemp(model_type)
            tiny_model(model_type, num_hidden_layers=layers).save_pretrained(path)
        return known[model_type, layers]

    return get


def sparse(path, scratch, metric, pattern, *, fits=False, save_every_s=1e9, task=SparsifyPass, resume=True):
    """The store of a pass over the batches, and the shape."""
    parent, model = opened(path), hf.empty_model(path)
    shape = Shape.of(family_of(model.config), model.config)
    layers = shape.sizes["layer"]
    method = Method(metric, (Pattern.parse(pattern),) * layers, fits)
    scratch.mkdir(exist_ok=True)
    store, states = LayerStore(scratch / "layers", parent), ActivationStore(scratch, 1 << 20)
    with torch.inference_mode(), progress.track("pass", 1, "batches") as step:
        work = task(model, shape, BATCHES, method, store, states, "cpu", step)
        saved = SavedState(scratch / "saved.safetensors", save_every_s)
        run_layers(work, {"hidden": states}, saved, layers, resume=resume)
    return store, shape


def names_of(shape):
    for layer in range(shape.sizes["layer"]):
        for matrix in matrices(shape, input_groups(shape), layer):
            yield layer, matrix.name


@EVERY_FAMILY
def test_tables_spell_the_inputs_of_a_matrix_last_and_groups_hold_every_matrix_once(model_type):
    family = FAMILIES[model_type]
    shape = Shape.of(family, tiny_model(model_type).config)
    found = [template for group in input_groups(shape) for template in group.templates]
    wanted = {
        template
        for template in shape.templates
        if "layer" in template
        and len(parse(family.tensors[template]).dims) == 2
        and not family.tensors[template].startswith(("expert ", "1 "))
        and not template.endswith(("A_log", "dt_proj.weight"))
        and template not in family.transposed
    }
    assert len(found) == len(set(found))
    assert set(found) == wanted
    for reader in norm_of(family).keys() - {*family.transposed}:
        assert parse(family.tensors[reader]).dims[-1] == HIDDEN


@EVERY_FAMILY
def test_every_metric_and_pattern(model_type, parents, tmp_path):
    for metric in METRICS:
        for pattern in PATTERNS:
            fits = pattern == "2:4"
            parent, scratch = parents(model_type, layers=1), tmp_path / f"{metric.kind}{pattern}"
            store, shape = sparse(parent, scratch, metric, pattern, fits=fits)
            patterns = [Pattern.parse(pattern)] * shape.sizes["layer"]
            specs, fitted = mask_specs(shape, metric, patterns), 0
            for layer, name in names_of(shape):
                made, parent = store.made(layer, name), store.parent.read(name)
                figures = store.figures(layer, name)
                assert specs[name].hold(made.bits, is_whole=True), (metric, pattern, name)
                assert not made.weight[~made.mask].any()
                assert made.weight.dtype == parent.dtype
                if metric.kind != "sparsegpt" and not figures.is_repaired:
                    assert torch.equal(made.weight, torch.where(made.mask, parent, 0))
                if figures.error_before is not None and figures.error_after is not None:
                    assert figures.error_after <= figures.error_before
                    fitted += figures.is_repaired
            assert bool(fitted) == fits


def inputs_seen(model, shape, layer):
    """Tokens that each matrix of a layer reads in a loaded model, by the name of the matrix."""
    seen, handles = defaultdict(list), []
    for matrix in matrices(shape, input_groups(shape), layer):
        if matrix.expert is None:
            module = model.get_submodule(matrix.name.removesuffix(".weight"))
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, args, name=matrix.name: seen[name].append(args[0].reshape(-1, args[0].shape[-1]))
                )
            )
    experts = experts_module(shape.family)
    if experts and not shape.family.transposed and shape.family.holds(layer, experts):
        reads, writes = (group for group in input_groups(shape) if group.is_of_expert)

        def see(module, args):
            for routed in each_expert(module, *args):
                for group, inputs in ((reads, args[0][routed.token_R]), (writes, routed.neuron_RF)):
                    for template in group.templates:
                        seen[template.format(layer=layer, expert=routed.expert)].append(inputs)

        handles.append(model.get_submodule(experts.format(layer=layer)).register_forward_pre_hook(see))
    with torch.inference_mode():
        for batch in BATCHES:
            model(batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(inputs) for name, inputs in seen.items()}


@EVERY_FAMILY
def test_wanda_agrees_with_hooks_on_a_loaded_model_whose_layers_become_sparse(model_type, parents, tmp_path):
    store, shape = sparse(parents(model_type), tmp_path, Wanda(), "2:4")
    model = AutoModelForCausalLM.from_pretrained(parents(model_type), dtype=torch.float32)
    document_masks.keep_documents_apart(model)
    agree = total = 0
    for layer in range(shape.sizes["layer"]):
        weights = {
            on_disk: (parameter, tensor)
            for name, parameter in model.named_parameters()
            for on_disk, tensor in disk_tensors(shape.family, name, parameter.data)
        }
        for name, inputs in inputs_seen(model, shape, layer).items():
            weight = weights[name][1]
            made = store.made(layer, name)
            if store.figures(layer, name).is_by_metric:
                norms = InputSums(inputs.double().square().sum(0))
                mask = Wanda().sparse(weight, norms, Pattern.parse("2:4")).mask_OI
                agree, total = agree + int((mask == made.mask).sum()), total + mask.numel()
        for layer_of, name in names_of(shape):
            if layer_of == layer:
                weights[name][1].copy_(store.made(layer, name).weight)  # a part of the loaded parameter
    assert total
    assert agree / total > 0.999  # sums in another order may turn a tie


class Killed(Exception):
    pass


class KilledPass(SparsifyPass):
    def _renew(self, layer):
        if layer == 1:
            raise Killed
        super()._renew(layer)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "qwen3_moe"])
def test_a_killed_pass_resumes_to_the_same_bits(model_type, tmp_path):
    tiny_model(model_type, num_hidden_layers=3).save_pretrained(tmp_path / "model")
    metric = METRICS[-1]
    whole, shape = sparse(tmp_path / "model", tmp_path / "whole", metric, "2:4", fits=True)
    with pytest.raises(Killed):
        sparse(tmp_path / "model", tmp_path / "killed", metric, "2:4", fits=True, save_every_s=0, task=KilledPass)
    resumed, _ = sparse(tmp_path / "model", tmp_path / "killed", metric, "2:4", fits=True, save_every_s=0)
    for layer, name in names_of(shape):
        for a, b in zip(whole.made(layer, name), resumed.made(layer, name), strict=True):
            assert torch.equal(a, b), name


def test_a_new_metric_is_one_class(parents, tmp_path):
    store, shape = sparse(parents("llama"), tmp_path, ToyMetric(), "2:4")
    for layer, name in names_of(shape):
        weight = store.parent.read(name)
        scores = weight.abs() / weight.abs().mean(0)
        assert torch.equal(store.made(layer, name).mask, Pattern.parse("2:4").keep(scores))


def test_the_command_line_offers_the_metrics_that_there_are():
    assert get_args(MetricName) == tuple(metric.kind for metric in METRICS)


def test_an_unknown_metric_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="'magnitude', 'wanda', 'sparsegpt'"):
        SparsifyConfig(metric="taylor")
