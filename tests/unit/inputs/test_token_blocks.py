"""Text of a model, and tokens that its embedding does not have."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from minitron_cli.artifacts.fingerprint import TOKENIZER_FILES
from minitron_cli.checkpoint import hf
from minitron_cli.data.sources import DataConfig, TextFiles, TokenIds
from minitron_cli.errors import CheckpointError, DataError
from minitron_cli.inputs.token_blocks import blocks_for_new_model, blocks_of
from tests.tiny import write_tiny
from tests.unit.stages.place import context, data, write_place


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokens")
    write_place(root)
    return root


@pytest.fixture
def model(place, tmp_path):
    """A model whose tokenizer writes a token beyond the embedding."""
    shutil.copytree(place / "model", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    rows = 1 + max(tokenizer.get_vocab().values())
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path / "model")
    return write_tiny(tmp_path / "model", vocab_size=rows)


def test_a_tokenizer_may_have_tokens_that_no_text_has(place, model, tmp_path):
    assert len(blocks_of(context(tmp_path / "run"), data(place), "train", model)) > 0


def test_a_new_model_has_a_tokenizer_before_it_has_a_config(place, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    hf.copy_files(place / "model", tmp_path / "tokenizer", TOKENIZER_FILES)
    run = context(tmp_path / "run")
    blocks = blocks_for_new_model(run, data(place), "train", tmp_path / "tokenizer")
    assert blocks.fingerprint == blocks_of(run, data(place), "train", place / "model").fingerprint


def test_an_id_that_no_vocabulary_reaches_is_refused_before_the_text_is_read(place, model, tmp_path):
    file = model / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"][next(reversed(content["model"]["vocab"]))] = 4_000_000_000
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"the id 4,000,000,000: restore tokenizer\.json"):
        blocks_of(context(tmp_path / "run"), data(place), "train", model)
    assert not (tmp_path / "run" / "tokens").exists()


def test_a_text_with_a_token_beyond_the_embedding_is_refused(model, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on <extra> a mat\n\n" * 400)
    config = DataConfig(sources=(TextFiles(paths=(str(tmp_path / "text.txt"),)),), sequence_length=16)
    with pytest.raises(
        DataError, match=r"train text has token \d+ \('<extra>'\), and the embedding of .* rows: restore"
    ):
        blocks_of(context(tmp_path / "run"), config, "train", model)


def test_token_ids_need_no_tokenizer(tmp_path):
    write_tiny(tmp_path / "model")
    rows = hf.load_config(tmp_path / "model").vocab_size
    (tmp_path / "ids.jsonl").write_text(json.dumps({"input_ids": [0, 1, rows - 1] * 20}) + "\n")
    source = TokenIds(paths=(str(tmp_path / "ids.jsonl"),))
    config = DataConfig(sources=(source,), validation_fraction=0, sequence_length=16)
    assert blocks_of(context(tmp_path / "run"), config, "train", tmp_path / "model").tokens(0)[2] == rows - 1
    (tmp_path / "ids.jsonl").write_text(json.dumps({"input_ids": [0, rows] * 20}) + "\n")
    with pytest.raises(DataError, match=rf"token id {rows:,} is not one of the vocabulary's {rows:,}"):
        blocks_of(context(tmp_path / "run"), config, "train", tmp_path / "model")
    text = config.model_copy(update={"validation": (TextFiles(paths=("a",)),)})
    with pytest.raises(CheckpointError, match="has no tokenizer: copy the model's tokenizer files there"):
        blocks_of(context(tmp_path / "run"), text, "train", tmp_path / "model")


def test_cached_ids_are_checked_against_each_model_that_reads_them(tmp_path):
    (tmp_path / "ids.jsonl").write_text(f'{{"input_ids": {list(range(900))}}}\n' * 4)
    ids = DataConfig(sources=(TokenIds(paths=(str(tmp_path / "ids.jsonl"),)),), sequence_length=16)
    large, small = (write_tiny(tmp_path / str(rows), vocab_size=rows) for rows in (1000, 500))
    assert len(blocks_of(context(tmp_path / "run"), ids, "train", large)) > 0
    with pytest.raises(DataError, match=r"the train data have the id .*, and the embedding of .* has 500 rows"):
        blocks_of(context(tmp_path / "run"), ids, "train", small)
