"""Export check: the written checkpoint is the child that was planned, and stock transformers runs it.

The written directory is compared with the parent pruned in memory: files, config, headers, numbers, and the loaded
model (`loaded_check.py`). For a large child the numbers are sampled and one-layer probes stand for the model: one layer
of each kind between the first rows of the embedding and of the head.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from minitron_cli import io, memory, progress, strict_json
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import INDEX, WEIGHTS, Checkpoint, blocks
from minitron_cli.checkpoint.writer import MAX_SHARD_BYTES
from minitron_cli.environment_errors import is_of_environment
from minitron_cli.errors import EnvironmentFault, RunFailed, shown
from minitron_cli.model.family import at
from minitron_cli.prune.around import check_around
from minitron_cli.prune.child_config import child_config
from minitron_cli.prune.loaded_check import SAME, Refused, check_loaded
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.prune.slicing import ScratchBuffers, is_finite, prune_rows
from minitron_cli.prune.stream import BLOCK_BYTES, prune_in_memory
from minitron_cli.prune.tensor_map import TensorMap
from minitron_cli.prune.transform import NO_REPAIR
from minitron_cli.stacked_names import stacks

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Mode = Literal["whole", "sampled"]

WHOLE_BYTES = 256 << 20  # a larger child would take longer to load and run than it took to prune
COPIES = 3  # of the child in memory: as written, as pruned in memory, and what is being read
SAMPLED_ROWS = 256  # rows of an embedding or a head that are compared at once
SMALL_BYTES = 1 << 20  # tensors up to this size are all compared; norms are among them, which tell layers apart


@dataclass(frozen=True)
class WrittenChild:
    """A child's directory, and the parent and plan that say what must be in it."""

    path: Path
    source: Checkpoint
    plan: PrunePlan
    mode: Mode
    others: frozenset[str] = field(default_factory=frozenset)
    """Files that belong in the directory besides the checkpoint's own."""

    @property
    def both(self) -> tuple[Path, Path]:
        """The child's directory and the parent's."""
        return self.path, self.source.path

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The written weights."""
        return Checkpoint.open(self.path).named(self.plan.child.tensors())

    @cached_property
    def origin(self) -> dict[str, str]:
        """Child's tensor name -> parent's."""
        return self.plan.sources(self.source.tensors)

    def written(self, name: str, tokens: range | None = None) -> Tensor:
        """Child's tensor as it lies on disk; with `tokens`, only their rows of an embedding or a head."""
        if tokens is None or not self._is_of_tokens(name):
            return self.checkpoint.read(name)
        return self.checkpoint.read_rows(name, tokens.start, tokens.stop)

    def expected(self, name: str, tokens: range | None = None) -> Tensor:
        """The same tensor, or rows of it, pruned from the parent in memory."""
        origin = self.origin[name]
        if tokens is None or not self._is_of_tokens(name):
            return prune_in_memory(self.plan, [origin], self.source.read)[name]
        block = self.source.read_rows(origin, tokens.start, tokens.stop)
        return prune_rows(TensorMap.of(self.plan, origin).of_rows(None), block)

    def samples(self, name: str) -> list[range | None]:
        """Tokens of the first, middle and last rows of an embedding or a head; None for any other tensor: all of it."""
        if not self._is_of_tokens(name):
            return [None]
        vocab = self.plan.child.sizes["vocab"]
        starts = {0, max(0, vocab // 2 - SAMPLED_ROWS), max(0, vocab - SAMPLED_ROWS)}
        return [range(start, min(start + SAMPLED_ROWS, vocab)) for start in sorted(starts)]

    def _is_of_tokens(self, name: str) -> bool:
        return "vocab" in self.plan.child.family.match(name).layout.axes(0)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Child's config, made from the parent's as transformers reads it, with every default spelled out."""
        raw = dict(self.source.config)
        return child_config(hf.config_from_dict(raw, str(self.source.path / "config.json")).to_dict(), self.plan)

    def is_same(self, found: Tensor, wanted: Tensor) -> bool:
        """Whether two tensors are equal: bit for bit, or to rounding where a repair multiplies block by block."""
        if torch.equal(found, wanted):
            return True
        if self.plan.repair is NO_REPAIR or found.shape != wanted.shape or not found.is_floating_point():
            return False
        return bool((found.double() - wanted.double()).norm() <= SAME[found.dtype] * wanted.double().norm())

    def models(self) -> "Iterator[tuple[PreTrainedModel, PreTrainedModel]]":
        """Pairs (as written, as pruned in memory): the whole model, or a one-layer probe per kind of layer.

        Where layers hold different tensors, one probe has a layer of every kind: a cache needs attention.
        """
        if self.mode == "whole":
            yield (
                hf.load_model(self.path),
                hf.model_of(self.config, {name: self.expected(name) for name in self.origin}),
            )
            return
        layers = self._layers()
        for probed in [layers] if self.plan.child.family.layers else [[layer] for layer in layers]:
            yield (
                self._probe(probed, self.checkpoint.config, self.written),
                self._probe(probed, self.config, self.expected),
            )

    def _layers(self) -> list[int]:
        """Last layer of each kind. Kinds differ in the tensors they hold or in what the config says of them."""
        family, depth = self.plan.child.family, self.plan.child.sizes["layer"]
        templates: list[set[str]] = [set() for _ in range(depth)]
        for match in map(family.match, self.plan.child.tensors()):
            if "layer" in match.at:
                templates[match.at["layer"]].add(match.template)
        lists = [found for name in family.layer_lists if isinstance(found := self.config.get(name), list)]
        marks = [found for name in family.layer_marks if isinstance(found := self.config.get(name), int)]
        kinds = {
            (*sorted(templates[i]), *(str(values[i]) for values in lists), *(i < mark for mark in marks)): i
            for i in range(depth)
        }
        return sorted(kinds.values())

    def _probe(
        self, layers: list[int], config: Mapping[str, Any], read: Callable[[str, range | None], Tensor]
    ) -> "PreTrainedModel":
        """Model of some layers and the first tokens; `read` returns a tensor of the child, or rows of it."""
        child = self.plan.child
        tokens = range(min(SAMPLED_ROWS, child.sizes["vocab"]))
        part = PrunePlan(child.resize(vocab=len(tokens)), {"layer": torch.tensor(layers)})
        return hf.model_of(
            _part_config(config, part), prune_in_memory(part, self.origin, lambda name: read(name, tokens))
        )


def _part_config(config: Mapping[str, Any], part: PrunePlan) -> dict[str, Any]:
    return child_config(config, part) | {"pad_token_id": None}  # the parent's may lie beyond the probe's vocabulary


def mode_for(size_bytes: int) -> Mode:
    """ "whole" if a child of this size can be compared as a whole, else "sampled"."""
    is_whole = size_bytes <= WHOLE_BYTES and memory.fits(size_bytes, (COPIES - 1) * size_bytes, "cpu")
    return "whole" if is_whole else "sampled"


def check_child(written: WrittenChild) -> list[str]:
    """Names of all checks, which the child has passed. RunFailed names the first that it does not pass."""
    with progress.track("export check", len(CHECKS) + 1, "checks") as step:
        for name, check in CHECKS.items():
            with _named(name):
                check(written)
            step()
        with _named("live"):
            for found, wanted in written.models():
                check_loaded(found, wanted, written.is_same)
        step()
    return [*CHECKS, "live"]


@contextmanager
def _named(check: str) -> Iterator[None]:
    try:
        yield
    except Exception as e:
        if isinstance(e, EnvironmentFault) or is_of_environment(e):
            raise  # the check itself could not run, which says nothing about the child
        what = " ".join(str(e).split()) or type(e).__name__
        raise RunFailed(
            f"the written checkpoint failed its {check!r} check and was not kept: {what[:300]}; "
            "check the disk and run the command again; if it fails again, report it"
        ) from e


def _check_files(written: WrittenChild) -> None:
    weights = {info.file.name for info in written.checkpoint.stored.values()}
    copied = {name for name in hf.side_files(written.source) if (written.source.path / name).is_file()}
    wanted = {"config.json"} | weights | ({INDEX} if weights != {WEIGHTS} else set()) | copied | written.others
    found = io.files_in(written.path).keys()
    if found != wanted:
        name = min(found ^ wanted)
        raise Refused(f"{name} does not belong in the directory" if name in found else f"{name} is missing")


def _check_copies(written: WrittenChild) -> None:
    for name in hf.side_files(written.source):
        theirs, ours = written.source.path / name, written.path / name
        if theirs.is_file() and theirs.read_bytes() != ours.read_bytes():
            raise Refused(f"{name} differs from the parent's")
    check_around(written.checkpoint, written.source, written.plan)
    hf.check_generation_config(written.path)


def _check_config(written: WrittenChild) -> None:
    raw, wanted = written.checkpoint.config, child_config(written.source.config, written.plan)
    for name in sorted(raw.keys() | wanted.keys()):
        if raw.get(name) != wanted.get(name):
            raise Refused(f"config.json says {name}={shown(raw.get(name))}, not {shown(wanted.get(name))}")
    for axis, name in written.plan.parent.family.sizes.items():
        if raw.get(name) != written.plan.child.sizes[axis]:
            raise Refused(f"config.json does not state {name}={written.plan.child.sizes[axis]}")
    _check_rope(written, raw)


def _check_rope(written: WrittenChild, raw: Mapping[str, Any]) -> None:
    """Refuse other rotary positions than the parent's, whichever version of transformers reads the config."""
    found, wanted = (getattr(hf.load_config(path), "rope_parameters", None) for path in written.both)
    if found != wanted:
        raise Refused(f"rope_parameters read as {shown(found)}, not {shown(wanted)}")
    rope, old = raw.get("rope_parameters"), written.plan.parent.family.rope_v4
    if isinstance(rope, dict):
        for name, path in old.fields.items():
            if raw.get(name) != at(rope, path):
                raise Refused(f"config.json says {name}={shown(raw.get(name))} beside other rope_parameters")
        scaled = at(rope, old.scaled) if old.scaled else rope
        if scaled and scaled.get("rope_type", "default") != "default" and not raw.get("rope_scaling"):
            raise Refused("config.json does not state rope_scaling beside rope_parameters")


def _check_headers(written: WrittenChild) -> None:
    child, shapes = written.checkpoint, written.plan.child.tensors()
    if child.shapes != shapes:
        odd = min(name for name in child.shapes.keys() | shapes.keys() if child.shapes.get(name) != shapes.get(name))
        raise Refused(f"{odd} is {child.shapes.get(odd)} on disk, not {shapes.get(odd)}")
    for name, info in child.tensors.items():
        if info.dtype != (theirs := written.source.tensors[written.origin[name]].dtype):
            raise Refused(f"{name} is {info.dtype}, not {theirs}")
    _check_shards(written)


def _check_shards(written: WrittenChild) -> None:
    infos = sorted(written.checkpoint.stored.items(), key=lambda item: item[1].file)
    for file, some in itertools.groupby(infos, key=lambda item: item[1].file):
        sizes = {name: info.size_bytes for name, info in some}
        if sum(sizes.values()) > MAX_SHARD_BYTES and len(stacks(sizes)) > 1:
            raise Refused(f"{file.name} holds {sum(sizes.values()):,} bytes, more than {MAX_SHARD_BYTES:,}")
    if (written.path / INDEX).is_file():
        total = strict_json.load(written.path / INDEX).get("metadata", {}).get("total_size")
        if total != (size := sum(info.size_bytes for _, info in infos)):
            raise Refused(f"{INDEX} says {total} bytes, not {size}")


def _check_finite(written: WrittenChild) -> None:
    spare = ScratchBuffers()
    for name in written.checkpoint.tensors:
        if not all(is_finite(block) for _, block in blocks(written.checkpoint, name, BLOCK_BYTES, spare.take)):
            raise Refused(f"{name} holds NaN or infinity")


def _check_weights(written: WrittenChild) -> None:
    """Compare a sample of the tensors; in "whole" mode the loaded model is compared in full later."""
    for name in _sample(written):
        for tokens in written.samples(name):
            if not written.is_same(written.written(name, tokens), written.expected(name, tokens)):
                raise Refused(f"{name} holds other numbers than the pruned parent")


def _sample(written: WrittenChild) -> Iterator[str]:
    """Names of every small tensor, and of one large tensor per template, from different layers."""
    family, seen = written.plan.child.family, dict[str, int]()
    depth = written.plan.child.sizes["layer"]
    for name, info in written.checkpoint.tensors.items():
        match = family.match(name)
        kind = seen.setdefault(match.template, len(seen))
        if info.size_bytes <= SMALL_BYTES or match.at.get("layer", 0) == kind % depth * ("layer" in match.at):
            yield name


CHECKS: dict[str, Callable[[WrittenChild], None]] = {
    "headers": _check_headers,
    "files": _check_files,
    "copies": _check_copies,
    "config": _check_config,
    "finite": _check_finite,
    "weights": _check_weights,
}
