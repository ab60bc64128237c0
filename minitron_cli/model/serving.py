"""What the programs that load or quantise a model will make of a shape. A remark, never a refusal.

Read in the sources of transformers 4.57.6 and 5.23, vLLM 0.33 and the llama.cpp of llama-cpp-python 0.3.36; the tables
below are what those sources say, and docs/serving.md explains each row.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Literal, NamedTuple

from minitron_cli.model.layout import Layout, parse
from minitron_cli.model.shape import Shape

Level = Literal["ok", "slower", "fails", "unknown"]


class Finding(NamedTuple):
    """One row: who reads the model, how it will fare, why, and the nearest cut of the parent without that trouble."""

    reader: str
    level: Level
    reason: str
    nearest: Mapping[str, int] = {}
    """Axis -> size, for the axes to change; none where no cut helps."""


class Reader(NamedTuple):
    """A program with its own code for each architecture."""

    name: str
    states_head_size: frozenset[str]
    """Model types whose `head_dim` it reads."""
    derives_head_size: frozenset[str]
    """Model types for which it takes the head size to be hidden / heads, whatever the config says."""
    through_transformers: frozenset[str] = frozenset()
    """Model types that it runs through transformers' own modelling code."""


def _types(names: str) -> frozenset[str]:
    return frozenset(names.split())


VLLM = Reader(
    "vLLM",
    _types(
        "llama mistral mixtral qwen3 qwen3_moe gemma gemma2 gemma3_text granite nemotron nemotron_h exaone4 apertus "
        "cohere cohere2 gpt_oss"
    ),
    _types("qwen2 qwen2_moe olmoe gpt2 stablelm granitemoehybrid"),
    _types("olmo2 olmo3 smollm3 starcoder2 arcee"),
)
LLAMA_CPP = Reader(
    "llama.cpp",
    _types(
        "llama mistral mixtral qwen3 qwen3_moe gemma gemma2 gemma3_text smollm3 arcee apertus seed_oss glm4 "
        "ernie4_5 gpt_oss"
    ),
    _types(
        "qwen2 qwen2_moe phi phi3 phimoe olmo olmo2 olmo3 olmoe nemotron starcoder2 cohere cohere2 exaone4 stablelm "
        "granite gpt2 gpt_neox"
    ),
)
# Every so many layers, llama.cpp takes one to attend to everything, whatever `layer_types` says.
LLAMA_CPP_PERIODS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4, "gpt_oss": 2}

TENSOR_PARALLEL = (2, 4, 8)
HEAD_DIM_MULTIPLE, HEAD_DIM_MOST = 8, 256  # FlashAttention


class Blocks(NamedTuple):
    """A format or kernel that wants matrices in blocks."""

    name: str
    level: Level
    inputs: int
    """Divides every matrix's input size."""
    outputs: int
    """Divides every matrix's output size."""
    otherwise: str


BLOCKS = (
    Blocks("GGUF Q4_0, Q8_0", "slower", 32, 1, "kept in 16 bits"),
    Blocks("GGUF K-quants", "slower", 256, 1, "kept in a larger type (Q4_K: Q5_0, Q6_K: Q8_0)"),
    Blocks("GPTQ, AWQ (Marlin)", "slower", 128, 64, "run by a slower kernel or refused"),
    Blocks("fp8", "fails", 16, 16, "refused by the scaled matrix product"),
    Blocks("2:4 sparsity", "fails", 64, 64, "refused by the sparse matrix product"),
)


def findings(shape: Shape, layer_types: Sequence[str] | None = None, parent: Shape | None = None) -> list[Finding]:
    """Every row for a shape. `layer_types` are the layers' kinds of attention, where the config lists them.

    What is named as nearest can be cut from the parent; without one, from the shape itself.
    """
    parent = parent or shape
    return [
        _transformers(shape, parent),
        _architecture(VLLM, shape, parent),
        _tensor_parallel(shape, parent),
        _attention_kernels(shape),
        _vocabulary(shape),
        _architecture(LLAMA_CPP, shape, parent),
        *_periods(shape, layer_types),
        *(_blocks(blocks, shape, parent) for blocks in BLOCKS),
    ]


def remarks(shape: Shape, layer_types: Sequence[str] | None = None, parent: Shape | None = None) -> list[Finding]:
    """The rows that are not ok."""
    return [finding for finding in findings(shape, layer_types, parent) if finding.level != "ok"]


def fails_on(shape: Shape) -> frozenset[str]:
    """The programs that cannot run a shape at all."""
    rows = (_transformers(shape, shape), *(_architecture(reader, shape, shape) for reader in (VLLM, LLAMA_CPP)))
    return frozenset(row.reader for row in rows if row.level == "fails")


def splits_over(shape: Shape, devices: int) -> bool:
    """Whether tensor parallelism can share it among so many."""
    return devices == 1 or all(size % devices == 0 for size in _split_sizes(shape, devices).values())


def _transformers(shape: Shape, parent: Shape) -> Finding:
    hidden, heads = shape.sizes["hidden"], shape.sizes["head"]
    if shape.family.hidden_is_multiple_of_heads and hidden % heads:
        reason = f"its config refuses hidden {hidden:,} with {heads} heads: not a multiple"
        return Finding("transformers", "fails", reason, _nearest(shape, parent, {"hidden": heads}))
    return Finding("transformers", "ok", "4.57 and 5 read the config, with the names of both")


def _architecture(reader: Reader, shape: Shape, parent: Shape) -> Finding:
    kind, sizes = shape.family.model_type, shape.sizes
    if kind in reader.through_transformers:
        return Finding(reader.name, "slower", f"{kind} runs through transformers' own code")
    if kind in reader.states_head_size:
        return Finding(reader.name, "ok", "it reads head_dim")
    if kind not in reader.derives_head_size:
        return Finding(reader.name, "unknown", f"nobody has looked how it reads {kind}: try it")
    width = sizes["head"] * sizes["head_dim"]
    if width == sizes["hidden"]:
        return Finding(reader.name, "ok", "heads x head_dim is the hidden size, which it assumes")
    reason = f"it takes head_dim to be hidden / heads for {kind}, and {sizes['head']} x {sizes['head_dim']} is not "
    through = ": serve with --model-impl transformers" if reader is VLLM else ""
    nearest = {"hidden": width} if width <= parent.sizes["hidden"] else {}
    return Finding(reader.name, "fails", f"{reason}{sizes['hidden']:,}{through}", nearest)


def _tensor_parallel(shape: Shape, parent: Shape) -> Finding:
    works = [1, *(n for n in TENSOR_PARALLEL if all(not size % n for size in _split_sizes(shape, n).values()))]
    refused = [n for n in TENSOR_PARALLEL if n not in works]
    reason = f"over {_listed(works)} devices"
    if not refused:
        return Finding("tensor parallel", "ok", reason)
    most = max(refused)
    odd = {axis: size for axis, size in _split_sizes(shape, most).items() if size % most}
    why = ", ".join(f"{axis} {size:,}" for axis, size in odd.items())
    level: Level = "slower" if len(works) > 1 else "fails"
    nearest = _nearest(shape, parent, dict.fromkeys(_split_sizes(shape, most), most), groups_are_copied=True)
    return Finding("tensor parallel", level, f"{reason}, not over {_listed(refused)} ({why})", nearest)


def _split_sizes(shape: Shape, devices: int) -> dict[str, int]:
    """The axes that are shared out: heads, neurons, and groups unless there are fewer of them than devices."""
    axes = {axis for layout in _matrices(shape) for dim in range(len(layout.dims)) for axis in layout.axes(dim)}
    shared = sorted(axes - {"hidden", "head_dim", "expert", "vocab"})
    return {axis: shape.sizes[axis] for axis in shared if axis != "kv_head" or devices % shape.groups}


def _attention_kernels(shape: Shape) -> Finding:
    size = shape.sizes["head_dim"]
    if size % HEAD_DIM_MULTIPLE or size > HEAD_DIM_MOST:
        reason = f"FlashAttention takes heads of a multiple of {HEAD_DIM_MULTIPLE} up to {HEAD_DIM_MOST}, not {size}"
        return Finding("attention kernels", "slower", reason)
    return Finding("attention kernels", "ok", f"heads of {size}")


def _vocabulary(shape: Shape) -> Finding:
    size = shape.sizes["vocab"]
    if size % 64:
        return Finding("vocabulary", "slower", f"{size:,} is padded to {math.ceil(size / 64) * 64:,}, a multiple of 64")
    return Finding("vocabulary", "ok", f"{size:,} is a multiple of 64")


def _periods(shape: Shape, layer_types: Sequence[str] | None) -> Iterator[Finding]:
    period = LLAMA_CPP_PERIODS.get(shape.family.model_type)
    if period is None or layer_types is None:
        return
    regular = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(len(layer_types))]
    if list(layer_types) == regular:
        yield Finding("llama.cpp layers", "ok", f"every layer {period} attends to everything, which it assumes")
    else:
        reason = f"it takes every layer {period} to attend to everything, and here others do: drop whole groups of them"
        yield Finding("llama.cpp layers", "fails", reason)


def _blocks(blocks: Blocks, shape: Shape, parent: Shape) -> Finding:
    needs = _needs(blocks, shape)
    odd = {axes: size for axes, (size, multiple) in needs.items() if size % multiple}
    if not odd:
        return Finding(blocks.name, "ok", f"multiples of {max(blocks.inputs, blocks.outputs)}")
    sizes = ", ".join(f"{' x '.join(sorted(axes))} {size:,}" for axes, size in odd.items())
    nearest = _nearest(shape, parent, _multiples(shape, {axes: multiple for axes, (_, multiple) in needs.items()}))
    return Finding(blocks.name, blocks.level, f"matrices of {sizes} are {blocks.otherwise}", nearest)


def _needs(blocks: Blocks, shape: Shape) -> dict[frozenset[str], tuple[int, int]]:
    """Axes of a dim -> its size, and what must divide it: as an input of some matrices and an output of others."""
    needs: dict[frozenset[str], tuple[int, int]] = {}
    for layout, (dim, multiple) in product(_matrices(shape), ((-1, blocks.inputs), (-2, blocks.outputs))):
        axes, size = layout.axes(dim), layout.shape(shape.sizes)[dim]
        before, other = needs.get(axes, (size, 1))
        needs[axes] = math.gcd(size, before), math.lcm(multiple, other)  # fused matrices are twice as long
    return needs


def _multiples(shape: Shape, needs: Mapping[frozenset[str], int]) -> dict[str, int]:
    """Axis -> what must divide its size, so that dims over these axes are multiples. Of heads, their number changes."""
    found: dict[str, int] = {}
    for axes, multiple in needs.items():
        share = math.gcd(multiple, shape.sizes["head_dim"]) if "head_dim" in axes else 1
        found |= {axis: math.lcm(multiple // share, found.get(axis, 1)) for axis in axes - {"head_dim"}}
    return found


def _matrices(shape: Shape) -> list[Layout]:
    """Of the linear layers between embedding and head; a router, which nobody quantises or splits, is not one."""
    layouts = (parse(shape.family.tensors[template]) for template in shape.templates)
    return [
        layout
        for layout in dict.fromkeys(layouts)
        if len(layout.dims) > 1
        and not any("vocab" in layout.axes(dim) for dim in range(len(layout.dims)))
        and layout.axes(-2) != {"expert"}
    ]


def _nearest(
    shape: Shape, parent: Shape, multiples: Mapping[str, int], *, groups_are_copied: bool = False
) -> dict[str, int]:
    """The sizes to change for these numbers to divide all of theirs. None if the parent cannot be cut to them."""
    family, most, sizes = shape.family, parent.sizes, dict(shape.sizes)
    if of := multiples.get("kv_head"):
        sizes["kv_head"] = _multiple(sizes["kv_head"], of, most["kv_head"])
        if groups_are_copied and not sizes["kv_head"]:
            sizes["kv_head"] = max(n for n in range(1, most["kv_head"] + 1) if not of % n)
    groups = sizes.get("kv_head", 1)
    most_heads = groups * most["head"] // most.get("kv_head", 1)
    sizes["head"] = _multiple(sizes["head"], math.lcm(multiples.get("head", 1), groups), most_heads)
    heads = sizes["head"] if family.hidden_is_multiple_of_heads else 1
    for axis, multiple in {"hidden": heads, "ffn": 1}.items():
        multiple = math.lcm(max(1, multiple), multiples.get(axis, 1))
        if sizes[axis] % multiple:
            sizes[axis] = _multiple(sizes[axis], math.lcm(multiple, family.width_multiple), most[axis])
    changed = {axis: size for axis, size in sizes.items() if size != shape.sizes[axis]}
    stay = (
        {"head", "kv_head"}
        if family.heads_not_prunable
        else {"head", "hidden"}
        if shape.keeps_hidden_per_head
        else set()
    )
    return {} if 0 in changed.values() or changed.keys() & stay else changed


def _multiple(size: int, of: int, most: int) -> int:
    """The multiple nearest to a size and not above `most`, the larger of two; 0 if there is none."""
    return min(max(1, (2 * size + of) // (2 * of)), most // of) * of if of else 0


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(filter(None, (", ".join(map(str, numbers[:-1])), str(numbers[-1]))))
