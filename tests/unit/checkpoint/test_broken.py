"""Whatever a checkpoint directory holds: one typed error of one readable sentence, and nothing touched."""

import contextlib
import json
import os
import shutil
import stat
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import logging

from minitron_cli.checkpoint import config_checks, hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.errors import CheckpointError
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.stream import write_child
from tests.tiny import tiny_model, write_tiny
from tests.unit.checkpoint.broken import CASES, SECOND, SHARDED, edit_config

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("sound")
    return {
        "single": write_tiny(root / "single", num_hidden_layers=2, tie_word_embeddings=False),
        "sharded": write_shards(root / "sharded"),
    }


def write_shards(directory):
    tiny_model("llama", num_hidden_layers=2, tie_word_embeddings=False).save_pretrained(
        directory, max_shard_size="60KB"
    )
    assert (directory / SECOND).exists()
    return directory


def use(path, out):
    """Everything that reads a checkpoint, from its headers to its last weight."""
    parent = open_source_model(path)
    out.mkdir()
    write_child(parent.checkpoint, PrunePlan(parent.shape, {}), out)


def contents(directory):
    if not directory.is_dir():
        return directory.read_bytes()
    return {p.name: (p.lstat().st_ino, p.lstat().st_size, p.lstat().st_mtime_ns) for p in directory.iterdir()}


def check_refusal(path, out, says):
    before, started = contents(path), time.monotonic()
    with pytest.raises(CheckpointError, match=says) as caught:
        use(path, out)
    message = str(caught.value).replace(str(path), "DIR")
    assert len(message) <= 300, message
    assert message.isprintable(), message
    assert ":" in message or ";" in message, "no hint"
    assert not message.endswith("."), message
    assert time.monotonic() - started < 10
    assert contents(path) == before


@pytest.mark.parametrize("name", CASES)
def test_a_broken_checkpoint_is_refused(name, sound, tmp_path):
    change, says = CASES[name]
    path = tmp_path / "model"
    shutil.copytree(sound["single"], path)
    change(path)
    check_refusal(path, tmp_path / "out", says)


@pytest.mark.parametrize("name", SHARDED)
def test_a_broken_sharded_checkpoint_is_refused(name, sound, tmp_path):
    change, says = SHARDED[name]
    path = tmp_path / "model"
    shutil.copytree(sound["sharded"], path)
    change(path)
    check_refusal(path, tmp_path / "out", says)


def test_the_corpus_is_large():
    assert len(CASES) + len(SHARDED) >= 100


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_a_sound_checkpoint_is_used(sound, layout, tmp_path):
    use(sound[layout], tmp_path / "out")


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_the_links_of_a_hub_cache_are_followed(sound, layout, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "c0ffee"
    shutil.copytree(sound[layout], blobs)
    snapshot.mkdir(parents=True)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(os.path.relpath(blob, snapshot))
    use(snapshot, tmp_path / "out")


def test_a_read_only_checkpoint_is_used(sound, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(sound["single"], path)
    for file in path.iterdir():
        file.chmod(stat.S_IRUSR)
    path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    before = contents(path)
    use(path, tmp_path / "out")
    assert contents(path) == before
    path.chmod(stat.S_IRWXU)


class TestHuggingFaceIsReachedSafely:
    """load_model and its neighbours on configs that try to choose code."""

    @pytest.fixture
    def path(self, sound, tmp_path):
        shutil.copytree(sound["single"], tmp_path / "model")
        return tmp_path / "model"

    @pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
    def test_the_attention_kernel_is_ours_to_choose(self, path, field):
        edit_config(path, **{field: "evil/kernel"})
        assert hf.load_model(path).config._attn_implementation == "sdpa"
        assert hf.new_model(hf.load_config(path), seed=0).config._attn_implementation == "sdpa"

    @pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
    def test_the_choice_overrides_a_config_that_was_let_through(self, path, field, monkeypatch):
        monkeypatch.setattr(config_checks, "trusted", lambda raw: raw)
        edit_config(path, **{field: "eager"})
        assert hf.load_model(path).config._attn_implementation == "sdpa"
        assert hf.new_model(hf.load_config(path), seed=0).config._attn_implementation == "sdpa"

    @pytest.mark.parametrize("field", ["auto_map", "attn_implementation", "_attn_implementation", "_name_or_path"])
    def test_a_config_is_read_without_what_chooses_code(self, path, field):
        edit_config(path, **{field: {"AutoConfig": "evil.Config"} if field == "auto_map" else "evil/code"})
        assert "evil" not in repr(vars(hf.load_config(path)))

    def test_code_beside_a_known_model_type_does_not_run(self, path):
        edit_config(path, auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
        (path / "evil.py").write_text(f"open({str(path / 'canary')!r}, 'w')\n")
        hf.load_model(path)
        assert not (path / "canary").exists()

    @pytest.mark.parametrize(
        "name",
        [
            "a_missing_tensor",
            "an_unknown_tensor",
            "a_template_that_is_a_link_to_a_secret",
            "config_of_a_million_labels",
            "more_layers_than_stored",
            "another_shape",
            "config_of_no_heads",
            "config_of_no_groups",
            "custom_code",
            "quantized",
            "metadata_that_is_no_text",
            "weights_that_are_a_fifo",
            "config_of_a_million_layers",
            "a_tied_checkpoint_whose_config_forgets_it",
            "weights_that_are_integers",
        ],
    )
    def test_loading_refuses_what_reading_refuses(self, path, name):
        CASES[name][0](path)
        with pytest.raises(CheckpointError) as caught:
            hf.load_model(path)
        message = str(caught.value).replace(str(path), "DIR")
        assert len(message) <= 300
        assert message.isprintable()

    @pytest.mark.parametrize("field", ["hidden_act", "rope_parameters", "attention_dropout", "pad_token_id"])
    @pytest.mark.parametrize("value", ["evil", -7, [], {}, {"rope_type": "evil"}], ids=repr)
    def test_any_config_loads_or_is_refused(self, path, field, value):
        edit_config(path, **{field: value})
        for load in (hf.load_model, lambda path: hf.new_model(hf.load_config(path), seed=0)):
            with contextlib.suppress(CheckpointError):
                load(path)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"max_length": "x"}', "\0"])
    def test_a_broken_generation_config_is_ignored_or_refused(self, path, content):
        (path / "generation_config.json").write_text(content)
        with contextlib.suppress(CheckpointError):
            hf.load_model(path)

    @pytest.mark.parametrize("content", ["", "{}", "[]", '{"model": {}}', "\0"])
    def test_a_broken_tokenizer_is_refused(self, path, content):
        (path / "tokenizer.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"its tokenizer does not load: .*; restore the tokenizer files"):
            hf.load_tokenizer(path)

    def test_a_missing_tokenizer_is_refused(self, path):
        with pytest.raises(CheckpointError, match="has no tokenizer: copy the model's tokenizer files there"):
            hf.load_tokenizer(path)


def test_a_file_that_shrinks_while_it_is_read(sound, tmp_path):
    path = tmp_path / "model"
    shutil.copytree(sound["single"], path)
    checkpoint = Checkpoint.open(path)
    os.truncate(path / "model.safetensors", 5000)
    last = max(checkpoint.tensors.values(), key=lambda info: info.start)
    name = next(name for name, info in checkpoint.tensors.items() if info is last)
    with pytest.raises(CheckpointError, match="became shorter while it was read: nothing else may write to it"):
        checkpoint.read(name)


def test_nothing_is_read_until_it_is_asked_for(sound, monkeypatch):
    for module in ("reader", "safetensors_file"):
        monkeypatch.setattr(f"minitron_cli.checkpoint.{module}.read_bytes", lambda *_: pytest.fail("read a tensor"))
    open_source_model(sound["single"])


def test_tensors_are_what_safetensors_reads(sound):
    checkpoint = Checkpoint.open(sound["single"])
    wanted = load_file(sound["single"] / "model.safetensors")
    assert checkpoint.shapes == {name: tuple(t.shape) for name, t in wanted.items()}
    for name, tensor in wanted.items():
        assert torch.equal(checkpoint.read(name), tensor)
        if tensor.ndim > 1:
            assert torch.equal(checkpoint.read_rows(name, 3, 7), tensor[3:7])
    assert checkpoint.size_bytes == sum(t.nbytes for t in wanted.values())
    assert checkpoint.config == json.loads((sound["single"] / "config.json").read_text())
