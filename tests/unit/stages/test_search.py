"""A search of a tiny model: what it remembers, what it measures, and what pruning makes of it."""

import shutil
from pathlib import Path

import pytest

from minitron_cli import progress
from minitron_cli.artifacts.build import DryRunStop
from minitron_cli.errors import InfeasibleError, InputError, Interrupted
from minitron_cli.evaluate.cloze import write_task
from minitron_cli.evaluate.config import Cloze
from minitron_cli.evaluate.generation_speed import GenerationRates, SpeedComparison
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.price import subject
from minitron_cli.prune.config import Budget, PruneConfig
from minitron_cli.report.settings import stage_settings
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.search import CandidateResult, ObjectiveResult, SearchResult
from minitron_cli.retraining import RetrainingConfig
from minitron_cli.search import candidates
from minitron_cli.search.config import Retrain, SearchConfig
from minitron_cli.stages import importance, prune, report, search
from tests.processes import together
from tests.tiny import write_tiny
from tests.unit.stages.place import WORDS, context, data, write_place

RETRAIN = Retrain(
    top=4, tokens=256, rungs=3, batch_size=2, micro_batch_size=2, learning_rate=1e-2, warmup_steps=1, save_every=1
)
SPACE = {"ffn": (16, 24, 32, 40), "layer": (3, 4)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("search")
    write_place(root)
    return root


@pytest.fixture
def parent(place):
    return open_source_model(place / "model")


@pytest.fixture(scope="module")
def scores(place):
    config = ImportanceConfig(samples=4, batch_size=2, layer_removal=False)
    return importance.run(context(place / "scores"), open_source_model(place / "model"), data(place), config)


def config(parent, **changes):
    small = Budget(target=parent.shape.resize(ffn=28).parameters(), tolerance=0.2)
    return SearchConfig(**{"budget": small, "space": SPACE, "score_blocks": 2, "retrain": RETRAIN, **changes})


def rows_of(artifact):
    """Candidates with measured costs."""
    return candidates.with_measured_costs(artifact, artifact.result(SearchResult).candidates)


def winner_of(artifact):
    (winner,) = artifact.result(SearchResult).winners.values()
    return winner


@pytest.fixture
def trained(monkeypatch):
    """Every step that a candidate took: (its shape, the step it began with, the step it stopped after)."""
    taken, original = [], search.train

    def train(student, *arguments, until, **options):
        scratch = arguments[4]
        steps = [int(p.name.removeprefix("step-")) for p in scratch.glob("step-*")] if scratch.is_dir() else []
        taken.append((scratch.name, max(steps, default=0), until))
        return original(student, *arguments, until=until, **options)

    monkeypatch.setattr(search, "train", train)
    return taken


def by_search(where, place, parent, scores):
    search.run(where, parent, scores, data(place), config(parent))


def by_prune(where, place, parent, scores):
    prune.run(where, parent, PruneConfig(budget=config(parent).budget, repair="none"), scores=scores, data=data(place))


@pytest.mark.parametrize("choose", [by_search, by_prune])
def test_a_choice_by_scores_in_another_dtype_is_another_result(tmp_path, place, parent, scores, choose):
    def path(dtype: str) -> Path:
        where = context(tmp_path / "run", dtype=dtype, dry_run=True)
        with pytest.raises(DryRunStop) as plan:
            choose(where, place, parent, scores)
        return plan.value.path

    assert len({path(dtype) for dtype in ("auto", "float32", "bfloat16")}) == 3


def test_shapes_that_are_scored_are_those_that_are_priced(tmp_path, place, parent, scores, monkeypatch):
    limits = ({"kind": "parameters", "at_most": "95%"},)
    wanted = SearchConfig(
        space={"ffn": (8, 16, 24, 32, 40)}, constraints=limits, candidates=2, score_blocks=2, retrain=None
    )
    priced, real = [], search.work_of.work
    monkeypatch.setattr(search.work_of, "work", lambda searching: priced.append(searching) or real(searching))
    with pytest.raises(DryRunStop):
        search.run(context(tmp_path / "run", dry_run=True), parent, scores, data(place), wanted)
    found = search.run(context(tmp_path / "run"), parent, scores, data(place), wanted)
    scored = {row.shape["ffn"] for row in rows_of(found)}
    assert {shape.sizes["ffn"] for shape in priced[0].shapes} == scored == {32, 40}


@pytest.mark.parametrize(
    ("objective", "signals", "retrain", "counts"),
    [
        ("loss", None, RETRAIN, True),
        ("loss", "50 draws", RETRAIN, False),
        ("kl", "50 draws", RETRAIN, True),
        ("kl", None, None, True),
        ("loss", None, None, False),
    ],
)
def test_memory_counts_the_teacher_where_it_is_loaded(parent, objective, signals, retrain, counts):
    one = subject.of_source(parent)
    searching = search.Searching(
        parent=one,
        teacher=one,
        targets={"": [parent.shape.resize(ffn=24)]},
        config=config(parent, objective=objective, retrain=retrain),
        length=16,
        score_blocks=2,
        retraining=RetrainingConfig.of(retrain, 0) if retrain else None,
        signals=signals,
    )
    assert ("teacher" in search.work_of.work(searching).certain) == counts


@pytest.mark.slow
@pytest.mark.parametrize("repair", ["bias", "merge"])
def test_candidates_get_the_repair_that_the_child_will_have(tmp_path, place, parent, scores, repair):
    """Each its own: tensors that were fitted for one are not those of the next."""
    space = {"ffn": (16, 24)} if repair == "bias" else {"layer": (2, 3)}
    wanted = SearchConfig(
        space=space, budget=config(parent).budget.model_copy(update={"tolerance": 0.9}), score_blocks=2
    )
    wanted = wanted.model_copy(update={"retrain": None, "score_repair": "all"})
    own = PruneConfig(repair=repair, repair_samples=4, budget=wanted.budget)
    found = search.run(context(tmp_path / "run"), parent, scores, data(place), wanted, prune=own)
    for row in rows_of(found):
        assert row.repairs == (repair,)
        alone = wanted.model_copy(update={"space": {axis: (row.shape[axis],) for axis in space}})
        (same,) = rows_of(search.run(context(tmp_path / row.key), parent, scores, data(place), alone, prune=own))
        assert same.zero_shot == row.zero_shot


@pytest.mark.slow
def test_candidates_go_on_from_where_they_were(tmp_path, place, parent, scores, trained):
    found = search.run(context(tmp_path / "run"), parent, scores, data(place), config(parent))
    steps = found.result(SearchResult).rung_tokens
    assert steps == (64, 128, 256)  # of 2 x 16 tokens a step
    by_rung = [[(start, until) for _, start, until in trained if until == n] for n in (2, 4, 8)]
    assert by_rung == [[(0, 2)] * 4, [(2, 4)] * 2, [(4, 8)] * 2]
    rows = rows_of(found)
    assert [len(row.rungs) for row in rows] == [3, 3, 1, 1, *[0] * (len(rows) - 4)]
    assert found.result(SearchResult).winners.keys() == {str(config(parent).budget.target)}
    assert rows[0].shape.items() >= winner_of(found).sizes.items()


@pytest.mark.slow
def test_a_stopped_search_takes_no_step_again(tmp_path, place, parent, scores, trained, monkeypatch):
    whole = search.run(context(tmp_path / "whole"), parent, scores, data(place), config(parent))
    trained.clear()
    stops = iter([3, 9])

    class Stopping:
        """Asks to stop after some figures were recorded."""

        left = next(stops)

        def start(self, title, total, unit):
            return self.step if title.startswith("retrain") else lambda n=1, **figures: None

        def step(self, n=1, **figures):
            self.left -= 1
            if self.left == 0:
                progress.request_stop(2)

        def finish(self, step):
            pass

        def say(self, text):
            pass

        def warn(self, text):
            pass

        def priced(self, price):
            pass

    display = Stopping()
    for _ in range(2):
        progress.show_on(display)
        with pytest.raises(Interrupted):
            search.run(context(tmp_path / "run"), parent, scores, data(place), config(parent))
        progress.request_stop(None)
        display.left = 3
    progress.show_on(None)
    again = search.run(context(tmp_path / "run"), parent, scores, data(place), config(parent))
    assert again.manifest.files == whole.manifest.files
    taken = [(name, step) for name, start, until in trained for step in range(start, until)]
    assert len(taken) == len(set(taken)), "no candidate takes a step twice"


@pytest.mark.slow
def test_a_winner_names_the_heads_that_go_with_hidden(tmp_path, place):
    model = write_tiny(tmp_path / "qwen2", "qwen2", vocab_size=300, head_dim=4)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(place / "model" / name, model)
    parent, here = open_source_model(model), context(tmp_path / "run")
    scores = importance.run(here, parent, data(place), ImportanceConfig(samples=4, batch_size=2, layer_removal=False))
    budget = Budget(target="60%", tolerance=0.2)
    found = search.run(
        here, parent, scores, data(place), SearchConfig(budget=budget, score_blocks=2, retrain=None, candidates=2)
    )
    sizes = winner_of(found).sizes
    assert sizes["hidden"] == sizes["head"] * 4 < 32
    assert found.manifest.inputs["heads"] == "with hidden"


def test_several_sizes_share_their_scores_and_each_has_a_winner(tmp_path, place, parent, scores, monkeypatch):
    scored = []
    original = search._Search._score
    monkeypatch.setattr(
        search._Search, "_score", lambda self, some, i: scored.append(some[i].name) or original(self, some, i)
    )
    wanted = config(parent, budget=Budget(target="85%", tolerance=0.1), targets=("78%",), retrain=None)
    found = search.run(context(tmp_path / "run"), parent, scores, data(place), wanted)
    assert set(found.result(SearchResult).winners) == {"85%", "78%"}
    assert len(scored) == len(set(scored)), "a shape that is feasible for both is scored once"
    rows = rows_of(found)
    assert len(rows) > len(scored), "some are"
    whole = parent.shape.parameters()
    for target, share in (("85%", 0.85), ("78%", 0.78)):
        assert all(abs(row.parameters / whole / share - 1) <= 0.1 for row in rows if row.target == target)
    with pytest.raises(InputError, match="winners for 85%, 78%: choose one with --size"):
        prune.run(context(tmp_path / "run"), parent, PruneConfig(), scores=scores, search=found)
    with pytest.raises(InputError, match="no winner for 50%: choose among 85%, 78%"):
        prune.run(context(tmp_path / "run"), parent, PruneConfig(size="50%"), scores=scores, search=found)
    child = prune.run(context(tmp_path / "run"), parent, PruneConfig(size="78%"), scores=scores, search=found)
    assert found.result(SearchResult).winners["78%"].sizes.items() <= child.result(PruneResult).child.sizes.items()


@pytest.mark.slow
def test_a_latency_is_measured_once_and_kept_outside_identity(tmp_path, place, parent, scores, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    built = []

    def compare(child, parent, config):
        """A layer takes a millisecond a token."""
        layers = [model.config.num_hidden_layers for model in (child, parent)]
        built.append(layers)
        rates = [GenerationRates(0.0, config.batch_size * 1000 / n, 0.0) for n in layers]
        ratio = layers[1] / layers[0]
        return SpeedComparison(rates[1], rates[0], 0.0, (0.0, 0.0), ratio, (ratio, ratio))

    monkeypatch.setattr("minitron_cli.search.latency_probe.compare", compare)
    limit = ({"kind": "latency", "length": 8, "repeats": 1, "at_most": "80%"},)
    wanted = config(parent, constraints=limit, candidates=2, retrain=None)
    found = search.run(context(tmp_path / "run"), parent, scores, data(place), wanted)
    rows = rows_of(found)
    assert [row.shape["layer"] for row in rows] == [3, 3], "3 of 4 layers take 75 % of the time"
    assert [row.costs["latency"] for row in rows] == [3.0, 3.0]
    assert "latency" not in found.file("result.json").read_text()
    asked = len(built)
    again = search.run(context(tmp_path / "other"), parent, scores, data(place), wanted)
    assert again.manifest.files == found.manifest.files
    assert len(built) == asked, "the cache answers"
    too_fast = config(parent, constraints=({**limit[0], "at_most": "10%"},), retrain=None)
    with pytest.raises(InfeasibleError, match="latency of decode at 1 x 8 tokens"):
        search.run(context(tmp_path / "none"), parent, scores, data(place), too_fast)


@pytest.mark.slow
def test_a_model_is_really_timed(tmp_path, place, parent, scores, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for phase in ("prefill", "decode"):
        limit = ({"kind": "throughput", "phase": phase, "batch": 2, "length": 8, "repeats": 1, "at_least": 1e-3},)
        wanted = config(parent, constraints=limit, candidates=1, retrain=None)
        found = search.run(context(tmp_path / phase), parent, scores, data(place), wanted)
        assert rows_of(found)[0].costs["throughput"] > 0


@pytest.mark.slow
def test_a_task_decides_and_higher_is_better(tmp_path, place, parent, scores):
    words = WORDS.split()
    text = [" ".join(words[(7 * i + 3 * j) % len(words)] for j in range(200)) for i in range(3)]
    write_task(tmp_path / "tasks", text, Cloze(items=8, context_words=6, continuation_words=3))
    objective = {"task": "cloze", "path": str(tmp_path / "tasks")}
    wanted = config(parent, objective=objective, candidates=3, retrain=None)
    found = search.run(context(tmp_path / "run"), parent, scores, data(place), wanted)
    values = [row.zero_shot for row in rows_of(found)]
    assert values == sorted(values, reverse=True)
    assert all(0 <= value <= 1 for value in values)
    assert found.result(SearchResult).objective == ObjectiveResult(name="cloze acc", better="higher")
    with pytest.raises(InputError, match=r"no 'f1': set search\.objective\.metric to one of acc"):
        search.run(
            context(tmp_path / "odd"),
            parent,
            scores,
            data(place),
            config(parent, objective={**objective, "metric": "f1"}, candidates=1, retrain=None),
        )


def test_the_distance_to_the_parent_decides(tmp_path, place, parent, scores):
    wanted = config(parent, objective="kl", candidates=3, retrain=None)
    found = search.run(context(tmp_path / "run"), parent, scores, data(place), wanted)
    values = [row.zero_shot for row in rows_of(found)]
    assert values == sorted(values)
    assert all(value > 0 for value in values)


@pytest.mark.slow
def test_the_report_shows_how_it_was_decided(tmp_path, place, parent, scores):
    at = context(tmp_path / "run")
    calibration = ImportanceConfig(samples=4, batch_size=2, layer_removal=False)
    own = importance.run(at, parent, data(place), calibration)
    search.run(at, parent, own, data(place), config(parent))
    page = (report.run(at).path / "report.html").read_text()
    for text in ("Rank stability", "zero-shot to final order", "rung 1 to rung 2", "retrained loss", ">memory</th>"):
        assert text in page
    assert "halving" in page


def search_together(rank, place, scores, out):
    """Search as one of several processes; the files that came of it, and what this one trained."""
    parent, trained, original = open_source_model(place / "model"), [], search.train

    def train(*arguments, until, **options):
        trained.append((arguments[5].name, until))
        return original(*arguments, until=until, **options)

    search.train = train
    found = search.run(context(out), parent, scores, data(place), config(parent))
    return found.manifest.files, set(trained)


@pytest.mark.slow
def test_two_processes_share_the_candidates(tmp_path, place, parent, scores):
    alone = search.run(context(tmp_path / "alone"), parent, scores, data(place), config(parent))
    files, trained = zip(*together(2, search_together, place, scores, tmp_path / "both"), strict=True)
    assert files[0] == files[1] == alone.manifest.files
    assert trained[0], "both work"
    assert trained[1]
    assert not trained[0] & trained[1]
    assert len(trained[0] | trained[1]) == 4 + 2 + 2


@pytest.mark.parametrize(
    ("better", "values", "worse"),
    [
        ("lower", [(6.0, (93.0, 90.0)), (6.0, (5.0,)), (6.0, ())], "1 of 2 retrained candidates"),
        ("lower", [(6.0, (90.0, 6.1)), (6.0, (5.0, 4.0))], None),
        ("higher", [(0.5, (0.6, 0.4)), (0.5, (0.6,))], "1 of 2 retrained candidates"),
        ("higher", [(0.5, (0.48,)), (0.5, ())], None),
    ],
)
def test_a_retraining_that_diverged_is_said(better, values, worse, monkeypatch):
    warned = []
    monkeypatch.setattr(progress, "warn", warned.append)
    rows = tuple(CandidateResult.model_construct(zero_shot=before, rungs=rungs) for before, rungs in values)
    search._warn_if_worse(SearchResult.model_construct(objective=ObjectiveResult(better=better), candidates=rows))
    assert [worse in text for text in warned] == ([True] if worse else [])


def test_a_search_with_biases_is_another_one(tmp_path):
    """Candidates have other parameters, although none is repaired before it is scored."""
    write_place(tmp_path, attention_bias=False, mlp_bias=False)
    where, parent = context(tmp_path / "run"), open_source_model(tmp_path / "model")
    calibration = ImportanceConfig(samples=4, batch_size=2, layer_removal=False)
    scores = importance.run(where, parent, data(tmp_path), calibration)
    asked = config(parent, retrain=None)
    plain, biased = (
        search.run(where, parent, scores, data(tmp_path), asked, prune=PruneConfig(repair=repair))
        for repair in ("none", "bias")
    )
    assert plain.key != biased.key
    counts = [made.result(SearchResult).parent.parameters for made in (plain, biased)]
    assert counts[0] < counts[1]
    assert "prune.repair=bias" in stage_settings("search", {}, biased.manifest.inputs)
