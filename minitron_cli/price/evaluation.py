"""Work of an evaluation on held-out text. Requests of benchmark tasks are not priced: their lengths are not known."""

from collections.abc import Iterator, Mapping

from minitron_cli.cost import derive
from minitron_cli.cost.compute import model_size
from minitron_cli.evaluate.config import EvaluateConfig
from minitron_cli.price.work import Moved, Run, Subject, Work
from minitron_cli.results.evaluation import EvaluationResult, ModelEvaluation

CHUNKS = 5  # of logits in fp32 while the divergence of two models is computed


def work(
    models: Mapping[str, Subject],
    config: EvaluateConfig,
    length: int,
    loss_blocks: int,
    *,
    reused: tuple[str, ...] = (),
    foreign: Mapping[str, str] = {},
) -> Work:
    """Work of evaluating models, the parent first, on `loss_blocks` blocks of `length` tokens.

    `reused`: labels of the models of which all but the KL is known. `foreign`: label of each model with another
    tokenizer than the parent's -> how it differs.
    """
    parent, *others = models.values()
    result = EvaluationResult(
        models={
            label: ModelEvaluation(
                fingerprint="",
                model=model_size(model.shape, length),
                results={},
                other_tokenizer=foreign.get(label),
            )
            for label, model in models.items()
        },
        loss_tokens=loss_blocks * length,
        sequence_length=length,
        reused=reused,
    )
    run = parent.runs(min(config.batch_size, max(loss_blocks, 1)), max(length, 1))
    return Work(
        what=f"{len(models)} models on {loss_blocks:,} blocks of {length:,} tokens",
        passes=tuple(derive.passes(result)),
        model=run,
        moved={
            "load the models": Moved(
                starts=1, read=sum(m.weights_bytes + parent.weights_bytes for m in models.values())
            )
        },
        certain={"weights": parent.weights_bytes + max((model.weights_bytes for model in others), default=0)},
        transient={"activations": run.layer_bytes(), "logits": logits_bytes(run) if loss_blocks else 0},
        left_out=tuple(_left_out(config)),
    )


def logits_bytes(run: Run) -> int:
    """Logits of two models and what is computed from them, for one chunk of tokens."""
    return run.logits_bytes(CHUNKS)


def _left_out(config: EvaluateConfig) -> Iterator[str]:
    for task in config.tasks:
        yield f"task {task.name}" + (f", {task.limit:g} items" if task.limit else "")
    if config.cloze:
        yield "choice among continuations"
    if config.speed:
        yield "generation speed"
