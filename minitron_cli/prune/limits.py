"""Prunings that a model cannot take, and why. The reasons are facts of its family's table; no family is named here."""

import math
from collections.abc import Callable, Sequence

from minitron_cli.model.shape import Shape


def refusal(parent: Shape, child: Shape, layers: Sequence[int] | None = None) -> str | None:
    """Reason why `parent` cannot become `child`, and what to do instead; None if it can.

    `layers` are the kept layers where the user named those to drop; otherwise the ranking chooses them later.
    """
    if layers is not None:
        child = parent.of_layers(layers).resize(**{a: n for a, n in child.sizes.items() if a != "layer"})
    reasons = (rule(parent, child) for rule in RULES)
    by_depth = _depth(parent, child) if layers is None else _kinds(parent, layers)
    return next((reason for reason in reasons if reason), by_depth)


def _groups(parent: Shape, child: Shape) -> str | None:
    heads, groups, per_group = child.sizes["head"], child.groups, parent.sizes["head"] // parent.groups
    if heads % groups == 0 and heads // groups <= per_group:
        return None
    return f"head={heads} with kv_head={groups}: keep a multiple of kv_head, at most {per_group} a group"


def _not_prunable(parent: Shape, child: Shape) -> str | None:
    for axis, reason in parent.family.not_prunable.items():
        if child.sizes.get(axis) != parent.sizes.get(axis):
            return f"{axis}={child.sizes[axis]}: {reason}; keep {axis}={parent.sizes[axis]} and prune another axis"
    return None


def _hidden_in_wrapper(parent: Shape, child: Shape) -> str | None:
    wrapping, hidden = parent.family.wrapping, child.sizes["hidden"]
    if wrapping is None or not wrapping.hidden_not_prunable or hidden == parent.sizes["hidden"]:
        return None
    return f"hidden={hidden}: in a {wrapping.model_type} model {wrapping.hidden_not_prunable}"


def _layers_with_images(parent: Shape, child: Shape) -> str | None:
    first = first_layers(parent)
    if child.sizes["layer"] >= first:
        return None
    return f"layer={child.sizes['layer']}: {_images(parent)}; keep at least {first}"


def first_layers(parent: Shape) -> int:
    """Number of the first layers that must stay: what an image adds to the stream is added after them."""
    return parent.family.wrapping.first_layers if parent.family.wrapping else 0


def _images(parent: Shape) -> str:
    kind = parent.family.wrapping.model_type if parent.family.wrapping else ""
    return f"a {kind} model adds what it sees to its first {first_layers(parent)} layers"


def _equal_groups(parent: Shape, child: Shape) -> str | None:
    for axis, groups in parent.family.groups.items():
        if child.sizes[axis] % child.sizes[groups]:
            return f"{axis}={child.sizes[axis]}: its {child.sizes[groups]} groups keep equally many; keep a multiple"
    return None


def _hidden_per_head(parent: Shape, child: Shape) -> str | None:
    """Checked before `_hidden_is_multiple`, whose advice would not be enough where hidden / head must stay."""
    before, after = (shape.sizes["hidden"] / shape.sizes["head"] for shape in (parent, child))
    exact = "head_dim" not in parent.family.sizes
    if not parent.keeps_hidden_per_head or (before == after if exact else int(before) == int(after)):
        return None
    hidden, head = child.sizes["hidden"], child.sizes["head"]
    return (
        f"hidden={hidden} with head={head}: a {parent.family.model_type} model derives sizes of a head from "
        f"hidden / head, which must stay {before:g}; prune both by the same factor, or neither"
    )


def _hidden_is_multiple(parent: Shape, child: Shape) -> str | None:
    hidden, head = child.sizes["hidden"], child.sizes["head"]
    if not parent.family.hidden_is_multiple_of_heads or hidden % head == 0:
        return None
    return (
        f"hidden={hidden} with head={head}: transformers takes a {parent.family.model_type} model only where "
        "hidden is a multiple of head; change one"
    )


def _quotients(parent: Shape, child: Shape) -> str | None:
    for field, axes in parent.family.quotients.items():
        above, below = (math.prod(child.sizes[axis] for axis in product.split()) for product in axes)
        if above % below:
            product = axes[0].replace(" ", " x ")
            return (
                f"{axes[1]}={below}: a {parent.family.model_type} model has {above} = {product}, and its config states "
                f"the quotient of that and {axes[1]} as a whole number ({field}); keep a divisor"
            )
    return None


def _experts(parent: Shape, child: Shape) -> str | None:
    for axis, count in parent.active.items():
        if child.sizes[axis] < count:
            return f"{axis}={child.sizes[axis]}: every token uses {count} of them; keep at least {count}"
    return None


def _expert_groups(parent: Shape, child: Shape) -> str | None:
    """A router chooses groups by their best experts, then experts in them: each group has as many as both need."""
    sizes = child.sizes
    if "chosen_group" not in sizes:
        return None
    least = max(sizes.get("rated_expert", 1), -(-child.active["expert"] // sizes["chosen_group"]))
    if sizes["expert"] >= least * sizes["expert_group"]:
        return None
    return (
        f"expert={sizes['expert']}: the router chooses {sizes['chosen_group']} of {sizes['expert_group']} groups of "
        f"experts first, which need {least} each; keep at least {least * sizes['expert_group']}"
    )


def _multiples(parent: Shape, child: Shape) -> str | None:
    for axis, step in parent.family.multiples.items():
        if child.sizes[axis] % step:
            return (
                f"{axis}={child.sizes[axis]}: transformers computes a {parent.family.model_type} model with multiples "
                f"of {step} only; keep one"
            )
    return None


def _widths(parent: Shape, child: Shape) -> str | None:
    step = parent.family.width_multiple
    odd = [axis for axis in ("hidden", "ffn") if child.sizes[axis] % step and child.sizes[axis] != parent.sizes[axis]]
    if not odd:
        return None
    return (
        f"{odd[0]}={child.sizes[odd[0]]}: a {parent.family.model_type} model multiplies its experts in groups, whose "
        f"rows are steps of 16 bytes; keep a multiple of {step}"
    )


def _every_kind(parent: Shape, child: Shape) -> str | None:
    """Attention is what caches and masks are made for; and an axis of a kind without layers would be no axis."""
    lost = [kind for kind in dict.fromkeys(parent.family.layers) if kind not in child.family.layers]
    if not lost:
        return None
    return (
        f"layer={child.sizes['layer']}: no {' '.join(lost[0])} layer would be left, and a {parent.family.model_type} "
        f"model has {len(set(parent.family.layers))} kinds of layers: keep at least one of each"
    )


def _stated_kinds(parent: Shape, child: Shape) -> str | None:
    if child.family.states_its_layers:
        return None
    return (
        f"layer={child.sizes['layer']}: the config of a {parent.family.model_type} model states the kinds of its "
        "layers as a repeating pattern, which the kept layers do not follow: drop whole periods by drop_layers"
    )


RULES: tuple[Callable[[Shape, Shape], str | None], ...] = (
    _groups,
    _not_prunable,
    _equal_groups,
    _hidden_in_wrapper,
    _layers_with_images,
    _hidden_per_head,
    _hidden_is_multiple,
    _quotients,
    _experts,
    _expert_groups,
    _multiples,
    _widths,
    _every_kind,
    _stated_kinds,
)


def _depth(parent: Shape, child: Shape) -> str | None:
    before, after, period = parent.sizes["layer"], child.sizes["layer"], parent.period
    if (before - after) % period == 0:
        return None
    other = "or name drop_layers that leave a pattern" if parent.family.is_periodic else _OR_WARN
    return f"layer={after}: {_pattern(parent)}; drop a multiple of {period} of the {before} layers, {other}"


def _kinds(parent: Shape, layers: Sequence[int]) -> str | None:
    if list(layers[: (first := first_layers(parent))]) != list(range(first)):
        return f"drop_layers: {_images(parent)}; drop later ones"
    if keeps_pattern(parent, layers):
        return None
    return f"drop_layers: {_pattern(parent)}; drop whole periods, such as layers 0 to {parent.period - 1}, {_OR_WARN}"


def keeps_pattern(parent: Shape, layers: Sequence[int]) -> bool:
    """Whether the kinds of the kept layers are the first of the parent's, as readers that compute them expect."""
    return tuple(parent.kinds[i] for i in layers) == parent.kinds[: len(layers)] if parent.kinds else True


def off_pattern(parent: Shape) -> str:
    """Warning about a child whose layers leave the pattern."""
    return f"{_pattern(parent)}: serve it with transformers or vLLM, which read the kinds from config.json"


def _pattern(parent: Shape) -> str:
    kind, period = parent.family.model_type, parent.period
    if parent.family.is_periodic:
        return f"the config of a {kind} model states kinds of layers that repeat every {period}"
    return (
        f"llama.cpp gives the layers of a {kind} model kinds that repeat every {period}, and would give the survivors "
        "the wrong ones"
    )


_OR_WARN = "or add --serving-lint warn if llama.cpp will not run the child"
