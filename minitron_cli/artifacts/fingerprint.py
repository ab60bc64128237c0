"""Content hashes of model directories, independent of path and time."""

from pathlib import Path

from minitron_cli import canonical_json, io
from minitron_cli.artifacts import file_hashes
from minitron_cli.artifacts.artifact import check_model
from minitron_cli.artifacts.license_files import is_license
from minitron_cli.artifacts.manifest import CHAT_TEMPLATES, MANIFEST, RUN, Manifest
from minitron_cli.results.base import RESULT

CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "tekken.json",  # of Mistral's own tokenizer, which vLLM reads if asked to
    "vocab.json",
    "merges.txt",
    CHAT_TEMPLATE,
)
"""Files of a tokenizer and its default chat template, of which a model has some."""


def of_directory(directory: Path, hashed: file_hashes.Hash = file_hashes.records) -> str:
    """Content hash of all files of a model: weights and masks, configs, tokenizer; not of license texts.

    ArtifactError for a stage's damaged result.
    """
    check_model(directory, hashed)
    paths = {p.name: p for p in sorted(directory.iterdir()) if p.is_file() and _matters(p.name)} | templates(directory)
    records = hashed(list(paths.values()))
    return canonical_json.digest({name: r.sha256 for name, r in zip(paths, records, strict=True)})


def templates(directory: Path) -> dict[str, Path]:
    """Named chat templates of a model, by their path in its directory."""
    paths = sorted((directory / CHAT_TEMPLATES).glob("*.jinja"))
    return {f"{CHAT_TEMPLATES}/{path.name}": path for path in paths if path.is_file() and _matters(path.name)}


def of_model(manifest: Manifest) -> str:
    """The same hash of a model that a stage made, from the hashes that its manifest records."""
    return canonical_json.digest({name: r.sha256 for name, r in manifest.files.items() if _matters(name)})


def of_tokenizer(directory: Path) -> str:
    """Content hash of the tokenizer's files."""
    names = [name for name in TOKENIZER_FILES if name != CHAT_TEMPLATE]
    return canonical_json.digest({n: io.file_record(directory / n).sha256 for n in names if (directory / n).is_file()})


def _matters(name: str) -> bool:
    suffixes = (".safetensors", ".json", ".model", ".txt", ".jinja", ".masks")
    return name.endswith(suffixes) and not (name.startswith(".") or name in (MANIFEST, RUN, RESULT) or is_license(name))
