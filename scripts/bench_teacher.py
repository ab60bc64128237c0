"""Train the small teachers on which quality is measured: the demo's teacher is enough to show the chain, not a method.

    python scripts/bench_teacher.py    # on the Python standard library's source: half an hour on two cores
    python scripts/bench_teacher.py --name prose --text a.txt b.txt --validation c.txt --hidden 128 --tokens 2000000

Cached by content: the same text and settings are trained once. A run that was stopped continues.
"""

import argparse
from pathlib import Path

from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.artifacts.workspace import Workspace
from minitron_cli.data.sources import DataConfig, PythonStdlib, TextFiles
from minitron_cli.distill.config import DistillConfig
from minitron_cli.distill.losses.cross_entropy import CrossEntropy
from minitron_cli.stages import teacher
from minitron_cli.stages.teacher import TeacherConfig


def bench_data(text: list[str] | None, validation: list[str] | None = None, sequence_length: int = 256) -> DataConfig:
    """The standard library with its own held-out files, or the user's text, with a part of it held out if none is."""
    if text:
        held_out = (TextFiles(paths=tuple(validation)),) if validation else ()
        return DataConfig(sources=(TextFiles(paths=tuple(text)),), validation=held_out, sequence_length=sequence_length)
    return DataConfig(
        sources=(PythonStdlib(split="train"),),
        validation=(PythonStdlib(split="validation"),),
        sequence_length=sequence_length,
    )


def bench_teacher(workspace: Workspace, data: DataConfig, tokens: int, hidden: int, tied: bool) -> Artifact:
    """Train, or find, the teacher for this text and size."""
    config = TeacherConfig(
        tie_embeddings=tied,
        hidden=hidden,
        ffn=hidden * 8 // 3,
        heads=hidden // 32,
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="bench", help="workspace under --runs-dir")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--text", nargs="*", help="files to train on instead of the standard library")
    parser.add_argument("--validation", nargs="*", help="files to validate on; else a part of the text")
    parser.add_argument("--tokens", type=int, default=8_000_000)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--tied", action="store_true", help="let the embedding be the head")
    args = parser.parse_args()
    workspace = Workspace(args.runs_dir / args.name)
    with workspace.lock():
        data = bench_data(args.text, args.validation)
        artifact = bench_teacher(workspace, data, args.tokens, args.hidden, args.tied)
    print(artifact.path, artifact.summary)


if __name__ == "__main__":
    main()
