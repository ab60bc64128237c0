"""The search stage: a parent, its scores and a budget in, ranked candidate shapes out."""

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.artifact import Artifact
from minitron_cli.data.sources import DataConfig
from minitron_cli.search import rank, space
from minitron_cli.search.config import SearchConfig
from minitron_cli.search.space import Candidate
from minitron_cli.stages.cut import Cutter, read_scores
from minitron_cli.stages.distill import retrain_lightly
from minitron_cli.stages.parent import Parent
from minitron_cli.stages.produce import Build, Context, produce
from minitron_cli.stages.prune import CANDIDATES, row
from minitron_cli.stages.tokens import blocks_of

STAGE, VERSION = "search", 1


def run(context: Context, parent: Parent, scores: Artifact, data: DataConfig, config: SearchConfig) -> Artifact:
    """Score the feasible shapes zero-shot, retrain the best few, and save the order. Each result survives a kill."""
    cutter = Cutter(context, parent, read_scores(scores, parent), config.ranking)
    choices = {str(axis): sizes for axis, sizes in config.space.items()}
    candidates = space.feasible(parent.shape, choices, config.budget, config.candidates)
    train = blocks_of(context, data, "train", parent.path)
    validation = blocks_of(context, data, "validation", parent.path)

    def zero_shot(candidate: Candidate) -> float:
        return cutter.zero_shot_loss(candidate.shape, validation, config.score_blocks)

    def build(work: Build) -> None:
        ranked = rank.by_zero_shot(candidates, _remembered(work, "zero-shot", zero_shot))
        tau = None
        if config.retrain and len(ranked) > 1:
            teacher = hf.load_model(parent.path, device=context.device, dtype=context.dtype)

            def retrained(candidate: Candidate) -> float:
                student = cutter.model(cutter.plan(candidate.shape))
                scratch = work.scratch / f"retrain-{candidate.name}"
                return retrain_lightly(context, teacher, student, train, validation, config, scratch)

            ranked = rank.by_retraining(ranked, config.retrain.top, _remembered(work, "retrained", retrained))
            both = [(r.zero_shot_loss, r.retrained_loss) for r in ranked if r.retrained_loss is not None]
            tau = rank.kendall_tau(*zip(*both, strict=True))
        work.write_json(CANDIDATES, {"candidates": [row(entry) for entry in ranked]})
        best = ranked[0].candidate
        work.summary |= {
            "best": {axis: best.shape.sizes[axis] for axis in config.space},
            "parameters": best.parameters,
            "feasible": len(candidates),
            "kendall_tau": tau,
        }

    inputs = {
        "model": parent.fingerprint,
        "scores": scores.fingerprint,
        "train": train.fingerprint,
        "validation": validation.fingerprint,
    }
    return produce(context, stage=STAGE, version=VERSION, config=config, inputs=inputs, build=build, together=True)


def _remembered(work: Build, kind: str, score: rank.Score) -> rank.Score:
    """`score`, computed once per candidate whatever happens to the process."""
    return lambda candidate: float(
        work.remember(f"{kind}-{candidate.name}", lambda: {"loss": score(candidate)})["loss"]
    )
