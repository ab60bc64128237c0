"""Cost of a result, derived from the results of everything that it was made of, against figures counted by hand."""

from types import SimpleNamespace

import pytest

from minitron_cli.cost import compute
from minitron_cli.cost.compute import Entry
from minitron_cli.cost.derive import spent
from minitron_cli.cost.lineage import accelerator_hours, device_hours, lineage
from minitron_cli.distill.config import OBJECTIVES, DistillConfig
from minitron_cli.evaluate.config import EvaluateConfig
from minitron_cli.figures import NOTHING, power
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.prune.config import Budget, PruneConfig
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.search import SearchResult
from minitron_cli.search.config import Retrain, SearchConfig
from minitron_cli.stages import distill, evaluate, importance, prune, search
from tests.unit.stages.place import context, data, write_place

LENGTH = 16
TRAINING = DistillConfig(steps=3, batch_size=4, micro_batch_size=4, eval_every=2, eval_blocks=3, warmup_steps=0)
SCORING = ImportanceConfig(samples=6, batch_size=2, layer_removal=True)


def forward(shape, with_head: bool = True) -> int:
    """Of one token, eight attended to: two per weight of q, k, v, o and the three matrices of the FFN, and the rest."""
    s = shape.sizes
    heads, groups = s["head"] * s["head_dim"], s["kv_head"] * s["head_dim"]
    weights = s["hidden"] * (2 * heads + 2 * groups + 3 * s["ffn"])
    layers = s["layer"] * (2 * weights + 4 * heads * LENGTH // 2)
    return layers + with_head * 2 * s["hidden"] * s["vocab"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Scores, a cut, a student and a control, in a workspace whose model is `place/model`."""
    place = tmp_path_factory.mktemp("place")
    write_place(place)
    at, parent, text = context(place / "runs" / "one"), open_source_model(place / "model"), data(place, LENGTH)
    at.workspace.save_settings(model=str(place / "model"))
    scores = importance.run(at, parent, text, SCORING)
    child = prune.run(at, parent, PruneConfig(shape={"ffn": 32, "layer": 3}, repair="none"), scores=scores)
    control = TRAINING.model_copy(update={"losses": OBJECTIVES["ce"]})
    found = {
        "scores": scores,
        "child": child,
        "student": distill.run(at, parent, child.path, text, TRAINING),
        "control": distill.run(at, parent, child.path, text, control, label="ce"),
        "measured": evaluate.run(at, [("pruned", child.path)], parent, text, EvaluateConfig(blocks=2)),
    }
    at.workspace.point(found["student"])
    return place, at, text, parent, found


@pytest.mark.slow
def test_a_manifest_says_what_its_stage_spent(made):
    _, _, _, parent, found = made
    big, small = parent.shape, open_source_model(found["child"].path).shape
    layer, head = forward(big, with_head=False) // 4, forward(big) - forward(big, with_head=False)
    assert spent(found["scores"]) == [
        Entry("calibration", 96, 96 * 4 * layer),
        Entry("layer removal", 96, 96 * (6 * layer + 5 * head)),
    ]
    assert spent(found["child"]) == []  # a cut to a shape that was given reads no text
    trained, text = 3 * 4 * LENGTH, 3 * 3 * LENGTH  # three evaluations: before, after step 2, after step 3
    evaluated = Entry("held-out text", 2 * text, text * (forward(big) + forward(small)))
    training = Entry("training", trained, 3 * trained * forward(small))
    assert spent(found["student"]) == [training, Entry("teacher", trained, trained * forward(big)), evaluated]
    assert spent(found["control"]) == [training, evaluated]
    twice = 2 * LENGTH  # the parent's loss, then the child's with their KL
    assert spent(found["measured"]) == [Entry("held-out text", 3 * twice, twice * (2 * forward(big) + forward(small)))]


@pytest.mark.slow
def test_a_search_counts_what_every_candidate_went_through(made):
    _, at, text, parent, found = made
    retrain = Retrain(top=2, tokens=256, batch_size=4, micro_batch_size=4, rungs=2, warmup_steps=0)
    budget = Budget(target=parent.shape.resize(ffn=32).parameters(), tolerance=0.2)
    config = SearchConfig(budget=budget, space={"ffn": (24, 32, 40)}, candidates=3, score_blocks=2, retrain=retrain)
    searched = search.run(at, parent, found["scores"], text, config)
    cost = {row.shape["ffn"]: forward(parent.shape.resize(**row.shape)) for row in rows_of(searched)}
    # Four steps of 4 x 16 tokens: both are compared after the second and after the last, and judged on 32 tokens.
    trained = [row.shape["ffn"] for row in rows_of(searched) if row.rungs]
    assert len(trained) == 2
    judged = sum(32 * flops for flops in cost.values()) + sum(2 * 32 * cost[ffn] for ffn in trained)
    assert set(spent(searched)) == {
        Entry("held-out text", 32 * (3 + 2 * 2), judged),
        Entry("training", 2 * 256, 256 * 3 * sum(cost[ffn] for ffn in trained)),
        Entry("teacher", 2 * 256, 2 * 256 * forward(parent.shape)),
    }
    repaired = PruneConfig(repair="least_squares", repair_samples=5)
    scoring = config.model_copy(update={"retrain": None, "score_repair": "all"})
    fitted = search.run(at, parent, found["scores"], text, scoring, prune=repaired)
    decoders = [forward(parent.shape.resize(**row.shape), with_head=False) for row in rows_of(fitted)]
    assert [entry for entry in spent(fitted) if entry.work == "repair"] == [
        Entry("repair", 6 * 80, 80 * (3 * forward(parent.shape, with_head=False) + sum(decoders)))
    ]


def rows_of(artifact):
    return artifact.result(SearchResult if artifact.stage == "search" else PruneResult).candidates


@pytest.mark.slow
def test_a_prune_counts_candidates_rounds_and_repair(made):
    _, at, text, parent, found = made
    big, blocks = parent.shape, blocks_of(at, text, "validation", parent.path)
    read = 16 * LENGTH  # half to choose by, half to report
    assert len(blocks) >= 16
    config = PruneConfig(shape={"ffn": 24}, repair="least_squares", repair_samples=5)
    repaired = prune.run(at, parent, config, scores=found["scores"], data=text)
    small = big.resize(ffn=24)
    assert spent(repaired) == [
        Entry("repair", 2 * 5 * LENGTH, 5 * LENGTH * (forward(big, with_head=False) + forward(small, with_head=False))),
        Entry("held-out text", 3 * read, read * (forward(big) + 2 * forward(small))),
    ]
    turned = PruneConfig(shape={"hidden": 24}, repair="rotate", repair_samples=5)
    assert spent(prune.run(at, parent, turned, scores=found["scores"], data=text))[0] == Entry(
        "repair", 5 * LENGTH, 5 * LENGTH * forward(big, with_head=False)
    )
    in_rounds = PruneConfig(shape={"ffn": 24}, rounds=2, repair="none")
    rounds = prune.run(at, parent, in_rounds, scores=found["scores"], data=text)
    between = big.resize(ffn=36)
    assert spent(rounds) == [Entry("calibration", 96, 96 * forward(between, with_head=False))]
    budget = Budget(target=small.parameters(), tolerance=0.1)
    among = PruneConfig(budget=budget, axes=("ffn",), repair="none", score_blocks=3)
    chosen = prune.run(at, parent, among, scores=found["scores"], data=text)
    shapes = [big.resize(**row.shape) for row in rows_of(chosen)]
    assert len(shapes) > 1
    assert spent(chosen) == [Entry("held-out text", len(shapes) * 3 * LENGTH, 3 * LENGTH * sum(map(forward, shapes)))]
    at.workspace.point(found["child"])


def test_everything_that_a_student_was_made_of_counts_once(made):
    """The scores lead to it through the cut alone, the cut directly; control and measurement lead nowhere."""
    _, at, text, parent, found = made
    keys = [artifact.key for artifact in lineage(at.workspace, found["student"])]
    assert keys == [found[name].key for name in ("scores", "child", "student")]
    distill.run(at, parent, found["child"].path, text, TRAINING)  # up to date: nothing is spent again
    assert [artifact.key for artifact in lineage(at.workspace, found["student"])] == keys


@pytest.mark.slow
def test_a_chain_includes_what_its_parent_took(made):
    place, _, text, _, found = made
    other = context(place / "runs" / "two")
    middle = open_source_model(found["student"].path)
    other.workspace.save_settings(model=str(found["student"].path))
    scores = importance.run(other, middle, text, SCORING)
    child = prune.run(other, middle, PruneConfig(shape={"ffn": 16}, repair="none"), scores=scores)
    keys = [artifact.key for artifact in lineage(other.workspace, child)]
    assert keys == [*(found[name].key for name in ("scores", "child", "student")), scores.key, child.key]


def test_hours_are_those_of_all_processes_and_of_accelerators_in_a_report(made):
    _, _, _, _, found = made
    record = found["scores"].run

    def run(**fields):
        return SimpleNamespace(run=record.model_copy(update=fields))

    runs = [
        run(device="NVIDIA H200", processes=8, seconds_in_all=900.0),
        run(device="NVIDIA H200", processes=1, seconds_in_all=1800.0),
        run(device="cpu", processes=2, seconds_in_all=3600.0),
        SimpleNamespace(run=None),  # the record is gone
    ]
    assert device_hours(runs) == {"NVIDIA H200": 2.5, "cpu": 2.0}
    assert accelerator_hours(runs) == {"NVIDIA H200": 2.5}
    assert set(device_hours(found.values())) == {"cpu"}


@pytest.mark.slow
def test_page_and_card_show_what_the_student_took_and_beside_it_the_rest(made):
    from minitron_cli.stages import report

    _, at, _, _, found = made
    needed = [entry for name in ("scores", "student") for entry in spent(found[name])]
    total = compute.total(needed)
    page = (report.run(at).path / "report.html").read_text()
    card = (report.run(at).path / "model-card.md").read_text()
    rows = [line for line in card[card.index("## Cost") :].splitlines() if line.startswith("|")][2:]
    assert [row.split("|")[1:3] for row in rows] == [
        [" importance ", " calibration "],
        [" importance ", " layer removal "],
        [" distill ", " training "],
        [" distill ", " teacher "],
        [" distill ", " held-out text "],
        [" total ", f" {NOTHING} "],
    ]
    assert f"| {total.tokens} | {power(total.flops)} |" in rows[-1]
    assert "distill ce" in page[page.index("Controls and measurements") :]
    assert "hours of" not in page + card
