"""Every multimodal wrapper against transformers: what is not pruned is kept bit for bit, an image means the same."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from minitron_cli import io
from minitron_cli.checkpoint import hf, wrappers
from minitron_cli.errors import CheckpointError, InputError
from minitron_cli.inputs.source_model import SourceModel, open_checkpoint
from minitron_cli.model.families import family_of
from minitron_cli.model.residual_stream import foldable
from minitron_cli.model.shape import Shape
from minitron_cli.model.wrappers import SHARED
from minitron_cli.prune import export_check
from minitron_cli.prune.child_config import child_file
from minitron_cli.prune.config import Ranking
from minitron_cli.prune.plan import PrunePlan, make_plan
from minitron_cli.prune.stream import write_child
from minitron_cli.prune.transform import Repair, norm_gains
from tests.quick import first_quick, slow
from tests.tiny_wrappers import CONFIGS, prompt, saved_wrapper, text_prompt, under_other_names

each_wrapper = pytest.mark.parametrize("kind", first_quick(CONFIGS))
LLAVA_NAMES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.": "model.vision_tower.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}
QWEN2_NAMES = {"model.": "model.language_model.", "visual.": "model.visual."}
QWEN3_NAMES = {"model.visual.": "visual.", "model.language_model.": "language_model.model."}
OTHER_NAMES = {
    **dict.fromkeys(("gemma3", "internvl", "llava", "mistral3"), LLAVA_NAMES),
    "llama4": {
        **{name: other for name, other in LLAVA_NAMES.items() if not name.startswith("vision")},
        "vision_model.": "model.vision_model.",
    },
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), QWEN2_NAMES),
    **dict.fromkeys(("qwen3_vl", "qwen3_5"), QWEN3_NAMES),
}
"""Prefixes that a checkpoint has -> prefixes by which the same tensors are also found on disk."""


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """Wrapper's type -> its model, and the source that the stages read."""
    known = {}

    def get(kind):
        if kind not in known:
            path = tmp_path_factory.mktemp(kind) / "parent"
            model = saved_wrapper(path, kind)
            known[kind] = model, source_of(path)
        return known[kind]

    return get


def source_of(path: Path) -> SourceModel:
    return SourceModel(path.name, path, "", *open_checkpoint(path))


def write(source: SourceModel, plan: PrunePlan, child: Path, **options) -> Path:
    child.mkdir()
    write_child(source.checkpoint, plan, child, **options)
    io.write_new_json(child / "config.json", child_file(source.checkpoint, plan))
    hf.copy_files(source.path, child, hf.side_files(source.checkpoint))
    return child


def around(path: Path, source: SourceModel) -> dict[str, torch.Tensor]:
    """Stored tensors that are not the text model's."""
    text = {source.checkpoint.wrapper.stored_name(name).partition("[")[0] for name in source.checkpoint.tensors}
    return {name: tensor for name, tensor in load_file(path / "model.safetensors").items() if name not in text}


def assert_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def loaded(path: Path):
    model, info = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model.eval()


def logits(model, given) -> torch.Tensor:
    with torch.inference_mode():
        return model(**given).logits


def assert_equal(found: torch.Tensor, wanted: torch.Tensor, kind: str) -> None:
    """Bit for bit, but where experts are multiplied by instructions that depend on a matrix's place in memory."""
    if kind == "llama4":
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    else:
        assert torch.equal(found, wanted)


def test_every_wrapper_that_is_read_says_what_it_shares():
    assert wrappers.WRAPPERS.keys() == SHARED.keys() == CONFIGS.keys()


def test_the_page_lists_every_wrapper():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    rows = [row.strip("| ").split(" | ") for row in page.splitlines() if row.startswith("| `")]
    found = {row[0].strip("`"): (row[1].replace("`", "").split(", "), row[2]) for row in rows if len(row) == 4}
    assert found.keys() == wrappers.WRAPPERS.keys()
    for kind, (texts, hidden) in found.items():
        assert texts == [text.model_type for text in dict.fromkeys(wrappers.WRAPPERS[kind].texts.values())]
        assert (hidden == "refused") == bool(SHARED[kind].hidden_not_prunable)
        assert ("with head" in hidden) == SHARED[kind].derives_head_dim


@each_wrapper
def test_an_unpruned_child_keeps_every_byte_and_every_logit(kind, parents, tmp_path):
    model, source = parents(kind)
    child = write(source, PrunePlan(source.shape, {}), tmp_path / "child")
    before, after = (load_file(path / "model.safetensors") for path in (source.path, child))
    assert_same(before, after)
    same = loaded(child)
    assert_equal(logits(same, prompt(kind)), logits(model, prompt(kind)), kind)
    for name in ("preprocessor_config.json", "chat_template.json", "generation_config.json"):
        assert (child / name).read_bytes() == (source.path / name).read_bytes()


@each_wrapper
def test_the_text_model_alone_computes_what_the_wrapper_computes_of_text(kind, parents, tmp_path):
    model, source = parents(kind)
    alone = source.written_as("text")
    child = write(alone, PrunePlan(alone.shape, {}), tmp_path / "child")
    text = AutoModelForCausalLM.from_pretrained(child)
    wanted = logits(model, {"input_ids": text_prompt()})
    assert_equal(logits(text, {"input_ids": text_prompt()}), wanted, kind)
    assert_equal(logits(hf.load_model(source.path), {"input_ids": text_prompt()}), wanted, kind)
    assert text.config.architectures == [type(text).__name__]
    assert source_of(child).checkpoint.wrapper is None
    assert not (child / "preprocessor_config.json").exists()


@pytest.mark.parametrize("kind", first_quick(OTHER_NAMES))
def test_other_prefixes_on_disk_are_read_and_the_published_ones_are_written(kind, parents, tmp_path):
    _, source = parents(kind)
    other = tmp_path / "other"
    saved_wrapper(other, kind)
    under_other_names(other, OTHER_NAMES[kind])
    assert load_file(other / "model.safetensors").keys() != load_file(source.path / "model.safetensors").keys()
    child = write(source_of(other), PrunePlan(source.shape, {}), tmp_path / "child")
    before, after = (load_file(path / "model.safetensors") for path in (source.path, child))
    assert_same(before, after)


@each_wrapper
def test_a_text_model_in_memory_is_saved_under_its_own_names(kind, parents):
    _, source = parents(kind)
    names = source.shape.tensors()
    assert hf.stored_tensors(hf.load_model(source.path), names).keys() >= names.keys()


def test_a_block_for_multi_token_prediction_is_left_out(parents, tmp_path):
    """Its MLP has the text model's width: it would not fit a child."""
    model, _ = parents("qwen3_5")
    saved_wrapper(tmp_path / "parent", "qwen3_5")
    file = tmp_path / "parent" / "model.safetensors"
    save_file({**load_file(file), "mtp.fc.weight": torch.ones(32, 64)}, file, metadata={"format": "pt"})
    source = source_of(tmp_path / "parent")
    assert any("mtp.fc.weight" in remark for remark in source.checkpoint.remarks)
    child = write(source, PrunePlan(source.shape, {}), tmp_path / "child")
    assert "mtp.fc.weight" not in load_file(child / "model.safetensors")
    assert torch.equal(logits(loaded(child), prompt("qwen3_5")), logits(model, prompt("qwen3_5")))


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl"])
def test_an_untied_head_is_stored_where_the_wrapper_loads_it(kind, parents, tmp_path):
    model, source = parents(kind)
    untied = source.untied()
    child = write(untied, PrunePlan(untied.shape, {}), tmp_path / "child")
    found = loaded(child)
    assert found.lm_head.weight is not found.get_input_embeddings().weight
    assert torch.equal(logits(found, prompt(kind)), logits(model, prompt(kind)))


def neurons_of(layer):
    """Matrices whose columns are the neurons of a layer that are pruned."""
    if hasattr(layer, "mlp"):
        yield layer.mlp.down_proj.weight
    elif layer.is_moe_layer:
        yield from layer.feed_forward.experts.down_proj.mT
        yield layer.feed_forward.shared_expert.down_proj.weight


@each_wrapper
def test_pruned_neurons_and_layers_are_the_parents_without_them_for_an_image_too(kind, parents, tmp_path):
    _, source = parents(kind)
    kept = {"ffn": torch.tensor([[i for i in range(48) if i % 4 != layer] for layer in range(4)])}
    if kind == "llama4":  # of each expert, and of the one that all tokens use
        kept = {"ffn": kept["ffn"][:, None].expand(-1, 4, -1), "shared_ffn": kept["ffn"]}
    depth = {"layer": torch.tensor([0, 1, 3] if kind != "gemma3" else [0, 1])}
    child = loaded(write(source, PrunePlan(source.shape, kept | depth), tmp_path / "child"))
    masked = loaded(source.path)
    text = masked.get_decoder()
    text = getattr(text, "model", text)  # Llama 4's has its head
    with torch.no_grad():
        for i, layer in enumerate(text.layers):
            for weight_DF in neurons_of(layer):
                weight_DF[:, i::4] = 0
    text.layers = torch.nn.ModuleList(text.layers[i] for i in depth["layer"].tolist())
    for i, layer in enumerate(text.layers):
        for mixer in (module for module in layer.modules() if hasattr(module, "layer_idx")):
            mixer.layer_idx = i
    text.config.num_hidden_layers = len(text.layers)
    if kinds := vars(text.config).get("layer_types"):
        text.config.layer_types = [kinds[i] for i in depth["layer"].tolist()]
    torch.testing.assert_close(logits(child, prompt(kind)), logits(masked, prompt(kind)), rtol=1e-4, atol=1e-5)


def test_layers_off_a_pattern_that_the_config_only_implies_keep_their_kinds(tmp_path):
    """Published Gemma 3 states no kinds: transformers computes them from the layer's number, which pruning changes."""
    saved_wrapper(tmp_path / "parent", "gemma3")
    file = tmp_path / "parent" / "config.json"
    config = json.loads(file.read_text())
    del config["text_config"]["layer_types"]
    config["text_config"] |= {"sliding_window_pattern": 2}
    file.write_text(json.dumps(config))
    source = source_of(tmp_path / "parent").without_pattern()
    child = write(source, PrunePlan(source.shape, {"layer": torch.tensor([0, 2, 3])}), tmp_path / "child")
    assert loaded(child).config.text_config.layer_types == ["sliding_attention"] * 2 + ["full_attention"]


def images_of(model, kind) -> list[torch.Tensor]:
    """What an image writes to the residual stream, at its place and after each of the first layers, [token, hidden]."""
    given = {name: value for name, value in prompt(kind).items() if name in ("pixel_values", "image_grid_thw")}
    with torch.inference_mode():
        if kind == "llama4":  # whose method stops before the projector
            return [_rows(model.multi_modal_projector(model.vision_model(**given).last_hidden_state))]
        found = model.get_image_features(**given, return_dict=True)
    return [_rows(found.pooler_output), *map(_rows, getattr(found, "deepstack_features", None) or ())]


def _rows(features) -> torch.Tensor:
    return features.flatten(0, -2) if isinstance(features, torch.Tensor) else torch.cat(list(features))


def hidden_of(kind: str) -> dict[str, list[int]]:
    """Survivors; where hidden / heads is the size of a head, half of the heads too."""
    kept = [i for i in range(32) if i % 4] if not SHARED[kind].derives_head_dim else list(range(1, 32, 2))
    heads = {"head": [[1, 3]] * 4} if SHARED[kind].derives_head_dim else {}
    return {"hidden": kept, **heads}


WITH_HIDDEN = [kind for kind in CONFIGS if not SHARED[kind].hidden_not_prunable]


@pytest.mark.parametrize(
    ("kind", "repaired"),
    [
        (kind, repaired) if kind in ("gemma3", "qwen2_vl") else slow(kind, repaired)
        for kind in WITH_HIDDEN
        for repaired in (False, True)
        if not (repaired and kind == "gemma3")
    ],
)  # Gemma's norms after each half of a layer allow no rotation
def test_an_image_writes_to_the_kept_channels_what_it_wrote_there(kind, repaired, parents, tmp_path):
    model, source = parents(kind)
    kept = {axis: torch.tensor(places) for axis, places in hidden_of(kind).items()}
    plan, channels = PrunePlan(source.shape, kept), kept["hidden"]
    directions_DK = torch.eye(32)[:, channels]
    if repaired:
        noise = torch.randn(32, 32, generator=torch.Generator().manual_seed(3))
        directions_DK = torch.linalg.qr(noise).Q[:, : len(channels)].contiguous()
        gain_D = norm_gains(source.shape, foldable(source.shape), source.checkpoint.read)
        plan = plan.repaired(Repair(directions_DK, gain_D=gain_D))
    child = write(source, plan, tmp_path / "child")
    found, wanted = images_of(loaded(child), kind), images_of(model, kind)
    assert len(found) == len(wanted) == 1 + len(getattr(model.config.vision_config, "deepstack_visual_indexes", ()))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs @ directions_DK, rtol=1e-4, atol=1e-5)
    changed = source.family.wrapping.tensors
    before, after = around(source.path, source), around(child, source_of(child))
    assert before.keys() == after.keys()
    assert_same(*({name: t for name, t in some.items() if name not in changed} for some in (before, after)))
    source_of(child)  # whose sizes agree


@pytest.mark.parametrize("kind", first_quick(WITH_HIDDEN))
def test_a_pruned_hidden_size_passes_the_export_check_whole_and_sampled(kind, parents, tmp_path):
    _, source = parents(kind)
    plan = PrunePlan(source.shape, {axis: torch.tensor(places) for axis, places in hidden_of(kind).items()})
    child = write(source, plan, tmp_path / "child")
    for mode in ("whole", "sampled"):
        export_check.check_child(export_check.WrittenChild(child, source.checkpoint, plan, mode))


@pytest.mark.parametrize("damage", ["vision", "projector", "config", "processor"])
def test_the_export_check_finds_damage_around_the_text_model(damage, parents, tmp_path):
    _, source = parents("gemma3")
    plan = PrunePlan(source.shape, {"hidden": torch.arange(24)})
    child = write(source, plan, tmp_path / "child")
    file = child / "model.safetensors"
    stored = load_file(file)
    name = min(name for name in stored if name.startswith("vision_tower" if damage == "vision" else "multi_modal"))
    if damage in ("vision", "projector"):
        stored[name].view(-1)[0] += 1e-3
        save_file(stored, file, metadata={"format": "pt"})
    elif damage == "config":
        config = json.loads((child / "config.json").read_text())
        (child / "config.json").write_text(json.dumps(config | {"mm_tokens_per_image": 16}))
    else:
        (child / "preprocessor_config.json").write_text("{}")
    with pytest.raises(Exception, match="failed its 'copies' check"):
        export_check.check_child(export_check.WrittenChild(child, source.checkpoint, plan, "sampled"))


def test_a_child_in_shards_loads(parents, tmp_path):
    model, source = parents("gemma3")
    child = write(source, PrunePlan(source.shape, {}), tmp_path / "child", max_shard_bytes=40_000)
    assert len(list(child.glob("model-*.safetensors"))) > 2
    assert torch.equal(logits(loaded(child), prompt("gemma3")), logits(model, prompt("gemma3")))
    export_check.check_child(
        export_check.WrittenChild(child, source.checkpoint, PrunePlan(source.shape, {}), "sampled")
    )


@each_wrapper
def test_a_trained_text_model_goes_back_into_its_wrapper(kind, parents, tmp_path):
    _, source = parents(kind)
    trained = {name: source.checkpoint.read(name) * 0.5 for name in source.checkpoint.tensors}
    (tmp_path / "child").mkdir()
    hf.save_like(source.checkpoint, tmp_path / "child", trained.items())
    before, after = around(source.path, source), around(tmp_path / "child", source)
    assert_same(before, after)
    found = source_of(tmp_path / "child").checkpoint
    assert all(torch.equal(found.read(name), tensor) for name, tensor in trained.items())
    loaded(tmp_path / "child")


class Scores:
    """The same scores for all entries of an axis, the first layers' lowest."""

    def select(self, axis, metric):
        return torch.zeros(4, 4) if axis == "head" else torch.zeros(48)

    def layers(self, metric):
        return torch.arange(4.0)


@pytest.mark.parametrize("ranking", ["block_importance", "block_perplexity"])
def test_layers_after_which_images_are_added_stay(ranking, parents):
    shape = parents("qwen3_vl")[1].shape
    plan = make_plan(shape, shape.resize(layer=3), Scores(), Ranking(layers=ranking))
    assert plan.kept["layer"].tolist() == [0, 1, 3]
    with pytest.raises(InputError, match="a qwen3_vl model adds what it sees to its first 2 layers; keep at least 2"):
        make_plan(shape, shape.resize(layer=1), Scores(), Ranking())
    with pytest.raises(InputError, match=r"drop_layers: a qwen3_vl .* drop later ones"):
        make_plan(shape, shape.resize(layer=3), Scores(), Ranking(), (1,))


def test_hidden_is_refused_where_a_projector_has_an_inner_width_of_it(parents):
    source = parents("mistral3")[1]
    with pytest.raises(InputError, match=r"hidden=24: in a mistral3 model the projector's inner width .*--as text"):
        make_plan(source.shape, source.shape.resize(hidden=24), Scores(), Ranking())
    alone = source.written_as("text").shape
    assert make_plan(alone, alone.resize(ffn=40), Scores(), Ranking()).child.sizes["ffn"] == 40
    assert alone.family.wrapping is None


@each_wrapper
def test_a_shape_alone_is_that_of_the_text_models_own_config(kind, parents):
    source = parents(kind)[1]
    alone = source.shape.written_as("text")
    assert alone == Shape.of(family_of(source.config), source.config)
    assert alone.written_as("text") is alone
    assert source.shape.written_as("wrapper") is source.shape.written_as(None) is source.shape


def test_a_head_size_that_follows_from_hidden_stays(parents):
    shape = parents("qwen2_5_vl")[1].shape
    with pytest.raises(InputError, match="hidden / head, which must stay 8"):
        make_plan(shape, shape.resize(hidden=24), Scores(), Ranking())


def test_a_text_model_cannot_be_written_as_a_wrapper(parents):
    alone = parents("gemma3")[1].written_as("text")
    assert alone.written_as("text") is alone
    with pytest.raises(InputError, match="is a text model, in no wrapper"):
        alone.written_as("wrapper")


def test_a_projector_of_another_hidden_size_is_refused(parents, tmp_path):
    _, source = parents("gemma3")
    child = write(source, PrunePlan(source.shape, {"hidden": torch.arange(24)}), tmp_path / "child")
    stored = load_file(child / "model.safetensors")
    name = "multi_modal_projector.mm_input_projection_weight"
    save_file(stored | {name: torch.zeros(16, 32)}, child / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"has shape \(16, 32\) where config.json implies \(16, 24\)"):
        open_checkpoint(child)
