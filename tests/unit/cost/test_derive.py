"""Derived figures against those that the stages themselves counted before figures were derived (commit bff8ad1).

What a repair reads of held-out text has changed since: every model reads the same 16 blocks once.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_cli import progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.cost import derive
from minitron_cli.cost.compute import Entry
from minitron_cli.cost.derive import spent
from minitron_cli.distill.config import OBJECTIVES, CorrectConfig, DistillConfig
from minitron_cli.errors import Interrupted
from minitron_cli.evaluate.config import EvaluateConfig
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import Budget, PruneConfig, Ranking
from minitron_cli.results.base import ModelSize
from minitron_cli.results.evaluation import EvaluationResult, ModelEvaluation
from minitron_cli.results.search import CandidateResult, ObjectiveResult, SearchResult
from minitron_cli.results.training import TrainingResult
from minitron_cli.search.config import Retrain, SearchConfig
from minitron_cli.stages import correct, distill, evaluate, importance, prune, search
from tests.unit.stages.place import context, data, write_place

RETRAIN = Retrain(top=3, rungs=2, tokens=256, batch_size=4, micro_batch_size=4, warmup_steps=0)
BUDGET = Budget(target="70%", tolerance=0.15)
TRAINING = {"steps": 3, "batch_size": 4, "micro_batch_size": 4, "eval_every": 2, "eval_blocks": 3, "warmup_steps": 0}

Stages = dict[str, Callable[[], Artifact]]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """Name -> stage run on the tiny Llama with blocks of 16 tokens."""
    place = tmp_path_factory.mktemp("place")
    write_place(place)
    at, text, parent = context(place / "runs"), data(place), open_source_model(place / "model")
    scores = importance.run(
        at, parent, text, ImportanceConfig(samples=6, batch_size=2, blocks=(2,), layer_removal=True)
    )

    def searched(repair: str = "none", **changes: object) -> Artifact:
        space = {"ffn": (24, 32, 40), "hidden": (24, 32)}
        usual = {"budget": BUDGET, "space": space, "candidates": 3, "score_blocks": 2, "retrain": RETRAIN}
        usual |= {"score_repair": "all"}
        own = PruneConfig(repair=repair, repair_samples=5)
        return search.run(at, parent, scores, text, SearchConfig(**{**usual, **changes}), prune=own)

    def pruned(**changes: object) -> Artifact:
        return prune.run(at, parent, PruneConfig(repair_samples=5, **changes), scores=scores, data=text)

    def child() -> Artifact:
        return pruned(shape={"hidden": 24, "ffn": 32}, repair="all")

    def trained(**changes: object) -> Artifact:
        return distill.run(at, parent, child().path, text, DistillConfig(**{**TRAINING, **changes}))

    def evaluated(*labels: str, **changes: object) -> Artifact:
        models = [(label, child().path) for label in labels]
        return evaluate.run(at, models, parent, text, EvaluateConfig(**changes))

    by_perplexity = Ranking(layers="perplexity")
    return {
        "importance with blocks of layers": lambda: scores,
        "search by KL with rungs": lambda: searched(objective="kl"),
        "search for two targets with repair": lambda: searched("all", retrain=None, targets=("60%",)),
        "prune with all repairs": child,
        "prune with rescaled norms": lambda: pruned(shape={"hidden": 24}, repair="rescale"),
        "prune in rounds by perplexity": lambda: pruned(
            shape={"ffn": 24, "layer": 2}, rounds=2, repair="none", ranking=by_perplexity
        ),
        "prune in rounds with repair": lambda: pruned(shape={"ffn": 24}, rounds=3, repair="least_squares"),
        "prune to a budget with repair": lambda: pruned(
            budget=BUDGET, candidates=3, repair="all", score_blocks=64, score_repair="all"
        ),
        "distill": trained,
        "distill on text alone": lambda: trained(losses=OBJECTIVES["ce"]),
        "correct": lambda: correct.run(at, parent, text, CorrectConfig(**TRAINING)),
        "evaluate loss and KL of two models": lambda: evaluated("pruned", "again", blocks=2),
        "evaluate the parent": evaluated,
    }


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("importance with blocks of layers", [("calibration", 96, 8_257_536), ("layer removal", 96, 33_325_056)]),
        pytest.param(
            "search by KL with rungs",
            [("held-out text", 512, 45_449_216), ("training", 640, 139_517_952), ("teacher", 640, 67_338_240)],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "search for two targets with repair",
            [("held-out text", 96, 6_887_424), ("repair", 560, 41_287_680)],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "prune with all repairs",
            [("repair", 240, 18_350_080), ("held-out text", 1024, 82_034_688)],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "prune with rescaled norms",
            [("repair", 80, 6_881_280), ("held-out text", 768, 68_386_816)],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "prune in rounds by perplexity",
            [("calibration", 96, 5_529_600), ("layer removal", 96, 12_902_400)],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "prune in rounds with repair",
            [("calibration", 192, 14_745_600), ("repair", 160, 12_288_000), ("held-out text", 768, 71_368_704)],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "prune to a budget with repair",
            [("held-out text", 3136, 243_290_112), ("repair", 720, 53_862_400)],
            marks=pytest.mark.slow,
        ),
        (
            "distill",
            [("training", 192, 41_324_544), ("teacher", 192, 20_201_472), ("held-out text", 288, 25_482_240)],
        ),
        pytest.param(
            "distill on text alone",
            [("training", 192, 41_324_544), ("held-out text", 288, 25_482_240)],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "correct", [("training", 192, 60_604_416), ("held-out text", 144, 15_151_104)], marks=pytest.mark.slow
        ),
        ("evaluate loss and KL of two models", [("held-out text", 160, 14_692_352)]),
        pytest.param("evaluate the parent", [("held-out text", 704, 74_072_064)], marks=pytest.mark.slow),
    ],
)
def test_derived_figures_equal_those_that_stages_counted(
    stages: Stages, name: str, entries: list[tuple[str, int, int]]
) -> None:
    assert spent(stages[name]()) == [Entry(*entry) for entry in entries]


class StopAtStep:
    """Display that requests a stop at the second step of a training."""

    def start(self, title: str, total: int | None, unit: str) -> progress.Step:
        def step(n: int = 1, **figures: object) -> None:
            self.steps += unit == "steps"
            if self.steps == 2:
                progress.request_stop(2)

        self.steps = 0
        return step

    def finish(self, step: progress.Step) -> None: ...

    def say(self, text: str) -> None: ...

    def priced(self, price: object) -> None: ...

    def warn(self, text: str) -> None: ...


@pytest.mark.slow
def test_a_resumed_training_costs_as_much_as_an_uninterrupted_one(tmp_path: Path) -> None:
    write_place(tmp_path)
    parent, text = open_source_model(tmp_path / "model"), data(tmp_path)
    config = DistillConfig(**TRAINING, save_every=1)

    def train(run: str) -> Artifact:
        return distill.run(context(tmp_path / run), parent, parent.path, text, config)

    progress.show_on(StopAtStep())
    try:
        with pytest.raises(Interrupted):
            train("stopped")
    finally:
        progress.request_stop(None)
        progress.show_on(None)
    whole, resumed = train("whole"), train("stopped")
    assert resumed.result(TrainingResult) == whole.result(TrainingResult)
    assert spent(resumed) == spent(whole)
    assert spent(resumed) == [
        Entry("training", 192, 60_604_416),
        Entry("teacher", 192, 20_201_472),
        Entry("held-out text", 288, 30_302_208),
    ]


def test_a_model_of_another_tokenizer_has_no_divergence_and_all_are_read_per_byte() -> None:
    """Each model once, and the parent and its child once more, for loss and KL."""
    size = ModelSize(sizes={}, parameters=10, non_embedding=6, decoder_flops=5, head_flops=3)
    models = {
        label: ModelEvaluation(fingerprint=label, model=size, results={}, other_tokenizer=other)
        for label, other in (("parent", None), ("child", None), ("foreign", "another vocabulary"))
    }
    loss, kl = derive.passes(EvaluationResult(models=models, loss_tokens=100, sequence_length=10))
    assert (loss.tokens, loss.head_work) == (100 + 300, "loss")
    assert (kl.tokens, kl.head_work) == (200, "kl")


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_shape_of_two_targets_was_trained_as_far_as_for_the_one_it_got_farthest_for(order: slice) -> None:
    size = ModelSize(sizes={}, parameters=1, non_embedding=1, decoder_flops=9, head_flops=1)

    def candidate(target: str, rungs: int) -> CandidateResult:
        return CandidateResult(
            target=target, shape={"ffn": 8}, parameters=1, zero_shot=3.0, rungs=(2.0,) * rungs, model=size
        )

    both = [candidate("75%", 3), candidate("50%", 1)][order]
    result = SearchResult(
        objective=ObjectiveResult(name="loss", better="lower"),
        rung_tokens=(10, 20, 40),
        candidates=tuple(both),
        winners={},
        parent=size,
        teacher=size,
        score_tokens=0,
        sequence_length=8,
    )
    assert [(one.work, one.tokens) for one in derive.passes(result)] == [("training", 40), ("teacher", 40)]
