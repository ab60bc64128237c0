"""What stands before and after a document, and how blocks that begin inside one begin."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from minitron_cli.checkpoint import hf
from minitron_cli.data import encode, pack, token_file
from minitron_cli.data.batches import batch, is_predicted
from minitron_cli.data.document_frame import DocumentFrame
from minitron_cli.data.pack import Blocks, prepare
from minitron_cli.data.sources import DataConfig, TextFiles, TokenIds
from minitron_cli.errors import DataError
from tests.quick import first_quick

BOS, EOS, MASK = "<s>", "</s>", "<mask>"
BOS_ID, EOS_ID, MASK_ID = range(3)
WORDS = [f"w{i}" for i in range(40)]
TEMPLATE = (
    "<s>{% for m in messages %} {{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %} assistant {% endif %}"
)


def words(single: str | None = None, **special: object) -> PreTrainedTokenizerFast:
    """A tokenizer of one token per word, whose post-processor is the template `single`."""
    names = [BOS, EOS, MASK, "?", "user", "assistant", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if single:
        ids = [(BOS, BOS_ID), (EOS, EOS_ID), (MASK, MASK_ID)]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, **special)


def configured(directory: Path) -> PreTrainedTokenizerBase:
    """A tokenizer whose bos is named in tokenizer_config.json only, as files converted from SentencePiece have it."""
    words().save_pretrained(directory)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    stored = json.loads((directory / "tokenizer.json").read_text())
    assert stored["post_processor"] is None or not stored["post_processor"]["special_tokens"]
    config |= {"bos_token": BOS, "add_bos_token": True, "add_eos_token": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return hf.load_tokenizer(directory)


MAKERS: dict[str, Callable[[Path], PreTrainedTokenizerBase]] = {
    "template": lambda _: words(f"{BOS} $A", bos_token=BOS),
    "config": configured,
    "nothing": lambda _: words(),
    "bos that is not written": lambda _: words(bos_token=BOS),
    "bos and eos": lambda _: words(f"{BOS} $A {EOS}", bos_token=BOS),
    "two ids": lambda _: words(f"{MASK} {BOS} $A", bos_token=BOS),
    "eos only": lambda _: words(f"$A {EOS}", bos_token=BOS),
    "the same id": lambda _: words(f"{EOS} $A", bos_token=EOS),
}


@pytest.fixture(params=MAKERS, scope="module")
def tokenizer(request, tmp_path_factory) -> PreTrainedTokenizerBase:
    return MAKERS[request.param](tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def texts() -> list[str]:
    """Documents of 1 to 45 words."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 46, (30,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(0, 40, (n,), generator=generator).tolist()) for n in lengths]


def rows(path: Path, column: str, values: list) -> str:
    path.write_text("".join(json.dumps({column: value}) + "\n" for value in values))
    return str(path)


def config(*sources, length: int = 8, **options) -> DataConfig:
    return DataConfig(sources=sources, validation_fraction=0, sequence_length=length, **options)


def blocks_of(path: Path, tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> Blocks:
    return prepare(data, "train", tokenizer, "t", path / "cache")


def as_written(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids that transformers gives for a text, ended by eos."""
    ids = tokenizer(text).input_ids
    return ids if ids[-1] == tokenizer.eos_token_id else [*ids, tokenizer.eos_token_id]


def written_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What transformers puts before a word."""
    with_special, without = tokenizer("w1").input_ids, tokenizer("w1", add_special_tokens=False).input_ids
    return with_special[: with_special.index(without[0])]


def packed(documents: list[list[int]], before: list[int], length: int) -> list[list[tuple[int, int, int, bool]]]:
    """(token, position, document, whether it is predicted) of every block in which one is, one token at a time."""
    tokens = [(token, d, t) for d, document in enumerate(documents) for t, token in enumerate(document)]
    found = []
    for start in range(0, len(tokens) - length + 1, length):
        token, d, t = tokens[start]
        rest = len(documents[d]) - t
        goes_on = t > 0 and rest > len(before) and length > len(before) + 1
        is_put = bool(before) and goes_on and documents[d][: len(before)] == before
        block = []
        for i, (token, number, place) in enumerate(tokens[start : start + length]):
            is_same = number == d
            position = i if is_same else place
            starts = bool(before) and documents[number][: len(before)] == before
            is_head = place < len(before) if starts and not (is_same and t > 0) else False
            is_target = position > 0 and not is_head
            if is_put and i <= len(before):
                is_target = False
            block.append((before[i] if is_put and i < len(before) else token, position, number, is_target))
        if any(is_target for *_, is_target in block):
            found.append(block)
    return found


def as_packed(blocks: Blocks) -> list[list[tuple[int, int, int, bool]]]:
    found = []
    for i in range(len(blocks)):
        one = batch(blocks, [i])
        targets = [False, *is_predicted(one.position_ids_BT, one.loss_mask_BT)[0].tolist()]
        columns = one.input_ids_BT[0].tolist(), one.position_ids_BT[0].tolist(), blocks.documents(i).tolist(), targets
        found.append(list(zip(*columns, strict=True)))
    return found


@pytest.mark.parametrize("length", first_quick([2, 64, 3, 4, 8], 2))
def test_text_is_packed_as_its_tokenizer_writes_it(tokenizer, texts, length, tmp_path):
    """Every document begins with what transformers puts there and ends with one eos, and so do blocks inside one."""
    source = TextFiles(paths=(rows(tmp_path / "a.jsonl", "text", texts),))
    blocks = blocks_of(tmp_path, tokenizer, config(source, length=length))
    documents = [as_written(tokenizer, text) for text in texts]
    assert as_packed(blocks) == packed(documents, written_before(tokenizer), length)
    tokens = [*chain(*documents)]
    assert blocks.text_tokens().tolist() == tokens[: len(tokens) // length * length]


def test_never_puts_nothing_before_a_document_and_always_a_bos(tokenizer, texts, tmp_path):
    source = TextFiles(paths=(rows(tmp_path / "a.jsonl", "text", texts),))
    plain = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in texts]
    never = blocks_of(tmp_path, tokenizer, config(source, bos="never"))
    assert as_packed(never) == packed(plain, [], 8)
    if tokenizer.bos_token is None:
        with pytest.raises(DataError, match=r"^data.bos=always: the tokenizer has no bos token; use auto, or name one"):
            blocks_of(tmp_path, tokenizer, config(source, bos="always"))
        return
    before = written_before(tokenizer) or [tokenizer.bos_token_id]
    always = blocks_of(tmp_path, tokenizer, config(source, bos="always"))
    assert as_packed(always) == packed([[*before, *ids] for ids in plain], before, 8)


def test_a_text_that_names_its_special_tokens_has_them_once(tmp_path):
    tokenizer = words(f"{BOS} $A", bos_token=BOS)
    source = TextFiles(paths=(rows(tmp_path / "a.jsonl", "text", [f"{BOS} w1 w2 {EOS}", "w1 w2"]),))
    tokens = blocks_of(tmp_path, tokenizer, config(source, length=4)).text_tokens().tolist()
    assert tokens[:4] == tokens[4:] == as_written(tokenizer, "w1 w2")


@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_token_ids_are_touched_by_always_only(bos, tmp_path):
    """Also a block inside a row begins with a bos only if the row does."""
    tokenizer = words(f"{BOS} $A", bos_token=BOS)
    given = [[BOS_ID, *range(10, 30)], [*range(10, 31), EOS_ID]]
    source = TokenIds(paths=(rows(tmp_path / "a.jsonl", "input_ids", given),))
    blocks = blocks_of(tmp_path, tokenizer, config(source, bos=bos))
    if bos == "always":
        given = [given[0], [BOS_ID, *given[1]]]
    assert as_packed(blocks) == packed(given, [] if bos == "never" else [BOS_ID], 8)


@pytest.mark.parametrize("bos", ["auto", "always", "never"])
@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE.removeprefix(BOS)], ids=["with bos", "without"])
def test_a_chat_begins_as_its_template_writes_it(template, bos, tmp_path):
    """Never two bos: the template is in charge, and `always` adds one only where it writes none."""
    tokenizer = words(f"{BOS} $A", bos_token=BOS, chat_template=template)
    chat = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3 w4 w5"}]
    source = TextFiles(paths=(rows(tmp_path / "a.jsonl", "messages", [chat] * 4),), format="chat")
    one = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False)
    if bos == "always" and one[0] != BOS_ID:
        one = [BOS_ID, *one]
    blocks = blocks_of(tmp_path, tokenizer, config(source, bos=bos, length=len(one)))
    for i in range(4):
        assert blocks.tokens(i).tolist() == one
        mask = blocks.loss_mask(i)
        assert mask is not None
        assert [token for token, scored in zip(one, mask.tolist(), strict=True) if scored] == one[-3:]


GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start>' + ('model' if m['role'] == 'assistant' else m['role']) }}"
    "{{ ' ' + (m['content'] | trim) + ' <end> ' }}{% endfor %}{% if add_generation_prompt %}<start>model{% endif %}"
)


@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_a_chat_of_gemmas_form_has_one_bos_also_where_a_block_begins_inside_it(bos, tmp_path):
    """The template takes the bos from the tokenizer, before a token that no white space separates from it."""
    tokenizer = words(f"{BOS} $A", bos_token=BOS, chat_template=GEMMA)
    tokenizer.add_tokens(["<start>", "<end>"], special_tokens=True)
    talk = [{"role": role, "content": " ".join(WORDS[:9])} for role in ("user", "assistant") * 2]
    source = TextFiles(paths=(rows(tmp_path / "a.jsonl", "messages", [talk] * 3),), format="chat")
    blocks = blocks_of(tmp_path, tokenizer, config(source, bos=bos))
    whole = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False)
    assert whole.count(BOS_ID) == 1
    count = 3 * len(whole) // 8
    assert blocks.text_tokens().tolist() == (whole * 3)[: blocks.text_tokens().numel()]
    assert blocks.left_out + len(blocks) == count
    for i in range(len(blocks)):
        tokens, documents, mask = blocks.tokens(i), blocks.documents(i).tolist(), blocks.loss_mask(i)
        assert mask is not None
        assert not mask[tokens == BOS_ID].any()
        found = [d for d, token in zip(documents, tokens.tolist(), strict=True) if token == BOS_ID]
        expected = {d for d in documents if d != documents[0]} | ({documents[0]} if bos != "never" else set())
        assert len(found) == len(set(found))
        assert set(found) >= expected


def test_a_killed_run_goes_on_with_the_same_frame(texts, tmp_path, monkeypatch):
    """Parts written before and after the kill have one bos and one eos for each document."""
    tokenizer = words(f"{MASK} {BOS} $A {EOS}", bos_token=BOS)
    source = TextFiles(paths=(rows(tmp_path / "a.jsonl", "text", ["\n".join(text.split()) for text in texts]),))
    monkeypatch.setattr(encode, "GROUP_CHARACTERS", 40)
    monkeypatch.setattr(token_file, "PART_TOKENS", 100)

    def killed_later(groups):
        frame = DocumentFrame.of(tokenizer, "auto")
        yield from map(encode.Encoder(*encode.encoder_arguments(tokenizer, frame)), list(groups)[:20])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pack, "mapping", lambda *args: nullcontext(killed_later))
        with pytest.raises(KeyboardInterrupt):
            blocks_of(tmp_path, tokenizer, config(source))
    assert len(list((tmp_path / "cache").glob(f"*{token_file.PARTS}/*"))) > 1
    tokens = blocks_of(tmp_path, tokenizer, config(source)).text_tokens().tolist()
    assert tokens == [*chain(*(as_written(tokenizer, text) for text in texts))][: len(tokens)]


def test_token_ids_without_a_tokenizer_are_as_they_are_and_have_no_bos_to_ask_for(tmp_path):
    given = [[*range(10, 30)], [BOS_ID, *range(10, 31)]]
    source = TokenIds(paths=(rows(tmp_path / "a.jsonl", "input_ids", given),))
    for bos in ("auto", "never"):
        blocks = prepare(config(source, bos=bos), "train", None, "", tmp_path / bos, vocab_size=40)
        assert as_packed(blocks) == packed(given, [], 8)
    with pytest.raises(DataError, match=r"^data.bos=always: the model has no tokenizer that names a bos token"):
        prepare(config(source, bos="always"), "train", None, "", tmp_path, vocab_size=40)


def test_a_completion_begins_with_bos_and_scores_its_answer(tmp_path):
    tokenizer = words(f"{MASK} {BOS} $A", bos_token=BOS)
    row = json.dumps({"prompt": "w1 w2", "completion": " w3 w4"}) + "\n"
    (tmp_path / "a.jsonl").write_text(row * 4)
    source = TextFiles(paths=(str(tmp_path / "a.jsonl"),), format="completion")
    blocks = blocks_of(tmp_path, tokenizer, config(source, length=7))
    for i in range(4):
        assert blocks.tokens(i).tolist() == as_written(tokenizer, "w1 w2 w3 w4")
        mask = blocks.loss_mask(i)
        assert mask is not None
        assert mask.tolist() == [False] * 4 + [True] * 3


def test_pieces_of_long_texts_and_parts_of_a_file_give_the_same(texts, tmp_path, monkeypatch):
    """Pieces of a long document have one frame around them; a file of parts equals one without."""
    tokenizer = words(f"{MASK} {BOS} $A", bos_token=BOS)
    source = TextFiles(paths=(rows(tmp_path / "a.jsonl", "text", ["\n".join(text.split()) for text in texts]),))
    plain = blocks_of(tmp_path / "plain", tokenizer, config(source))
    monkeypatch.setattr(encode, "GROUP_CHARACTERS", 40)
    monkeypatch.setattr(token_file, "PART_TOKENS", 100)
    assert blocks_of(tmp_path / "pieces", tokenizer, config(source)).fingerprint == plain.fingerprint


def test_the_frame_is_in_the_key_and_in_the_header_of_the_token_file(texts, tmp_path):
    source = TextFiles(paths=(rows(tmp_path / "a.jsonl", "text", texts),))
    with_bos, without = words(f"{BOS} $A", bos_token=BOS), words(bos_token=BOS)
    prints = [
        blocks_of(tmp_path, tokenizer, config(source, bos=bos)).fingerprint
        for tokenizer, bos in ((with_bos, "auto"), (with_bos, "never"), (without, "auto"), (without, "always"))
    ]
    assert prints[0] == prints[3] != prints[1] == prints[2]
    headers = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*/header.json")]
    frames = sorted([header["frame"]["before"], header["frame"]["after"]] for header in headers)
    assert frames == [[[], [EOS_ID]], [[BOS_ID], [EOS_ID]], [[BOS_ID], [EOS_ID]]]


def test_the_tokenizer_is_not_changed_by_asking_it():
    tokenizer = words(f"{BOS} $A", bos_token=BOS)
    before = tokenizer.backend_tokenizer.to_str()
    assert DocumentFrame.of(tokenizer, "auto") == ((BOS_ID,), (EOS_ID,), False)
    assert tokenizer.backend_tokenizer.to_str() == before
