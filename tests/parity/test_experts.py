"""Scores of experts and of the neurons inside them against plain torch on the joined weights, token by token."""

import itertools
from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F

from minitron_cli.checkpoint import hf
from minitron_cli.data.batches import Batch
from minitron_cli.importance.activation import AGGREGATIONS
from minitron_cli.importance.experts import Experts, each_expert
from minitron_cli.importance.magnitude import magnitude
from minitron_cli.layerwise.observer import Part, Tokens
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.scores.metric import Activation, Magnitude, Random
from minitron_cli.scores.scores import Scores
from tests.anatomy import anatomy
from tests.conformance.masked import close_router
from tests.parity.test_importance import aggregate
from tests.quick import EVERY_MIXTURE
from tests.tiny import tiny_model
from tests.unit.importance.calibration import TOKENS, samples, score, split

LAYERS, EXPERTS, NEURONS, TOP = 4, 6, 48, 2
UNUSED = 4  # an expert that no token chooses, in layer 2


def mixture(model_type):
    """Experts of unlike popularity; one of layer 2 is never chosen."""
    model = tiny_model(model_type)
    with torch.no_grad():
        for layer in model.model.layers:
            router(layer, model_type).weight *= torch.tensor([3.0, 1, 1, 0.3, 1, 0.1])[:, None]
        close_router(model.model.layers[2], anatomy(model_type).router, torch.tensor([UNUSED]), model.config)
    return model


def router(layer, model_type):
    return layer.get_submodule(anatomy(model_type).router)


def experts(layer, model_type):
    return layer.get_submodule(anatomy(model_type).experts)


def gate_up(module, expert):
    """Rows of gates, and rows of the others, of one expert."""
    if module.is_transposed:
        return module.gate_up_proj[expert].T[::2], module.gate_up_proj[expert].T[1::2]
    return module.gate_up_proj[expert].split(NEURONS)


def down(module, expert):
    return module.down_proj[expert].T if module.is_transposed else module.down_proj[expert]


def computed(module, expert, hidden_D):
    """Gates before the activation, neurons, and output of one expert for one token; gpt-oss as its card has it."""
    gate, up = (rows.double() @ hidden_D for rows in gate_up(module, expert))
    if not module.has_bias:
        neurons = F.silu(gate) * up
        return gate, neurons, down(module, expert).double() @ neurons
    bias = module.gate_up_proj_bias[expert].double()
    gate, up = gate + bias[::2], up + bias[1::2]
    clamped = gate.clamp(max=module.limit)
    neurons = (up.clamp(-module.limit, module.limit) + 1) * clamped * torch.sigmoid(module.alpha * clamped)
    return gate, neurons, down(module, expert).double() @ neurons + module.down_proj_bias[expert].double()


def routed_tokens(model, batch):
    """layer -> expert -> sample -> [(gate, neurons, norm of what is added)], one token after the other."""
    found = [[[[] for _ in range(len(batch.input_ids_BT))] for _ in range(EXPERTS)] for _ in range(LAYERS)]
    handles = []

    def record(layer, module):
        def hook(_, args):
            hidden, chosen, weights = args[0].double(), args[1], args[2].double()
            for n in range(len(hidden)):
                for k in range(TOP):
                    e = int(chosen[n, k])
                    gate, neurons, output = computed(module, e, hidden[n])
                    added = float((weights[n, k] * output).norm())
                    found[layer][e][n // batch.input_ids_BT.shape[1]].append((gate, neurons, added))

        return hook

    for i, layer in enumerate(model.model.layers):
        module = experts(layer, model.config.model_type)
        handles.append(module.register_forward_pre_hook(record(i, module)))
    with torch.no_grad():
        model(batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def neuron_scores(by_sample, which, batch_how, sequence_how):
    """[F] of one expert: over its tokens of each sample, then over the samples of which it has any."""
    by_sample = [[token[which].tolist() for token in tokens] for tokens in by_sample if tokens]
    if not by_sample:
        return [0.0] * NEURONS
    return [
        aggregate([aggregate([token[f] for token in tokens], sequence_how) for tokens in by_sample], batch_how)
        for f in range(NEURONS)
    ]


@pytest.fixture(scope="module")
def case():
    known = {}

    def get(model_type):
        if model_type not in known:
            model, batch = mixture(model_type), samples()
            scores = score(model, split(batch, [2, 3]), pre_activation=True)
            known[model_type] = scores, routed_tokens(model, batch)
        return known[model_type]

    return get


@EVERY_MIXTURE
def test_an_expert_is_the_mean_norm_of_what_it_adds_over_its_tokens(case, model_type):
    scores, found = case(model_type)
    norms = [[[token[2] for sample in expert for token in sample] for expert in layer] for layer in found]
    counts = [[len(expert) for expert in layer] for layer in norms]
    assert all(sum(layer) == 5 * TOKENS * TOP for layer in counts)
    assert counts[2][UNUSED] == 0, "one expert gets no token"
    assert any(not sample for layer in found for expert in layer for sample in expert if any(expert))
    expected = [[sum(expert) / max(len(expert), 1) for expert in layer] for layer in norms]
    torch.testing.assert_close(scores.select("expert", Activation()), torch.tensor(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("neuron", "which"), [("activation", 1), ("pre_activation", 0)])
@EVERY_MIXTURE
def test_neurons_inside_experts_are_scored_over_the_experts_tokens(case, model_type, neuron, which, subtests):
    scores, found = case(model_type)
    for batch, sequence in itertools.product(AGGREGATIONS, AGGREGATIONS):
        with subtests.test(batch=batch, sequence=sequence):
            expected = [[neuron_scores(expert, which, batch, sequence) for expert in layer] for layer in found]
            metric = Activation(batch=batch, sequence=sequence, neuron=neuron)
            torch.testing.assert_close(scores.select("ffn", metric), torch.tensor(expected), rtol=1e-4, atol=1e-6)


@EVERY_MIXTURE
@pytest.mark.parametrize("sizes", [[5], [1] * 5, [4, 1]], ids=str)
def test_how_samples_are_batched_does_not_matter(case, model_type, sizes):
    expected, found = case(model_type)[0], score(mixture(model_type), split(samples(), sizes), pre_activation=True)
    assert found.by_name.keys() == expected.by_name.keys()
    for name, tensor in expected.by_name.items():
        rtol = 1e-3 if name == "layer.perplexity" else 1e-4
        torch.testing.assert_close(found.by_name[name], tensor, rtol=rtol, atol=1e-6, msg=name)


def test_tokens_that_do_not_count_are_as_if_they_were_not_there():
    """The same tokens, once as samples of their own and once behind tokens that do not count."""
    model, batch = tiny_model("mixtral"), samples(3, 9, documents=False)
    length = batch.input_ids_BT.shape[1]
    packed = Batch(batch.input_ids_BT.reshape(1, -1), batch.position_ids_BT.reshape(1, -1), (0,))
    counts = torch.zeros(1, 3 * length, dtype=torch.bool)
    counts[:, length : 2 * length] = True
    alone = Batch(batch.input_ids_BT[1:2], batch.position_ids_BT[1:2], (1,))
    expected = observed(model, alone, Tokens(alone.input_ids_BT, alone.position_ids_BT))
    found = observed(model, packed, Tokens(packed.input_ids_BT, packed.position_ids_BT, counts))
    for name, tensor in expected.items():
        rtol = 1e-3 if name == "ffn.flap" else 1e-4  # a variance, in which large means cancel
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=1e-6, msg=name)


def observed(model, batch, tokens):
    family = family_of(model.config)
    observer = Experts(family, family.axis_sizes(model.config), Part(range(LAYERS), True), True)
    handles = observer.watch(model, tokens)
    with torch.no_grad():
        model(batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False)
    for handle in handles:
        handle.remove()
    return observer.scores()


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@EVERY_MIXTURE
def test_a_watched_model_computes_what_it_computes_unwatched(model_type, implementation):
    model, batch = mixture(model_type), samples()
    model.set_experts_implementation(implementation)
    stock = logits_of(model, batch)
    with watching(model, batch):
        watched = logits_of(model, batch)
    assert (watched - stock).norm() <= 1e-6 * stock.norm()
    assert torch.equal(logits_of(model, batch), stock), "the module is its own again"


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_in_bf16_a_watched_module_rounds_no_more_than_the_stock_one(implementation):
    model, batch = tiny_model("mixtral"), samples()
    module, hidden = model.model.layers[0].mlp, torch.randn(5, TOKENS, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = module(hidden.bfloat16().float())
        model.to(torch.bfloat16).set_experts_implementation(implementation)
        stock = module(hidden.bfloat16())
        with watching(model, batch):
            watched = module(hidden.bfloat16())
    assert watched.dtype == stock.dtype
    assert (watched - exact).norm() <= 1.05 * (stock - exact).norm()


def logits_of(model, batch):
    with torch.no_grad():
        return model(batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False).logits


@contextmanager
def watching(model, batch):
    family = family_of(model.config)
    observer = Experts(family, family.axis_sizes(model.config), Part(range(LAYERS), True))
    handles = observer.watch(model, Tokens(batch.input_ids_BT, batch.position_ids_BT))
    yield
    for handle in handles:
        handle.remove()


def test_each_expert_is_computed_once():
    module = tiny_model("mixtral").model.layers[0].mlp.experts
    chosen = torch.tensor([[0, 3], [3, 5], [3, 0]])
    with torch.no_grad():
        routed = list(each_expert(module, torch.randn(3, 32), chosen, torch.rand(3, 2)))
    assert [(r.expert, r.token_R.tolist()) for r in routed] == [(0, [0, 2]), (3, [0, 1, 2]), (5, [1])]


@EVERY_MIXTURE
def test_magnitude_of_experts_and_of_their_neurons(model_type):
    model = tiny_model(model_type)
    shape = Shape.of(family_of(model.config), model.config)
    scores = magnitude(hf.stored_tensors(model, shape.tensors()).__getitem__, shape)
    for norm in ("l1", "l2"):
        p = 1 if norm == "l1" else 2
        of_experts, neurons = (scores.select(axis, Magnitude(norm=norm)) for axis in ("expert", "ffn"))
        assert of_experts.shape == (LAYERS, EXPERTS)
        assert neurons.shape == (LAYERS, EXPERTS, NEURONS)
        for i, e in itertools.product(range(LAYERS), range(EXPERTS)):
            layer = model.model.layers[i]
            module, row = experts(layer, model_type), router(layer, model_type).weight[e]
            (gate, up), written = gate_up(module, e), down(module, e)
            whole = torch.cat([gate.flatten(), up.flatten(), written.flatten(), row])
            torch.testing.assert_close(of_experts[i, e], whole.norm(p), rtol=1e-5, atol=0)
            by_neuron = torch.cat([gate, up, written.T], dim=1).norm(p, dim=1)
            torch.testing.assert_close(neurons[i, e], by_neuron, rtol=1e-5, atol=0)


def test_random_scores_differ_between_experts(case):
    scores = Scores(case("mixtral")[0].by_name)
    neurons, experts = scores.select("ffn", Random(seed=1)), scores.select("expert", Random(seed=1))
    assert neurons.shape == (LAYERS, EXPERTS, NEURONS)
    assert experts.shape == (LAYERS, EXPERTS)
    assert len(neurons.unique()) == neurons.numel()
