"""Weights that a mask has pruned, and what a training step does to them. Knows no losses, no moments and no files.

Frozen: gradients of lost weights are zero before the norm and the moments see them, and the weights are set to zero
after every step, so that both stay exactly zero.

Refreshed (SR-STE: Zhou et al. 2021): the optimizer updates a dense copy W of the weights, and the model computes
with m * W. The gradient of m * W is used for W, lost weights included, and decays those: g + decay * (1 - m) * W. Every
few steps m is chosen again, by the magnitudes of W.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from minitron_cli.distill.config import MaskRefresh
from minitron_cli.distill.distributed import ProcessGroup
from minitron_cli.distill.model_pair import STUDENT
from minitron_cli.distill.sharding import local, span, whole
from minitron_cli.errors import CheckpointError, RunFailed
from minitron_cli.sparse.parameter_masks import ParameterMasks


class Masking:
    """Lost weights of trained parameters: of each masked one a bool tensor with this process's rows, on its device."""

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        masks: ParameterMasks,
        group: ProcessGroup,
        refresh: MaskRefresh | None = None,
    ) -> None:
        """`parameters` are all that are trained, by the names that `ModelPair.trained` gives them."""
        self._masks, self._group, self.refresh = masks, group, refresh
        student = {name: p for name, p in parameters.items() if name.startswith(STUDENT)}
        self._parameters = {name: p for name, p in student.items() if masks.covers(name.removeprefix(STUDENT))}
        self.lost = {
            name: self._rows(p, masks.kept(name.removeprefix(STUDENT), p.shape)) for name, p in self._parameters.items()
        }

    def check(self) -> None:
        """Raise CheckpointError unless every lost weight is zero."""
        for name in self._nonzero():
            raise CheckpointError(
                f"{self._masks.file.path}: pruned weights of {name} are not zero: sparsify the model again"
            )

    def check_step(self, step: int) -> None:
        """Raise RunFailed unless every lost weight is zero after a step."""
        for name in self._nonzero():
            raise RunFailed(
                f"pruned weights of {name} are not zero after step {step:,}, which is not saved: report the optimizer"
            )

    def _nonzero(self) -> Iterator[str]:
        for name, p in self._parameters.items():
            if self._group.any(bool(local(p.data)[self.lost[name]].count_nonzero())):
                yield name

    def mask_gradient_(self, name: str, p: nn.Parameter, dense: Tensor) -> None:
        """Zero the gradient of lost weights or, if they are refreshed, add the decay of `dense`, which is updated."""
        if p.grad is None:
            return
        gradient, lost = local(p.grad), self.lost[name]
        if self.refresh is None:
            gradient.masked_fill_(lost, 0)
        else:
            gradient.add_(local(dense).to(gradient.device) * lost, alpha=self.refresh.decay)

    def mask_(self, name: str, weights: Tensor) -> None:
        """Set lost weights to zero, to +0 in every bit."""
        local(weights).masked_fill_(self.lost[name].to(weights.device), 0)

    def choose_(self, name: str, dense: Tensor) -> None:
        """Choose the lost weights again: the smallest of `dense`. All processes must call this."""
        kept = self._masks.by_magnitude(name.removeprefix(STUDENT), whole(dense))
        self.lost[name] = self._rows(self._parameters[name], kept)

    def _rows(self, p: nn.Parameter, kept: Tensor) -> Tensor:
        """This process's rows of what is not kept."""
        start, stop = span(p.data, self._group)
        return (~kept[start:stop]).to(local(p.data).device)
