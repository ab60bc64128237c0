"""Teacher stage: trains a small Llama from scratch on local text: the model that ships, and those of the studies.

Nothing is downloaded. The training loop is that of distillation, with cross-entropy and without a teacher.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from minitron_cli import canonical_json, io, progress
from minitron_cli.artifacts import fingerprint
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context, StageBuild, produce
from minitron_cli.checkpoint import hf
from minitron_cli.data.sources import DataConfig
from minitron_cli.data.tokenizer import train_bpe
from minitron_cli.distill import training_run
from minitron_cli.distill.config import DistillConfig
from minitron_cli.inputs.token_blocks import blocks_for_new_model
from minitron_cli.model.families import family_of
from minitron_cli.model.shape import Shape
from minitron_cli.price import subject
from minitron_cli.price import training as training_work
from minitron_cli.price.offer import compute_dtype, offered
from minitron_cli.price.work import Work
from minitron_cli.results.training import TeacherResult
from minitron_cli.spec import Spec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

STAGE, VERSION = "teacher", 3


class TeacherConfig(Spec):
    """A Llama small enough for two CPU cores, with grouped-query attention and an untied head."""

    vocab_size: int = Field(2048, ge=257)
    hidden: int = 192
    ffn: int = 512
    layers: int = 8
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    tie_embeddings: bool = False
    training: DistillConfig
    """Training; none of its losses may need a teacher."""


def run(context: Context, data: DataConfig, config: TeacherConfig) -> Artifact:
    """Train a tokenizer and a model on the data's sources."""
    sources = [source.open() for source in data.sources]
    inputs = {"text": canonical_json.digest([corpus.identity for corpus in sources])}

    def build(work: StageBuild) -> TeacherResult:
        tokenizer = _tokenizer(work, data, config.vocab_size)
        train, validation = (blocks_for_new_model(context, data, split, tokenizer) for split in ("train", "validation"))
        typed = _typed(config, train.sequence_length)
        model = hf.new_model(typed, seed=config.training.seed)
        models = training_run.LoadedModels(model)
        result = training_run.run_loop(
            context, work, models, train, validation, config.training, name=STAGE, kind=TeacherResult
        )
        hf.write_model(model, Shape.of(family_of(typed), typed).tensors(), work.path)
        hf.copy_files(tokenizer, work.path, fingerprint.TOKENIZER_FILES)
        return result

    return produce(
        context,
        stage=STAGE,
        version=VERSION,
        config=config,
        inputs=inputs,
        build=build,
        price=lambda: offered(context, STAGE, _work(context, config, data.sequence_length)),
        together=True,
    )


def _work(context: Context, config: TeacherConfig, length: int) -> Work:
    """Work of the training. The text is not read yet, so that all held-out blocks that are asked for are counted."""
    typed, training = _typed(config, length), config.training
    student = subject.of_config(typed.to_dict(), Shape.of(family_of(typed), typed))
    dtype = compute_dtype(training, context.device)
    work = training_work.work(
        student, None, training, length, training.eval_blocks or 0, compute_dtype=dtype, device=context.device
    )
    return replace(work, left_out=("training the tokenizer",))


def _tokenizer(work: StageBuild, data: DataConfig, vocab_size: int) -> Path:
    """Directory of a tokenizer trained on the sources; an interrupted run leaves none or a complete one."""
    final = work.scratch / "tokenizer"
    if not final.is_dir():
        io.make_dirs(work.scratch)
        texts = (str(document.content) for source in data.sources for document in source.open().documents)
        with io.new_dir(final) as directory, progress.track("train the tokenizer", unit="documents") as step:
            train_bpe(_counted(texts, step), vocab_size, directory)
    return final


def _counted(texts: Iterable[str], step: progress.Step) -> Iterator[str]:
    for text in texts:
        yield text
        step()


def _typed(config: TeacherConfig, context_length: int) -> "PretrainedConfig":
    return hf.config_from_dict(_llama(config, context_length), "the teacher")


def _llama(config: TeacherConfig, context_length: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": max(512, context_length),
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }
