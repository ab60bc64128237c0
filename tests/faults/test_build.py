"""The frame of every stage under every fault, around a small real cut."""

from typing import ClassVar

import pytest
import torch

from minitron_cli.artifacts.build import Context, produce
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint.writer import write_safetensors
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.model.families.llama import LLAMA
from minitron_cli.model.shape import Shape
from minitron_cli.prune import stream
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import write_child
from minitron_cli.results.base import Result
from minitron_cli.spec import Spec
from tests.faults.harness import HOWS, Range, problems, random_kills, table, trials
from tests.tiny import write_tiny


class Cut(Spec):
    ffn: int = 3


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    return cut_of(tmp_path_factory.mktemp("parent"))


class Kept(Result):
    """Result of the stage under test."""

    schema_name: ClassVar[str] = "kept/1"
    verb: ClassVar[str] = "minitron prune"

    kept: tuple[int, ...]


def cut_of(directory, **options):
    """A cut that keeps state in its scratch directory, as the long stages do."""
    model = {"num_hidden_layers": 1, "attention_bias": False, "mlp_bias": False}
    parent = open_source_model(write_tiny(directory, "llama", **model))
    assert parent.shape == Shape.of(LLAMA, parent.config)
    plan = PrunePlan(parent.shape, {"ffn": torch.tensor([[5, 6, 7]])})

    def build(work):
        state = work.remember("state", lambda: {"kept": [5, 6, 7]})
        write_child(parent.checkpoint, plan, work.path, **options)
        write_safetensors(work.path / "plan.safetensors", plan.tensors())
        work.write_json("config.json", child_config(parent.checkpoint.config, plan))
        return Kept(kept=tuple(state["kept"]))

    def run(root):
        workspace = Workspace(root / "run")
        with workspace.lock():
            inputs = {"model": parent.fingerprint}
            produce(Context(workspace), stage="prune", version=1, config=Cut(), inputs=inputs, build=build, label="a")

    return run


@pytest.mark.parametrize("how", [pytest.param(how, marks=[] if how == "ENOSPC" else pytest.mark.slow) for how in HOWS])
def test_every_fault_at_every_call(stage, place, how):
    done = list(trials(stage, place, hows=[how]))
    print("\n" + table("produce", done))
    assert len(done) > (15 if how == "torn" else 50)
    assert not problems(done)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
def test_every_fault_with_several_threads_and_shards(tmp_path, monkeypatch, place, how):
    """Which thread the fault meets is left to chance; what is left behind is not."""
    monkeypatch.setattr(stream, "BLOCK_BYTES", 2000)
    stage = cut_of(tmp_path, max_shard_bytes=10_000)
    torch.set_num_threads(3)
    done = list(trials(stage, place, hows=[how]))
    torch.set_num_threads(1)
    print("\n" + table("several threads", done))
    assert len(done) > 30
    assert not problems(done)


@pytest.mark.slow
def test_kills_at_random_moments(stage, place):
    done = random_kills(Range(stage, place), 24, inside_a_write=6)
    print("\n" + table("produce", done))
    assert not problems(done)
