"""Malformed model directories: configs, weights, indexes, tokenizers, chat templates."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.damage import ODD_VALUES
from tests.faults.campaign.malformed import Case, Group, random_damage, texts, truncations
from tests.faults.campaign.setting import TEXT, Setting
from tests.tiny import tiny_model
from tests.unit.checkpoint import broken

IMPORTANCE = ("importance", "model", *TEXT, "--samples", "2", "--batch-size", "2", "--no-layer-removal", "--run", "r")
CHAT = ("importance", "model", "--data", "chat.jsonl", "--format", "chat", *TEXT[2:], *IMPORTANCE[4:])

FIELDS = (
    *("architectures", "attention_bias", "bos_token_id", "dtype", "eos_token_id", "head_dim", "hidden_act"),
    *("hidden_size", "intermediate_size", "max_position_embeddings", "mlp_bias", "model_type", "num_attention_heads"),
    *("num_hidden_layers", "num_key_value_heads", "num_labels", "pretraining_tp", "rms_norm_eps", "rope_parameters"),
    *("tie_word_embeddings", "transformers_version", "use_cache", "vocab_size", "layer_types", "quantization_config"),
)


def start(setting: Setting) -> Path:
    """A directory with a small model and text."""
    return setting.beginnings[""]


def two_layers(setting: Setting, **saving: Any) -> Path:
    """One whose model is the kind that `broken` breaks."""
    root = shutil.copytree(start(setting), setting.place / f"two layers {bool(saving)}")
    (root / "model/model.safetensors").unlink()
    model = tiny_model("llama", vocab_size=300, num_hidden_layers=2, tie_word_embeddings=False)
    model.save_pretrained(root / "model", **saving)
    return root


def configs(root: Path) -> Iterator[Case]:
    """Every field with odd values, and damaged text."""
    for field in FIELDS:
        for value in ODD_VALUES[:: 1 if "num" in field or "size" in field else 2]:
            change = partial(_edit, "model/config.json", field, value)
            yield Case(f"config: {field} = {value!r}", change, IMPORTANCE, must_refuse=False)
    yield from random_damage("model/config.json", 60, IMPORTANCE)
    yield from truncations("model/config.json", 10, IMPORTANCE)


def _edit(path: str, field: str, value: Any, root: Path) -> None:
    content = json.loads((root / path).read_text())
    (root / path).write_text(json.dumps(content | {field: value}))


def headers(root: Path) -> Iterator[Case]:
    """The corpus of broken checkpoints, damaged headers, and files that end early."""
    for name, (change, _) in broken.CASES.items():
        yield Case(name, partial(_in_model, change), IMPORTANCE)
    yield from random_damage("model/model.safetensors", 60, IMPORTANCE)
    yield from truncations("model/model.safetensors", 20, IMPORTANCE)


def indexes(root: Path) -> Iterator[Case]:
    """The corpus of broken shards and indexes, and damaged text."""
    for name, (change, _) in broken.SHARDED.items():
        yield Case(name, partial(_in_model, change), IMPORTANCE)
    yield from random_damage(f"model/{broken.INDEX}", 60, IMPORTANCE)
    yield from truncations(f"model/{broken.INDEX}", 10, IMPORTANCE)


def _in_model(change: broken.Break, root: Path) -> None:
    change(root / "model")


def tokenizers(root: Path) -> Iterator[Case]:
    """Damaged and odd tokenizer files."""
    for path in ("model/tokenizer.json", "model/tokenizer_config.json"):
        yield from random_damage(path, 40, IMPORTANCE)
        yield from truncations(path, 8, IMPORTANCE)
        odd = {repr(value)[:20]: json.dumps(value) for value in ODD_VALUES if not isinstance(value, dict)}
        yield from texts(path, odd, IMPORTANCE)
    for field in ("model", "normalizer", "pre_tokenizer", "added_tokens", "decoder", "post_processor", "version"):
        for value in ODD_VALUES[::3]:
            change = partial(_edit, "model/tokenizer.json", field, value)
            yield Case(f"tokenizer: {field} = {value!r}", change, IMPORTANCE, must_refuse=False)


BROKEN_TEMPLATES = {
    "no end": "{% for m in messages %}{{ m.content }}",
    "no such tag": "{% frobnicate %}",
    "no such filter": "{{ messages | frobnicate }}",
    "no such function": "{{ frobnicate() }}",
    "no name": "{{ messages[0].nothing.at.all }}",
    "a brace": "{{ messages ",
    "division by zero": "{{ 1 / 0 }}",
    "its own error": "{{ raise_exception('no') }}",
    "an unknown import": "{% import 'os' as os %}",
    "an include": "{% include '/etc/passwd' %}",
    "an endless loop": "{% for a in range(10**9) %}{% endfor %}",
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a long text": "{{ 'a' * 10**10 }}",
    "a long text in steps": "{% for a in range(99999) %}{{ 'a' * 99999 }}{% endfor %}",
    "a deep recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "internals": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a great power": "{{ 9 ** 9 ** 9 }}",
    "nothing": "{{ '' }}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
}
GENERATION = "{%% for m in messages %%}{%% generation %%}%s{%% endgeneration %%}{%% endfor %%}"


def with_chats(setting: Setting) -> Path:
    """A directory whose model has a chat template, with chats."""
    root = shutil.copytree(start(setting), setting.place / "chats")
    messages = [
        {"role": "user", "content": "the cat sat"},
        {"role": "assistant", "content": "on a mat and ran over hills"},
    ]
    rows = [{"messages": [{**m, "content": f"{m['content']} {i}"} for m in messages]} for i in range(60)]
    (root / "chat.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "model/chat_template.jinja").write_text(GENERATION % "{{ m.content }}")
    return root


def templates(root: Path) -> Iterator[Case]:
    """Chat templates that cannot be used, alone and in the place of an answer, and damaged ones."""
    path = "model/chat_template.jinja"
    yield from texts(path, BROKEN_TEMPLATES, CHAT, must_refuse=False)
    around = {f"{name}, in an answer": GENERATION % text for name, text in BROKEN_TEMPLATES.items()}
    yield from texts(path, around, CHAT, must_refuse=False)
    yield from random_damage(path, 30, CHAT)
    for value in ODD_VALUES:
        yield Case(f"chat_template = {value!r}", partial(_own_template, value), CHAT, must_refuse=False)


def _own_template(value: Any, root: Path) -> None:
    (root / "model/chat_template.jinja").unlink()
    _edit("model/tokenizer_config.json", "chat_template", value, root)


GROUPS = {
    "config": Group(start, configs, (IMPORTANCE,)),
    "safetensors": Group(two_layers, headers, (IMPORTANCE,)),
    "index": Group(partial(two_layers, max_shard_size="80KB"), indexes, (IMPORTANCE,)),
    "tokenizer": Group(start, tokenizers, (IMPORTANCE,)),
    "chat template": Group(with_chats, templates, (CHAT,)),
}
