"""Which hidden states are compared, where they are seen, and how far apart they are."""

# B sequence, T token, N counted token, D hidden

import pytest
import torch
from torch import nn

from minitron_cli.distill.hidden import (
    HiddenLosses,
    Norms,
    StatePair,
    capture,
    default_layers,
    hidden_loss,
    projection,
    state_pairs,
)
from minitron_cli.errors import RecipeError
from minitron_cli.model.families import FAMILIES
from tests.unit.distill import small

NORMS = Norms("model.layers.{layer}.input_layernorm", "model.layers.{layer}.post_attention_layernorm", "model.norm")


@pytest.mark.parametrize("model_type", ["granite", "llama", "mistral", "nemotron", "phi3", "qwen2", "qwen3", "smollm3"])
def test_the_norms_of_a_family_are_those_that_a_matrix_reads(model_type: str) -> None:
    assert Norms.of(norms_read(model_type)) == NORMS


def test_a_norm_of_what_a_layer_adds_is_no_state() -> None:
    """Gemma normalises what attention gives before it joins the residual stream; OLMo 2 nothing else."""
    before_mlp = "model.layers.{layer}.pre_feedforward_layernorm"
    assert Norms.of(norms_read("gemma2")) == NORMS._replace(mlp_input=before_mlp)
    with pytest.raises(RecipeError, match=r"needs norms before attention, before the MLP.*drop distill\.hidden"):
        Norms.of(norms_read("olmo2"))


def norms_read(model_type: str) -> list[str]:
    return [norm.removesuffix(".weight") for norm in FAMILIES[model_type].links]


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
    total = hidden_loss(pairs, student, teacher, project, distance, torch.tensor(rows), count=7)
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
    hidden_loss([pair], {"s": student}, {"t": teacher}, project, "mse", torch.arange(3), 3).backward()
    assert student.grad is not None
    assert student.grad.abs().min() > 0
    assert next(project.parameters()).grad is not None
    assert teacher.grad is None


def test_equal_states_of_equal_width_cost_nothing() -> None:
    project = projection(4, 4, seed=0)
    assert isinstance(project, nn.Identity)
    states = {"s": torch.randn(1, 3, 4)}
    for distance in ("cosine", "mse"):
        loss = hidden_loss([StatePair("s", "s")], states, states, project, distance, torch.arange(3), 3)
        assert loss.item() == pytest.approx(0, abs=1e-6)


def test_the_projection_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = projection(4, 6, seed=3).weight
    torch.manual_seed(2)
    assert torch.equal(first, projection(4, 6, seed=3).weight)
    assert not torch.equal(first, projection(4, 6, seed=4).weight)
