"""Importance against formulas written out as loops, on activations captured by hand-named modules."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from minitron_cli.checkpoint import document_masks, hf
from minitron_cli.decoder import decoder_of
from minitron_cli.importance.layer_removal import evenly, starts
from minitron_cli.importance.magnitude import magnitude
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.shape import Shape
from minitron_cli.scores.metric import Activation
from tests.anatomy import anatomy
from tests.quick import BY_PLACE, CARRYING, each_family
from tests.tiny import tiny_model
from tests.unit.importance.calibration import SAMPLES, TOKENS, samples, score, split

DENSE = sorted(name for name, family in FAMILIES.items() if "expert" not in family.sizes)
EACH_DENSE_FAMILY = each_family(n for n in DENSE if not FAMILIES[n].layer_kinds)  # of the others: test_experts
HOW = ("mean", "l2", "var")
HEADS, HEAD_DIM = 8, 8


def captured(model, batches):
    """axis -> hook -> [sample][token][channel], as Python floats, from forwards of the whole model."""
    seen = {"head": {}, "ffn": {}, "hidden": {}}
    handles = []

    def keep(axis, name, module, of_input):
        def hook(_, inputs, output):
            seen[axis].setdefault(name, []).extend((inputs[0] if of_input else output).double().tolist())

        handles.append(module.register_forward_hook(hook))

    for i, layer in enumerate(model.model.layers):
        keep("head", i, layer.self_attn.o_proj, True)
        keep("ffn", i, layer.mlp.down_proj, True)
        keep("hidden", f"{i} in", layer.input_layernorm, False)
        keep("hidden", f"{i} mid", layer.post_attention_layernorm, False)
    keep("hidden", "last", model.model.norm, False)
    with torch.no_grad():
        for batch in batches:
            forward(model, batch)
    for handle in handles:
        handle.remove()
    for i, heads in seen["head"].items():
        seen["head"][i] = [[head_norms(token) for token in sample] for sample in heads]
    return seen


def forward(model, batch, **options):
    # With a cache, transformers no longer sees from the positions where documents start.
    return model(batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False, **options)


def head_norms(features):
    return [math.sqrt(sum(features[h * HEAD_DIM + d] ** 2 for d in range(HEAD_DIM))) for h in range(HEADS)]


def aggregate(values, how):
    n = len(values)
    if how == "mean":
        return sum(abs(x) for x in values) / n
    if how == "l2":
        return math.sqrt(sum(x * x for x in values))
    mean = sum(values) / n
    return sum((x - mean) ** 2 for x in values) / n


def channel_scores(activations, batch_how, sequence_how):
    """[channel] of one hook: over the tokens of each sample first, then over the samples."""
    assert len(activations) == SAMPLES
    assert len(activations[0]) == TOKENS
    return [
        aggregate([aggregate([token[c] for token in sample], sequence_how) for sample in activations], batch_how)
        for c in range(len(activations[0][0]))
    ]


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def case(request):
    """What a model's calibration gave, and what its activations were."""
    model = tiny_model("llama").to(request.param)
    with torch.no_grad():
        model.model.norm.weight.neg_()  # so that an abs matters in every mean
    batches = split(samples(), [2, 3])
    return score(model, batches, layer_removal=False), captured(model, batches)


@pytest.mark.parametrize("axis", ["head", "ffn"])
def test_each_layer_is_scored_as_the_formula_says(case, axis, subtests):
    scores, activations = case
    for batch, sequence in itertools.product(HOW, HOW):
        with subtests.test(batch=batch, sequence=sequence):
            expected = [channel_scores(activations[axis][i], batch, sequence) for i in range(4)]
            found = scores.activation(axis, batch, sequence)
            torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-7)


def test_hidden_channels_are_scored_norm_by_norm_then_summed(case, subtests):
    scores, activations = case
    for batch, sequence in itertools.product(HOW, HOW):
        with subtests.test(batch=batch, sequence=sequence):
            by_norm = [channel_scores(a, batch, sequence) for a in activations["hidden"].values()]
            assert len(by_norm) == 9
            expected = torch.tensor(by_norm, dtype=torch.float64).sum(0).float()
            torch.testing.assert_close(scores.activation("hidden", batch, sequence), expected, rtol=1e-4, atol=1e-7)


@EACH_DENSE_FAMILY
def test_neurons_may_be_scored_before_the_activation_function(model_type):
    model, batch, seen = tiny_model(model_type), samples(), []
    for layer in anatomy(model_type).layers(model):
        function = next(
            part for part in layer.get_submodule(anatomy(model_type).mlp).children() if not isinstance(part, nn.Linear)
        )
        function.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    scores = score(model, split(batch, [2, 3]), pre_activation=True, layer_removal=False)
    by_layer = [torch.cat([seen[i], seen[i + 4]]).double() for i in range(4)]
    factor = getattr(model.config, "mlp_multipliers", (1,))[0]  # Falcon-H1 scales all neurons alike on the way
    expected = torch.stack([(x / factor).abs().mean(1).square().sum(0).sqrt() for x in by_layer])
    found = scores.select("ffn", Activation(neuron="pre_activation"))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    assert not torch.allclose(found, scores.select("ffn", Activation()), rtol=0.1)
    assert torch.equal(scores.select("head", Activation(neuron="pre_activation")), scores.activation("head"))


@each_family()
def test_block_importance_is_one_minus_the_mean_cosine(model_type, subtests):
    for dtype in (torch.float32, torch.bfloat16):
        with subtests.test(dtype=dtype):
            check_block_importance(model_type, tiny_model(model_type).to(dtype), samples())


def check_block_importance(model_type, model, batch):
    document_masks.keep_documents_apart(model)
    last = []
    norm = decoder_of(model).get_submodule(anatomy(model_type).final_norm)
    handle = norm.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
    with torch.no_grad():
        states = forward(model, batch, output_hidden_states=True).hidden_states
    handle.remove()
    states = [*states[:-1], last[0]]  # transformers gives the last one after the final norm
    cosines = [F.cosine_similarity(a.double(), b.double(), dim=-1).mean() for a, b in itertools.pairwise(states)]
    found = score(model, [batch]).layers("block_importance")
    torch.testing.assert_close(found.double(), 1 - torch.stack(cosines), rtol=1e-5, atol=1e-6)


def without_layer(model, i):
    """A copy that has lost one layer, cut the way a user of transformers would."""
    model, parts = copy.deepcopy(model), anatomy(model.config.model_type)
    del parts.layers(model)[i]
    for index, layer in enumerate(parts.layers(model)):
        for module in (m for m in layer.modules() if hasattr(m, "layer_idx")):
            module.layer_idx = index
    model.config.num_hidden_layers -= 1
    if vars(model.config).get("layer_types"):  # Jamba derives it
        model.config.layer_types = [t for j, t in enumerate(model.config.layer_types) if j != i]
    return model


@torch.no_grad()
def mean_nll(model, batch):
    """Over the tokens of every document, each run on its own, from full logits."""
    losses = []
    for ids_T, positions_T in zip(batch.input_ids_BT, batch.position_ids_BT, strict=True):
        starts = (positions_T == 0).nonzero().flatten().tolist()
        for start, stop in zip(starts, [*starts[1:], len(ids_T)], strict=True):
            document = ids_T[None, start:stop]
            logits = model(document, use_cache=False).logits[0, :-1].double()
            losses.append(F.cross_entropy(logits, document[0, 1:], reduction="none"))
    return torch.cat(losses).mean()


IN_WHOLE_SAMPLES = BY_PLACE | CARRYING
"""Families in which a document in a sample depends on those before it, so that each sample here is one."""


@each_family()
def test_layer_removal_is_the_perplexity_of_a_model_without_the_layer(model_type):
    model, batch = tiny_model(model_type), samples(tokens=25, documents=model_type not in IN_WHOLE_SAMPLES)
    scores = score(model, split(batch, [2, 3]))
    parent, expected = mean_nll(model, batch), torch.stack([mean_nll(without_layer(model, i), batch) for i in range(4)])
    torch.testing.assert_close(scores.layers("nll"), expected, rtol=1e-5, atol=1e-5)
    assert scores.parent_nll == pytest.approx(parent.item(), rel=1e-5)
    torch.testing.assert_close(scores.layers("perplexity"), expected.exp() - parent.exp(), rtol=1e-3, atol=1e-2)


@pytest.mark.slow
def test_the_standard_error_is_that_of_leaving_samples_out():
    """Jackknife: the same from losses that were computed again without each sample, up to terms of its bias."""
    model, batch = tiny_model("llama"), samples(6, tokens=25)
    with torch.no_grad():  # perplexities near 64, not of a random model's 10^5: there the jackknife is far from linear
        model.lm_head.weight.mul_(0.05)

    def increases(rows):
        part = dataclasses.replace(
            batch, input_ids_BT=batch.input_ids_BT[rows], position_ids_BT=batch.position_ids_BT[rows]
        )
        without = torch.stack([mean_nll(without_layer(model, i), part) for i in range(4)])
        return without.exp() - mean_nll(model, part).exp()

    left_out = torch.stack([increases([j for j in range(6) if j != i]) for i in range(6)])
    expected = ((left_out - left_out.mean(0)).square().sum(0) * 5 / 6).sqrt()
    found = score(model, split(batch, [4, 2])).by_name["layer.perplexity_error"]
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)


def test_fewer_positions_are_the_same_ones_with_and_without_a_layer():
    model, batch = tiny_model("llama"), samples(tokens=25, documents=False)
    kept_N = evenly(torch.ones(5, 24, dtype=torch.bool), 6, starts(batch.input_ids_BT))

    def loss(model):
        logits = model(batch.input_ids_BT).logits[:, :-1].double()
        nll_NT = F.cross_entropy(logits.transpose(1, 2), batch.input_ids_BT[:, 1:], reduction="none")
        return nll_NT[:3][kept_N[:3]].mean()

    with torch.no_grad():
        expected = torch.stack([loss(without_layer(model, i)) for i in range(4)])
        parent = loss(model)
    scores = score(model, split(batch, [2, 3]), removal_samples=3, removal_positions=6)
    torch.testing.assert_close(scores.layers("nll"), expected, rtol=1e-5, atol=1e-5)
    assert scores.parent_nll == pytest.approx(parent.item(), rel=1e-5)


@EACH_DENSE_FAMILY
def test_magnitude_is_the_norm_of_the_rows_and_columns_of_a_channel(model_type, subtests):
    for tied in (False, True):
        with subtests.test(tied=tied):
            check_magnitude(model_type, tiny_model(model_type, tie_word_embeddings=tied))


def check_magnitude(model_type, model):
    shape = Shape.of(family_of(model.config), model.config)
    scores = magnitude(hf.stored_tensors(model, shape.tensors()).__getitem__, shape)
    parts = anatomy(model_type)
    matrices = {name: p.detach().double() for name, p in model.named_parameters() if p.ndim == 2}

    def head(i, h):
        attention = f"{parts.decoder}.layers.{i}.{parts.attention}"
        output = matrices[f"{attention}.{parts.output}.weight"]
        size = output.shape[1] // HEADS
        # of GPT-NeoX a head's query, key and value are side by side; of Phi 3 all queries come first
        made, rows = {"gpt_neox": ("query_key_value", 3 * size), "phi3": ("qkv_proj", size)}.get(
            model_type, ("q_proj", size)
        )
        produced = matrices[f"{attention}.{made}.weight"][h * rows : (h + 1) * rows]
        return [produced, output[:, h * size : (h + 1) * size]]

    def neuron(i, c):
        mlp = f"{parts.decoder}.layers.{i}.{parts.mlp}."
        down = f"{mlp}{parts.down}.weight"
        rows = [m[c::48] for name, m in matrices.items() if name.startswith(mlp) and name != down]  # gate, then up
        return [*rows, matrices[down][:, c]]

    def hidden(c):
        written = tuple(
            f"{name}.weight" for name in (parts.output, parts.down, *parts.writers)
        )  # others read or are it
        return [m[c] if name.endswith(written) else m[:, c] for name, m in matrices.items()]

    def layer(i):
        return [m for name, m in matrices.items() if f"layers.{i}." in name]

    def norm(parts, p):
        return torch.cat([part.flatten() for part in parts]).norm(p=p).item()

    for name, p in (("l1", 1), ("l2", 2)):
        expected = {
            "head": [[norm(head(i, h), p) for h in range(HEADS)] for i in range(4)],
            "ffn": [[norm(neuron(i, c), p) for c in range(48)] for i in range(4)],
            "hidden": [norm(hidden(c), p) for c in range(32)],
            "layer": [norm(layer(i), p) for i in range(4)],
        }
        for axis, values in expected.items():
            found = scores.by_name[f"{axis}.magnitude={name}"]
            torch.testing.assert_close(found, torch.tensor(values), rtol=1e-5, atol=0)


def without_layers(model, start, stop):
    for i in reversed(range(start, stop)):
        model = without_layer(model, i)
    return model


@pytest.mark.slow
@each_family()
def test_block_removal_is_the_perplexity_of_a_model_without_the_block(model_type, subtests):
    for n in (2, 3):
        with subtests.test(n=n):
            is_packed = model_type not in IN_WHOLE_SAMPLES
            check_block_removal(tiny_model(model_type), samples(tokens=25, documents=is_packed), n)


def check_block_removal(model, batch, n):
    scores = score(model, split(batch, [2, 3]), layer_removal=False, blocks=(n,))
    expected = torch.stack([mean_nll(without_layers(model, i, i + n), batch) for i in range(4 - n + 1)])
    torch.testing.assert_close(scores.layers(f"block_nll={n}"), expected, rtol=1e-5, atol=1e-5)
    change = expected.exp() - mean_nll(model, batch).exp()
    torch.testing.assert_close(scores.layers(f"block_perplexity={n}"), change, rtol=1e-3, atol=1e-2)
