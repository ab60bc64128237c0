"""`minitron inspect`: shape, parameters and files of a model, from its config and file headers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from minitron_cli.cli.options import Show

if TYPE_CHECKING:
    from minitron_cli.checkpoint.reader import Checkpoint
    from minitron_cli.model.serving import Finding
    from minitron_cli.model.shape import Shape


def inspect(
    shown: Show,
    model: Annotated[str, Argument(metavar="MODEL", help="A directory, a hub id or an alias such as llama-3.1-8b.")],
    batch: Annotated[int, Option(min=1, help="Number of sequences in the KV cache.")] = 1,
    length: Annotated[int, Option(min=1, help="Tokens per sequence in the KV cache.")] = 8192,
) -> None:
    """Show a model's family, axis sizes, parameters, files and serving compatibility.

    Reads configuration, file headers and the tokenizer only; downloads nothing.
    """
    from minitron_cli.cli import console
    from minitron_cli.dry_run import shape_of
    from minitron_cli.report import sparsity
    from minitron_cli.sparse.mask_file import MaskFile

    shape, checkpoint = shape_of(model)
    facts = _facts(shape, batch, length) | (_stored(checkpoint) if checkpoint else {"files": None})
    serving = _serving(shape, checkpoint)
    masks = MaskFile.beside(checkpoint.path) if checkpoint else None
    if shown.json:
        masked = {"masks": sparsity.masks(masks, shape.family)} if masks else {}
        console.data(facts | masked | {"serving": [finding._asdict() for finding in serving]})
        return
    from minitron_cli.report.shapes import serving_table

    console.fields(model, facts, shown)
    if masks:
        console.table(sparsity.masks_table(masks, shape.family))
    console.table(serving_table(serving))


def _facts(shape: "Shape", batch: int, length: int) -> dict[str, Any]:
    return {
        "family": shape.family.model_type,
        "axes": dict(shape.sizes),
        "parameters": shape.parameters(),
        "non_embedding": shape.parameters("non_embedding"),
        "active": shape.parameters("active"),
        "weights_bytes_in_16_bit": 2 * shape.parameters(),
        "kv_cache": {"batch": batch, "length": length, "bytes_in_16_bit": shape.kv_cache_bytes(batch, length)},
        "flops_per_token": shape.flops_per_token(),
    }


def _serving(shape: "Shape", checkpoint: "Checkpoint | None") -> "list[Finding]":
    from minitron_cli.checkpoint import hf
    from minitron_cli.model.serving import findings

    config = hf.load_config(checkpoint.path) if checkpoint else None
    return findings(shape, getattr(config, "layer_types", None))


def _stored(checkpoint: "Checkpoint") -> dict[str, Any]:
    from minitron_cli.inputs.document_ends import document_ends

    return _around(checkpoint) | _files(checkpoint) | {"documents": document_ends(checkpoint.path, "auto")}


def _around(checkpoint: "Checkpoint") -> dict[str, Any]:
    """What a multimodal wrapper holds beside its text model, of which all else is said; nothing without one."""
    if (wrapper := checkpoint.wrapper) is None:
        return {}
    size = sum(info.size_bytes for info in wrapper.tensors.values())
    return {"wrapper": {"model_type": wrapper.model_type, "other_tensors": len(wrapper.tensors), "bytes": size}}


def _files(checkpoint: "Checkpoint") -> dict[str, Any]:
    files = sorted({info.file for info in checkpoint.stored.values()})
    dtypes = sorted({info.dtype for info in checkpoint.tensors.values()})
    return {
        "dtype": ", ".join(dtypes),
        "tensors": len(checkpoint.tensors),
        "stored_bytes": checkpoint.size_bytes,
        "files": {str(Path(file).name): file.stat().st_size for file in files},
    }
