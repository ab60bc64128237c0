"""Every part of a fitted child, as it is written, is the ridge regression on what it gets of what the parent gives."""

import gc
import weakref
from functools import partial

import pytest
import torch
from torch.nn.functional import kl_div

from minitron_cli.checkpoint import hf
from minitron_cli.errors import DataError
from minitron_cli.layerwise.runner import ResidentWeights, StoredWeights
from minitron_cli.model.families import FAMILIES
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.transform import Repair, norm_gains
from minitron_cli.repair import gram, layerwise_fit, least_squares
from minitron_cli.repair.fitted_child import FittedChild
from minitron_cli.repair.gram import SplitGramPair
from minitron_cli.repair.layerwise_fit import ParentAndChild, fit_layerwise
from minitron_cli.repair.store import RepairStore
from tests.by_table import opened
from tests.conformance.masked import random_survivors
from tests.conformance.test_families import plan_of, reload, write
from tests.quick import each_family
from tests.tiny import BASE, tiny_model
from tests.unit.importance.calibration import Killed, samples, split

HIDDEN, RIDGE = BASE["hidden_size"], 0.1
BATCHES = split(samples(7, 25), [2, 4, 1])


@pytest.fixture(autouse=True)
def _one_ridge(monkeypatch):
    monkeypatch.setattr(least_squares, "RIDGES", (RIDGE,))
    monkeypatch.setattr(least_squares, "_best_ridge", lambda *_: RIDGE)
    monkeypatch.setattr(gram, "BOUND", 1e9)  # how tokens are bounded is a matter of its own


def parent_of(path, model_type, **options):
    tiny_model(model_type, **{"rms_norm_eps": 0.02} | options).save_pretrained(path)
    return hf.load_model(path), opened(path)


def pruning_plan(model, checkpoint, *, turned=False, layers=None, **sizes):
    ffn = {} if "expert" in FAMILIES[model.config.model_type].sizes else {"ffn": 20}
    stay = FAMILIES[model.config.model_type].not_prunable
    both = {axis: size for axis, size in {"hidden": 24, "head": 4}.items() if axis not in stay}
    plan = plan_of(model, random_survivors(model.config, 5, **(both | ffn | sizes)))
    if layers:
        plan = type(plan)(plan.parent, dict(plan.kept) | {"layer": torch.tensor(layers)})
    if turned:
        noise = torch.randn(HIDDEN, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        gain_D = norm_gains(plan.parent, plan.parent.family.links, checkpoint.read)
        plan = plan.repaired(Repair(torch.linalg.qr(noise).Q[:, :24].float(), gain_D=gain_D))
    return plan


def fit(model, checkpoint, plan, scratch, *, stored=False, batches=BATCHES, budget=10**9, **options):
    family = plan.parent.family
    scratch.mkdir(exist_ok=True)
    fitted = FittedChild(plan, checkpoint, RepairStore(scratch))
    config = hf.config_from_dict(child_config(checkpoint.config, plan), "test")
    child = hf.empty_model_of(config, device="cpu", dtype=torch.float32)
    parent = hf.empty_model(checkpoint.path) if stored else model
    weights = StoredWeights(parent, family, checkpoint.read, "cpu") if stored else ResidentWeights(parent)
    layers = plan.at("layer")
    kept = list(range(4)) if layers is None else layers.tolist()
    models = ParentAndChild(parent, weights, child, family, kept)
    fit_layerwise(models, batches, fitted, scratch=scratch, activation_budget=budget, **options)
    return fitted.plan


def seen_in(model, names):
    """Module -> (inputs, outputs), [tokens, channels] in fp64, of a forward pass of the whole model."""
    seen = {name: ([], []) for name in names}

    def note(name):
        def hook(_, args, output):
            for kept, tensor in zip(seen[name], (args[0], output), strict=True):
                kept.append((tensor if isinstance(tensor, torch.Tensor) else tensor[0]).flatten(0, -2).double())

        return hook

    for name in names:
        model.get_submodule(name).register_forward_hook(note(name))
    with torch.no_grad():
        for batch in BATCHES:
            model(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
    return {name: tuple(torch.cat(parts) for parts in found) for name, found in seen.items()}


def ridge_regression(inputs, outputs, start):
    """Toward the start times the factor that fits best."""
    made = (inputs @ start.double().T).reshape(-1, 1)
    start = start.double() * torch.linalg.lstsq(made, outputs.reshape(-1, 1)).solution
    strength = (RIDGE * inputs.square().sum(0).mean()).sqrt() * torch.eye(inputs.shape[1], dtype=torch.float64)
    left, right = torch.cat([inputs, strength]), torch.cat([outputs, strength @ start.double().T])
    return torch.linalg.lstsq(left, right).solution.T


def kept_directions(plan):
    if plan.repair.basis_DK is not None:
        return plan.repair.basis_DK.double()
    return torch.eye(HIDDEN, dtype=torch.float64)[:, plan.at("hidden")]


SUMMED = ["granite", "llama", "mistral", "qwen2", "qwen3", "smollm3"]


def check_parts(model, plan, child, layers):
    """The matrices that write, and those that read a norm: q for attention, up for the MLP, the head."""
    names = ["self_attn.o_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm"]
    parent, child_seen = (
        seen_in(
            m,
            [f"model.layers.{i}.{n}" for i in which for n in names]
            + [f"model.layers.{i}" for i in which]
            + ["model.norm"],
        )
        for m, which in ((model, layers), (child, range(len(layers))))
    )
    kept, multiplier = kept_directions(plan), getattr(model.config, "residual_multiplier", 1.0)
    check = partial(check_reader, model, child, parent, child_seen, kept)
    for place, layer in enumerate(layers):
        at, of = f"model.layers.{layer}", f"model.layers.{place}"
        following = layers[place + 1] if place + 1 < len(layers) else None
        ends = parent["model.norm" if following is None else f"model.layers.{following}"][0]
        after = {"o_proj": parent[f"{at}.post_attention_layernorm"][0], "down_proj": ends}
        before = {"o_proj": "input_layernorm", "down_proj": "post_attention_layernorm"}
        for part, axis in (("self_attn.o_proj", "head"), ("mlp.down_proj", "ffn")):
            name = part.rpartition(".")[2]
            inputs = child_seen[f"{of}.{part}"][0]
            wanted = (after[name] @ kept - child_seen[f"{of}.{before[name]}"][0]) / multiplier
            start = kept.T @ model.get_submodule(f"{at}.{part}").weight.double()
            columns = plan.at(axis, layer)
            if columns is not None:
                each = 8 if axis == "head" else 1
                start = start[:, (columns[:, None] * each + torch.arange(each)).flatten()]
            bias = child.get_submodule(f"{of}.{part}").bias
            wanted = wanted - (0 if bias is None else bias.double())
            found = child.get_submodule(f"{of}.{part}").weight
            torch.testing.assert_close(
                found, ridge_regression(inputs, wanted, start).float(), rtol=2e-3, atol=2e-3, msg=f"{of}.{part}"
            )
        for norm, reader, axis in (
            ("input_layernorm", "self_attn.k_proj", None),
            ("post_attention_layernorm", "mlp.up_proj", "ffn"),
        ):
            rows = None if axis is None else plan.at(axis, layer)
            weight = model.get_submodule(f"{at}.{reader}").weight.double()
            check(
                f"{at}.{norm}",
                f"{of}.{norm}",
                weight if rows is None else weight[rows],
                child.get_submodule(f"{of}.{reader}").weight,
            )
    check("model.norm", "model.norm", model.lm_head.weight.double(), child.lm_head.weight)


def check_reader(model, child, parent, child_seen, kept, norm, its_norm, weight, found):
    assert torch.equal(child.get_submodule(its_norm).weight, torch.ones(24))
    start = model.get_submodule(norm).weight.double()[:, None] * kept
    reading = ridge_regression(child_seen[its_norm][1], parent[norm][1], start)
    torch.testing.assert_close(found, (weight @ reading).float(), rtol=2e-3, atol=2e-3, msg=its_norm)


@pytest.mark.parametrize("turned", [False, True], ids=["channels", "directions"])
@each_family(SUMMED)
def test_every_part_makes_up_for_what_went_before(model_type, turned, tmp_path):
    model, checkpoint = parent_of(tmp_path / "parent", model_type, tie_word_embeddings=False)
    plan = fit(model, checkpoint, pruning_plan(model, checkpoint, turned=turned), tmp_path / "scratch")
    check_parts(model, plan, reload(write(checkpoint, plan, tmp_path / "child")), range(4))


def test_a_layer_that_is_one_block_is_fitted_to_the_stream_after_it(tmp_path):
    """Attention or an MLP of Nemotron-H, before which there is one norm."""
    model, checkpoint = parent_of(tmp_path / "parent", "nemotron_h", layer_norm_epsilon=0.02)
    plan = fit(model, checkpoint, pruning_plan(model, checkpoint), tmp_path / "scratch")
    child, kept = reload(write(checkpoint, plan, tmp_path / "child")), kept_directions(plan)
    parent = seen_in(model, ["model.layers.2.norm", "model.norm_f"])
    for layer, part, axis, after in (
        (1, "down_proj", "ffn", "model.layers.2.norm"),
        (3, "o_proj", "head", "model.norm_f"),
    ):
        norm, name = f"model.layers.{layer}.norm", f"model.layers.{layer}.mixer.{part}"
        found = child.get_submodule(name)
        seen = seen_in(child, [norm, name])
        wanted = parent[after][0] @ kept - seen[norm][0] - (0 if found.bias is None else found.bias.double())
        width = 8 if axis == "head" else 1
        columns = (plan.at(axis, layer)[:, None] * width + torch.arange(width)).flatten()
        start = kept.T @ model.get_submodule(name).weight.double()[:, columns]
        fitted = ridge_regression(seen[name][0], wanted, start).float()
        torch.testing.assert_close(found.weight, fitted, rtol=2e-3, atol=2e-3, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("turned", [False, True], ids=["channels", "directions"])
def test_dropped_layers_are_made_up_for_by_the_layer_before_them(turned, tmp_path):
    model, checkpoint = parent_of(tmp_path / "parent", "llama", tie_word_embeddings=False)
    plan = pruning_plan(model, checkpoint, turned=turned, layers=[1, 2])
    plan = fit(model, checkpoint, plan, tmp_path / "scratch")
    check_parts(model, plan, reload(write(checkpoint, plan, tmp_path / "child")), [1, 2])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gemma2", "nemotron", "olmo2"])
def test_where_blocks_do_not_simply_add_a_matrix_is_fitted_to_its_own_output(model_type, tmp_path):
    model, checkpoint = parent_of(tmp_path / "parent", model_type)
    plan = fit(model, checkpoint, pruning_plan(model, checkpoint), tmp_path / "scratch")
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    name = "model.layers.2.mlp.down_proj"
    parent, child_seen = (seen_in(m, [name])[name] for m in (model, child))
    kept, columns = kept_directions(plan), plan.at("ffn", 2)
    bias, weight = (getattr(model.get_submodule(name), part) for part in ("bias", "weight"))
    wanted = (parent[1] - (0 if bias is None else bias.double())) @ kept
    expected = ridge_regression(child_seen[0], wanted, kept.T @ weight.double()[:, columns])
    torch.testing.assert_close(child.get_submodule(name).weight, expected.float(), rtol=2e-3, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_the_norm_before_a_tied_head_is_given_the_gains_that_come_nearest(model_type, tmp_path):
    model, checkpoint = parent_of(tmp_path / "parent", model_type, tie_word_embeddings=True)
    plan = fit(model, checkpoint, pruning_plan(model, checkpoint), tmp_path / "scratch")
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    wanted = seen_in(model, ["model.norm"])["model.norm"][1][:, plan.at("hidden")]
    offset = plan.parent.family.norm_offset
    given = seen_in(child, ["model.norm"])["model.norm"][1] / (child.model.norm.weight.double() + offset)
    expected = (given * wanted).sum(0) / given.square().sum(0) - offset
    torch.testing.assert_close(child.model.norm.weight, expected.float(), rtol=1e-3, atol=1e-3)
    assert child.lm_head.weight.data_ptr() == child.model.embed_tokens.weight.data_ptr()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["mixtral", "qwen3_moe"])
def test_routers_and_experts_read_the_fitted_norm(model_type, tmp_path):
    model, checkpoint = parent_of(tmp_path / "parent", model_type, tie_word_embeddings=False)
    plan = fit(model, checkpoint, pruning_plan(model, checkpoint), tmp_path / "scratch")
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    name = "model.layers.1.post_attention_layernorm"
    parent, child_seen = (seen_in(m, [name])[name] for m in (model, child))
    start = model.get_submodule(name).weight.double()[:, None] * kept_directions(plan)
    reading = ridge_regression(child_seen[1], parent[1], start)
    for part in ("gate.weight", "experts.gate_up_proj"):
        weight = model.get_parameter(f"model.layers.1.mlp.{part}").double()
        found = child.get_parameter(f"model.layers.1.mlp.{part}")
        torch.testing.assert_close(found, (weight @ reading).float(), rtol=2e-3, atol=2e-3)


def routed_in(model, layer, expert):
    """What the tokens that the router sends to an expert enter it as, fp64, from a forward pass of the whole model."""
    entered = []

    def hook(_, args):
        hidden, index, _weights = args
        entered.append(hidden[(index == expert).any(-1)].double())

    handle = model.get_submodule(f"model.layers.{layer}.mlp.experts").register_forward_pre_hook(hook)
    with torch.no_grad():
        for batch in BATCHES:
            model(input_ids=batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
    handle.remove()
    return torch.cat(entered)


@pytest.mark.slow
@pytest.mark.parametrize("turned", [True, False], ids=["directions", "channels"])
@each_family(["mixtral", "qwen3_moe"])
def test_an_experts_neurons_are_fitted_on_the_tokens_that_are_sent_to_it(model_type, turned, tmp_path):
    model, checkpoint = parent_of(tmp_path / "parent", model_type, tie_word_embeddings=False)
    plan = fit(model, checkpoint, pruning_plan(model, checkpoint, turned=turned, ffn=16), tmp_path / "scratch")
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    experts, child_seen = (m.get_submodule("model.layers.1.mlp.experts") for m in (model, child))
    directions = kept_directions(plan)
    for expert in range(len(experts.down_proj)):
        entered = routed_in(model, 1, expert)
        gate, up = (entered @ experts.gate_up_proj[expert].double().T).chunk(2, dim=-1)
        neurons, weight = torch.nn.functional.silu(gate) * up, experts.down_proj[expert].double()
        kept = plan.at("ffn", 1, expert)
        start = directions.T @ weight[:, kept]
        expected = ridge_regression(neurons[:, kept], neurons @ weight.T @ directions, start) if len(entered) else start
        torch.testing.assert_close(child_seen.down_proj[expert], expected.float(), rtol=2e-3, atol=2e-3)


SHARED = {"deepseek_v3": "mlp.shared_experts", "llama4_text": "feed_forward.shared_expert"}


@each_family(SHARED)
def test_experts_that_all_tokens_use_are_fitted_to_their_own_output(model_type, tmp_path):
    model, checkpoint = parent_of(tmp_path / "parent", model_type)
    plan = fit(model, checkpoint, pruning_plan(model, checkpoint, ffn=24), tmp_path / "scratch")
    child = reload(write(checkpoint, plan, tmp_path / "child"))
    name, kept = f"model.layers.1.{SHARED[model_type]}.down_proj", kept_directions(plan)
    (_, wanted), (inputs, _) = (seen_in(m, [name])[name] for m in (model, child))
    start = kept.T @ model.get_submodule(name).weight.double()[:, plan.at("shared_ffn", 1)]
    expected = ridge_regression(inputs, wanted @ kept, start)
    torch.testing.assert_close(child.get_submodule(name).weight, expected.float(), rtol=2e-3, atol=2e-3)


@each_family(SHARED)
def test_a_child_whose_experts_of_all_tokens_are_fitted_is_nearer_to_its_parent(model_type, tmp_path, monkeypatch):
    model, checkpoint = parent_of(tmp_path / "parent", model_type)
    plan, batches = plan_of(model, random_survivors(model.config, 5, ffn=24)), split(samples(64, 25), [32, 32])

    def distance(name):
        """Mean KL from the parent in nats per token, on what the fit was made on."""
        fitted = fit(model, checkpoint, plan, tmp_path / f"{name} fit", batches=batches)
        child = reload(write(checkpoint, fitted, tmp_path / name))
        seen = (
            (m(input_ids=b.input_ids_BT, position_ids=b.position_ids_BT).logits for m in (child, model))
            for b in batches
        )
        with torch.no_grad():
            logs = [[logits.log_softmax(-1).flatten(0, 1) for logits in both] for both in seen]
        return torch.cat([kl_div(*both, reduction="none", log_target=True).sum(-1) for both in logs]).mean()

    fitted = distance("fitted")
    monkeypatch.setattr(layerwise_fit, "shared_writer", lambda *_: None)
    assert fitted < distance("left as they are")


@pytest.fixture
def llama(tmp_path):
    model, checkpoint = parent_of(tmp_path / "parent", "llama", tie_word_embeddings=False)
    return model, checkpoint, pruning_plan(model, checkpoint, turned=True)


def tensors_of(plan):
    found = [plan.repair.folded_readout, plan.repair.fitted]
    return {name: checkpoint.read(name) for checkpoint in found for name in checkpoint.tensors}


@pytest.mark.slow
def test_on_disk_or_in_memory_batched_or_spilled_it_is_the_same(llama, tmp_path):
    one = tensors_of(fit(*llama, tmp_path / "one"))
    other = tensors_of(fit(*llama, tmp_path / "other", stored=True, budget=0, batches=split(samples(7, 25), [7])))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "granite", "qwen3"])
def test_a_layer_that_is_not_computed_again_has_the_same_bits(model_type, tmp_path, monkeypatch):
    model, checkpoint = parent_of(tmp_path / "parent", model_type)
    plan = pruning_plan(model, checkpoint)
    found = tensors_of(fit(model, checkpoint, plan, tmp_path / "found"))
    monkeypatch.setattr(layerwise_fit.LayerwiseFit, "_ends_by_adding", lambda *_: False)
    again = tensors_of(fit(model, checkpoint, plan, tmp_path / "again"))
    assert found.keys() == again.keys()
    assert all(torch.equal(found[name], again[name]) for name in again)


@pytest.mark.slow
@pytest.mark.parametrize("kill", [5, 0, 9, 16])
@pytest.mark.parametrize("budget", [0, 10**9])
def test_a_killed_fit_goes_on_with_the_same_bits(llama, tmp_path, kill, budget, monkeypatch):
    expected = tensors_of(fit(*llama, tmp_path / "undisturbed"))
    solved = []

    def dying(start, sums):
        if len(solved) == kill:
            solved.append("dead")
            raise Killed
        solved.append(start.shape)
        return least_squares.solve(start, sums)

    monkeypatch.setattr("minitron_cli.repair.fitted_child.solve", dying)
    with pytest.raises(Killed):
        fit(*llama, tmp_path / "scratch", save_every_s=0, budget=budget)
    found = tensors_of(fit(*llama, tmp_path / "scratch", save_every_s=0, budget=budget))
    assert len(solved) == 17 + kill % 4 + 1, "what was finished is not done again"
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.usefixtures("_only_new_garbage")
def test_never_more_than_one_parts_sums_are_alive(llama, tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), []
    make = SplitGramPair.empty.__func__

    def empty(cls, *sizes):
        gc.collect()
        sums = make(cls, *sizes)
        alive.add(sums)
        most.append(len(alive))
        return sums

    monkeypatch.setattr(SplitGramPair, "empty", classmethod(empty))
    fit(*llama, tmp_path / "scratch")
    assert len(most) == 4 * 4 + 1
    assert max(most) == 1


def test_no_samples(llama, tmp_path):
    with pytest.raises(DataError, match="calibration set is empty"):
        fit(*llama, tmp_path / "scratch", batches=[])
