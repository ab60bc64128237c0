"""Findings on how programs that load, serve or quantize a model handle its shape. They refuse nothing.

From the sources of transformers 4.57.6 and 5.23, vLLM 0.33 and the llama.cpp of llama-cpp-python 0.3.36. Facts about
one family are in its table (`Family.serving`); docs/serving.md explains each row.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Literal, NamedTuple

from minitron_cli.figures import listed
from minitron_cli.model.assumptions import Broken, no_multiple, taken_for_another, unequal
from minitron_cli.model.family import HeadSize
from minitron_cli.model.layout import Layout, parse
from minitron_cli.model.shape import Shape

Level = Literal["ok", "slower", "fails", "unknown"]


class Finding(NamedTuple):
    """One row: a program or kernel, whether the shape suits it, why, and the nearest shape that does."""

    reader: str
    level: Level
    reason: str
    nearest: Mapping[str, int] = {}
    """Axis -> size, for the axes to change; empty where no shape that the parent can be pruned to helps."""


TENSOR_PARALLEL = (2, 4, 8)
OF_A_HEAD = frozenset({"head_dim", "key_dim", "up_dim"})
IN_LATENTS = frozenset({"q_rank", "kv_rank", "rope"})  # every device has all of a latent
MOST_CHANGES = 4  # of sizes, one after the other, in search of a shape that suits a program
HEAD_DIM_MULTIPLE, HEAD_DIM_MOST = 8, 256  # FlashAttention


class BlockFormat(NamedTuple):
    """A quantization format or kernel that takes matrices in blocks."""

    name: str
    level: Level
    inputs: int
    """Divisor of every matrix's input size."""
    outputs: int
    """Divisor of every matrix's output size."""
    otherwise: str
    """Treatment of a matrix of another size."""


BLOCK_FORMATS = (
    BlockFormat("GGUF Q4_0, Q8_0", "slower", 32, 1, "kept in 16 bits"),
    BlockFormat("GGUF K-quants", "slower", 256, 1, "kept in a larger type (Q4_K: Q5_0, Q6_K: Q8_0)"),
    BlockFormat("GPTQ, AWQ (Marlin)", "slower", 128, 64, "run by a slower kernel or refused"),
    BlockFormat("fp8", "fails", 16, 16, "refused by the scaled matrix product"),
    BlockFormat("2:4 sparsity", "slower", 64, 32, "run as dense ones: torch's sparse product takes other sizes"),
)

NO_SPEED = "runs it as fast as the dense model: it has no kernels for zeros (November 2026)"
"""What vLLM 0.33 and TensorRT-LLM make of a model with zeros: both have dropped sparse formats."""


def findings(shape: Shape, layer_types: Sequence[str] | None = None, parent: Shape | None = None) -> list[Finding]:
    """All rows for a shape. `layer_types` are the layers' kinds of attention, where the config lists them.

    The nearest shapes are ones that the parent can be pruned to; without a parent, the shape itself.
    """
    parent = parent or shape
    return [
        _transformers(shape, parent),
        *_older_transformers(shape, parent),
        _head_size("vLLM", shape.family.serving.vllm, shape, parent),
        _tensor_parallel(shape, parent),
        _attention_kernels(shape),
        _vocabulary(shape),
        _llama_cpp(shape, parent),
        *_periods(shape, layer_types, parent),
        *(_blocks(blocks, shape, parent) for blocks in BLOCK_FORMATS),
    ]


def zeros(shape: Shape, pattern: str) -> list[Finding]:
    """Rows for a model of a shape with zeros among its weights, in a pattern such as `2:4` or `50%`.

    Facts: torch's `to_sparse_semi_structured` stores 2 of each aligned 4 inputs, of 16-bit weights whose outputs are a
    multiple of 32 and inputs one of 64, and was faster from about 1,280 rows of activations on (torchao issue 1460).
    """
    found = [Finding(reader, "slower", NO_SPEED) for reader in ("vLLM", "TensorRT-LLM")]
    if not _has_2_of_4(pattern):
        reason = "its sparse product takes at most 2 of every 4 inputs, as of 2:4: other patterns save no time"
        return [*found, Finding("torch", "slower", reason)]
    sizes = _blocks(BLOCK_FORMATS[-1], shape, shape)
    if sizes.level != "ok":
        return [*found, Finding("torch", "slower", sizes.reason, sizes.nearest)]
    reason = "to_sparse_semi_structured runs it, faster than dense only for large batches (over about 1,280 tokens)"
    return [*found, Finding("torch", "ok", reason)]


def _has_2_of_4(pattern: str) -> bool:
    """Whether every mask with a pattern keeps at most 2 of each aligned 4 inputs."""
    kept, is_by_group, group = pattern.partition(":")
    return pattern == "1:2" or (bool(is_by_group) and int(kept) <= 2 and not int(group) % 4)


def remarks(shape: Shape, layer_types: Sequence[str] | None = None, parent: Shape | None = None) -> list[Finding]:
    """Rows whose level is not "ok"."""
    return [finding for finding in findings(shape, layer_types, parent) if finding.level != "ok"]


def fails_on(shape: Shape) -> frozenset[str]:
    """Programs that cannot run a shape at all."""
    serving = shape.family.serving
    rows = (
        _transformers(shape, shape),
        _head_size("vLLM", serving.vllm, shape, shape),
        _llama_cpp(shape, shape),
    )
    return frozenset(row.reader for row in rows if row.level == "fails")


def deriving_head_size(shape: Shape) -> list[str]:
    """Programs that run the model, and no child of it whose hidden size is not heads x head_dim."""
    readers, not_for = {"vLLM": shape.family.serving.vllm, "llama.cpp": shape.family.serving.llama_cpp}, fails_on(shape)
    return [name for name, head_size in readers.items() if head_size == "derives_head_dim" and name not in not_for]


def splits_over(shape: Shape, devices: int) -> bool:
    """Whether tensor parallelism can split the model over this number of devices."""
    return devices == 1 or all(size % devices == 0 for size in _split_sizes(shape, devices).values())


def _transformers(shape: Shape, parent: Shape) -> Finding:
    hidden, heads = shape.sizes["hidden"], shape.sizes["head"]
    if shape.family.hidden_is_multiple_of_heads and hidden % heads:
        reason = f"its config refuses hidden {hidden:,} with {heads} heads: not a multiple"
        return Finding("transformers", "fails", reason, _nearest(shape, parent, {"hidden": heads}))
    versions = (
        "versions 4.57 and 5 read" if shape.family.serving.transformers_4 == "reads_head_dim" else "version 5 reads"
    )
    return Finding("transformers", "ok", f"{versions} the config, which has the names of both")


def _older_transformers(shape: Shape, parent: Shape) -> Iterator[Finding]:
    """A row of its own for families that version 4 reads otherwise than version 5."""
    if shape.family.serving.transformers_4 != "reads_head_dim":
        yield _head_size("transformers 4", shape.family.serving.transformers_4, shape, parent)


def _head_size(reader: str, head_size: HeadSize, shape: Shape, parent: Shape) -> Finding:
    """Whether a program with its own code for each architecture takes the size of a head as the config states it."""
    kind, sizes = shape.family.model_type, shape.sizes
    if head_size == "through_transformers":
        return Finding(reader, "slower", f"{kind} runs through transformers' own code")
    if head_size == "reads_head_dim":
        return Finding(reader, "ok", "it reads head_dim")
    if head_size == "unsupported":
        return Finding(reader, "fails", f"it has no code for {kind}")
    if head_size == "unknown":
        return Finding(reader, "unknown", f"its code for {kind} has not been read: try it")
    width = sizes["head"] * sizes["head_dim"]
    if width == sizes["hidden"]:
        return Finding(reader, "ok", "heads x head_dim is the hidden size, which it assumes")
    reason = f"it takes head_dim to be hidden / heads for {kind}, and {sizes['head']} x {sizes['head_dim']} is not "
    through = ": serve with --model-impl transformers" if reader == "vLLM" else ""
    nearest = {"hidden": width} if width <= parent.sizes["hidden"] else {}
    return Finding(reader, "fails", f"{reason}{sizes['hidden']:,}{through}", nearest)


def _llama_cpp(shape: Shape, parent: Shape) -> Finding:
    """One row on all sizes that llama.cpp takes for granted; its nearest shape breaks none of them."""
    found = _head_size("llama.cpp", shape.family.serving.llama_cpp, shape, parent)
    broken = _broken_in_llama_cpp(shape, parent)
    if not broken:
        return found
    return Finding("llama.cpp", "fails", "; ".join(one.reason for one in broken), _nearest_for_llama_cpp(shape, parent))


def _broken_in_llama_cpp(shape: Shape, parent: Shape) -> list[Broken]:
    serving = shape.family.serving
    heads = _head_size("llama.cpp", serving.llama_cpp, shape, parent)
    broken = [Broken(heads.reason, heads.nearest)] if heads.level == "fails" else []
    if serving.llama_cpp_differs:
        broken.append(Broken(serving.llama_cpp_differs, {}))
    for products in serving.llama_cpp_equal:
        broken += unequal(products, shape, parent)
    for axes, multiple in serving.llama_cpp_multiples:
        broken += no_multiple(axes, multiple, shape, parent)
    if serving.llama_cpp_known:
        broken += taken_for_another(serving.llama_cpp_known, shape, parent)
    return broken


def _nearest_for_llama_cpp(shape: Shape, parent: Shape) -> dict[str, int]:
    """Sizes to change so that llama.cpp runs the model, found one after the other; empty where that fails."""
    nearest: dict[str, int] = {}
    for _ in range(MOST_CHANGES):
        broken = _broken_in_llama_cpp(shape.resize(**nearest), parent)
        if not broken:
            return nearest
        nearest |= broken[0].nearest
    return {}


def _tensor_parallel(shape: Shape, parent: Shape) -> Finding:
    works = [1, *(n for n in TENSOR_PARALLEL if all(not size % n for size in _split_sizes(shape, n).values()))]
    refused = [n for n in TENSOR_PARALLEL if n not in works]
    reason = f"over {listed(works)} devices"
    if not refused:
        return Finding("tensor parallel", "ok", reason)
    most = max(refused)
    odd = {axis: size for axis, size in _split_sizes(shape, most).items() if size % most}
    why = ", ".join(f"{axis} {size:,}" for axis, size in odd.items())
    level: Level = "slower" if len(works) > 1 else "fails"
    nearest = _nearest(shape, parent, dict.fromkeys(_split_sizes(shape, most), most), groups_are_copied=True)
    if not splits_over(shape.resize(**nearest), most):
        nearest = {}  # an axis that is not pruned
    return Finding("tensor parallel", level, f"{reason}, not over {listed(refused)} ({why})", nearest)


def _split_sizes(shape: Shape, devices: int) -> dict[str, int]:
    """Sizes that are split over devices: heads, neurons, and key-value heads unless copies of them fill the devices."""
    axes = {axis for layout in _matrices(shape) for dim in range(len(layout.dims)) for axis in layout.axes(dim)}
    shared = sorted(axes - {"hidden", "expert", "vocab", *OF_A_HEAD, *IN_LATENTS})
    return {axis: shape.sizes[axis] for axis in shared if axis != "kv_head" or devices % shape.groups}


def _attention_kernels(shape: Shape) -> Finding:
    size = shape.key_dim
    if size % HEAD_DIM_MULTIPLE or size > HEAD_DIM_MOST:
        reason = f"FlashAttention takes heads of a multiple of {HEAD_DIM_MULTIPLE} up to {HEAD_DIM_MOST}, not {size}"
        return Finding("attention kernels", "slower", reason)
    return Finding("attention kernels", "ok", f"heads of {size}")


def _vocabulary(shape: Shape) -> Finding:
    size = shape.sizes["vocab"]
    if size % 64:
        return Finding("vocabulary", "slower", f"{size:,} is padded to {math.ceil(size / 64) * 64:,}, a multiple of 64")
    return Finding("vocabulary", "ok", f"{size:,} is a multiple of 64")


def _periods(shape: Shape, layer_types: Sequence[str] | None, parent: Shape) -> Iterator[Finding]:
    if shape.family.serving.llama_cpp_numbers_kinds:
        yield _numbered(shape, parent)
    period, windows_at = shape.family.serving.llama_cpp_period, shape.family.serving.llama_cpp_windows_at
    if windows_at and "sliding_attention" in (layer_types or ()) and shape.sizes["layer"] != windows_at:
        reason = f"it takes every layer to attend to all tokens where there are not {windows_at}: keep all layers"
        yield Finding("llama.cpp layers", "fails", reason)
    if period is None or layer_types is None:
        return
    regular = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(len(layer_types))]
    if list(layer_types) == regular:
        yield Finding("llama.cpp layers", "ok", f"one layer in {period} attends to all tokens, which it assumes")
    else:
        reason = (
            f"it assumes that one layer in {period} attends to all tokens, and here other layers do: drop whole periods"
        )
        yield Finding("llama.cpp layers", "fails", reason)


def _numbered(shape: Shape, parent: Shape) -> Finding:
    """Whether layers have the kinds that a program computes from their numbers, as it does for the parent's."""
    layers = shape.family.layers
    if layers == parent.family.layers[: len(layers)]:
        return Finding("llama.cpp layers", "ok", "they have the kinds that it computes from their numbers")
    reason = "it computes the kinds of layers from their numbers: drop the last layers, or others in whole periods"
    return Finding("llama.cpp layers", "fails", reason)


def _blocks(blocks: BlockFormat, shape: Shape, parent: Shape) -> Finding:
    needs = _needs(blocks, shape)
    odd = _odd(needs)
    if not odd:
        return Finding(blocks.name, "ok", f"multiples of {max(blocks.inputs, blocks.outputs)}")
    sizes = ", ".join(f"{' x '.join(sorted(axes))} {size:,}" for axes, size in odd.items())
    nearest = _nearest(shape, parent, _multiples(shape, {axes: multiple for axes, (_, multiple) in needs.items()}))
    if _odd(_needs(blocks, shape.resize(**nearest))):
        nearest = {}  # an axis that is not pruned
    return Finding(blocks.name, blocks.level, f"matrices of {sizes} are {blocks.otherwise}", nearest)


def _odd(needs: Mapping[frozenset[str], tuple[int, int]]) -> dict[frozenset[str], int]:
    """Axes of a dim -> its size, where that is no multiple of its divisor."""
    return {axes: size for axes, (size, multiple) in needs.items() if size % multiple}


def _needs(blocks: BlockFormat, shape: Shape) -> dict[frozenset[str], tuple[int, int]]:
    """Axes of a dim -> (its size, its divisor), as an input of some matrices and an output of others."""
    needs: dict[frozenset[str], tuple[int, int]] = {}
    for layout, (dim, multiple) in product(_matrices(shape), ((-1, blocks.inputs), (-2, blocks.outputs))):
        axes, size = layout.axes(dim), layout.shape(shape.sizes)[dim]
        before, other = needs.get(axes, (size, 1))
        needs[axes] = math.gcd(size, before), math.lcm(multiple, other)  # fused matrices are twice as long
    return needs


def _multiples(shape: Shape, needs: Mapping[frozenset[str], int]) -> dict[str, int]:
    """Axis -> divisor of its size that makes dims over these axes multiples. For heads, their number changes."""
    found: dict[str, int] = {}
    for axes, multiple in needs.items():
        share = math.gcd(multiple, *(shape.sizes[axis] for axis in axes & OF_A_HEAD)) if axes & OF_A_HEAD else 1
        found |= {axis: math.lcm(multiple // share, found.get(axis, 1)) for axis in axes - OF_A_HEAD}
    return found


def _matrices(shape: Shape) -> list[Layout]:
    """Layouts of the linear layers between embedding and head, without routers, which are not quantized or split."""
    family = shape.family
    layouts = (parse(family.tensors[t]) for t in shape.templates if t not in family.elementwise)
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
    """Axis -> nearest multiple of its divisor, for axes to change; empty if the parent cannot be pruned to them."""
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
    stay = {*family.not_prunable, *(("head", "hidden") if shape.keeps_hidden_per_head else ())}
    return {} if 0 in changed.values() or changed.keys() & stay else changed


def _multiple(size: int, of: int, most: int) -> int:
    """Multiple of `of` nearest to a size and not above `most`, the larger of two; 0 if there is none."""
    return min(max(1, (2 * size + of) // (2 * of)), most // of) * of if of else 0
