"""Losses between hidden states of teacher and student: which states, captured where, and their distance.

States are captured at the outputs of norms, whose module names the caller gives. Attention relations are computed from
the outputs of the query, key and value matrices, which a family's table lists.
"""

# B sequence, T token, N scored token, D hidden, W width of a matrix's output

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
from minitron_cli.model.shape import Shape


class Norms(NamedTuple):
    """Module names of a family's norms; `{layer}` stands for the layer's number."""

    block_input: str
    mlp_input: str
    final: str

    @classmethod
    def of(cls, templates: Iterable[str]) -> "Norms":
        """From the norms that matrices read, in the links' order. RecipeError unless two per layer and one final."""
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
    """Layout of the output of a matrix that makes queries, keys or values, or several of them side by side."""

    layout: str
    teacher_sizes: dict[str, int]
    student_sizes: dict[str, int]
    heads: int
    """Number of relation heads: the greatest common divisor of both models' key-value heads, so no group is split."""


class StatePair(NamedTuple):
    """One hidden state of each model, as names of the modules that output it."""

    teacher: str
    student: str
    relation: Relation | None = None
    """Layout of the outputs if attention relations are compared; None to compare the states themselves."""


def shared_norms(config: HiddenLosses, teacher: Family, student: Family) -> Norms:
    """Norms of both models. RecipeError if their families name what `config` compares differently."""
    norms, own = (Norms.of(norm.removesuffix(".weight") for norm in family.links) for family in (teacher, student))
    has_relations = "attention_relation" in config.states
    if norms != own or (has_relations and [*_attention(teacher)] != [*_attention(student)]):
        raise RecipeError(
            f"distill.hidden compares modules of the same name, and a {teacher.model_type} teacher and a "
            f"{student.model_type} student have others: drop distill.hidden"
        )
    return norms


def state_pairs(config: HiddenLosses, norms: Norms, teacher_layers: int, student_layers: int) -> tuple[StatePair, ...]:
    """Pairs of states that `config` compares. By default layers are paired only if the student has fewer."""
    layers = _layers(config, teacher_layers, student_layers)
    return tuple(
        StatePair(_module(norms, state, teacher, teacher_layers), _module(norms, state, student, student_layers))
        for state in config.states
        if state != "attention_relation"
        for teacher, student in ([(0, 0)] if state == "embedding" else layers)
    )


def relation_pairs(config: HiddenLosses, teacher: Shape, student: Shape) -> tuple[StatePair, ...]:
    """Pairs of matrices whose outputs' attention relations `config` compares.

    By default layers are paired only if the student has fewer. RecipeError if a family or a layer has no such matrices.
    """
    if "attention_relation" not in config.states:
        return ()
    family = teacher.family
    if "kv_rank" in family.sizes:
        raise RecipeError(
            f"distill.hidden.states: attention_relation needs queries, keys and values that are made of the residual "
            f"stream, and a {family.model_type} model makes them of latents: choose other states"
        )
    heads = math.gcd(teacher.groups, student.groups)
    sizes = dict(teacher.sizes), dict(student.sizes)
    return tuple(
        StatePair(module.format(layer=t), module.format(layer=s), Relation(layout, *sizes, heads))
        for t, s in _layers_with_attention(config, teacher, student)
        for module, layout in _attention(family)
    )


def _layers_with_attention(config: HiddenLosses, teacher: Shape, student: Shape) -> list[tuple[int, int]]:
    """Pairs of layers to compare; by default, of each model the nearest to the usual one that has attention."""
    pairs = _layers(config, teacher.sizes["layer"], student.sizes["layer"])
    if not pairs:
        return []
    attending = {"teacher": _attending("teacher", teacher), "student": _attending("student", student)}
    if config.layers is None:
        return [(_nearest(t, attending["teacher"]), _nearest(s, attending["student"])) for t, s in pairs]
    for pair in pairs:
        for layer, (model, layers) in zip(pair, attending.items(), strict=True):
            if layer not in layers:
                raise RecipeError(
                    f"distill.hidden.layers: layer {layer} of the {model} has no attention for attention_relation to "
                    f"compare; choose among its layers {', '.join(map(str, layers))}"
                )
    return list(pairs)


def _attending(model: str, shape: Shape) -> list[int]:
    """Layers that make queries, keys and values. RecipeError if there is none."""
    modules = [module for module, _ in _attention(shape.family)]
    layers = [i for i in range(shape.sizes["layer"]) if all(shape.family.holds(i, module) for module in modules)]
    if not layers:
        raise RecipeError(
            f"distill.hidden.states: no layer of the {model} has attention for attention_relation to compare; "
            "choose other states"
        )
    return layers


def _nearest(layer: int, layers: Sequence[int]) -> int:
    return min(layers, key=lambda i: abs(i - layer))


def _attention(family: Family) -> Iterator[tuple[str, str]]:
    """Modules that make queries, keys and values from the residual stream, with the layouts of their weights."""
    for template, text in family.tensors.items():
        layout = parse(text)
        if len(layout.dims) != 2 or layout.axes(1) != {"hidden"}:
            continue
        if all("head_dim" in section for section in layout.dims[0]):
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
    """The third-last layers of both models, if the student has fewer (Muralidharan et al. 2024, sec. 3: 29 and 13)."""
    if teacher_layers == student_layers:
        return ()
    return ((max(0, teacher_layers - 3), max(0, student_layers - 3)),)


def _module(norms: Norms, state: str, layer: int, layers: int) -> str:
    if state == "mlp_input":
        return norms.mlp_input.format(layer=layer)
    if state == "block_output":
        layer += 1  # the norm that reads a block's output belongs to the next layer
    return norms.block_input.format(layer=layer) if layer < layers else norms.final


@contextmanager
def capture(model: nn.Module, modules: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Dict that each forward pass within the context fills with the outputs of the named modules."""
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
    """Linear layer from student to teacher width, shared by all states; the identity where widths agree."""
    if student_hidden == teacher_hidden:
        return nn.Identity()
    linear = nn.Linear(student_hidden, teacher_hidden, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        linear.weight.normal_(std=student_hidden**-0.5, generator=generator)  # keeps the variance of states
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
    """Sum of the distances of all pairs over the tokens `rows_N` of the flattened batch, divided by `count`; a scalar.

    `document_BT` numbers the documents of each sequence.
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
    """Sum over the tokens `rows_N`, and over those of queries, keys and values that the matrix makes; a scalar."""
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
    """Queries, keys and values of a matrix, each [..., heads * head_dim], stored one after another or head by head."""
    shapes = [[f if isinstance(f, int) else sizes[f] for f in section] for section in dim]
    pieces = output.split([math.prod(shape) for shape in shapes], -1)
    for piece, section, shape in zip(pieces, dim, shapes, strict=True):
        shaped = piece.unflatten(-1, shape)
        side_by_side = [i for i, f in enumerate(section) if isinstance(f, int)]
        kinds = shaped.unbind(side_by_side[0] - len(section)) if side_by_side else [shaped]
        made = kinds[:1] if len(kinds) == 2 else kinds  # a query with the gate of its output
        yield from (kind.flatten(-2) for kind in made)
