"""A search killed at random moments: run again, it has the same winner and the same bytes, and trains nobody twice."""

import os
import random
from collections import Counter

import pytest

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.distill import trainer
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import Budget
from minitron_cli.results.search import SearchResult
from minitron_cli.search.config import Retrain, SearchConfig
from minitron_cli.stages import importance, search
from tests.faults.harness import Range, day, killed_between, problems, table
from tests.unit.stages.place import data, write_place

KILLS = 8  # one in each part of the run, at another moment each day
STEPS = 4 * 2 + 2 * 2 + 2 * 4  # four candidates to step 2, two of them to 4 and to 8


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_in_every_part_of_a_search(tmp_path_factory, place, monkeypatch):
    source, log = tmp_path_factory.mktemp("source"), place / "root" / "steps"  # emptied before each trial
    write_place(source)
    parent = open_source_model(source / "model")
    context = Context(Workspace(source / "scored"))
    scores = importance.run(context, parent, data(source), ImportanceConfig(samples=4, layer_removal=False))
    monkeypatch.setattr(trainer._Run, "_optimize", noted(trainer._Run._optimize, log))
    config = SearchConfig(
        budget=Budget(target=parent.shape.resize(ffn=32).parameters(), tolerance=0.2),
        space={"ffn": (16, 24, 32, 40), "layer": (3, 4)},
        candidates=5,
        score_blocks=2,
        retrain=Retrain(top=4, tokens=256, batch_size=2, learning_rate=1e-2, warmup_steps=1, save_every=1),
    )

    def stage(root):
        workspace = Workspace(root / "run")
        with workspace.lock():
            search.run(Context(workspace), parent, scores, data(source), config)

    range_ = Range(stage, place)
    assert len(log.read_text().splitlines()) == STEPS
    winner = winner_of(place)
    draw, done = random.Random(day()), []
    for part in range(KILLS):
        trial = killed_between(range_, part / KILLS, (part + 1) / KILLS, draw)
        done.append(trial)
        taken = Counter(log.read_text().splitlines())
        assert len(taken) == STEPS
        assert sum(taken.values()) <= STEPS + 1, f"more than the step under way was taken again: {taken}"
        assert winner_of(place) == winner
    print("\n" + table("search", done))
    assert not problems(done)


def winner_of(place):
    (path,) = (p for p in (place / "root" / "run" / "search").iterdir() if p.is_dir())
    return Artifact.open(path).result(SearchResult).winners


def noted(optimize, log):
    """A step, after a line that says whose it is and which."""

    def step(run):
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(fd, f"{run.state.scratch.name} {run.state.step}\n".encode())
        os.close(fd)
        return optimize(run)

    return step
