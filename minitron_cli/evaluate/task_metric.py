"""One number that an lm-eval task gives a model, for the stages that decide by it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_cli.errors import InputError
from minitron_cli.evaluate.config import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TaskMetric:
    """A metric of a task. lm-eval is imported when it is asked."""

    task: Task
    metric: str
    path: Path | None
    """A directory of task YAMLs in which the task is looked up too."""
    setting: str
    """The recipe field that names the metric."""

    def fingerprint(self) -> str | None:
        """Of the directory. A task that does not exist is refused here, before a model is loaded."""
        from minitron_cli.evaluate import tasks

        tasks.load_tasks([self.task], tasks.TaskLocations(self.path))
        return tasks.fingerprint(self.path) if self.path else None

    def __call__(self, model: "PreTrainedModel", tokenizer: Any, batch_size: int = 8) -> float:
        """InputError if the task has no such metric, or it has no value."""
        from minitron_cli.evaluate.lm_eval_runner import run_tasks
        from minitron_cli.evaluate.tasks import TaskLocations

        answers = run_tasks(model, tokenizer, [self.task], locations=TaskLocations(self.path), batch_size=batch_size)
        metrics = answers.results[self.task.name]
        found = metrics.get(self.metric, {}).get("value")
        if found is None:
            raise InputError(
                f"task {self.task.name!r} has no {self.metric!r}: set {self.setting} to one of {', '.join(metrics)}"
            )
        return found
