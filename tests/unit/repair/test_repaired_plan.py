"""A repaired child, from the verb's side: what is written, said, remembered and refused."""

import json
import statistics

import pytest
import torch
from transformers import AutoModelForCausalLM

from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.cost.derive import spent
from minitron_cli.data.batches import evenly_spaced
from minitron_cli.errors import ArtifactError, CheckpointError, DataError, EnvironmentFault, InputError
from minitron_cli.importance.config import ImportanceConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.inputs.token_blocks import blocks_of
from minitron_cli.prune import child_builder
from minitron_cli.prune.child_builder import read_scores
from minitron_cli.prune.config import PruneConfig
from minitron_cli.repair import acceptance, closed_form, fitted_child, norm_rescale, repaired_plan
from minitron_cli.results.prune import PruneResult, RepairResult
from minitron_cli.results.search import SearchResult
from minitron_cli.search.config import SearchConfig
from minitron_cli.stages import importance, prune, search
from tests.quick import first_quick
from tests.tiny import tiny_model
from tests.unit.stages.place import context, data, write_place

SHAPE = {"hidden": 16, "head": 4, "ffn": 20}
REPAIRS = first_quick(["all", "rescale", "rotate", "least_squares"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("repair")
    write_place(root)
    return root


@pytest.fixture(scope="module")
def pruned(place):
    """`pruned(repair="all")`: the prune artifact, which tests share."""
    return pruning_in(place / "runs", place)


@pytest.fixture
def pruned_anew(place, tmp_path):
    """`pruned`, in a workspace that is empty at first: for tests that change or watch how an artifact is made."""
    return pruning_in(tmp_path / "runs", place)


def pruning_in(workspace, place):
    here = context(workspace)

    def run(model=None, with_text=True, **options):
        parent = open_source_model(model or place / "model")
        scores = importance.run(
            here, parent, data(place), ImportanceConfig(samples=12, batch_size=4, layer_removal=False)
        )
        config = PruneConfig(**{"shape": SHAPE, "repair": "none", "repair_samples": 12} | options)
        return prune.run(here, parent, config, scores=scores, data=data(place) if with_text else None)

    return run


@pytest.fixture
def said(monkeypatch):
    found = []
    monkeypatch.setattr("minitron_cli.progress.say", found.append)
    return found


@pytest.mark.parametrize("kind", REPAIRS)
def test_a_repaired_child_loads_and_is_another(pruned, kind):
    plain, repaired = Checkpoint.open(pruned().path), Checkpoint.open(pruned(repair=kind).path)
    assert plain.shapes == repaired.shapes
    assert plain.config == repaired.config
    hf.load_model(repaired.path)
    changed = {name for name in plain.tensors if not torch.equal(plain.read(name), repaired.read(name))}
    solved = {name for name in plain.tensors if name.endswith(("o_proj.weight", "down_proj.weight"))}
    readers = {name for name in plain.tensors if name.endswith("proj.weight") or "norm" in name or "lm_head" in name}
    if kind == "least_squares":
        assert readers - solved <= changed <= readers, "all but the embedding; a matrix may do best as it was pruned"
    if kind in ("rotate", "all"):
        assert changed >= {name for name in plain.tensors if "proj.weight" in name or "embed" in name}
    if kind == "rescale":
        assert all("norm" in name for name in changed)


@pytest.mark.parametrize("kind", REPAIRS)
def test_the_result_has_the_effect_of_the_repair(pruned, kind):
    result = pruned(repair=kind).result(PruneResult)
    found = result.repair
    assert found.repairs == (("least_squares", "rotate") if kind == "all" else (kind,))
    assert found.effect.after.kl < found.effect.before.kl
    assert result.calibration.samples == 12
    assert set((found.strengths or {}).values()) <= {0.0, 0.5, 1.0}
    assert pruned().result(PruneResult).repair is None


@pytest.fixture(scope="module")
def bare(place):
    """A model without biases whose neurons, silu(x) x, have means."""
    path = place / "bare"
    model = tiny_model("llama", vocab_size=300, attention_bias=False, mlp_bias=False)
    for layer in model.model.layers:
        layer.mlp.up_proj.load_state_dict(layer.mlp.gate_proj.state_dict())
    model.save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((place / "model" / name).read_bytes())
    return path


def test_flap_adds_biases_that_stock_transformers_loads(pruned_anew, bare):
    child = pruned_anew(bare, method="flap", shape={"head": 4, "ffn": 20}, repair="bias")
    found, written = child.result(PruneResult), Checkpoint.open(child.path)
    assert found.repair.repairs == ("bias",)
    assert found.repair.effect.after.kl < found.repair.effect.before.kl
    assert (written.config["attention_bias"], written.config["mlp_bias"]) == (True, True)
    model, info = AutoModelForCausalLM.from_pretrained(child.path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert found.child.parameters == model.num_parameters()
    assert model.model.layers[0].mlp.down_proj.bias.abs().max() > 0
    assert not model.model.layers[0].mlp.up_proj.bias.any()
    tokens = {entry.work: entry.tokens for entry in spent(child)}
    assert tokens["repair"] == 12 * 16, "one pass over the parent"


@pytest.mark.slow
def test_biases_that_do_not_help_are_not_written(pruned_anew, bare, monkeypatch):
    plain = pruned_anew(bare, shape={"ffn": 20})
    monkeypatch.setattr("minitron_cli.repair.bias.of_pruned", lambda weight, *_: 100 + weight.double().sum(1))
    made = pruned_anew(bare, shape={"ffn": 20}, repair="bias")
    assert (repair_of(made).repairs, repair_of(made).left_out) == ((), ("bias",))
    assert made.result(PruneResult).child.parameters == plain.result(PruneResult).child.parameters
    for name in ("model.safetensors", "config.json"):
        assert (made.path / name).read_bytes() == (plain.path / name).read_bytes()


@pytest.mark.slow
def test_laco_merges_layers_in_the_order_that_was_measured(place, tmp_path, monkeypatch):
    monkeypatch.setattr(repaired_plan, "keep_what_gains", keep_all)
    here, parent = context(tmp_path), open_source_model(place / "model")
    config, known = PruneConfig(method="laco", shape={"layer": 3}, repair_samples=12), {"samples": 4, "batch_size": 4}
    scores = importance.run(here, parent, data(place), ImportanceConfig(layer_removal=False, **known))
    with pytest.raises(ArtifactError, match=r"measure it with `minitron importance collapse=2`"):
        prune.run(here, parent, config, scores=scores, data=data(place))
    scores = importance.run(here, parent, data(place), ImportanceConfig(layer_removal=False, collapse=1, **known))
    made = prune.run(here, parent, config, scores=scores, data=data(place))
    dropped = int(read_scores(scores, parent).layers("collapse").argmin())
    assert repair_of(made).repairs == ("merge",)
    name = "model.layers.{}.mlp.down_proj.weight"
    own, other = (parent.checkpoint.read(name.format(i)) for i in (dropped - 1, dropped))
    torch.testing.assert_close(Checkpoint.open(made.path).read(name.format(dropped - 1)), own + (other - own))


def test_biases_are_refused_where_none_can_be(pruned_anew, sandwiched):
    with pytest.raises(CheckpointError, match="reads neurons of a olmo2 model: use --repair least_squares"):
        pruned_anew(sandwiched, repair="bias", shape={"ffn": 20})


@torch.no_grad()
def test_the_figures_in_the_result_are_those_of_the_written_child(pruned, place):
    """On every other block of those that are read: the rest decided what is kept."""
    artifact = pruned(repair="all")
    blocks = blocks_of(context(place), data(place), "validation", place / "model")
    loss, kl = [], []
    for i in evenly_spaced(len(blocks), 16)[1::2]:
        inputs = {"input_ids": blocks.tokens(i)[None], "position_ids": blocks.positions(i)[None], "use_cache": False}
        logits = (hf.load_model(path)(**inputs).logits[0, :-1] for path in (artifact.path, place / "model"))
        own, wanted = (of_model.double().log_softmax(-1)[blocks.positions(i)[1:] != 0] for of_model in logits)
        labels = blocks.tokens(i)[1:][blocks.positions(i)[1:] != 0]
        loss += (-own.gather(1, labels[:, None])[:, 0]).tolist()
        kl += (wanted.exp() * (wanted - own)).sum(-1).tolist()
    after = repair_of(artifact).effect.after
    assert (after.loss, after.kl) == pytest.approx((statistics.mean(loss), statistics.mean(kl)), rel=1e-4)
    assert repair_of(artifact).effect.tokens == len(loss)


def repair_of(artifact):
    return artifact.result(PruneResult).repair


@pytest.mark.slow
def test_one_layer_at_a_time_gives_the_same_child(pruned_anew, place, tmp_path, monkeypatch):
    """As one in memory of which all is kept: without both models in memory there is nothing to choose by."""
    monkeypatch.setattr(repaired_plan, "keep_what_gains", keep_all)
    resident = Checkpoint.open(pruning_in(tmp_path / "resident", place)(repair="all").path)
    monkeypatch.setattr(repaired_plan, "fits", lambda *_: False)
    artifact = pruned_anew(repair="all")
    by_layer = Checkpoint.open(artifact.path)
    for name in resident.tensors:
        torch.testing.assert_close(by_layer.read(name), resident.read(name), rtol=1e-3, atol=1e-3)
    assert repair_of(artifact) == RepairResult(repairs=("least_squares", "rotate"))


def test_rescaling_is_refused_where_it_could_not_be_judged(pruned_anew, monkeypatch):
    monkeypatch.setattr(repaired_plan, "fits", lambda *_: False)
    with pytest.raises(EnvironmentFault, match=r"rescale .* in memory together.*use --repair all"):
        pruned_anew(repair="rescale")


def keep_all(plan, parts, measure):
    figures, names = measure(plan), tuple(part.name for part in parts)
    for part in parts:
        plan = part.changed(plan)
    return acceptance.Kept(plan, names, (), figures, figures)


def gemma_in(directory, place):
    gemma = directory / "gemma"
    tiny_model("gemma2", vocab_size=300).save_pretrained(gemma)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (gemma / name).write_bytes((place / "model" / name).read_bytes())
    return gemma


@pytest.mark.slow
def test_a_repair_that_makes_the_child_worse_is_not_written(pruned_anew, place, tmp_path, monkeypatch, said):
    gemma = gemma_in(tmp_path, place)
    monkeypatch.setattr(norm_rescale, "strengths", lambda kinds, distance: dict.fromkeys(kinds, 1.0))
    plain, made = pruned_anew(gemma, shape={"hidden": 16}), pruned_anew(gemma, repair="rescale", shape={"hidden": 16})
    repair = repair_of(made)
    assert (repair.repairs, repair.left_out, repair.is_kept) == ((), ("rescale",), False)
    assert repair.effect.after == repair.effect.before
    assert len([text for text in said if text.startswith("rescale is left out of the repair: held-out KL ")]) == 1
    assert (made.path / "model.safetensors").read_bytes() == (plain.path / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_fit_that_loses_is_left_out_and_the_rotation_kept(pruned, pruned_anew, monkeypatch):
    """And with it its parts, of which each is tried by itself."""
    monkeypatch.setattr(fitted_child, "solve", lambda start, sums: -start)
    made, rotated = pruned_anew(repair="all"), pruned(repair="rotate")
    parts = ("rescaling of norms after rotate", "least_squares", "least_squares of writers", "least_squares of norms")
    assert (repair_of(made).repairs, repair_of(made).left_out) == (("rotate",), parts)
    assert repair_of(made).effect.after == repair_of(rotated).effect.after
    assert (made.path / "model.safetensors").read_bytes() == (rotated.path / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_the_strengths_are_judged_by_the_child_that_is_written(pruned_anew, place, tmp_path, monkeypatch):
    """Of a family that stores what a norm multiplies by less 1."""
    gemma, tried, texts, kl = gemma_in(tmp_path, place), [], [], closed_form.kl_to_parent

    def strong(kinds, distance):
        powers = dict.fromkeys(kinds, -0.2)
        tried.append(distance(norm_rescale.scales(kinds, powers)))
        return powers

    monkeypatch.setattr(repaired_plan, "keep_what_gains", keep_all)
    monkeypatch.setattr(norm_rescale, "strengths", strong)
    monkeypatch.setattr(closed_form, "kl_to_parent", lambda *a, **options: texts.append(a[2]) or kl(*a, **options))
    artifact = pruned_anew(gemma, repair="rescale", shape={"hidden": 16})
    written = kl(hf.load_model(artifact.path), hf.load_model(gemma), texts[0]).kl_nats
    assert tried == [pytest.approx(written, rel=1e-4)]


@pytest.mark.slow
def test_a_head_residual_is_there_before_the_fit(pruned):
    """The child's own heads are what o_proj is fitted to."""
    ranking = {"head_residual": "laco"}
    plain, residual = pruned(repair="least_squares"), pruned(repair="least_squares", ranking=ranking)
    assert repair_of(pruned(ranking=ranking)) is None
    assert repair_of(residual).effect.after.kl < repair_of(residual).effect.before.kl
    changed = [Checkpoint.open(made.path).read("model.layers.0.self_attn.o_proj.weight") for made in (plain, residual)]
    assert not torch.allclose(*changed, atol=1e-4)


def test_removed_layers_are_compensated_for(pruned):
    effect = repair_of(pruned(repair="least_squares", shape={}, drop_layers=(1,))).effect
    assert effect.after.kl < effect.before.kl


@pytest.mark.slow
def test_what_is_not_pruned_is_not_repaired(pruned):
    artifact = pruned(repair="all", shape={"ffn": 20})
    assert repair_of(artifact).repairs == ("least_squares",)
    assert repair_of(pruned(repair="rotate", shape={"ffn": 20})) is None


@pytest.fixture(scope="module")
def tied(place):
    path = place / "tied"
    tiny_model("llama", vocab_size=300, tie_word_embeddings=True).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((place / "model" / name).read_bytes())
    return path


@pytest.mark.slow
def test_a_tied_model_stays_tied_unless_it_is_to_have_a_head_of_its_own(pruned, tied):
    plain, repaired, apart = pruned(tied), pruned(tied, repair="all"), pruned(tied, repair="all", untie=True)
    assert repaired.result(PruneResult).child.parameters == plain.result(PruneResult).child.parameters
    assert (
        apart.result(PruneResult).child.parameters == plain.result(PruneResult).child.parameters + 300 * SHAPE["hidden"]
    )
    for child, is_tied in ((repaired, True), (apart, False)):
        model = hf.load_model(child.path)
        assert json.loads((child.path / "config.json").read_text())["tie_word_embeddings"] is is_tied
        assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) == is_tied
        assert repair_of(child).effect.after.kl < repair_of(child).effect.before.kl


@pytest.mark.slow
def test_the_norm_before_a_tied_head_keeps_its_weight(pruned, tied):
    """Rotated alone: between the least and the greatest weight of the parent's; of every other norm, 1 is left."""
    child, parent = Checkpoint.open(pruned(tied, repair="rotate").path), Checkpoint.open(tied)
    before, after = (checkpoint.read("model.norm.weight") for checkpoint in (parent, child))
    assert len(set(after.tolist())) > 1
    assert before.min() < after.min() <= after.max() < before.max()
    assert torch.equal(child.read("model.layers.0.input_layernorm.weight"), torch.ones(SHAPE["hidden"]))


@pytest.mark.slow
@torch.no_grad()
def test_a_tied_head_is_only_projected(pruned, tied):
    """Logits E P diag(g) P x of the whole weight of an uneven last norm, with P on the kept subspace."""
    ids, parent = torch.arange(40)[None], hf.load_model(tied)
    child, apart = (hf.load_model(pruned(tied, repair="rotate", untie=untie).path) for untie in (False, True))
    embedding, gain = apart.model.embed_tokens.weight, parent.model.norm.weight
    basis = torch.linalg.lstsq(parent.model.embed_tokens.weight, embedding).solution
    apart.lm_head.weight = torch.nn.Parameter(embedding @ basis.T @ (gain[:, None] * basis))
    torch.testing.assert_close(child(ids).logits, apart(ids).logits, rtol=0, atol=2e-4)


@pytest.mark.slow
def test_by_default_all_is_repaired_that_the_model_allows(pruned, pruned_anew, tied, said):
    best, asked = pruned_anew(repair="auto"), pruned(repair="all")
    assert repair_of(best) == repair_of(asked)
    child = pruned_anew(tied, repair="auto")
    assert repair_of(child).repairs == (
        "least_squares",
        "rotate",
    )
    assert not [line for line in said if "keeps channels, not directions" in line]


@pytest.fixture(scope="module")
def sandwiched(place):
    path = place / "olmo2"
    tiny_model("olmo2", vocab_size=300).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((place / "model" / name).read_bytes())
    return path


@pytest.mark.slow
def test_a_model_that_cannot_be_rotated_is_fitted_in_its_channels(pruned_anew, sandwiched, said):
    shape = {"hidden": 16, "ffn": 20}
    with pytest.raises(CheckpointError, match=r"cannot be rotated: .* scales what is written to the residual stream"):
        pruned_anew(sandwiched, repair="all", shape=shape)
    child = pruned_anew(sandwiched, repair="auto", shape=shape)
    assert repair_of(child).repairs == ("least_squares",)
    assert repair_of(child).effect.after.kl < repair_of(child).effect.before.kl
    assert [line for line in said if "keeps channels, not directions: " in line]


@pytest.mark.slow
def test_by_default_without_text_or_with_little_the_model_is_pruned_all_the_same(pruned_anew, said):
    assert repair_of(pruned_anew(repair="auto", with_text=False)) is None
    assert "skipping repair: it needs calibration text (--data)" in said
    assert pruned_anew(repair="auto", repair_samples=10**6).result(PruneResult).calibration.samples < 1000


@pytest.mark.slow
def test_untied_and_pruned_plainly_is_the_tied_childs_function(pruned, tied):
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        logits = [hf.load_model(pruned(tied, untie=untie).path)(ids).logits for untie in (False, True)]
    assert torch.equal(*logits)
    with pytest.raises(InputError, match="is not tied: leave --untie out"):
        pruned(untie=True)


@pytest.mark.slow
def test_a_search_of_an_untied_model_is_another_than_of_the_tied_one(place, tied, tmp_path):
    here, parent = context(tmp_path), open_source_model(tied)
    scores = importance.run(here, parent, data(place), ImportanceConfig(samples=4, batch_size=4, layer_removal=False))
    config = SearchConfig(budget={"target": "80%", "tolerance": 0.2}, candidates=1, retrain=None)
    cuts = [PruneConfig(shape=SHAPE, repair="none", untie=untie) for untie in (False, True)]
    found = [search.run(here, parent, scores, data(place), config, prune=one) for one in cuts]
    shapes = [parent.shape, parent.untied().shape]
    for artifact, shape in zip(found, shapes, strict=True):
        (winner,) = artifact.result(SearchResult).winners.values()
        assert winner.parameters == shape.resize(**winner.sizes).parameters()


def test_text_is_needed_and_enough_of_it(pruned_anew):
    with pytest.raises(InputError, match="a repair needs calibration text"):
        pruned_anew(repair="all", with_text=False)
    with pytest.raises(DataError, match=r"lower prune\.repair_samples"):
        pruned_anew(repair="all", repair_samples=10**6)


def loss_of(child, place):
    from minitron_cli.evaluate.perplexity import perplexity

    blocks = blocks_of(context(place), data(place), "validation", place / "model")
    return perplexity(child, blocks, max_blocks=64).loss_nats


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["search", "prune"])
def test_candidates_may_be_scored_as_they_would_be_repaired(pruned, place, tmp_path, stage, monkeypatch):
    """A candidate's score is the loss of the child that would be written; norms are looked at once for all."""
    passes, watched = [], closed_form.second_moments
    monkeypatch.setattr(closed_form, "second_moments", lambda *a, **k: passes.append(1) or watched(*a, **k))
    here, parent = context(tmp_path), open_source_model(place / "model")
    scores = importance.run(here, parent, data(place), ImportanceConfig(samples=12, batch_size=4, layer_removal=False))
    budget = {"target": int(0.7 * parent.shape.parameters()), "tolerance": 0.2}
    repair = PruneConfig(shape=SHAPE, repair="all", repair_samples=12)
    if stage == "search":
        config = SearchConfig(budget=budget, candidates=2, score_repair="all", retrain=None)
        made = search.run(here, parent, scores, data(place), config, prune=repair)
        plain = search.run(here, parent, scores, data(place), config)
        assert plain.path != made.path
    else:
        options = {"repair": "all", "repair_samples": 12, "score_repair": "all", "score_blocks": 64}
        config = PruneConfig(budget=budget, candidates=2, **options)
        made = prune.run(here, parent, config, scores=scores, data=data(place))
    assert len(passes) == 1
    for row in made.result(SearchResult if stage == "search" else PruneResult).candidates:
        written = pruned(repair="all", shape=dict(row.shape))
        assert row.zero_shot == pytest.approx(loss_of(hf.load_model(written.path), place), rel=1e-4)


@pytest.mark.slow
def test_a_choice_costs_a_look_at_each_candidate_and_one_repair(place, tmp_path, monkeypatch):
    """Candidates are rotated, with one pass for all and the child, and read on 8 blocks; only the child is fitted."""
    calls = {"second_moments": [], "fit_layerwise": []}
    for name, seen in calls.items():
        original = getattr(closed_form, name)
        monkeypatch.setattr(closed_form, name, lambda *a, f=original, s=seen, **k: s.append(1) or f(*a, **k))
    looks, original = [], child_builder.perplexity

    def look(child, blocks, *, max_blocks):
        looks.append((child.config.hidden_size, child.config.intermediate_size, max_blocks))
        return original(child, blocks, max_blocks=max_blocks)

    monkeypatch.setattr(child_builder, "perplexity", look)
    here, parent = context(tmp_path), open_source_model(place / "model")
    scores = importance.run(here, parent, data(place), ImportanceConfig(samples=12, batch_size=4, layer_removal=False))
    budget = {"target": int(0.7 * parent.shape.parameters()), "tolerance": 0.2}
    config = PruneConfig(budget=budget, candidates=3, repair="all", repair_samples=12)
    with monkeypatch.context() as patch:
        patch.setattr(prune.repaired_plan, "repaired", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            prune.run(here, parent, config, scores=scores, data=data(place))
    made = prune.run(here, parent, config, scores=scores, data=data(place))
    found = made.result(PruneResult)
    assert [row.zero_shot for row in found.candidates] == sorted(row.zero_shot for row in found.candidates)
    shapes = {(row.shape["hidden"], row.shape["ffn"]) for row in found.candidates}
    assert len(looks) == len(shapes) == 3, "what was scored before the kill is not scored again"
    assert set(looks) == {(*shape, 8) for shape in shapes}
    assert found.score_tokens == 8 * 16
    assert all(set(row.repairs) <= {"rotate"} for row in found.candidates)
    assert {name: len(seen) for name, seen in calls.items()} == {"second_moments": 1, "fit_layerwise": 1}
    tokens = {entry.work: entry.tokens for entry in spent(made)}
    assert tokens["repair"] == 12 * 16 * (1 + 2), "one pass for the rotation; the fit reads parent and child"
    read = 16 * 16  # by the parent, the plain child, and the child with one part and with both
    assert tokens["held-out text"] == 3 * 8 * 16 + 4 * read


@pytest.mark.slow
def test_a_repair_that_is_named_takes_the_blocks_that_there_are(place, tmp_path):
    """Only a number that was given is more than a small text can have."""
    here, parent, few = context(tmp_path), open_source_model(place / "model"), data(place, 256)
    assert 0 < len(blocks_of(here, few, "train", parent.path)) < 64
    scores = importance.run(here, parent, few, ImportanceConfig(samples=2, batch_size=2, layer_removal=False))
    config = PruneConfig(shape=SHAPE, repair="least_squares")
    assert prune.run(here, parent, config, scores=scores, data=few).result(PruneResult).repair
    with pytest.raises(DataError, match=r"repair_samples is 64 and the data has \d+ blocks"):
        prune.run(here, parent, config.model_copy(update={"repair_samples": 64}), scores=scores, data=few)
