"""Which hidden states are compared, where they are seen, and how far apart they are."""

# B sequence, T token, N counted token, D hidden

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from minitron_cli.data.batches import batch, training_ids
from minitron_cli.decoder import decoder_of
from minitron_cli.distill import attention_relation
from minitron_cli.distill.attention_relation import relation_loss
from minitron_cli.distill.hidden_state_losses import (
    HiddenLosses,
    Norms,
    StatePair,
    capture,
    default_layers,
    hidden_loss,
    projection,
    relation_pairs,
    shared_norms,
    state_pairs,
    vectors,
)
from minitron_cli.distill.targets import targets
from minitron_cli.errors import RecipeError
from minitron_cli.model.families import FAMILIES, family_of
from minitron_cli.model.layout import parse
from minitron_cli.model.shape import Shape
from tests import tiny
from tests.quick import every_family
from tests.unit.distill import small

NORMS = Norms("model.layers.{layer}.input_layernorm", "model.layers.{layer}.post_attention_layernorm", "model.norm")

NONE = torch.zeros(0)  # of documents only relations need to know


@pytest.mark.parametrize("model_type", ["granite", "llama", "mistral", "nemotron", "phi3", "qwen2", "qwen3", "smollm3"])
def test_the_norms_of_a_family_are_those_that_a_matrix_reads(model_type: str) -> None:
    assert Norms.of(norms_read(model_type)) == NORMS


def test_a_norm_of_what_a_layer_adds_is_no_state() -> None:
    """Gemma normalizes what attention gives before it joins the residual stream; OLMo 2 nothing else."""
    before_mlp = "model.layers.{layer}.pre_feedforward_layernorm"
    assert Norms.of(norms_read("gemma2")) == NORMS._replace(mlp_input=before_mlp)
    with pytest.raises(RecipeError, match=r"needs norms before attention, before the MLP.*drop distill\.hidden"):
        Norms.of(norms_read("olmo2"))


def norms_read(model_type: str) -> list[str]:
    return [norm.removesuffix(".weight") for norm in FAMILIES[model_type].links]


def test_models_of_two_families_are_compared_if_their_modules_have_the_same_names() -> None:
    states, relations = HiddenLosses(states=("block_output",)), HiddenLosses(states=("attention_relation",))
    assert shared_norms(states, FAMILIES["llama"], FAMILIES["qwen2"]) == NORMS
    assert shared_norms(relations, FAMILIES["llama"], FAMILIES["mistral"]) == NORMS
    for config, teacher, student in (
        (states, "gpt_neox", "llama"),
        (states, "gemma", "gemma2"),  # whose norm of the other's name is after attention
        (relations, "llama", "phi3"),  # which makes queries, keys and values with one matrix
    ):
        with pytest.raises(RecipeError, match=rf"a {teacher} teacher and a {student} student have others: drop"):
            shared_norms(config, FAMILIES[teacher], FAMILIES[student])


def test_a_family_with_other_norms_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"drop distill\.hidden"):
        Norms.of([*NORMS, "model.layers.{layer}.pre_feedforward_layernorm"])


def test_the_papers_layer_map() -> None:
    """Teacher 0-31, student 0-15: 29 with 13 (Muralidharan et al. 2024, table 17)."""
    assert default_layers(32, 16) == ((29, 13),)
    assert default_layers(32, 32) == ()
    assert default_layers(4, 2) == ((1, 0),)


def test_states_are_seen_where_the_next_norm_puts_them_out() -> None:
    config = HiddenLosses(states=("block_output", "mlp_input", "embedding"), layers=((3, 1), (2, 0)))
    assert state_pairs(config, NORMS, 4, 2) == (
        StatePair("model.norm", "model.norm"),
        StatePair("model.layers.3.input_layernorm", "model.layers.1.input_layernorm"),
        StatePair("model.layers.3.post_attention_layernorm", "model.layers.1.post_attention_layernorm"),
        StatePair("model.layers.2.post_attention_layernorm", "model.layers.0.post_attention_layernorm"),
        StatePair("model.layers.0.input_layernorm", "model.layers.0.input_layernorm"),
    )


def test_without_a_depth_cut_only_the_embedding_is_left() -> None:
    assert state_pairs(HiddenLosses(states=("block_output",)), NORMS, 4, 4) == ()
    assert [pair.student for pair in state_pairs(HiddenLosses(), NORMS, 4, 4)] == ["model.layers.0.input_layernorm"]


@pytest.mark.parametrize("pair", [(4, 0), (0, 2), (-1, 0)])
def test_a_layer_that_does_not_exist_is_refused(pair: tuple[int, int]) -> None:
    with pytest.raises(RecipeError, match="count from 0"):
        state_pairs(HiddenLosses(layers=(pair,)), NORMS, 4, 2)


def test_capture_sees_what_transformers_reports() -> None:
    """hidden_states[i] is layer i's input, before its norm; the last is the final norm's output."""
    model = small.llama(0, layers=3)
    ids_BT = torch.arange(10).reshape(2, 5)
    names = [NORMS.block_input.format(layer=i) for i in range(3)] + [NORMS.final]
    with capture(model, names) as states:
        output = model(ids_BT, output_hidden_states=True)
    for i in range(3):
        norm = model.get_submodule(names[i])
        torch.testing.assert_close(states[names[i]], norm(output.hidden_states[i]))
    torch.testing.assert_close(states[NORMS.final], output.hidden_states[3])
    states.clear()
    model(ids_BT)
    assert not states, "the hooks are gone"


@pytest.mark.parametrize("distance", ["cosine", "mse"])
def test_the_loss_against_its_formula(distance: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student = {name: torch.randn(2, 3, 4, generator=generator) for name in "ab"}
    teacher = {name: torch.randn(2, 3, 6, generator=generator) for name in "xy"}
    project, rows = projection(4, 6, seed=0), [0, 2, 5]
    pairs = [StatePair("x", "a"), StatePair("y", "b")]
    total = hidden_loss(pairs, student, teacher, project, distance, torch.tensor(rows), 7, NONE)
    expected = 0.0
    for t, s in (("x", "a"), ("y", "b")):
        for row in rows:
            u = project(student[s][row // 3, row % 3])
            v = teacher[t][row // 3, row % 3]
            apart = 1 - u @ v / u.norm() / v.norm() if distance == "cosine" else ((u - v) ** 2).mean()
            expected += apart.item() / 7
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_gradients_reach_student_and_projection_and_not_the_teacher() -> None:
    student, teacher = torch.randn(1, 3, 4, requires_grad=True), torch.randn(1, 3, 6, requires_grad=True)
    project = projection(4, 6, seed=0)
    pair = StatePair("t", "s")
    hidden_loss([pair], {"s": student}, {"t": teacher}, project, "mse", torch.arange(3), 3, NONE).backward()
    assert student.grad is not None
    assert student.grad.abs().min() > 0
    assert next(project.parameters()).grad is not None
    assert teacher.grad is None


def test_equal_states_of_equal_width_cost_nothing() -> None:
    project = projection(4, 4, seed=0)
    assert isinstance(project, nn.Identity)
    states = {"s": torch.randn(1, 3, 4)}
    for distance in ("cosine", "mse"):
        loss = hidden_loss([StatePair("s", "s")], states, states, project, distance, torch.arange(3), 3, NONE)
        assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_projection_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = projection(4, 6, seed=3).weight
    torch.manual_seed(2)
    assert torch.equal(first, projection(4, 6, seed=3).weight)
    assert not torch.equal(first, projection(4, 6, seed=4).weight)


@pytest.mark.parametrize("student_hidden", [16, 400])
def test_the_projection_keeps_the_scale_of_states(student_hidden: int) -> None:
    """A sum of n terms of variance 1/n: states of unit variance are projected to unit variance, whatever the width."""
    states_ND = torch.randn(4000, student_hidden, generator=torch.Generator().manual_seed(0))
    projected_NE = projection(student_hidden, 500, seed=0)(states_ND)
    assert projected_NE.std().item() == pytest.approx(1, rel=0.05)


def test_the_projection_is_saved_to_resume_and_not_with_the_student(tmp_path: Path) -> None:
    config = HiddenLosses(layers=((2, 1),))
    settings = small.configured(hidden=config.model_dump(), steps=2, warmup_steps=0)
    student, _ = small.run(tmp_path, settings, pairs=state_pairs(config, NORMS, 3, 2), held_out=None)
    saved = b"".join(file.read_bytes() for file in tmp_path.rglob("*.safetensors"))
    assert b"projection.weight" in saved
    assert not any("projection" in name for name in student.state_dict())


# Attention relations


def relations(vectors_TW: Tensor, heads: int, document: Sequence[int]) -> list[list[Tensor]]:
    """By head and token: the distribution over the tokens so far of its document (Wang et al. 2021, eq. 6)."""
    result = []
    for own_TD in vectors_TW.chunk(heads, -1):
        alike_TT = own_TD @ own_TD.T / own_TD.shape[-1] ** 0.5
        seen = [[j for j in range(i + 1) if document[j] == document[i]] for i in range(len(document))]
        result.append([alike_TT[i, seen[i]].softmax(-1) for i in range(len(document))])
    return result


def expected_relation_loss(
    student_BTW: Tensor, teacher_BTW: Tensor, heads: int, counted_BT: Tensor, document_BT: Tensor
) -> Tensor:
    total = student_BTW.new_zeros(())
    for b, document in enumerate(document_BT.tolist()):
        pairs = zip(relations(student_BTW[b], heads, document), relations(teacher_BTW[b], heads, document), strict=True)
        for student, teacher in pairs:
            for i in counted_BT[b].nonzero()[:, 0].tolist():
                total = total + (teacher[i] * (teacher[i] / student[i]).log()).sum() / heads
    return total


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("chunk_bytes", [1, 3 * 7 * 8 * 2, 1 << 20])
def test_relations_against_their_formula(heads: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attention_relation.CHUNK_BYTES, "cpu", chunk_bytes)
    student_BTW, teacher_BTW = normal(2, 7, 6, seed=0).requires_grad_(), normal(2, 7, 12, seed=1).requires_grad_()
    document_BT = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 2, 3]])
    counted_BT = torch.tensor([[1, 1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1, 0]], dtype=torch.bool)
    ours = 3 * relation_loss(student_BTW, teacher_BTW, heads, counted_BT, document_BT)
    theirs = 3 * expected_relation_loss(student_BTW, teacher_BTW.detach(), heads, counted_BT, document_BT)
    torch.testing.assert_close(ours, theirs)
    found, expected = (torch.autograd.grad(loss, student_BTW)[0] for loss in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    assert expected.norm() > 0.1
    ours = relation_loss(student_BTW, teacher_BTW, heads, counted_BT, document_BT)
    assert torch.autograd.grad(ours, teacher_BTW, allow_unused=True) == (None,)


def test_packed_documents_have_the_relations_that_they_have_alone() -> None:
    student_TW, teacher_TW = normal(9, 4, seed=0), normal(9, 4, seed=1)

    def loss(*parts: slice) -> Tensor:
        """Of sequences with one document each."""
        whole = [
            relation_loss(s[None], t[None], 2, torch.ones(1, len(s), dtype=torch.bool), torch.zeros(1, len(s)))
            for s, t in ((student_TW[p], teacher_TW[p]) for p in parts)
        ]
        return torch.stack(whole).sum()

    packed = relation_loss(
        student_TW[None],
        teacher_TW[None],
        2,
        torch.ones(1, 9, dtype=torch.bool),
        (torch.arange(9) >= 4).long()[None],
    )
    torch.testing.assert_close(packed, loss(slice(0, 4), slice(4, 9)))
    assert (packed - loss(slice(0, 9))).abs() > 0.01


def test_queries_keys_and_values_are_read_off_the_table() -> None:
    sizes = {"layer": 4, "head": 4, "kv_head": 2, "head_dim": 3}
    config = HiddenLosses(states=("attention_relation",), layers=((3, 1),))

    def pairs(model_type: str) -> list[tuple[str, str]]:
        found = relation_pairs(config, shape(model_type, sizes), shape(model_type, sizes | {"layer": 2}))
        return [(pair.teacher.split("layers.")[1], pair.student.split("layers.")[1]) for pair in found]

    assert pairs("llama") == [(f"3.self_attn.{x}_proj", f"1.self_attn.{x}_proj") for x in "qkv"]
    assert pairs("phi3") == [("3.self_attn.qkv_proj", "1.self_attn.qkv_proj")]
    assert pairs("gpt_neox") == [("3.attention.query_key_value", "1.attention.query_key_value")]
    llama = shape("llama", sizes)
    assert relation_pairs(HiddenLosses(layers=((3, 1),)), llama, llama) == ()
    assert relation_pairs(HiddenLosses(states=("attention_relation",)), llama, llama) == ()


def shape(model_type: str, sizes: dict[str, int]) -> Shape:
    return Shape(FAMILIES[model_type], sizes, (), {})


LATENT = {"deepseek_v2", "deepseek_v3", "glm4_moe_lite"}


@pytest.mark.parametrize("model_type", sorted(LATENT))
def test_latents_have_no_relations(model_type: str) -> None:
    with pytest.raises(RecipeError, match=r"attention_relation needs queries.*of latents: choose other states"):
        relation_pairs(HiddenLosses(states=("attention_relation",)), shape(model_type, {}), shape(model_type, {}))


@every_family(sorted(FAMILIES.keys() - LATENT))
def test_every_family_has_three_relations(model_type: str) -> None:
    config = HiddenLosses(states=("attention_relation",), layers=((0, 0),))
    sizes = {"layer": 4, "head": 4, "kv_head": 2, "head_dim": 3}
    found = 0
    for pair in relation_pairs(config, shape(model_type, sizes), shape(model_type, sizes)):
        assert pair.relation is not None
        dim = parse(pair.relation.layout).dims[0]
        width = parse(pair.relation.layout).shape({**sizes, "hidden": 1})[0]
        found += sum(1 for _ in vectors(torch.zeros(1, width), dim, sizes))
    assert found == 3


HYBRID = ("bamba", "granitemoehybrid", "jamba", "lfm2", "qwen3_5_text", "qwen3_next")


@pytest.mark.parametrize("model_type", HYBRID)
def test_relations_are_those_of_layers_with_attention(model_type: str) -> None:
    """By default of those nearest to the usual pair; a layer without attention that is named is refused."""
    model = tiny.tiny_model(model_type)
    whole = Shape.of(family_of(model.config), model.config)
    attending = [i for i, layer in enumerate(decoder_of(model).layers) if getattr(layer, "self_attn", None)]
    lacking = next(i for i in range(whole.sizes["layer"]) if i not in attending)
    few = whole.of_layers([lacking, attending[0]])
    default = relation_pairs(HiddenLosses(states=("attention_relation",)), whole, few)
    for pair in default:
        model.get_submodule(pair.teacher)
        assert ".1." in pair.student
    assert default
    for layers, model_name in (((lacking, 1), "teacher"), ((attending[0], 0), "student")):
        config = HiddenLosses(states=("attention_relation",), layers=(layers,))
        with pytest.raises(RecipeError, match=rf"of the {model_name} has no attention.*; choose among its layers \d"):
            relation_pairs(config, whole, few)
    none = whole.of_layers([lacking])
    with pytest.raises(RecipeError, match=r"no layer of the student has attention.*; choose other states"):
        relation_pairs(HiddenLosses(states=("attention_relation",)), whole, none)


def test_vectors_that_share_a_matrix_are_taken_apart_as_transformers_does() -> None:
    sizes = {"head": 4, "kv_head": 2, "head_dim": 3}
    joined = torch.arange(24)[None]
    phi = list(vectors(joined, parse("(head head_dim + kv_head head_dim + kv_head head_dim) hidden").dims[0], sizes))
    for found, expected in zip(phi, joined.split([12, 6, 6], -1), strict=True):  # modeling_phi3.Phi3Attention
        assert torch.equal(found, expected)
    joined = torch.arange(36)[None]
    neox = list(vectors(joined, parse("(head 3 head_dim) hidden").dims[0], sizes))
    for found, expected in zip(neox, joined.view(1, 4, 9).chunk(3, -1), strict=True):  # GPTNeoXAttention
        assert torch.equal(found, expected.flatten(1))


def test_relation_heads_never_split_a_group() -> None:
    config = HiddenLosses(states=("attention_relation",), layers=((0, 0),))
    teacher = {"layer": 2, "head": 32, "kv_head": 8, "head_dim": 4}
    for student, heads in (({"head": 24}, 8), ({"head": 24, "kv_head": 6}, 2)):
        for pair in relation_pairs(config, shape("llama", teacher), shape("llama", teacher | student)):
            assert pair.relation is not None
            assert pair.relation.heads == heads


def test_relations_of_two_models() -> None:
    """Beside the vectors that the models' own matrices make."""
    config = HiddenLosses(states=("attention_relation",), layers=((2, 1),))
    student, teacher = small.student(), small.teacher()
    sizes = [{"layer": layers, "head": 4, "kv_head": 2, "head_dim": 4} for layers in (3, 2)]
    pairs = relation_pairs(config, *(shape("llama", s) for s in sizes))
    settings = small.configured(hidden=config.model_dump(), steps=1, batch_size=2, warmup_steps=0)
    part = batch(small.TinyBlocks(), training_ids(settings.seed, 0, 2, len(small.TinyBlocks())))
    target = targets(part)
    counted_BT = torch.zeros(part.input_ids_BT.shape, dtype=torch.bool)
    counted_BT.view(-1)[target.rows_N] = True
    document_BT = (part.position_ids_BT == 0).cumsum(1)

    def made(model: nn.Module, layer: int) -> list[Tensor]:
        packed = {"position_ids": part.position_ids_BT, "use_cache": False}  # with a cache documents see each other
        output = model(part.input_ids_BT, output_hidden_states=True, **packed)
        block = model.model.layers[layer]
        state = block.input_layernorm(output.hidden_states[layer])
        return [getattr(block.self_attn, f"{x}_proj")(state) for x in "qkv"]

    expected = sum(
        expected_relation_loss(s, t, 2, counted_BT, document_BT)
        for s, t in zip(made(student, 1), made(teacher, 2), strict=True)
    )
    assert isinstance(expected, Tensor)
    _, result = small.run(None, settings, student=small.student(), pairs=pairs, held_out=None)
    assert result.metrics[0]["hidden"] == pytest.approx(expected.item() / len(target.labels_N), rel=1e-4)
