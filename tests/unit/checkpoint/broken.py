"""A corpus of checkpoints that somebody broke: name -> (what to do to a sound one, what the error must say).

Each breaks a copy of a two-layer Llama: `model.safetensors`, or for the names in SHARDED two shards and their index.
"""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

Break = Callable[[Path], Any]
CASES: dict[str, tuple[Break, str]] = {}
SHARDED: dict[str, tuple[Break, str]] = {}


def broken(says: str, corpus: dict[str, tuple[Break, str]] = CASES) -> Callable[[Break], Break]:
    def add(change: Break) -> Break:
        corpus[change.__name__] = (change, says)
        return change

    return add


def sharded(says: str) -> Callable[[Break], Break]:
    return broken(says, SHARDED)


# Reading and writing safetensors by hand


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def assemble(header: dict[str, Any] | bytes, payload: bytes) -> bytes:
    blob = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(blob)) + blob + payload


def edit_header(directory: Path, change: Callable[[dict[str, Any]], Any], file: str = WEIGHTS) -> None:
    header, payload = parts(directory / file)
    change(header)
    (directory / file).write_bytes(assemble(header, payload))


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_config(directory: Path, **fields: Any) -> None:
    edit_json(directory / "config.json", lambda config: config.update(fields))


def edit_index(directory: Path, change: Callable[[dict[str, str]], Any]) -> None:
    edit_json(directory / INDEX, lambda index: change(index["weight_map"]))


def rename_everywhere(directory: Path, old: str, new: str) -> None:
    edit_header(directory, lambda h: h.update({new: h.pop(old)}))


NORM = "model.norm.weight"
UP = "model.layers.1.mlp.up_proj"
EMBED = "model.embed_tokens.weight"
INCOMPLETE = "is not a complete safetensors file: download it again"
OVERLAP = "is truncated or its tensors overlap: download it again"
WRONGLY = "describes tensor .* wrongly: download the file again"


# The header's length


@broken(INCOMPLETE)
def header_length_of_2_to_63(d):
    (d / WEIGHTS).write_bytes(struct.pack("<Q", 1 << 63) + b"{}")


@broken(INCOMPLETE)
def header_length_of_all_ones(d):
    (d / WEIGHTS).write_bytes(b"\xff" * 8 + b"{}")


@broken(INCOMPLETE)
def header_beyond_the_file(d):
    (d / WEIGHTS).write_bytes(struct.pack("<Q", 100) + b"{}")


@broken(INCOMPLETE)
def header_of_length_zero(d):
    (d / WEIGHTS).write_bytes(struct.pack("<Q", 0))


@broken(INCOMPLETE)
def seven_bytes(d):
    (d / WEIGHTS).write_bytes(b"\x02" + b"\0" * 6)


@broken(INCOMPLETE)
def empty_file(d):
    (d / WEIGHTS).write_bytes(b"")


@broken(INCOMPLETE)
def header_over_the_limit(d):
    with open(d / WEIGHTS, "wb") as file:  # sparse: the limit is 16 MiB
        file.write(struct.pack("<Q", 20 << 20) + b"{}")
        file.truncate(30 << 20)


@broken(INCOMPLETE)
def zip_archive(d):
    (d / WEIGHTS).write_bytes(b"PK\x03\x04" + b"\0" * 400)


@broken(INCOMPLETE)
def pickle_under_another_name(d):
    (d / WEIGHTS).write_bytes(b"\x80\x04\x95\x1a\x00\x00\x00\x00" + b"\x8c\x02os\x94" * 30)


@broken("is a git-lfs pointer, not the weights: run `git lfs pull`")
def git_lfs_pointer(d):
    (d / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")


@broken("is a git-lfs pointer, not the weights: run `git lfs pull`")
def short_git_lfs_pointer(d):
    (d / WEIGHTS).write_bytes(b"version ")


# The header's JSON


@broken("header of .* is not valid JSON")
def header_is_no_json(d):
    (d / WEIGHTS).write_bytes(assemble(b"{" * 40, b""))


@broken("header of .* is not valid JSON .*nested too deeply")
def header_is_deep(d):
    (d / WEIGHTS).write_bytes(assemble(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""))


@broken("header of .* holds a JSON list, not an object")
def header_is_a_list(d):
    (d / WEIGHTS).write_bytes(assemble(b"[1, 2]", b""))


@broken("header of .* is not valid JSON .*occurs twice")
def header_key_twice(d):
    header, payload = parts(d / WEIGHTS)
    again = json.dumps({NORM: header[NORM]})[1:]
    (d / WEIGHTS).write_bytes(assemble(json.dumps(header)[:-1].encode() + b", " + again.encode(), payload))


@broken("header of .* is not valid JSON .*occurs twice")
def header_key_twice_in_a_crowd(d):
    crowd = ",".join(f'"{i}":0' for i in range(100_000))
    (d / WEIGHTS).write_bytes(assemble(f'{{{crowd},"99999":0}}'.encode(), b""))


@broken("header of .* is not valid JSON .*codec")
def header_in_latin_1(d):
    (d / WEIGHTS).write_bytes(assemble(b'{"\xe9": 1}', b""))


@broken("header of .* is not valid JSON")
def header_after_a_byte_order_mark(d):
    header, payload = parts(d / WEIGHTS)
    (d / WEIGHTS).write_bytes(assemble(b"\xef\xbb\xbf" + json.dumps(header).encode(), payload))


@broken("header of .* is not valid JSON .*digit")
def header_with_an_endless_number(d):
    (d / WEIGHTS).write_bytes(assemble(b'{"a": ' + b"9" * 5000 + b"}", b""))


@broken("has metadata that is not text: download it again")
def metadata_that_is_no_text(d):
    edit_header(d, lambda h: h.update(__metadata__={"format": 1}))


@broken("has metadata that is not text: download it again")
def metadata_that_is_a_list(d):
    edit_header(d, lambda h: h.update(__metadata__=["pt"]))


@broken("lists 100,001 tensors: more than 100,000; check the file")
def header_bomb(d):
    (d / WEIGHTS).write_bytes(assemble(dict.fromkeys(map(str, range(100_001)), 0), b""))


# Entries


def entry(d, **fields):
    edit_header(d, lambda h: h[NORM].update(fields))


@broken(WRONGLY)
def unknown_dtype(d):
    entry(d, dtype="F99")


@broken(WRONGLY)
def dtype_that_is_a_list(d):
    entry(d, dtype=["F32"])


@broken(WRONGLY)
def shape_that_is_text(d):
    entry(d, shape="32")


@broken(WRONGLY)
def shape_that_is_negative(d):
    entry(d, shape=[-4, -8])


@broken(WRONGLY)
def shape_with_fractions(d):
    entry(d, shape=[32.0])


@broken(WRONGLY)
def shape_that_overflows(d):
    entry(d, shape=[2**62, 2**62])


@broken(WRONGLY)
def shape_of_a_million_dims(d):
    entry(d, shape=[9_999_999] * 1_000_000)  # multiplied out, this takes minutes


@broken(WRONGLY)
def shape_with_a_boolean(d):
    entry(d, shape=[True, 32])


@broken(WRONGLY)
def shape_that_offsets_contradict(d):
    entry(d, shape=[31])


@broken(WRONGLY)
def offsets_that_are_swapped(d):
    header, _ = parts(d / WEIGHTS)
    entry(d, data_offsets=header[NORM]["data_offsets"][::-1])


@broken(WRONGLY)
def offsets_that_are_negative(d):
    entry(d, data_offsets=[-128, 0])


@broken(WRONGLY)
def three_offsets(d):
    entry(d, data_offsets=[0, 64, 128])


@broken(WRONGLY)
def offsets_that_are_fractions(d):
    entry(d, data_offsets=[0.0, 128.0])


@broken(WRONGLY)
def offsets_that_are_null(d):
    entry(d, data_offsets=None)


@broken(WRONGLY)
def entry_without_shape(d):
    edit_header(d, lambda h: h[NORM].pop("shape"))


@broken(WRONGLY)
def entry_that_is_null(d):
    edit_header(d, lambda h: h.update({NORM: None}))


@broken(WRONGLY)
def entry_that_is_text(d):
    edit_header(d, lambda h: h.update({NORM: "dtype shape data_offsets"}))


@broken(OVERLAP)
def two_tensors_on_the_same_bytes(d):
    def alias(header):
        first, second = (n for n, e in header.items() if n.endswith("input_layernorm.weight"))
        header[first]["data_offsets"] = header[second]["data_offsets"]

    edit_header(d, alias)


@broken(OVERLAP)
def a_hole_between_tensors(d):
    header, payload = parts(d / WEIGHTS)
    last = max((e for n, e in header.items() if n != "__metadata__"), key=lambda e: e["data_offsets"][1])
    last["data_offsets"] = [o + 8 for o in last["data_offsets"]]
    (d / WEIGHTS).write_bytes(assemble(header, payload + b"\0" * 8))


@broken(OVERLAP)
def bytes_after_the_last_tensor(d):
    with open(d / WEIGHTS, "ab") as file:
        file.write(b"\0")


@broken(OVERLAP)
def a_truncated_file(d):
    os.truncate(d / WEIGHTS, (d / WEIGHTS).stat().st_size - 1)


@broken(OVERLAP)
def offsets_beyond_the_file(d):
    header, _ = parts(d / WEIGHTS)
    size = header[NORM]["data_offsets"][1] - header[NORM]["data_offsets"][0]
    entry(d, data_offsets=[10**15, 10**15 + size])


# Names


@broken("missing tensors model.norm.weight: the checkpoint is incomplete; download it again")
def an_unknown_tensor(d):
    rename_everywhere(d, NORM, NORM + "x")


@broken("missing tensors model.norm.weight: the checkpoint is incomplete; download it again")
def a_name_with_control_characters(d):
    rename_everywhere(d, NORM, "model\nnorm\x1b[31m\0.weight")


@broken("missing tensors model.norm.weight: the checkpoint is incomplete; download it again")
def a_name_of_a_megabyte(d):
    rename_everywhere(d, NORM, "n" * 1_000_000)


@broken("missing tensors model.norm.weight: the checkpoint is incomplete; download it again")
def a_name_with_a_lone_surrogate(d):
    rename_everywhere(d, NORM, "\ud800")


@broken("missing tensors model.norm.weight: the checkpoint is incomplete; download it again")
def a_layer_number_of_5000_digits(d):
    rename_everywhere(d, NORM, f"model.layers.{'1' * 5000}.input_layernorm.weight")


@broken("missing tensors model.norm.weight: the checkpoint is incomplete; download it again")
def a_name_that_climbs(d):
    rename_everywhere(d, NORM, "../../etc/passwd")


@broken("missing tensors model.norm.weight: the checkpoint is incomplete; download it again")
def a_missing_tensor(d):
    header, payload = parts(d / WEIGHTS)
    last = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][1])
    assert last == NORM
    start = header.pop(NORM)["data_offsets"][0]
    (d / WEIGHTS).write_bytes(assemble(header, payload[:start]))


@broken("unexpected tensor 'model.layers.1.* fix config.json")
def fewer_layers_than_stored(d):
    edit_config(d, num_hidden_layers=1)


@broken("missing tensors model.layers.2.* and 13 more")
def more_layers_than_stored(d):
    edit_config(d, num_hidden_layers=3)


@broken(r"'model.norm.weight' has shape \(4, 8\) where config.json implies \(32,\): fix config.json")
def another_shape(d):
    entry(d, shape=[4, 8])


@broken("missing tensors lm_head.weight")
def a_tied_checkpoint_whose_config_forgets_it(d):
    tie(d)
    edit_json(d / "config.json", lambda c: c.pop("tie_word_embeddings"))


def tie(d, change=lambda data: data):
    """Give the tied checkpoint a stored head: the embedding's bytes, changed."""
    header, payload = parts(d / WEIGHTS)
    begin, end = header.pop("lm_head.weight")["data_offsets"]
    for e in header.values():
        if "data_offsets" in e and e["data_offsets"][0] >= end:
            e["data_offsets"] = [o - (end - begin) for o in e["data_offsets"]]
    payload = payload[:begin] + payload[end:]
    (d / WEIGHTS).write_bytes(assemble(header, payload))
    edit_config(d, tie_word_embeddings=True)


def store_copy(d, data, **fields):
    header, payload = parts(d / WEIGHTS)
    copy = header[EMBED] | {"data_offsets": [len(payload), len(payload) + len(data)]} | fields
    (d / WEIGHTS).write_bytes(assemble(header | {"lm_head.weight": copy}, payload + data))


def embedding_bytes(d):
    header, payload = parts(d / WEIGHTS)
    begin, end = header[EMBED]["data_offsets"]
    return payload[begin:end]


@broken("lm_head.weight differs from model.embed_tokens.weight .* set tie_word_embeddings to false")
def tied_copies_that_differ_in_a_bit(d):
    tie(d)
    data = bytearray(embedding_bytes(d))
    data[-1] ^= 1
    store_copy(d, bytes(data))


@broken("'lm_head.weight' has shape")
def tied_copies_of_other_shapes(d):
    tie(d)
    store_copy(d, embedding_bytes(d)[:-128], shape=[63, 32])


@broken("lm_head.weight differs from model.embed_tokens.weight")
def tied_copies_of_other_dtypes(d):
    tie(d)
    store_copy(d, embedding_bytes(d)[: 64 * 32 * 2], dtype="F16")


def poke(d, name, pattern):
    header, payload = parts(d / WEIGHTS)
    begin = header[name]["data_offsets"][0] + 64
    (d / WEIGHTS).write_bytes(assemble(header, payload[:begin] + pattern + payload[begin + len(pattern) :]))


@broken("'model.norm.weight' holds NaN or infinity: the checkpoint is damaged; download it again")
def a_weight_that_is_not_a_number(d):
    poke(d, NORM, struct.pack("<f", float("nan")))


@broken("'model.layers.1.mlp.up_proj.weight' holds NaN or infinity")
def a_weight_that_is_infinite(d):
    poke(d, "model.layers.1.mlp.up_proj.weight", struct.pack("<f", float("-inf")))


@broken("'model.layers.1.mlp.up_proj.weight' is stored as I32: the checkpoint is quantized; give the original weights")
def weights_that_are_integers(d):
    edit_header(d, lambda h: h["model.layers.1.mlp.up_proj.weight"].update(dtype="I32"))


# Files


@broken("holds no model.safetensors and no model.safetensors.index.json")
def no_weights(d):
    (d / WEIGHTS).unlink()


@broken(r"holds only pickled weights \(pytorch_model.bin\), which can run code: convert it to safetensors")
def only_pickles(d):
    (d / WEIGHTS).unlink()
    (d / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")


@broken("model.safetensors is not a regular file")
def weights_that_are_a_directory(d):
    (d / WEIGHTS).unlink()
    (d / WEIGHTS).mkdir()


@broken("model.safetensors is not a regular file")
def weights_that_are_a_fifo(d):
    (d / WEIGHTS).unlink()
    os.mkfifo(d / WEIGHTS)


@broken("model.safetensors is a link to /dev/zero, outside the model's directory: put a copy of the file in its place")
def weights_that_are_a_device(d):
    (d / WEIGHTS).unlink()
    (d / WEIGHTS).symlink_to("/dev/zero")


@broken("holds no model.safetensors and no model.safetensors.index.json")
def a_link_to_nothing(d):
    (d / WEIGHTS).unlink()
    (d / WEIGHTS).symlink_to("gone")


@broken("config.json does not exist")
def no_config(d):
    (d / "config.json").unlink()


@broken("config.json is not a regular file")
def config_that_is_a_fifo(d):
    (d / "config.json").unlink()
    os.mkfifo(d / "config.json")


@broken("is not a directory|does not exist")
def not_a_directory(d):
    shutil.rmtree(d)
    d.write_text("a file")


def link(d, name, target):
    (d / name).unlink(missing_ok=True)
    (d / name).symlink_to(target)


def secret(d):
    (d.parent / "secret").write_text("a password")
    return d.parent / "secret"


OUTSIDE = "is a link to .*, outside the model's directory: put a copy of the file in its place"


@broken(f"chat_template.jinja {OUTSIDE}")
def a_template_that_is_a_link_to_a_secret(d):
    link(d, "chat_template.jinja", secret(d))


@broken(f"LICENSE.txt {OUTSIDE}")
def a_license_that_is_a_link_to_a_secret(d):
    link(d, "LICENSE.txt", secret(d))


@broken(f"NOTICE {OUTSIDE}")
def a_notice_that_is_a_link_to_a_secret(d):
    link(d, "NOTICE", secret(d))


@broken(f"config.json {OUTSIDE}")
def a_config_that_is_a_link_upward(d):
    (d / "config.json").rename(d.parent / "config.json")
    link(d, "config.json", "../config.json")


@broken(f"b.jinja {OUTSIDE}")
def a_named_template_that_is_a_link_to_a_secret(d):
    (d / "additional_chat_templates").mkdir()
    link(d, "additional_chat_templates/b.jinja", secret(d))


@broken(f"b.jinja {OUTSIDE}")
def named_templates_in_a_directory_elsewhere(d):
    (d.parent / "elsewhere").mkdir()
    (d.parent / "elsewhere" / "b.jinja").write_text("a password")
    link(d, "additional_chat_templates", d.parent / "elsewhere")


@broken(f"vocab.json {OUTSIDE}")
def a_link_to_blobs_of_no_cache(d):
    (d.parent / "blobs").mkdir()
    (d.parent / "blobs" / "vocab").write_text("{}")
    link(d, "vocab.json", d.parent / "blobs" / "vocab")


@broken("config.json is a link that leads back to itself: put the file in its place")
def a_config_that_is_a_link_to_itself(d):
    link(d, "config.json", "config.json")


@broken("holds no model.safetensors and no model.safetensors.index.json|leads back to itself")
def weights_that_are_a_link_to_themselves(d):
    link(d, WEIGHTS, WEIGHTS)


def holes(path):
    path.touch()
    os.truncate(path, 1 << 40)


HOLES = "is 1,099,511,627,776 bytes, almost all of them holes: download it again"


@broken(f"tokenizer.json {HOLES}")
def a_tokenizer_of_a_terabyte(d):
    holes(d / "tokenizer.json")


@broken(f"other.safetensors {HOLES}")
def a_stray_weight_file_of_a_terabyte(d):
    holes(d / "other.safetensors")


@broken(f"model.safetensors {HOLES}")
def a_tensor_of_a_terabyte(d):
    (d / WEIGHTS).write_bytes(assemble({NORM: {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}, b""))
    holes(d / WEIGHTS)


@broken("is an adapter, not a model: merge it into its base model first")
def an_adapter(d):
    (d / WEIGHTS).rename(d / "adapter_model.safetensors")
    (d / "config.json").rename(d / "adapter_config.json")


@broken("holds model-Q4_K_M.gguf, which is GGUF, the format of llama.cpp: give the original checkpoint")
def a_gguf_file(d):
    (d / WEIGHTS).unlink()
    (d / "model-Q4_K_M.gguf").write_bytes(b"GGUF")


@broken("'model.layers.1.mlp.up_proj.weight' is stored as U32: the checkpoint is quantized; give the original weights")
def weights_of_mlx(d):
    edit_header(d, lambda h: h["model.layers.1.mlp.up_proj.weight"].update(dtype="U32"))


@broken("'model.norm.weight' is stored as F4: the checkpoint is quantized; give the original weights")
def weights_of_four_bits(d):
    entry(d, dtype="F4")


# config.json


def config_text(d, text):
    (d / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())


@broken("config.json is not valid JSON")
def config_that_is_empty(d):
    config_text(d, "")


@broken("config.json holds a JSON list, not an object")
def config_that_is_a_list(d):
    config_text(d, "[]")


@broken("config.json is not valid JSON .*nested too deeply")
def config_that_is_deep(d):
    config_text(d, '{"a":' * 100_000)


@broken("config.json: .rms_norm_eps. is NaN or infinite; fix the field")
def config_with_nan(d):
    edit_config(d, rms_norm_eps=float("nan"))


@broken("config.json: .rms_norm_eps. is NaN or infinite; fix the field")
def config_with_an_infinite_number(d):
    config_text(d, (d / "config.json").read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e999'))


@broken("config.json is not valid JSON .*occurs twice")
def config_with_a_key_twice(d):
    config_text(d, (d / "config.json").read_text().replace("{", '{"hidden_size": 16,', 1))


@broken("config.json is [0-9,]+ bytes: more than")
def config_of_65_megabytes(d):
    os.truncate(d / "config.json", 65 << 20)


@broken("'num_hidden_layers' is 1000000, outside 0 to 1,000; fix the field")
def config_of_a_million_layers(d):
    edit_config(d, num_hidden_layers=10**6)


@broken("'hidden_size' is .*outside 0 to 1,000,000; fix the field")
def config_of_an_endless_width(d):
    edit_config(d, hidden_size=10**4000)


@broken("'num_labels' is 1000000, outside 0 to 10,000; fix the field")
def config_of_a_million_labels(d):
    edit_config(d, num_labels=10**6)


@broken("'num_labels' is 1000000000, outside 0 to 10,000; fix the field")
def config_of_a_billion_labels_further_down(d):
    edit_config(d, model_type="gemma3", text_config={"model_type": "gemma3_text", "num_labels": 10**9})


@broken("'num_local_experts' is 1000000, outside 0 to 10,000; fix the field")
def config_of_a_million_experts(d):
    edit_config(d, num_local_experts=10**6)


@broken("'num_hidden_layers' is -1, outside")
def config_of_minus_one_layer(d):
    edit_config(d, num_hidden_layers=-1)


@broken("'num_hidden_layers' is 0: it must be a positive integer")
def config_of_no_layers(d):
    edit_config(d, num_hidden_layers=0)


@broken("fix the field|must be a positive integer")
def config_of_no_heads(d):
    edit_config(d, num_attention_heads=0)


@broken("fix the field|must be a positive integer")
def config_of_no_groups(d):
    edit_config(d, num_key_value_heads=0)


@broken("fix the field")
def config_with_text_for_a_number(d):
    edit_config(d, hidden_size="32")


@broken("fix the field|must be a positive integer")
def config_with_a_fraction(d):
    edit_config(d, intermediate_size=48.5)


@broken("fix the field|must be a positive integer")
def config_with_a_list_of_widths(d):
    edit_config(d, intermediate_size=[48, 48])


@broken("fix the field")
def config_with_layer_types_of_another_length(d):
    edit_config(d, layer_types=["full_attention"] * 5)


@broken("fix the field")
def config_with_a_list_for_rope(d):
    edit_config(d, rope_parameters=[1, 2])


@broken("has shape .* where config.json implies")
def config_of_another_width(d):
    edit_config(d, hidden_size=64)


@broken("has shape .* where config.json implies")
def config_of_a_large_width(d):
    edit_config(d, hidden_size=10**6)


@broken("the checkpoint is quantized, and pruning needs the original weights; give those")
def quantized(d):
    edit_config(d, quantization_config={"quant_method": "gptq", "bits": 4})
    edit_header(d, lambda h: h.update({f"{UP}.qweight": h.pop(f"{UP}.weight") | {"dtype": "I32"}}))


@broken("model type 'evil' is not part of transformers and its own code is not run; give a supported model")
def custom_code(d):
    edit_config(d, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (d / "evil.py").write_text(f"open({str(d / 'canary')!r}, 'w')\n")


@broken("model type None is not part of transformers; give a supported model")
def no_model_type(d):
    edit_json(d / "config.json", lambda c: c.pop("model_type"))


@broken("model type .* is not part of transformers; give a supported model")
def a_model_type_of_a_megabyte(d):
    edit_config(d, model_type="x" * 1_000_000)


@broken("model type .* is not part of transformers; give a supported model")
def a_model_type_that_is_a_list(d):
    edit_config(d, model_type=["llama"])


@broken("model type 'gpt2' has no family table .docs/families.md lists the ")
def a_family_without_a_table(d):
    edit_config(d, model_type="gpt2")


@broken("layers differ in size")
def layers_that_differ(d):
    edit_config(d, per_layer_config={"0": {"intermediate_size": 40}})


@broken("unexpected tensor 'model.layers.0.self_attn.k_proj.bias'|unexpected tensor 'model.layers.0.*bias'")
def biases_that_the_config_denies(d):
    edit_config(d, attention_bias=False)


# The index


@sharded("holds both model.safetensors and model.safetensors.index.json: remove the stale one")
def a_stale_single_file(d):
    shutil.copy(d / FIRST, d / WEIGHTS)


@sharded("has no weight_map: restore the file")
def index_without_a_map(d):
    edit_json(d / INDEX, lambda i: i.pop("weight_map"))


@sharded("has no weight_map: restore the file")
def index_with_an_empty_map(d):
    edit_json(d / INDEX, lambda i: i.update(weight_map={}))


@sharded("has no weight_map: restore the file")
def index_with_a_list_for_a_map(d):
    edit_json(d / INDEX, lambda i: i.update(weight_map=list(i["weight_map"])))


@sharded("has no metadata, and transformers needs it: restore the file")
def index_without_metadata(d):
    edit_json(d / INDEX, lambda i: i.pop("metadata"))


@sharded("has no metadata, and transformers needs it: restore the file")
def index_with_a_list_for_metadata(d):
    edit_json(d / INDEX, lambda i: i.update(metadata=[]))


@sharded("index.json is not valid JSON")
def a_truncated_index(d):
    os.truncate(d / INDEX, (d / INDEX).stat().st_size // 2)


@sharded("index.json holds a JSON list, not an object")
def an_index_that_is_a_list(d):
    (d / INDEX).write_text("[]")


@sharded("index.json is not a regular file")
def an_index_that_is_a_fifo(d):
    (d / INDEX).unlink()
    os.mkfifo(d / INDEX)


def point(d, value):
    edit_index(d, lambda weight_map: weight_map.update({NORM: value}))


PLAIN = "index.json points at .*: a shard must be a plain file name in the same directory"


@sharded(PLAIN)
def a_shard_outside(d):
    shutil.copy(d / SECOND, d.parent / "outside.safetensors")
    point(d, "../outside.safetensors")


@sharded(PLAIN)
def a_shard_at_an_absolute_path(d):
    point(d, str(d / SECOND))


@sharded(PLAIN)
def a_shard_below(d):
    point(d, "sub/model.safetensors")


@sharded(PLAIN)
def a_shard_on_another_system(d):
    point(d, "..\\model.safetensors")


@sharded(PLAIN)
def a_hidden_shard(d):
    point(d, ".model.safetensors")


@sharded(PLAIN)
def a_shard_with_a_nul(d):
    point(d, "model\0.safetensors")


@sharded(PLAIN)
def a_shard_with_a_newline(d):
    point(d, "model\nerror: all is well\n.safetensors")


@sharded(PLAIN)
def a_shard_that_is_a_number(d):
    point(d, 7)


@sharded(PLAIN)
def a_shard_that_is_a_list(d):
    point(d, [SECOND])


@sharded(PLAIN)
def a_shard_without_a_name(d):
    point(d, "")


@sharded(PLAIN)
def a_shard_with_a_name_too_long_for_a_file(d):
    point(d, "m" * 5000 + ".safetensors")


@sharded("points at 'pytorch_model.bin': only .safetensors shards are read; convert the checkpoint")
def a_pickled_shard(d):
    (d / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch canary'\ntR.")
    point(d, "pytorch_model.bin")


@sharded(f"lacks {SECOND}: download the missing shards")
def a_missing_shard(d):
    (d / SECOND).unlink()


@sharded("lacks m-00.safetensors, m-01.safetensors and 33 more: download the missing shards")
def many_missing_shards(d):
    edit_index(d, lambda m: m.update({name: f"m-{i:02d}.safetensors" for i, name in enumerate(sorted(m))}))


@sharded(f"{SECOND} is not a regular file")
def a_shard_that_is_a_fifo(d):
    (d / SECOND).unlink()
    os.mkfifo(d / SECOND)


@sharded(f"{SECOND} is truncated or its tensors overlap")
def a_truncated_shard(d):
    os.truncate(d / SECOND, (d / SECOND).stat().st_size - 4)


@sharded(f"{SECOND} is not a complete safetensors file")
def a_shard_cut_in_its_header(d):
    os.truncate(d / SECOND, 50)


@sharded("is in .*, and model.safetensors.index.json says .*: restore the index")
def an_index_that_names_the_other_shard(d):
    edit_index(d, lambda m: m.update({NORM: FIRST}))


@sharded("tensor 'model.ghost' of model.safetensors.index.json is not in .*: download the shard again")
def an_index_that_invents_a_tensor(d):
    edit_index(d, lambda m: m.update({"model.ghost": SECOND}))


@sharded("tensor .* is in .* and in .*: remove one|and model.safetensors.index.json says")
def a_tensor_in_two_shards(d):
    header, payload = parts(d / SECOND)
    name = next(n for n in header if n != "__metadata__")
    begin, end = header[name]["data_offsets"]
    first, first_payload = parts(d / FIRST)
    first[name] = header[name] | {"data_offsets": [len(first_payload), len(first_payload) + end - begin]}
    (d / FIRST).write_bytes(assemble(first, first_payload + payload[begin:end]))
