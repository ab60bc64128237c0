"""Result of the evaluate stage; the score of every item is in `items.json`."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from minitron_cli.results.base import ModelSize, Result
from minitron_cli.spec import Spec

Unit = Literal["document", "block", "item"]
"""What a standard error takes for independent."""
Scale = Literal["linear", "log", "share"]
PARENT, ORIGINAL = "parent", "original"  # labels of the models that others are compared with
OWN_TASKS, TASK_DATA = "tasks", "task data"  # names of the inputs that are directories, the latter before a task's
STUDENT = "student"  # label of a model before training that was not pruned here
BITS_PER_BYTE, BYTE_PERPLEXITY = "bits_per_byte", "byte_perplexity"  # names of metrics, which are lm-eval's


class MetricResult(Spec):
    """One metric of one task."""

    value: float | None
    """None where the measurement gave no finite value."""
    stderr: float | None = None
    n: int | None = None
    """Number of items."""
    shots: int | None = None
    """Examples in the prompt; None where the notion does not apply."""
    clusters: int | None = None
    """Number of documents; None if they are not known."""
    degrees_of_freedom: float | None = None
    """Degrees of freedom of the standard error; None: one less than there are clusters, or items without clusters."""
    unit: Unit = "item"
    """What the standard error takes for independent. Documents, where they are known and none outweighs the others."""
    scale: Scale = "linear"
    """Its interval: `log` of an exponential of a mean, such as perplexity, is that of its logarithm; `share` of items
    that are right or wrong is Wilson's; other means have Student's t."""
    part_of: str | None = None
    """The nearest group of tasks above it that has a metric of its own, and is shown in its place."""
    chance: float | None = Field(None, exclude_if=lambda value: value is None)
    """Value that guessing has on average; None unless every item is one of several answers, right or wrong."""

    @property
    def is_of_one_document(self) -> bool:
        """Whether one document outweighs the others, so that the error is over its parts."""
        return self.clusters is not None and self.unit != "document"


class Difference(Spec):
    """Difference of a model from its parent, or from another model in its place, on the same items."""

    difference: float
    """The model's mean minus the parent's."""
    stderr: float | None
    low: float | None
    """Lower end of the 95 % interval of the difference."""
    high: float | None
    ratio: float | None
    """The model's mean over the parent's; None unless the parent's is positive."""
    ratio_stderr: float | None
    parent: float | None = None
    """The parent's mean."""
    items: int
    clusters: int
    degrees_of_freedom: float | None = None
    """Degrees of freedom of the standard errors; None: one less than there are clusters."""
    unit: Unit = "item"
    """What the standard errors take for independent."""
    scale: Scale = "linear"
    """`log` of exponentials of means, such as perplexities: the interval is that of the logarithm of their ratio."""
    better: int | None = None
    """Items that are 1 for the model and 0 for the parent; None unless every value is 0 or 1."""
    worse: int | None = None
    """Items that are 0 for the model and 1 for the parent."""
    mcnemar: float | None = None
    """Two-sided p-value of McNemar's exact test; None where items are not independent."""


class TaskSource(Spec):
    """Where a task's items are on the hub."""

    dataset: str | None = None
    config: str | None = None
    split: str | None = None


class ModelEvaluation(Spec):
    """Everything measured of one model."""

    fingerprint: str
    """Content hash of the evaluated model."""
    model: ModelSize
    results: Mapping[str, Mapping[str, MetricResult]]
    """Task -> metric -> value."""
    sources: Mapping[str, TaskSource] = {}
    """Task -> origin of its items, for tasks from the hub."""
    against_parent: Mapping[str, Mapping[str, Difference]] = {}
    """Task -> metric -> difference, for metrics that are means over items. Empty for the parent."""
    against_original: Mapping[str, Mapping[str, Difference]] = Field({}, exclude_if=lambda found: not found)
    """The same from the original model of a chain. Empty for the original, and where there is no other than the parent.

    The field `parent` of such a difference is the original's mean.
    """
    against: Mapping[str, Mapping[str, Mapping[str, Difference]]] = Field({}, exclude_if=lambda found: not found)
    """Label of each model that was named before it -> the same from that model, whose mean is the field `parent`.

    Neither the parent nor the original is among them, and no member of a group of tasks.
    """
    other_tokenizer: str | None = None
    """How the model's tokenizer differs from the parent's, in words; None if it is the same."""


class OtherEvaluation(ModelEvaluation):
    """A model that was measured elsewhere. It has no fingerprint and no sizes; parameters are 0 if not known."""

    source: str
    """Where the values are from: the name of a file, or that they were given by hand."""


class EvaluationResult(Result):
    """Models measured on the same text and tasks, the parent first, then the original if it is another model."""

    schema_name: ClassVar[str] = "evaluation/1"
    verb: ClassVar[str] = "minitron eval"

    models: Mapping[str, ModelEvaluation]
    """Label -> model, in the order in which they were asked for."""
    loss_tokens: int = 0
    """Held-out tokens on which the loss of each model was measured; 0 if it was not."""
    sequence_length: int = 0
    """Tokens per held-out block."""
    reused: tuple[str, ...] = Field((), exclude_if=lambda labels: not labels)
    """Labels of models that an earlier step of the chain has measured on the same text and tasks, all but their KL."""
