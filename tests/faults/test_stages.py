"""Every stage, killed at random moments and in the middle of writes, ends with the bytes of an undisturbed run."""

import os
import pickle
import shutil
import subprocess
import sys
import time

import pytest
import torch

from minitron_cli import io
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.distill.config import CorrectConfig, DistillConfig, HiddenLosses
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.evaluate.config import Cloze, EvaluateConfig
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import Budget, PruneConfig
from minitron_cli.report import plots
from minitron_cli.search.config import Retrain, SearchConfig
from minitron_cli.signals.config import TeachConfig
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.stages import correct, distill, evaluate, importance, prune, report, search, sparsify, teach, teacher
from minitron_cli.stages.teacher import TeacherConfig
from tests.faults.harness import Range, artifacts, different, here, in_child, problems, random_kills, table
from tests.unit.stages.place import data, write_place

RANDOM_KILLS, INSIDE_A_WRITE = 8, 3  # another choice each day

TRAINING = {"batch_size": 2, "micro_batch_size": 1, "warmup_steps": 1, "learning_rate": 1e-2, "precision": "fp32"}
STATES = ("block_output", "attention_relation", "embedding")
DISTILL = DistillConfig(
    steps=4, save_every=1, eval_every=2, eval_blocks=2, hidden=HiddenLosses(states=STATES, layers=((1, 1),)), **TRAINING
)
CORRECT = CorrectConfig(steps=3, save_every=1, eval_every=2, eval_blocks=2, export="best", **TRAINING)
TEACHER = TeacherConfig(
    vocab_size=300,
    hidden=32,
    ffn=48,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    training=DistillConfig(steps=3, save_every=1, eval_every=2, eval_blocks=2, losses=(CrossEntropy(),), **TRAINING),
)
RETRAIN = Retrain(top=2, tokens=64, batch_size=2, learning_rate=1e-2, warmup_steps=1)
SPARSIFY = {"metric": "sparsegpt", "repair": "least_squares", "samples": 8, "batch_size": 4, "effect_blocks": 2}
SEARCH = {"space": {"ffn": (24, 32, 40)}, "candidates": 3, "score_blocks": 2}


class Chain:
    """The stages of one small model, each as a callable on a workspace that holds those before it."""

    def __init__(self, place):
        self.place = place
        self.data = data(place)

    def parent(self):
        return open_source_model(self.place / "model")

    def in_workspace(self, work):
        def run(root):
            workspace = Workspace(root / "run")
            with workspace.lock():
                return work(Context(workspace), workspace)

        return run

    def stages(self):
        parent, text = self.parent(), self.data
        small = Budget(target=parent.shape.resize(ffn=32).parameters(), tolerance=0.2)
        config = SearchConfig(budget=small, retrain=RETRAIN, **SEARCH)
        works = {
            "importance": lambda c, w: importance.run(c, parent, text, ImportanceConfig(samples=6, batch_size=2)),
            "search": lambda c, w: search.run(c, parent, w.require("importance", ""), text, config),
            "prune": lambda c, w: prune.run(
                c,
                parent,
                PruneConfig(shape={"ffn": 24, "hidden": 24, "layer": 3}, repair="none"),
                scores=w.require("importance", ""),
                data=text,
            ),
            "sparsify": lambda c, w: sparsify.run(
                c, open_source_model(w.require("prune", "").path), SparsifyConfig(**SPARSIFY), text
            ),
            "correct": lambda c, w: correct.run(c, parent, text, CORRECT),
            "distill": lambda c, w: distill.run(c, parent, w.require("prune", "").path, text, DISTILL),
            "evaluate": lambda c, w: evaluate.run(
                c,
                [("pruned", w.require("prune", "").path), ("distilled", w.require("distill", "").path)],
                parent,
                text,
                EvaluateConfig(blocks=4, cloze=Cloze(items=4, context_words=8, continuation_words=3)),
            ),
            "report": lambda c, w: report.run(c),
            "teacher": lambda c, w: teacher.run(c, text, TEACHER),
            "teach": lambda c, w: teach.run(c, parent, text, TeachConfig(tokens=320, eval_blocks=2, precision="fp32")),
        }
        return {name: self.in_workspace(work) for name, work in works.items()}


@pytest.fixture(scope="module", autouse=True)
def _figures_are_drawn_once():
    """Drawing takes seconds and touches no disk."""
    drawn = {}

    def once(draw):
        def found(shown):
            key = pickle.dumps((draw.__name__, shown))
            return drawn.get(key) or drawn.setdefault(key, draw(shown))

        return found

    with pytest.MonkeyPatch.context() as patch:
        for draw in (plots.svg, plots.sheet):
            patch.setattr(plots, draw.__name__, once(draw))
        yield


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    place = tmp_path_factory.mktemp("chain")
    write_place(place)
    return Chain(place)


@pytest.fixture(scope="module")
def beginnings(chain, tmp_path_factory):
    """Stage -> a directory with the results of the stages before it."""
    made, so_far = {}, tmp_path_factory.mktemp("so_far")
    for name, stage in chain.stages().items():
        made[name] = shutil.copytree(so_far, tmp_path_factory.mktemp("before") / name)
        ended = here(stage, so_far)
        assert ended.code == 0, ended.trace
    return made


NAMES = ("importance", "search", "prune", "sparsify", "correct", "distill", "evaluate", "report", "teacher", "teach")


def survive(name, stage, place, start=None):
    range_ = Range(stage, place, start)
    done = random_kills(range_, RANDOM_KILLS, inside_a_write=INSIDE_A_WRITE)
    print(f"\n{range_.seconds:.2f} s, {len(range_.calls)} calls, {range_.calls.count('write')} writes")
    print(table(name, done))
    assert not problems(done)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_a_killed_stage_is_finished_by_running_it_again(chain, beginnings, place, name):
    survive(name, chain.stages()[name], place, beginnings[name])


def run_all(place, root):
    """Every stage in a row; for a process of its own."""
    torch.set_num_threads(1)
    for stage in Chain(place).stages().values():
        ended = here(stage, root)
        assert ended.code == 0, ended.trace


@pytest.mark.slow
def test_where_and_how_a_chain_runs_does_not_show(chain, tmp_path):
    """Not in a byte of any artifact: paths, the working directory, the umask, the hash seed, the time zone."""
    places, roots = {}, {}
    for name in ("a fork", "a program"):
        places[name] = shutil.copytree(chain.place, tmp_path / name / "place")
        roots[name] = tmp_path / name / "root"
        roots[name].mkdir()

    def here_and_so(root):
        os.umask(0o022)
        os.chdir(places["a fork"])
        os.environ |= {"TZ": "UTC", "XDG_CACHE_HOME": str(root / "cache")}
        time.tzset()
        run_all(places["a fork"], root)

    ended = in_child(here_and_so, roots["a fork"], io.Disk()).wait()
    assert ended.code == 0, ended.trace
    elsewhere(places["a program"], roots["a program"], umask="077", seed="104729", zone="Asia/Tokyo")
    found = [artifacts(root) for root in roots.values()]
    assert different(*found) == []
    assert len(found[0]) == 2 * len(NAMES)


def elsewhere(place, root, umask, seed, zone):
    """Run every stage in a process of its own; this one has a hash seed of its own, too."""
    imports = "import sys; from pathlib import Path; from tests.faults.test_stages import run_all"
    script = f"{imports}; run_all(*map(Path, sys.argv[1:]))"
    settings = {
        "PYTHONPATH": os.getcwd(),
        "PYTHONHASHSEED": seed,
        "TZ": zone,
        "XDG_CACHE_HOME": str(root / "cache"),
    }
    command = ["sh", "-c", f'umask {umask}; exec "$@"', "sh", sys.executable, "-c", script, str(place), str(root)]
    subprocess.run(command, check=True, cwd=place, env=os.environ | settings)
