"""Commands of every verb on a model of a few kilobytes, and what each finds when it begins."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from minitron_cli.cli.app import COMMANDS
from tests.cli.program import invoke
from tests.unit.stages.place import write_place

TEXT = ("--data", "text/*.txt", "--sequence-length", "16")
TRAINING = "--steps 3 --batch-size 2 --micro-batch-size 1 --warmup-steps 1 eval_blocks=2 eval_every=2 save_every=1"
SEARCH = "--target 53k --tolerance 0.2 --candidates 3 --top 2 --retrain-tokens 64 --batch-size 2 score_blocks=2"
SPACE = "space={ffn: [24, 32, 40]}"

RECIPE = """\
model: model
data: {sources: [{kind: files, paths: ["text/*.txt"]}], sequence_length: 16}
importance: {samples: 6, batch_size: 2}
prune: {shape: {ffn: 32}, drop_layers: [1], repair: none}
distill: {steps: 2, batch_size: 2, warmup_steps: 0, eval_blocks: 2, save_every: 1}
evaluate: {blocks: 2}
"""

DEMO = (
    "model=model",  # in place of the one that ships, and little text
    "data.sources=[{kind: files, paths: [text/*.txt]}]",
    "data.validation=[]",
    "data.sequence_length=16",
    "importance={samples: 6, batch_size: 2}",
    "search=null",
    "prune={shape: {ffn: 32}, repair: least_squares, repair_samples: 8}",
    "distill={steps: 2, batch_size: 2, warmup_steps: 0, eval_blocks: 2, save_every: 1}",
    "evaluate={blocks: 2}",
)


class Verb(NamedTuple):
    """A command, and how two runs of it are compared."""

    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    """Verbs whose results it needs."""
    makes: bool = True
    """Whether it makes artifacts; if not, what it prints is compared."""
    is_steady: bool = True
    """Whether it prints the same each time."""


def _verb(words: str, *after: str, **options: bool) -> Verb:
    return Verb(tuple(words.split()), after, **options)


CHAIN = ("importance", "search", "prune", "correct", "distill", "eval", "report")
"""Verbs that each find the results of those before them."""

MAKERS = {
    "importance": Verb(("importance", "model", *TEXT, "--samples", "8", "--batch-size", "2")),
    "search": Verb(("search", *SEARCH.split(), SPACE), CHAIN[:1]),
    "prune": _verb("prune --shape hidden=24,ffn=32,layer=3 --repair least_squares repair_samples=8", *CHAIN[:2]),
    "sparsify": _verb("sparsify --metric sparsegpt --repair least_squares --samples 8 effect_blocks=2", *CHAIN[:3]),
    "correct": _verb(f"correct {TRAINING}", *CHAIN[:3]),
    "distill": _verb(f"distill {TRAINING}", *CHAIN[:4]),
    "eval": _verb("eval blocks=4 cloze.items=4 cloze.context_words=8 cloze.continuation_words=3", *CHAIN[:5]),
    "report": _verb("report", *CHAIN[:6]),
    "run": _verb("run recipe.yaml"),
    "demo": Verb(("demo", *DEMO)),
}
READERS = {
    "show": _verb("show prune", *CHAIN, makes=False),
    "inspect": _verb("inspect model", makes=False),
    "push": _verb("push me/small --dry-run --allow-worse", *CHAIN, makes=False),
    "verify": _verb("verify", *CHAIN, makes=False),
    "recipes": _verb("recipes show demo", makes=False),
    "env": _verb("env", makes=False, is_steady=False),
}
GPUS = "--gpus 2 --device cpu"
SEVERAL = {
    f"{name} --gpus 2": MAKERS[name]._replace(words=(*MAKERS[name].words, *GPUS.split()))
    for name in ("importance", "search", "distill")
}
VERBS = {name: verb for name, verb in (MAKERS | READERS | SEVERAL).items() if verb.words[0] in {*COMMANDS, "recipes"}}


@dataclass
class Setting:
    """A directory in which commands run, as each verb finds it, and a place in memory to copy it to."""

    place: Path
    beginnings: dict[str, Path] = field(default_factory=dict)
    """Name of the last verb before -> a directory with everything up to its result."""
    others: dict[object, Path] = field(default_factory=dict)
    """Maker -> the directory that it made."""

    @classmethod
    def build(cls, place: Path) -> "Setting":
        """Run the chain once, in this process, which has imported what the verbs need from then on."""
        setting = cls(place)
        root = place / "so far"
        write_place(root)
        (root / "recipe.yaml").write_text(RECIPE)
        setting.beginnings[""] = setting._kept(root, "start")
        with chdir(root):
            for name in CHAIN:
                result = invoke(*MAKERS[name].words)
                assert result.exit_code == 0, f"{name}: {result.stderr}"
                setting.beginnings[name] = setting._kept(root, name)
        return setting

    def _kept(self, root: Path, name: str) -> Path:
        return shutil.copytree(root, self.place / "beginnings" / name, symlinks=True)

    def made(self, maker: Callable[["Setting"], Path]) -> Path:
        """What a maker of directories makes, the same each time."""
        if maker not in self.others:
            self.others[maker] = maker(self)
        return self.others[maker]

    def fresh(self, verb: Verb) -> Path:
        """What the verb finds when it begins, at the same path each time."""
        root = self.place / "root"
        shutil.rmtree(root, ignore_errors=True)
        return shutil.copytree(self.beginnings[verb.after[-1] if verb.after else ""], root, symlinks=True)


@contextmanager
def surroundings(cache: Path) -> Iterator[None]:
    """Environment variables of every command."""
    wanted = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    wanted |= {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": os.pathsep.join([str(REPOSITORY)])}
    before = dict(os.environ)
    os.environ.update(wanted)
    os.environ.pop("MINITRON_RUNS", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


REPOSITORY = Path(__file__).parents[3]
