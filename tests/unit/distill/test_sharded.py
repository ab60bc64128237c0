"""Several processes, replicated or with one copy between them, do what one does."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from minitron_cli import progress
from minitron_cli.checkpoint.safetensors_file import read_header, read_safetensors
from minitron_cli.distill import checkpoints, sharding
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.trainer import Placement
from minitron_cli.errors import Interrupted, RunFailed
from tests.processes import together
from tests.unit.distill import small
from tests.unit.distill.test_trainer import FULL, PAIRS, figures, interrupt_after

BOTH = pytest.mark.parametrize("is_sharded", [False, True], ids=["replicated", "sharded"])
SOBER = {"student": {"tie_word_embeddings": True}}  # dropout differs with how a batch is divided
SHARDED = Placement(is_sharded=True)


def changed(**changes: Any) -> DistillConfig:
    return DistillConfig.model_validate({**FULL.model_dump(), **changes})


def one(
    scratch: Path | None, config: DistillConfig, placement: Placement, stop_after: int | None = None, **student: Any
):
    """One run in this process: what it read, its figures, and all of the student's weights."""
    blocks = small.TinyBlocks()
    options = {"student": small.student(tie_word_embeddings=True, **student), "blocks": blocks}

    def go() -> Any:
        return small.run(scratch, config, pairs=PAIRS, placement=placement, **options)

    if stop_after:
        interrupt_after(stop_after, go)
        return blocks.seen
    model, result = go()
    weights = {name: p.clone() for name, p in sharding.parameters(model)}
    return blocks.seen, figures(result), weights


def in_process(
    rank: int, scratch: Path | None, config: DistillConfig, placement: Placement, *arguments: Any, **fields: Any
):
    return one(scratch, config, placement, *arguments, **fields)


def close(ours: Any, theirs: Any, rel: float = 1e-5) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=rel)


def batches(seen: list[list[int]], config: DistillConfig) -> list[list[int]]:
    """The samples of each step, of all processes together, without what evaluations read (other blocks)."""
    size = config.batch_size // len(seen)
    return [sorted(i for ids in seen for i in ids[at : at + size]) for at in range(0, len(seen[0]), size)]


@pytest.mark.slow
@pytest.mark.parametrize("is_sharded", [True, False])
def test_two_processes_train_like_one(is_sharded: bool) -> None:
    seen, alone, weights = one(None, FULL, Placement())
    both = together(2, in_process, None, FULL, Placement(is_sharded))
    for _, theirs, its_weights in both:
        close(theirs[2], alone[2])
        close(theirs[3], alone[3])
        for name, weight in weights.items():
            torch.testing.assert_close(its_weights[name], weight, rtol=1e-4, atol=1e-5)
    assert batches([both[0][0], both[1][0]], FULL) == batches([seen], FULL)


@pytest.mark.slow
def test_uneven_shares_are_weighed_by_their_tokens() -> None:
    """Five samples of unequal length, and three to evaluate on, for two processes: one of them has none in the end."""
    config = changed(batch_size=5, micro_batch_size=1, eval_blocks=3)
    alone, (first, second) = one(None, config, Placement()), together(2, in_process, None, config, SHARDED)
    for ours in (first, second):
        close(ours[1][2], alone[1][2])
        close(ours[1][3], alone[1][3])


@pytest.mark.slow
@pytest.mark.parametrize("cuts", [(3,), (1, 5)])
def test_a_stopped_sharded_run_ends_like_an_undisturbed_one(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    dropping = {"attention_dropout": 0.3}

    def go(rank: int, scratch: Path, *arguments: Any) -> Any:
        return one(scratch, FULL, SHARDED, *arguments, **dropping)

    undisturbed = together(2, go, tmp_path / "a")
    for cut in cuts:
        together(2, go, tmp_path / "b", cut)
        assert checkpoints.load(tmp_path / "b", cut).step == cut
    resumed = together(2, go, tmp_path / "b")
    for ours, theirs in zip(resumed, undisturbed, strict=True):
        assert ours[1] == theirs[1]
        assert all(torch.equal(ours[2][name], weight) for name, weight in theirs[2].items())
    for name in ("state-00001-of-00002.safetensors", "state-00002-of-00002.safetensors", "state.json"):
        assert (tmp_path / "b/step-000006" / name).read_bytes() == (tmp_path / "a/step-000006" / name).read_bytes()


@pytest.mark.slow
def test_every_process_keeps_its_own_rows_alone(tmp_path: Path) -> None:
    together(2, in_process, tmp_path, FULL, SHARDED)
    halves = [read_safetensors(tmp_path / f"step-000006/state-0000{i}-of-00002.safetensors") for i in (1, 2)]
    one(tmp_path / "alone", FULL, Placement())
    whole = read_safetensors(tmp_path / "alone/step-000006/state.safetensors")
    assert halves[0].keys() == halves[1].keys() == whole.keys()
    assert any(name.startswith("exp_avg_sq.projection") for name in whole)
    for name, tensor in whole.items():
        if tensor.ndim:
            assert len(halves[0][name]) == -(-len(tensor) // 2)
            joined = torch.cat([half[name] for half in halves])
            torch.testing.assert_close(joined, tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@BOTH
def test_from_one_process_to_two_and_back(tmp_path: Path, is_sharded: bool) -> None:
    """The same samples in the same order, and a course that differs by rounding only."""
    placement = Placement(is_sharded)
    undisturbed = one(tmp_path / "a", FULL, Placement())
    first = one(tmp_path / "b", FULL, Placement(), 2)
    middle = together(2, in_process, tmp_path / "b", FULL, placement, 4)
    last, theirs, weights = one(tmp_path / "b", FULL, Placement())
    assert batches([first], FULL) + batches(middle, FULL) + batches([last], FULL) == batches([undisturbed[0]], FULL)
    close(theirs[2], undisturbed[1][2])
    close(theirs[3], undisturbed[1][3])
    for name, weight in undisturbed[2].items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sharding_", "size", "device", "expected"),
    [
        ("auto", 2, "cuda", False),  # 16 bytes for each of 10 parameters, and 30 of the teacher's, 1.2 times: 228
        ("auto", 2, "cpu", True),  # where both processes use the same memory
        ("none", 2, "cpu", False),
        ("full", 2, "cuda", True),
        ("full", 1, "cuda", False),  # nobody to share with
    ],
)
def test_sharding_is_chosen_where_one_copy_each_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, sharding_: str, size: int, device: str, expected: bool
) -> None:
    monkeypatch.setattr(sharding.memory, "available_bytes", lambda device: 228)
    group = type(
        "Two", (), {"size": size, "local_size": size, "device": torch.device(device), "any": staticmethod(bool)}
    )
    assert sharding.is_wanted(changed(sharding=sharding_), group, 10, 30) == expected
    assert not sharding.is_wanted(changed(sharding="auto"), group, 4, 30) or device == "cpu"


@pytest.mark.slow
def test_more_processes_than_a_tensor_has_rows(tmp_path: Path) -> None:
    """A parameter of 24 rows over 5 processes; 4 rows of heads leave some of them none."""
    alone, all_five = (
        one(None, changed(batch_size=5), Placement()),
        together(5, in_process, tmp_path, changed(batch_size=5), SHARDED),
    )
    close(all_five[4][1][2], alone[1][2])
    header = read_header(tmp_path / "step-000006/state-00005-of-00005.safetensors")
    assert header["parameter.student.model.norm.weight"].shape == (0,)
    assert one(tmp_path, changed(batch_size=5), Placement())[1][2] == all_five[0][1][2], "nothing is left to do"


@pytest.mark.slow
def test_a_stop_that_one_process_gets_stops_all(tmp_path: Path) -> None:
    def go(rank: int) -> int:
        if rank == 1:
            progress.show_on(small.AfterStep(3, lambda: progress.request_stop(signal.SIGTERM)))
        try:
            one(tmp_path, FULL, SHARDED)
        except Interrupted as e:
            return e.exit_code
        return 0

    assert together(2, go) == [143, 143]
    assert checkpoints.load(tmp_path, 3).step == 3


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_in_one_process_stops_all_before_the_weights_change() -> None:
    def go(rank: int) -> tuple[str, bool]:
        student = small.student()
        before = small.state(student)
        if rank == 1:
            student.model.norm.register_forward_hook(
                lambda _, args, out: out * float("nan") if student.training else out
            )
        try:
            small.run(None, student=student, placement=SHARDED)
        except RunFailed as e:
            return str(e), all(torch.equal(p, before[name]) for name, p in sharding.parameters(student))
        return "", False

    for message, is_untouched in together(2, go):
        assert "is nan in step 1" in message
        assert is_untouched


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputing_activations_changes_no_number(precision: str) -> None:
    plain, again = (
        together(2, in_process, None, changed(precision=precision, activation_checkpointing=on), SHARDED)
        for on in (False, True)
    )
    assert plain[0][1] == again[0][1]


@pytest.mark.slow
def test_bf16_shards_train_like_autocast() -> None:
    """bf16 keeps 8 bits: per cents of the loss of a single step."""
    alone = one(None, changed(precision="bf16"), Placement())
    both = together(2, in_process, None, changed(precision="bf16"), SHARDED)
    close([row["loss"] for row in both[0][1][2]], [row["loss"] for row in alone[1][2]], rel=0.05)
    assert all(weight.dtype == torch.float32 for weight in both[0][2].values())


@pytest.mark.slow
def test_weights_that_are_nowhere_yet_are_read_row_by_row() -> None:
    def go(rank: int) -> Any:
        weights = {"student": small.state(small.student()), "teacher": small.state(small.teacher())}
        asked: list[int] = []

        def rows(role: str) -> sharding.RowReader:
            def read(name: str, like: torch.Tensor, start: int, stop: int) -> torch.Tensor:
                asked.append(stop - start)
                assert isinstance(like, DTensor)
                return weights[role][name][start:stop]

            return read

        placement = Placement(True, rows("student"), rows("teacher"))
        with torch.device("meta"):
            student, teacher = small.student(), small.teacher()
        for model, like in ((student, small.student()), (teacher, small.teacher())):
            model.model.rotary_emb = like.model.rotary_emb
        result = small.run(None, student=student, teacher=teacher, placement=placement)[1]
        return figures(result), sum(asked)

    in_memory = together(2, lambda rank: figures(small.run(None, placement=SHARDED)[1]))
    nowhere = together(2, go)
    assert [found for found, _ in nowhere] == in_memory
    rows = sum(len(p) for model in (small.student(), small.teacher()) for p in model.parameters())
    assert sum(count for _, count in nowhere) == rows
