"""Train the small teachers that the studies measure quality on, and compare them with the one that ships.

    python scripts/bench_teacher.py    # text: source of the Python standard library; half an hour on two cores
    python scripts/bench_teacher.py --name prose --text a.txt b.txt --validation c.txt --hidden 128 --tokens 2000000

The first is how `demo-teacher` was made, the model that ships with minitron: both losses are printed, on the same
held-out text. A teacher is cached by its text and settings, so each is trained once. An interrupted run continues when
it is started again.
"""

import argparse
import math
from pathlib import Path

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.checkpoint.model_names import DEMO_TEACHER
from minitron_cli.data.sources import DataConfig, PythonStdlib, TextFiles
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.evaluate.config import PERPLEXITY, EvaluateConfig
from minitron_cli.inputs.source_model import open_source_model
from minitron_cli.results.evaluation import BITS_PER_BYTE, PARENT, EvaluationResult
from minitron_cli.results.training import TeacherResult
from minitron_cli.stages import evaluate, teacher
from minitron_cli.stages.teacher import TeacherConfig

MADE = "made"
"""Label of the teacher that the script made, beside the one that ships."""


def bench_data(text: list[str] | None, validation: list[str] | None = None, sequence_length: int = 256) -> DataConfig:
    """Text to train and validate on: the files given, or the standard library. Without `validation`, a part of `text`
    is held out."""
    if text:
        held_out = (TextFiles(paths=tuple(validation)),) if validation else ()
        return DataConfig(sources=(TextFiles(paths=tuple(text)),), validation=held_out, sequence_length=sequence_length)
    return DataConfig(
        sources=(PythonStdlib(split="train"),),
        validation=(PythonStdlib(split="validation"),),
        sequence_length=sequence_length,
    )


def bench_teacher(workspace: Workspace, data: DataConfig, tokens: int, hidden: int, tied: bool) -> Artifact:
    """Train a Llama of width `hidden` on `tokens` tokens, or return the artifact of an equal run."""
    config = TeacherConfig(
        tie_embeddings=tied,
        hidden=hidden,
        ffn=hidden * 8 // 3,
        heads=hidden // 32,
        kv_heads=math.gcd(hidden // 32, 2),
        training=DistillConfig(
            tokens=tokens,
            batch_size=16,
            micro_batch_size=16,
            learning_rate=2e-3,
            min_learning_rate=4e-5,
            warmup_steps=100,
            losses=(CrossEntropy(),),
            eval_every=250,
            save_every=250,
        ),
    )
    return teacher.run(Context(workspace), data, config)


def beside_the_shipped(context: Context, data: DataConfig, made: Artifact, config: EvaluateConfig) -> str:
    """Loss of a teacher and of the one that ships, on the same held-out text; per byte if their tokenizers differ."""
    shipped = open_source_model(DEMO_TEACHER)
    found = evaluate.run(context, [(MADE, made.path)], shipped, data, config).result(EvaluationResult)
    losses = {label: model.results[PERPLEXITY] for label, model in found.models.items()}
    name = next(name for name in ("loss", BITS_PER_BYTE) if all(name in one for one in losses.values()))
    apart = found.models[MADE].against_parent[PERPLEXITY][name]
    return (
        f"{name.replace('_', ' ')} on {found.loss_tokens:,} held-out tokens: {losses[MADE][name].value:.4f}; "
        f"{DEMO_TEACHER}, which ships: {losses[PARENT][name].value:.4f}; difference {apart.difference:+.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", "--run", default="bench", help="name of the workspace in --runs-dir")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="directory of workspaces")
    parser.add_argument("--text", nargs="*", help="files to train on (default: the standard library)")
    parser.add_argument("--validation", nargs="*", help="files to validate on (default: a part of the text)")
    parser.add_argument("--tokens", type=int, default=8_000_000, help="training tokens")
    parser.add_argument("--hidden", type=int, default=192, help="hidden size, a multiple of 32")
    parser.add_argument("--tied", action="store_true", help="share one matrix between embedding and LM head")
    args = parser.parse_args()
    workspace = Workspace(args.runs_dir / args.name)
    with workspace.lock():
        data = bench_data(args.text, args.validation)
        artifact = bench_teacher(workspace, data, args.tokens, args.hidden, args.tied)
        compared = "" if args.text else beside_the_shipped(Context(workspace), data, artifact, EvaluateConfig())
    after = artifact.result(TeacherResult).after
    print(artifact.path, f"validation loss {after.loss:.3f}" if after else "", compared, sep="\n")


if __name__ == "__main__":
    main()
