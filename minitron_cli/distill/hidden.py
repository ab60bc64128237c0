"""Losses between the hidden states of teacher and student: which states, seen where, and how far apart.

States are seen at the outputs of norms, whose module names the caller gives: this knows no family.
"""

# B sequence, T token, N counted token, D hidden

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from minitron_cli.distill.config import HiddenLosses
from minitron_cli.errors import RecipeError


class Norms(NamedTuple):
    """The module names of a family's norms, `{layer}` standing for the layer."""

    block_input: str
    mlp_input: str
    final: str

    @classmethod
    def of(cls, templates: Iterable[str]) -> "Norms":
        """From the norms that a matrix reads, in the order of the links: a layer's two, and the final one."""
        templates = list(templates)
        layered = [template for template in templates if "{layer}" in template]
        final = [template for template in templates if "{layer}" not in template]
        if len(layered) != 2 or len(final) != 1:
            raise RecipeError(
                "distill.hidden needs norms before attention, before the MLP and at the end, "
                f"not {', '.join(templates)}; drop distill.hidden"
            )
        return cls(*layered, *final)


class StatePair(NamedTuple):
    """One hidden state of each model, as names of the modules that put it out."""

    teacher: str
    student: str


def state_pairs(config: HiddenLosses, norms: Norms, teacher_layers: int, student_layers: int) -> tuple[StatePair, ...]:
    """Every pair of states that `config` compares; none where layers are wanted but depth was not cut."""
    layers = config.layers
    if layers is None:
        layers = default_layers(teacher_layers, student_layers)
    for teacher, student in layers:
        if not (0 <= teacher < teacher_layers and 0 <= student < student_layers):
            raise RecipeError(
                f"distill.hidden.layers: ({teacher}, {student}) is outside the teacher's {teacher_layers} "
                f"or the student's {student_layers} layers, which count from 0; correct the pair"
            )
    return tuple(
        StatePair(_module(norms, state, teacher, teacher_layers), _module(norms, state, student, student_layers))
        for state in config.states
        for teacher, student in ([(0, 0)] if state == "embedding" else layers)
    )


def default_layers(teacher_layers: int, student_layers: int) -> tuple[tuple[int, int], ...]:
    """The last layer but two of both, if depth was cut (Muralidharan et al. 2024, sec. 3: 29 of 32 with 13 of 16)."""
    if teacher_layers == student_layers:
        return ()
    return ((max(0, teacher_layers - 3), max(0, student_layers - 3)),)


def _module(norms: Norms, state: str, layer: int, layers: int) -> str:
    if state == "mlp_input":
        return norms.mlp_input.format(layer=layer)
    if state == "block_output":
        layer += 1  # a block's output is normalised by what follows it
    return norms.block_input.format(layer=layer) if layer < layers else norms.final


@contextmanager
def capture(model: nn.Module, modules: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that each forward pass inside fills with the outputs of the named modules."""
    states: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            states[name] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in sorted(set(modules))]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def projection(student_hidden: int, teacher_hidden: int, seed: int) -> nn.Module:
    """Student to teacher width, shared by all states: a linear layer, or nothing where the widths agree."""
    if student_hidden == teacher_hidden:
        return nn.Identity()
    linear = nn.Linear(student_hidden, teacher_hidden, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.normal_(std=student_hidden**-0.5, generator=generator)  # keeps the states' scale
    return linear


def hidden_loss(
    pairs: Sequence[StatePair],
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    project: nn.Module,
    distance: Literal["cosine", "mse"],
    rows_N: Tensor,
    count: int,
) -> Tensor:
    """The distances of all pairs added up, over the tokens `rows_N` of the flattened batch, divided by `count`."""
    distances = []
    for pair in pairs:
        teacher_ND = teacher[pair.teacher].detach().flatten(0, 1).index_select(0, rows_N).float()
        student_ND = project(student[pair.student].flatten(0, 1).index_select(0, rows_N)).float()
        distances.append(_distance(student_ND, teacher_ND, distance).sum() / count)
    return torch.stack(distances).sum()


def _distance(student_ND: Tensor, teacher_ND: Tensor, distance: Literal["cosine", "mse"]) -> Tensor:
    if distance == "cosine":
        return 1 - nn.functional.cosine_similarity(student_ND, teacher_ND, dim=-1)
    return (student_ND - teacher_ND).square().mean(-1)
