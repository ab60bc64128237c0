"""Losses between the hidden states of teacher and student: which states, seen where, and how far apart.

States are seen at the outputs of norms, whose module names the caller gives, and attention relations at those of the
matrices that make queries, keys and values, which are read off a family's table.
"""

# B sequence, T token, N counted token, D hidden, W width of a matrix's output

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from minitron_cli.distill.attention_relation import relation_loss
from minitron_cli.distill.config import HiddenLosses
from minitron_cli.errors import RecipeError
from minitron_cli.model.family import Family
from minitron_cli.model.layout import Dim, parse


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


class Relation(NamedTuple):
    """What is in the output of a matrix that makes queries, keys or values, or several of them side by side."""

    layout: str
    teacher_sizes: dict[str, int]
    student_sizes: dict[str, int]
    heads: int
    """Relation heads: the most that divide the key-value heads of both, so that a group of heads is never split."""


class StatePair(NamedTuple):
    """One hidden state of each model, as names of the modules that put it out."""

    teacher: str
    student: str
    relation: Relation | None = None
    """Not the states are compared, but which tokens are alike in them."""


def state_pairs(config: HiddenLosses, norms: Norms, teacher_layers: int, student_layers: int) -> tuple[StatePair, ...]:
    """Every pair of states at norms that `config` compares; none where layers are wanted but depth was not cut."""
    layers = _layers(config, teacher_layers, student_layers)
    return tuple(
        StatePair(_module(norms, state, teacher, teacher_layers), _module(norms, state, student, student_layers))
        for state in config.states
        if state != "attention_relation"
        for teacher, student in ([(0, 0)] if state == "embedding" else layers)
    )


def relation_pairs(
    config: HiddenLosses, family: Family, teacher_sizes: Mapping[str, int], student_sizes: Mapping[str, int]
) -> tuple[StatePair, ...]:
    """Every pair of matrices whose outputs' relations `config` compares."""
    if "attention_relation" not in config.states:
        return ()
    sizes = dict(teacher_sizes), dict(student_sizes)
    heads = math.gcd(*(s.get("kv_head", s["head"]) for s in sizes))
    return tuple(
        StatePair(module.format(layer=teacher), module.format(layer=student), Relation(layout, *sizes, heads))
        for teacher, student in _layers(config, sizes[0]["layer"], sizes[1]["layer"])
        for module, layout in _attention(family)
    )


def _attention(family: Family) -> Iterator[tuple[str, str]]:
    """Modules that make queries, keys and values of the residual stream, and their layouts."""
    for template, text in family.tensors.items():
        layout = parse(text)
        of_heads = all("head_dim" in section for section in layout.dims[0])
        if of_heads and len(layout.dims) == 2 and layout.axes(1) == {"hidden"}:
            yield template.removesuffix(".weight"), text


def _layers(config: HiddenLosses, teacher_layers: int, student_layers: int) -> tuple[tuple[int, int], ...]:
    layers = config.layers
    if layers is None:
        layers = default_layers(teacher_layers, student_layers)
    for teacher, student in layers:
        if not (0 <= teacher < teacher_layers and 0 <= student < student_layers):
            raise RecipeError(
                f"distill.hidden.layers: ({teacher}, {student}) is outside the teacher's {teacher_layers} "
                f"or the student's {student_layers} layers, which count from 0; correct the pair"
            )
    return layers


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
    document_BT: Tensor,
) -> Tensor:
    """The distances of all pairs added up, over the tokens `rows_N` of the flattened batch, divided by `count`.

    Tokens with the same number in `document_BT` and the same sequence are of one document.
    """
    losses = []
    for pair in pairs:
        states = student[pair.student], teacher[pair.teacher].detach()
        if pair.relation is None:
            student_ND, teacher_ND = (state.flatten(0, 1).index_select(0, rows_N) for state in states)
            loss = _distance(project(student_ND).float(), teacher_ND.float(), distance).sum()
        else:
            loss = _relations(pair.relation, *states, rows_N, document_BT)
        losses.append(loss / count)
    return torch.stack(losses).sum()


def _distance(student_ND: Tensor, teacher_ND: Tensor, distance: Literal["cosine", "mse"]) -> Tensor:
    if distance == "cosine":
        return 1 - nn.functional.cosine_similarity(student_ND, teacher_ND, dim=-1)
    return (student_ND - teacher_ND).square().mean(-1)


def _relations(
    relation: Relation, student_BTW: Tensor, teacher_BTW: Tensor, rows_N: Tensor, document_BT: Tensor
) -> Tensor:
    """Summed over the counted tokens, and over queries, keys and values as far as the matrix makes them."""
    counted_BT = torch.zeros_like(document_BT, dtype=torch.bool)
    counted_BT.view(-1)[rows_N] = True
    dim = parse(relation.layout).dims[0]
    parts = zip(
        vectors(student_BTW, dim, relation.student_sizes),
        vectors(teacher_BTW, dim, relation.teacher_sizes),
        strict=True,
    )
    return torch.stack([relation_loss(s, t, relation.heads, counted_BT, document_BT) for s, t in parts]).sum()


def vectors(output: Tensor, dim: Dim, sizes: Mapping[str, int]) -> Iterator[Tensor]:
    """Queries, keys, values: each [..., heads * head_dim], whether they lie one after the other or head by head."""
    shapes = [[f if isinstance(f, int) else sizes[f] for f in section] for section in dim]
    pieces = output.split([math.prod(shape) for shape in shapes], -1)
    for piece, section, shape in zip(pieces, dim, shapes, strict=True):
        shaped = piece.unflatten(-1, shape)
        side_by_side = [i for i, f in enumerate(section) if isinstance(f, int)]
        kinds = shaped.unbind(side_by_side[0] - len(section)) if side_by_side else [shaped]
        yield from (kind.flatten(-2) for kind in kinds)
