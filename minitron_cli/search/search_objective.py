"""Objective of a search: held-out loss, KL to the teacher, or a task metric."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.artifacts.build import Context
from minitron_cli.checkpoint import hf
from minitron_cli.data.pack import Blocks
from minitron_cli.evaluate.config import Task
from minitron_cli.evaluate.perplexity import kl_to_parent, perplexity
from minitron_cli.evaluate.task_metric import TaskMetric
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.model.shape import Shape
from minitron_cli.search.config import Objective, SearchConfig, TaskObjective, objective_figure

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class SearchObjective:
    """Score of a model; lower is better, whatever the direction of the metric."""

    parent: SourceModel
    teacher: SourceModel
    context: Context
    validation: Blocks
    config: SearchConfig

    def inputs(self) -> dict[str, str]:
        """Fingerprints of what the scores depend on. InputError for an unknown task, before a model is loaded."""
        inputs = {} if self.teacher.fingerprint == self.parent.fingerprint else {"teacher": self.teacher.fingerprint}
        if self._task_metric and (found := self._task_metric.fingerprint()):
            inputs["task"] = found
        return inputs

    @cached_property
    def teacher_model(self) -> "PreTrainedModel":
        """The teacher, loaded once."""
        return hf.load_model(self.teacher.path, device=self.context.device, dtype=self.context.dtype)

    def __call__(self, model: "PreTrainedModel") -> float:
        blocks = self.config.score_blocks
        match self.config.objective:
            case "loss":
                return perplexity(model, self.validation, max_blocks=blocks).loss_nats
            case "kl":
                return kl_to_parent(model, self.teacher_model, self.validation, max_blocks=blocks).kl_nats
            case objective:
                assert self._task_metric
                return sign(objective) * self._task_metric(model, self._tokenizer)

    @cached_property
    def _task_metric(self) -> TaskMetric | None:
        objective = self.config.objective
        if not isinstance(objective, TaskObjective):
            return None
        path = Path(objective.path) if objective.path else None
        return TaskMetric(Task.parse(objective.task), objective.metric, path, "search.objective.metric")

    @cached_property
    def _tokenizer(self) -> Any:
        return hf.load_tokenizer(self.parent.path)

    @property
    def tokens(self) -> int:
        """Held-out tokens that one score reads; a task does not use them."""
        return min(self.config.score_blocks, len(self.validation)) * self.validation.sequence_length

    def readers(self, shape: Shape) -> list[Shape]:
        """Shapes of the models that read the held-out tokens: the candidate and, for KL, the teacher."""
        return {"loss": [shape], "kl": [shape, self.teacher.shape]}.get(str(self.config.objective), [])


def sign(objective: Objective) -> int:
    """Factor of an objective's values that makes lower better: 1 or -1."""
    return -1 if objective_figure(objective).better == "higher" else 1
