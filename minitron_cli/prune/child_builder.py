"""Children in memory, from a shape: what search and prune score before anything is written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.checkpoint import hf
from minitron_cli.data.pack import Blocks
from minitron_cli.errors import ArtifactError
from minitron_cli.evaluate.perplexity import perplexity
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.model.shape import Shape
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.plan import PrunePlan, make_plan
from minitron_cli.prune.stream import prune_in_memory
from minitron_cli.scores.scores import FILE, Scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def read_scores(artifact: Artifact, parent: SourceModel) -> Scores:
    """Scores of an importance artifact. ArtifactError if they were measured on another model."""
    if artifact.manifest.inputs["model"] != parent.fingerprint:
        raise ArtifactError(
            f"{artifact.path} scores another model than {parent.name}: run `minitron importance {parent.name}` first"
        )
    return Scores.load(artifact.file(FILE).parent)


@dataclass(frozen=True)
class ChildBuilder:
    """Turns a shape into a plan, a plan into a model, and a model into a score."""

    context: Context
    parent: SourceModel
    scores: Scores
    ranking: Ranking
    repair: Callable[[PrunePlan], PrunePlan] | None = None
    """Repair of a candidate's plan before it is scored."""

    @property
    def dtype(self) -> str:
        """Dtype that the parent and its children run in."""
        return self.parent.dtype_in(self.context)

    def plan(self, shape: Shape, drop_layers: tuple[int, ...] = ()) -> PrunePlan:
        """Plan from the parent to a shape. InputError if the parent cannot become it."""
        return make_plan(self.parent.shape, shape, self.scores, self.ranking, drop_layers)

    def model(self, plan: PrunePlan) -> "PreTrainedModel":
        """The child, in memory."""
        checkpoint = self.parent.checkpoint
        state = prune_in_memory(plan, checkpoint.tensors, checkpoint.read)
        config = child_config(checkpoint.config, plan)
        return hf.model_of(config, state, device=self.context.device, dtype=self.dtype)

    def zero_shot_loss(self, shape: Shape, blocks: Blocks, max_blocks: int) -> float:
        """Loss of a shape's child in nats per token, before any training."""
        return perplexity(self.candidate(shape), blocks, max_blocks=max_blocks).loss_nats

    def candidate(self, shape: Shape) -> "PreTrainedModel":
        """Child of a shape, repaired as it would be when it is written, in memory."""
        plan = self.plan(shape)
        return self.model(self.repair(plan) if self.repair else plan)
