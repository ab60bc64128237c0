"""Make a model sparse in rounds: prune, train, prune further (Han et al. 2015; Zhu & Gupta 2017).

Round t of T makes t/T of the zeros, each time those with the lowest scores of the trained model; what is pruned once
stays pruned, because training keeps zeros and later rounds continue the masks. Zhu and Gupta's cubic schedule makes
most zeros at first, for thousands of small rounds: of four, its last would make 2 % of the zeros, for a training of the
same length. With equal rounds, N:M loses whole weights of a group, and sparsifying agrees with pruning in rounds
(`prune.iterative_pruning`).

Every round's sparse model and every training between two rounds is an artifact, so that a killed run goes on at the
round where it was.
"""

from dataclasses import replace

from minitron_cli import methods, progress
from minitron_cli.artifacts.artifact import Artifact
from minitron_cli.artifacts.build import Context
from minitron_cli.data.sources import DataConfig
from minitron_cli.distill import between_rounds
from minitron_cli.distill.config import DistillConfig
from minitron_cli.errors import DryRunStop, InputError
from minitron_cli.inputs.source_model import SourceModel, open_source_model
from minitron_cli.price import estimate, offer, subject
from minitron_cli.price.estimate import Place
from minitron_cli.price.sparsify_rounds import label, works
from minitron_cli.results.price import Price
from minitron_cli.results.sparsify import SparsifyResult
from minitron_cli.results.training import TrainingResult
from minitron_cli.sparse.config import SparsifyConfig
from minitron_cli.stages import distill, sparsify


def run(
    context: Context,
    model: SourceModel,
    config: SparsifyConfig,
    data: DataConfig | None,
    *,
    teacher: SourceModel,
    training: DistillConfig,
    name: str = "",
) -> Artifact:
    """The sparse model after the last round, labelled `name`. With one round, as `sparsify.run`.

    InputError if there are more, and no text to train on.
    """
    if config.method:
        progress.say(methods.explained(config.method, config))
    if config.rounds == 1:
        return sparsify.run(context, model, config, data, label=name)
    if data is None:
        raise InputError("sparsify.rounds trains between rounds and needs text: give some with --data, or leave it out")
    between = between_rounds.training(config, training)
    price = _price(context, model, teacher, config, training, data)
    if not context.dry_run:
        progress.say(f"sparsify in {config.rounds} rounds, with training between: {offer.line(price, context.device)}")
    try:
        return _rounds(context, model, config, data, teacher, between, name)
    except DryRunStop as stop:
        raise DryRunStop(
            stop.stage, stop.path, stop.changed, {**stop.forecast, "rounds": config.rounds}, price
        ) from None


def _rounds(
    context: Context,
    model: SourceModel,
    config: SparsifyConfig,
    data: DataConfig,
    teacher: SourceModel,
    between: DistillConfig,
    name: str,
) -> Artifact:
    on_the_way = replace(context, is_between=True)
    first: Artifact | None = None
    for number in range(1, config.rounds):
        at = label(number, config.rounds, name)
        sparse = sparsify.run(on_the_way, model, config.of_round(number, _patterns(first)), data, label=at, first=first)
        first = first or sparse
        trained = distill.run(on_the_way, teacher, sparse.path, data, between, label=at)
        worse = trained.result(TrainingResult).worse
        model = open_source_model((sparse if worse and worse.is_above_start else trained).path)
    last = config.of_round(config.rounds, _patterns(first))
    return sparsify.run(context, model, last, data, label=name, first=first)


def _patterns(first: Artifact | None) -> tuple[str, ...]:
    """Patterns of the layers after the first round; none before it."""
    return first.result(SparsifyResult).layer_patterns if first else ()


def _price(
    context: Context,
    model: SourceModel,
    teacher: SourceModel,
    config: SparsifyConfig,
    training: DistillConfig,
    data: DataConfig,
) -> Price:
    """Price of all rounds together, whether they are done already or not."""
    student, guide = (subject.of_source(one, one.dtype_in(context)) for one in (model, teacher))
    each = works(student, guide, config, training, data.sequence_length, context.device)
    place = Place(context.device, context.workspace.root)
    return estimate.together({name: estimate.price(work, place) for name, work in each})
