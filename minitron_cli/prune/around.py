"""What is around a text model in a multimodal wrapper: copied, but for the rows of a projector that go with hidden."""

import torch
from torch import Tensor

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.checkpoint.safetensors_file import read_tensor
from minitron_cli.model import wrappers
from minitron_cli.prune.child_config import child_file
from minitron_cli.prune.loaded_check import Refused
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.slicing import check_finite, prune_tensor
from minitron_cli.prune.tensor_map import TensorMap


def changed_around(parent: Checkpoint, plan: PrunePlan) -> dict[str, Tensor]:
    """The child's tensors around its text model that the plan changes, by name; none where there is no wrapper."""
    wrapper, wrapping = parent.wrapper, plan.parent.family.wrapping
    if wrapper is None or wrapping is None or (plan.at("hidden") is None and plan.repair.basis_DK is None):
        return {}
    changed = {}
    for name in wrapping.tensors:
        check_finite(name, whole := read_tensor(wrapper.tensors[name]))
        changed[name] = prune_tensor(TensorMap.of(plan, name), [(0, whole)])
    return changed


def check_around(child: Checkpoint, parent: Checkpoint, plan: PrunePlan) -> None:
    """Compare what is around the text models: every tensor, and the config, which transformers has to read.

    Raises Refused or CheckpointError where the child's is not what the plan says.
    """
    ours, theirs = child.wrapper, parent.wrapper
    if ours is None or theirs is None:
        if ours is not theirs:
            raise Refused("the text model is " + ("in a wrapper" if ours else "in no wrapper"))
        return
    if odd := ours.tensors.keys() ^ theirs.tensors.keys():
        raise Refused(f"{min(odd)} is around the text model of only one of child and parent")
    wrappers.check(plan.child.family, plan.child.sizes, ours.shapes)
    changed = changed_around(parent, plan)
    for name, info in ours.tensors.items():
        wanted = changed[name] if name in changed else read_tensor(theirs.tensors[name])
        if not _is_same_bytes(read_tensor(info), wanted):
            raise Refused(f"{name}, which is around the text model, holds other numbers than the parent's")
    if dict(ours.config) != child_file(parent, plan):
        raise Refused("config.json differs from the parent's in more than the text model")
    hf.check_wrapper_config(ours.config, child.path)


def _is_same_bytes(found: Tensor, wanted: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, NaN included."""
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (found, wanted)))
