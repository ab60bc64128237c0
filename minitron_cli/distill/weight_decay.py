"""Parameters that weight decay applies to: a family's matrices, and no norms, biases, convolutions or rates."""

from collections.abc import Iterable

from minitron_cli.distill.config import DistillConfig
from minitron_cli.model.family import NAME_AXIS, Family
from minitron_cli.model.layout import parse
from minitron_cli.model.runtime_tensors import source_template
from minitron_cli.model.shape import Shape


def decayed(family: Family, names: Iterable[str]) -> set[str]:
    """Those of a loaded model's parameters, by name, that are matrices or stacks of them."""
    return {name for name in names if family.is_matrix(source_template(family, name))}


def key_inputs(config: DistillConfig, shape: Shape) -> dict[str, str]:
    """What names the rule among the inputs of a training on which it has an effect.

    Before, parameters of at least two dims were decayed. Models in which these are the matrices keep their keys.
    """
    if not config.weight_decay:
        return {}
    held = [t for t in shape.templates if t not in shape.family.buffers and any(True for _ in shape.names(t))]
    is_other = any((_dims(shape.family, t) >= 2) != shape.family.is_matrix(t) for t in held)
    return {"weight_decay": "matrices"} if is_other else {}


def _dims(family: Family, template: str) -> int:
    """Number of dims of the loaded parameter that holds a tensor, in which transformers may stack experts.

    A bias that has two on disk, ERNIE's correction of a router, is not trained, and counts as one without.
    """
    dims = 1 if template.endswith("bias") else len(parse(family.tensors[template]).dims)
    holders = [name for name, sources in family.runtime_names.items() if template in sources]
    return dims + any(len(NAME_AXIS.findall(name)) < len(NAME_AXIS.findall(template)) for name in holders)
