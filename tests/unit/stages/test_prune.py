"""Several children pruned by one set of scores, and the forecast of a dry run from headers alone."""

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from minitron_cli import progress
from minitron_cli.artifacts.build import DryRunStop, produce
from minitron_cli.checkpoint import hf, safetensors_file
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.cost.compute import model_size
from minitron_cli.cost.parts import parts
from minitron_cli.errors import InputError
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.config import Budget, PruneConfig
from minitron_cli.results.importance import ImportanceResult
from minitron_cli.results.prune import PruneResult
from minitron_cli.scores.metric import Activation
from minitron_cli.scores.scores import Scores
from minitron_cli.stages import importance, prune
from tests.tiny import write_tiny
from tests.unit.stages.place import context, data, write_place

SHAPES = ({"ffn": 24}, {"hidden": 16}, {"layer": 2, "ffn": 8})


@pytest.fixture
def parent(tmp_path):
    return open_source_model(write_tiny(tmp_path / "model"))


@pytest.fixture
def scores(scores_of, parent):
    return scores_of(parent)


@pytest.fixture
def scores_of(tmp_path):
    return partial(made_up_scores, tmp_path)


def made_up_scores(tmp_path, parent):
    draw = torch.Generator().manual_seed(0)
    sizes = {"hidden": (32,), "ffn": (4, 48), "head": (4, 8)}
    found = {f"{axis}.batch=l2.sequence=mean": torch.rand(size, generator=draw) for axis, size in sizes.items()}
    found["layer.block_importance"] = torch.rand(4, generator=draw)

    def save(work):
        Scores(found).save(work.path)
        return ImportanceResult(model=model_size(parent.shape, 16), samples=1, sequence_length=16)

    return produce(
        context(tmp_path / "run"),
        stage="importance",
        version=1,
        config=ImportanceConfig(),
        inputs={"model": parent.fingerprint},
        build=save,
    )


def test_one_set_of_scores_serves_several_cuts(tmp_path, parent, scores, monkeypatch):
    monkeypatch.setattr(prune.written_child.export_check, "check_child", lambda written: [])  # which runs the child
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_: pytest.fail("a model ran"))
    made = [prune.run(context(tmp_path / "run"), parent, PruneConfig(shape=shape), scores=scores) for shape in SHAPES]
    assert len({artifact.path for artifact in made}) == len(SHAPES)
    for artifact, shape in zip(made, SHAPES, strict=True):
        sizes = artifact.result(PruneResult).child.sizes
        assert {axis: sizes[axis] for axis in shape} == shape
        assert artifact.path.is_dir()
        assert artifact.manifest.inputs["scores"] == scores.fingerprint


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_dry_run_foretells_what_is_written_and_touches_nothing(tmp_path, parent, scores, monkeypatch, shape):
    config, before = PruneConfig(shape=shape), sorted((tmp_path / "run").rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "read", lambda *_: pytest.fail("read a tensor"))
        patch.setattr(Checkpoint, "read_rows", lambda *_: pytest.fail("read a tensor"))
        with pytest.raises(DryRunStop) as caught:
            prune.run(context(tmp_path / "run", dry_run=True), parent, config, scores=scores)
    assert sorted((tmp_path / "run").rglob("*")) == before
    made = prune.run(context(tmp_path / "run"), parent, config, scores=scores)
    found = safetensors_file.read_header(made.path / "model.safetensors")
    assert caught.value.path == made.path
    assert caught.value.forecast == {
        "sizes": made.result(PruneResult).child.sizes,
        "parameters": sum(torch.Size(info.shape).numel() for info in found.values()),
        "weights_bytes": (made.path / "model.safetensors").stat().st_size,
        "tensors": len(found),
        "tensors_dropped": len(parent.checkpoint.tensors) - len(found),
    }
    assert (caught.value.forecast["tensors_dropped"] > 0) == ("layer" in shape)


def test_a_dry_run_names_the_candidates_of_a_budget(tmp_path, parent, scores, monkeypatch):
    """They are those that retain most importance, most first: the product of the shares kept of hidden and ffn."""
    blocks = type(
        "Blocks", (), {"fingerprint": "f", "sequence_length": 16, "has_loss_mask": False, "__len__": lambda _: 200}
    )()
    monkeypatch.setattr(prune, "blocks_of", lambda *_: blocks)
    target = parent.shape.resize(ffn=32).parameters()
    config = PruneConfig(budget=Budget(target=target, tolerance=0.2), candidates=3)
    data = SimpleNamespace(sequence_length=16)
    with pytest.raises(DryRunStop) as caught:
        prune.run(context(tmp_path / "run", dry_run=True), parent, config, scores=scores, data=data)
    *named, (_, how) = caught.value.forecast.items()
    assert [title for title, _ in named] == ["candidate 1", "candidate 2", "candidate 3"]
    assert how == "each on 8 validation blocks; the best is pruned"
    hidden, ffn = (Scores.load(scores.path).select(axis, Activation()).double() for axis in ("hidden", "ffn"))
    products = {
        str(parent.shape.resize(hidden=d, ffn=f)): share(hidden, d) * share(ffn, f)
        for d in (8, 16, 24, 32)
        for f in range(8, 49, 8)
        if abs(parent.shape.resize(hidden=d, ffn=f).parameters() / target - 1) <= 0.2 and (d, f) != (32, 48)
    }
    best = sorted(products, key=products.__getitem__, reverse=True)[:3]
    assert [said.split(": ")[0] for _, said in named] == best


def share(scores, count):
    """Share of the scores that the highest `count` entries have, mean over layers."""
    return float((scores.topk(count).values.sum(-1) / scores.sum(-1)).mean())


def test_a_budget_prunes_heads_with_hidden_where_a_program_needs_it(tmp_path, scores_of, monkeypatch):
    said = []
    monkeypatch.setattr(progress, "say", said.append)
    parent = open_source_model(write_tiny(tmp_path / "qwen2", "qwen2", head_dim=4))
    assert parent.shape.sizes["hidden"] == parent.shape.sizes["head"] * parent.shape.sizes["head_dim"]
    budget = Budget(target="60%", tolerance=0.2)

    def pruned(budget=budget, **options):
        config = PruneConfig(budget=budget, candidates=1, repair="none", axes=("hidden",), **options)
        return prune.run(context(tmp_path / "run"), parent, config, scores=scores_of(parent))

    made, free = pruned(), pruned(serving_lint="warn")
    sizes, hidden = (artifact.result(PruneResult).child.sizes for artifact in (made, free))
    assert sizes["hidden"] == sizes["head"] * 4 < 32
    assert hidden["head"] == 8
    assert hidden["hidden"] < 32
    assert made.manifest.inputs["heads"] == "with hidden"
    assert "heads" not in free.manifest.inputs
    (remark,) = [text for text in said if "prunes heads" in text]
    assert "vLLM and llama.cpp would not run the child otherwise; --serving-lint warn" in remark
    alone = pruned(budget=Budget(target=parent.shape.resize(hidden=24).parameters(), tolerance=0.001))
    assert alone.result(PruneResult).child.sizes["head"] == 8  # no 24 channels have heads of 4 in 4 groups
    assert "heads" not in alone.manifest.inputs
    assert len([text for text in said if "prunes heads" in text]) == 1


def off_pattern(tmp_path, scores_of, **options):
    parent = open_source_model(write_tiny(tmp_path / "patterned", "gemma2"))
    config = PruneConfig(drop_layers=(1,), repair="none", **options)
    return prune.run(context(tmp_path / "run"), parent, config, scores=scores_of(parent))


@pytest.mark.parametrize("model_type", ["olmo3", "cwm", "vaultgemma", "exaone4", "qwen2", "qwen3", "qwen2_moe"])
def test_kinds_that_a_config_leaves_to_transformers_are_those_of_the_layers_that_stay(tmp_path, scores_of, model_type):
    """transformers numbers layers to give them kinds, and would number those of the child anew."""
    model = write_tiny(tmp_path / "model", model_type, num_hidden_layers=8)
    file = model / "config.json"
    stated = json.loads(file.read_text())
    windows = {
        "use_sliding_window": True,
        "sliding_window": 64,
        "max_window_layers": 6,
    }  # where a family has the fields
    stated |= {name: value for name, value in windows.items() if name in stated}
    file.write_text(json.dumps({name: value for name, value in stated.items() if name != "layer_types"}))
    parent = open_source_model(model)
    kinds = parent.config.layer_types
    assert len(set(kinds)) == 2
    for layer in (0, 1, 6):
        config = PruneConfig(drop_layers=(layer,), repair="none", serving_lint="warn")
        made = prune.run(context(tmp_path / "run"), parent, config, scores=scores_of(parent))
        assert hf.load_config(made.path).layer_types == [kind for i, kind in enumerate(kinds) if i != layer]


def test_layers_off_the_pattern_go_where_the_user_says_so(tmp_path, scores_of, monkeypatch):
    warned = []
    monkeypatch.setattr(progress, "warn", warned.append)
    with pytest.raises(InputError, match=r"--serving-lint warn if llama.cpp will not run the child"):
        off_pattern(tmp_path, scores_of)
    made = off_pattern(tmp_path, scores_of, serving_lint="warn")
    kinds = json.loads((made.path / "config.json").read_text())["layer_types"]
    assert kinds == ["sliding_attention", "sliding_attention", "full_attention"]
    assert len(warned) == 1
    assert "serve it with transformers or vLLM" in warned[0]
    levels = {finding.reader: finding.level for finding in made.result(PruneResult).serving}
    assert levels["llama.cpp layers"] == "fails"


@pytest.mark.parametrize(
    ("given", "length", "blocks"),
    [
        ({}, 2048, (2, 8)),
        ({}, 512, (8, 32)),
        ({}, 16, (8, 128)),
        ({}, 100_000, (1, 1)),
        ({"score_blocks": 64}, 2048, (64, 8)),
        ({"score_blocks": 8, "repair_samples": 128}, 2048, (8, 128)),
    ],
)
def test_a_number_of_blocks_that_is_not_set_holds_a_number_of_tokens(given, length, blocks):
    fitted = PruneConfig(**given).fitted(length)
    assert (fitted.score_blocks, fitted.repair_samples) == blocks
    assert fitted.fitted(1) == fitted


@pytest.mark.parametrize(
    ("groups", "shape", "is_vain"),
    [(8, {"head": 4, "kv_head": 4}, True), (2, {"ffn": 24}, True), (2, {"head": 4}, False)],
)
def test_a_head_residual_that_merges_nothing_is_said(groups, shape, is_vain, tmp_path, scores_of, monkeypatch):
    """No head is pruned, or whole groups are, such as where each head has keys of its own."""
    warned = []
    monkeypatch.setattr(progress, "warn", warned.append)
    parent = open_source_model(write_tiny(tmp_path / "model", num_key_value_heads=groups))
    config = PruneConfig(shape=shape, repair="none", ranking={"head_residual": "laco"})
    with pytest.raises(DryRunStop):
        prune.run(context(tmp_path / "run", dry_run=True), parent, config, scores=scores_of(parent))
    assert [text.startswith("ranking.head_residual has no effect") for text in warned] == [True] * is_vain


@pytest.mark.parametrize(
    ("shape", "rounds", "is_new"),
    [({"head": 2}, 2, True), ({"kv_head": 1, "head": 2}, 2, True), ({"head": 2}, 1, False), ({"ffn": 8}, 2, False)],
)
def test_rounds_that_prune_heads_are_of_other_shapes_than_before(
    tmp_path, parent, scores, monkeypatch, shape, rounds, is_new
):
    found = {}
    monkeypatch.setattr(prune._Pruning, "check", lambda _: None)
    monkeypatch.setattr(prune, "check_samples", lambda *_: None)
    monkeypatch.setattr(
        prune, "_texts", lambda *_, **__: {"train": SimpleNamespace(fingerprint="text", sequence_length=16)}
    )
    monkeypatch.setattr(prune, "given_texts", lambda *_: {})
    monkeypatch.setattr(prune, "produce", lambda *_, **given: found.update(given))
    prune.run(context(tmp_path / "run"), parent, PruneConfig(shape=shape, rounds=rounds, repair="none"), scores=scores)
    assert ("rounds" in found["inputs"]) == is_new


def test_rounds_do_not_measure_blocks_of_layers_again(tmp_path):
    """The distances of blocks that were measured once rank nothing in rounds, and may be longer than what is left."""
    write_place(tmp_path)
    parent, where = open_source_model(tmp_path / "model"), context(tmp_path / "run")
    measured = ImportanceConfig(samples=4, batch_size=2, layer_removal=False, block_distances=(3,))
    scores = importance.run(where, parent, data(tmp_path), measured)
    config = PruneConfig(shape={"layer": 2}, rounds=2, repair="none")
    made = prune.run(where, parent, config, scores=scores, data=data(tmp_path))
    assert made.result(PruneResult).child.sizes["layer"] == 2


def test_the_result_has_the_parent_as_it_was_given(tmp_path, scores_of):
    """A hybrid whose dropped layers no pattern of the child tells, and a tied head that the child has untied."""
    hybrid = open_source_model(write_tiny(tmp_path / "hybrid", "lfm2"))
    tied = open_source_model(write_tiny(tmp_path / "tied", tie_word_embeddings=True))
    for parent, settings in ((hybrid, {}), (tied, {"untie": True})):
        config = PruneConfig(repair="none", drop_layers=(0,), **settings)
        made = prune.run(context(tmp_path / parent.path.name), parent, config, scores=scores_of(parent))
        result, child = made.result(PruneResult), open_source_model(made.path).shape
        assert result.parts == (parts(parent.shape), parts(child))
        assert result.parent.parameters == parent.shape.parameters()
        assert made.run.price.what == f"{parent.shape.parameters():,} to {child.parameters():,} parameters"
        assert result.child.parameters == child.parameters()
    assert result.parts[1].embeddings == 2 * result.parts[0].embeddings
