"""The calibration pass: how samples are batched, interrupted or packed does not matter, and damage is noticed."""

import dataclasses

import pytest
import torch

from minitron_cli import io, progress
from minitron_cli.data.batches import Batch
from minitron_cli.errors import CheckpointError, DataError, Interrupted
from minitron_cli.importance.collect import observe
from minitron_cli.importance.layer_removal import LayerRemoval, evenly, starts
from minitron_cli.layerwise.processes import Processes
from minitron_cli.layerwise.resume import FILE
from minitron_cli.model.families import family_of
from tests.tiny import tiny_model
from tests.unit.importance.calibration import TOKENS, Killed, killed_after, samples, score, split


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def batches():
    return split(samples(8), [2, 2, 2, 2])


@pytest.fixture(scope="module")
def undisturbed(model, batches):
    return score(model, batches)


def assert_close(found, expected):
    """Equal to fp32 rounding; perplexity is exponential in what is rounded, and its differences cancel."""
    assert found.by_name.keys() == expected.by_name.keys()
    for name in expected.by_name:
        rtol = 1e-3 if "layer.perplexity" in name else 1e-4
        torch.testing.assert_close(found.by_name[name], expected.by_name[name], rtol=rtol, atol=1e-6, msg=name)


def assert_same_bits(found, expected):
    assert found.by_name.keys() == expected.by_name.keys()
    assert [name for name in expected.by_name if not torch.equal(found.by_name[name], expected.by_name[name])] == []


@pytest.mark.parametrize("sizes", [[8], [1] * 8, [3, 5]], ids=str)
def test_how_samples_are_batched_does_not_matter(model, undisturbed, sizes):
    assert_close(score(model, split(samples(8), sizes)), undisturbed)


def test_the_order_of_samples_does_not_matter(model, batches, undisturbed):
    assert_close(score(model, batches[::-1]), undisturbed)


def test_the_same_samples_give_the_same_bits(model, batches, undisturbed):
    assert_same_bits(score(model, batches), undisturbed)


def test_layer_removal_changes_no_other_score(model, batches, undisturbed):
    without = score(model, batches, layer_removal=False)
    removal = {"layer.perplexity", "layer.perplexity_error", "layer.nll", "parent.nll"}
    assert undisturbed.by_name.keys() - without.by_name.keys() == removal
    assert all(torch.equal(t, undisturbed.by_name[name]) for name, t in without.by_name.items())


SUBSET = {"blocks": (2,), "removal_samples": 5, "removal_positions": 3}


def of_removal(scores):
    return {name: t for name, t in scores.by_name.items() if "perplexity" in name or "nll" in name}


@pytest.mark.parametrize("sizes", [[8], [1] * 8, [3, 5], [5, 3]], ids=str)
def test_which_tokens_rank_layers_does_not_depend_on_the_batches(model, sizes):
    expected = of_removal(score(model, split(samples(8), [4, 4]), **SUBSET))
    found = of_removal(score(model, split(samples(8), sizes), **SUBSET))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    alone = of_removal(score(model, split(samples(8), [5, 3])[:1], **SUBSET))
    torch.testing.assert_close(expected, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_layers_are_not_run_again_after_the_samples_that_rank_them(model):
    runs = {}
    for n in (2, 4):
        calls = []
        with model.model.layers[-1].register_forward_hook(lambda *_, calls=calls: calls.append(1)):
            score(model, split(samples(8), [1] * 8), removal_samples=n)
        runs[n] = len(calls)
    assert runs[4] - runs[2] == 2 * (model.config.num_hidden_layers - 1)


def test_a_killed_pass_goes_on_with_the_tokens_that_rank_layers(model, batches, tmp_path):
    options = {"removal_samples": 3, "removal_positions": 4}
    undisturbed = score(model, batches, **options)
    for count in (1, 2):
        with pytest.raises(Killed):
            score(model, killed_after(batches, count), scratch=tmp_path, save_every_s=0, **options)
    assert_same_bits(score(model, batches, scratch=tmp_path, **options), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 7])
def test_processes_rank_layers_by_the_tokens_of_one(model, processes):
    whole = samples(8)
    rows = [Batch(*(t[i : i + 1] for t in (whole.input_ids_BT, whole.position_ids_BT)), (i,)) for i in range(8)]
    expected = of_removal(score(model, rows, **SUBSET))
    parts = []
    for rank in range(processes):
        of = Processes(rank, processes)
        removal = LayerRemoval(
            model, family_of(model.config), (1, 2), samples=of.share(5), positions=SUBSET["removal_positions"]
        )
        for row in rows[rank::processes]:
            with torch.inference_mode():
                observe(model, [removal], row)
        parts.append(removal)
    for part in parts[1:]:
        parts[0].merge(part.state())
    torch.testing.assert_close(parts[0].scores(), expected, rtol=1e-3, atol=1e-4)


def test_positions_are_spaced_evenly_and_as_many_as_there_are():
    counts_BT = torch.tensor([[1] * 12, [0, 1] * 6, [0] * 11 + [1], [0] * 12]).bool()
    none = torch.zeros(4, dtype=torch.int64)
    assert evenly(counts_BT, 4, none)[0].nonzero().flatten().tolist() == [2, 5, 8, 11]
    for start in range(30):
        found_BT = evenly(counts_BT, 4, none + start)
        assert found_BT.sum(1).tolist() == [4, 4, 1, 0]
        assert not (found_BT & ~counts_BT).any()
    assert torch.equal(evenly(counts_BT, 99, none + 7), counts_BT)
    assert torch.equal(evenly(counts_BT, None, none), counts_BT)


def test_every_position_is_taken_as_often_over_all_starts():
    """So that what a place in a block does to the loss is in no ranking."""
    counts_BT = torch.ones(35, 7, dtype=torch.bool)
    for most in range(1, 8):
        assert evenly(counts_BT, most, torch.arange(35)).sum(0).tolist() == [5 * most] * 7


def test_a_samples_positions_depend_on_its_own_tokens_alone():
    whole = samples(8, 40).input_ids_BT
    found_B = starts(whole)
    assert torch.equal(found_B.flip(0), starts(whole.flip(0)))
    assert torch.equal(found_B[3:4], starts(whole[3:4]))
    assert len(set((found_B % 39).tolist())) > 4


def test_documents_packed_into_a_block_do_not_see_each_other(model):
    alone = samples(2, 9, documents=False)
    together = dataclasses.replace(
        alone, input_ids_BT=alone.input_ids_BT.reshape(1, 18), position_ids_BT=alone.position_ids_BT.reshape(1, 18)
    )
    packed, apart = score(model, [together]), score(model, [alone])
    for axis in ("head", "ffn", "hidden"):  # means over tokens, then over samples of one length
        torch.testing.assert_close(packed.activation(axis, "mean", "mean"), apart.activation(axis, "mean", "mean"))
    torch.testing.assert_close(packed.layers("block_importance"), apart.layers("block_importance"))
    torch.testing.assert_close(packed.layers("nll"), apart.layers("nll"))


def test_the_model_is_left_as_it_was(batches):
    model = tiny_model("llama")
    before = model.state_dict()
    score(model, batches)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_no_logits_are_computed_where_none_are_needed(batches):
    model = tiny_model("llama")
    model.lm_head.register_forward_pre_hook(lambda *_: pytest.fail("the LM head ran"))
    score(model, batches, layer_removal=False)


def counting(model):
    """How many batches ran through the model, as a list that grows."""
    runs = []

    def hook(_, args, kwargs, output):
        if kwargs["input_ids"].shape[1] == TOKENS:  # not the short text that checks what the LM head does
            runs.append(1)

    return runs, model.model.register_forward_hook(hook, with_kwargs=True)


@pytest.mark.parametrize("kills", [[0], [1], [3], [4], [1, 1, 2, 3]], ids=str)
def test_a_killed_pass_goes_on_where_it_was_with_the_same_bits(model, batches, undisturbed, tmp_path, kills):
    for count in kills:
        with pytest.raises(Killed):
            score(model, killed_after(batches, count), scratch=tmp_path, save_every_s=0)
    runs, handle = counting(model)
    assert_same_bits(score(model, batches, scratch=tmp_path, save_every_s=0), undisturbed)
    handle.remove()
    assert len(runs) == 4 - max(kills)


class FailingDisk(io.Disk):
    """A disk on which the n-th write-side call fails."""

    def __init__(self, n):
        self.left = n

    def __getattribute__(self, name):
        if not name.startswith("_") and name not in ("left", "close"):
            self.left -= 1
            if self.left < 0:
                raise Killed
        return super().__getattribute__(name)


@pytest.mark.slow
def test_a_pass_killed_while_it_saves_goes_on_with_the_same_bits(model, tmp_path, monkeypatch):
    batches = split(samples(3), [1, 2])
    undisturbed = score(model, batches, layer_removal=False)
    for n in range(100):
        scratch = tmp_path / str(n)
        scratch.mkdir()
        monkeypatch.setattr(io, "disk", FailingDisk(n))
        try:
            score(model, batches, layer_removal=False, scratch=scratch, save_every_s=0)
        except Killed:
            monkeypatch.undo()
            again = score(model, batches, layer_removal=False, scratch=scratch, save_every_s=0)
            assert_same_bits(again, undisturbed)
        else:
            break
    assert 20 < n < 99, "every write-side call of both saves failed once"


def test_a_stop_request_saves_first(model, batches, undisturbed, tmp_path):
    def stopped_in_the_second_batch():
        yield batches[0]
        progress.request_stop(15)
        yield from batches[1:]

    with pytest.raises(Interrupted):
        score(model, stopped_in_the_second_batch(), scratch=tmp_path)
    progress.request_stop(None)
    runs, handle = counting(model)
    assert_same_bits(score(model, batches, scratch=tmp_path), undisturbed)
    handle.remove()
    assert len(runs) == 3  # the second batch was not begun


@pytest.mark.parametrize(
    ("family", "module", "call"),
    [("llama", "layers.2", 0), ("llama", "layers.3", 2), ("llama", "norm", 3), ("qwen3_moe", "layers.2", 0)],
)
def test_a_stop_inside_a_batch_leaves_the_state_before_it(tmp_path, batches, family, module, call):
    """In the forward pass, in that of a variant without a layer, and before the head of a variant."""
    model, calls = tiny_model(family), []
    undisturbed = score(model, batches)

    def request(*_):
        calls.append(1)
        if len(calls) > call:
            progress.request_stop(15)

    def stopped_inside_the_second_batch():
        yield batches[0]
        with model.get_submodule(f"model.{module}").register_forward_hook(request):
            yield from batches[1:]

    with pytest.raises(Interrupted):
        score(model, stopped_inside_the_second_batch(), scratch=tmp_path)
    progress.request_stop(None)
    runs, _ = counting(model)
    assert_same_bits(score(model, batches, scratch=tmp_path), undisturbed)
    assert len(runs) == 3
    assert len(calls) == call + 1


def test_without_resume_the_pass_starts_over(model, batches, tmp_path):
    with pytest.raises(Killed):
        score(model, killed_after(batches, 2), scratch=tmp_path, save_every_s=0)
    other = split(samples(8, seed=1), [4, 4])
    assert_same_bits(score(model, other, scratch=tmp_path, resume=False), score(model, other))


def test_a_damaged_state_file_starts_the_pass_over(model, batches, undisturbed, tmp_path):
    (tmp_path / FILE).write_bytes(b"half a file")
    assert_same_bits(score(model, batches, scratch=tmp_path), undisturbed)


def test_the_state_does_not_grow_with_the_samples(model, batches, tmp_path):
    sizes = []
    for count in (1, 4):
        with pytest.raises(Killed):
            score(model, killed_after(batches, count), scratch=tmp_path, save_every_s=0)
        sizes.append((tmp_path / FILE).stat().st_size)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(
    ("damaged", "named"),
    [
        ("model.layers.2.mlp.down_proj.weight", "from decoder layer 2 on"),
        ("model.layers.0.self_attn.v_proj.weight", "from decoder layer 0 on"),
        ("model.norm.weight", "'hidden"),
        ("lm_head.weight", "'layer.perplexity'"),
    ],
)
def test_damaged_weights_are_named(batches, damaged, named):
    model = tiny_model("llama")
    model.get_parameter(damaged).data[0] = float("nan")
    with pytest.raises(CheckpointError, match=f"{named}.*check the checkpoint"):
        score(model, batches)


def test_damage_is_noticed_in_the_first_batch(batches):
    model = tiny_model("llama")
    model.get_parameter("model.layers.1.mlp.up_proj.weight").data.fill_(float("inf"))
    with pytest.raises(CheckpointError, match="from decoder layer 1 on"):
        score(model, killed_after(batches, 1))


def test_an_empty_set_is_an_error(model):
    with pytest.raises(DataError, match="give at least one"):
        score(model, [])


def test_a_set_without_anything_to_predict_is_an_error(model):
    with pytest.raises(DataError, match="use longer texts"):
        score(model, [samples(2, 1, documents=False)])


def test_a_model_in_training_is_refused(batches):
    with pytest.raises(AssertionError, match="dropout"):
        score(tiny_model("llama").train(), batches)
