"""Files of a pruned child: what is written, the export check of it, and what inference engines make of it."""

import time
from collections.abc import Iterator

from minitron_cli.artifacts.build import StageBuild
from minitron_cli.checkpoint import hf
from minitron_cli.checkpoint.reader import Checkpoint
from minitron_cli.inputs.source_model import SourceModel
from minitron_cli.model import serving
from minitron_cli.prune import export_check, stream
from minitron_cli.prune.child_config import child_file
from minitron_cli.prune.plan import PrunePlan
from minitron_cli.results.prune import ServingFinding
from minitron_cli.results.run_record import ExportCheck

PLAN = "plan.json"


def write(work: StageBuild, parent: SourceModel, plan: PrunePlan) -> None:
    """Write the weights, the config, the files beside them and the plan of the child that `plan` makes."""
    stream.write_child(parent.checkpoint, plan, work.path)
    work.write_json("config.json", child_file(parent.checkpoint, plan))
    hf.copy_files(parent.path, work.path, hf.side_files(parent.checkpoint))
    work.write_json(PLAN, {axis: kept.tolist() for axis, kept in plan.kept.items()})


def check(work: StageBuild, parent: SourceModel, plan: PrunePlan) -> list[str]:
    """Export checks that the written child passed; one that fails raises, and the child is never committed."""
    started = time.monotonic()
    mode = export_check.mode_for(Checkpoint.open(work.path).size_bytes)
    written = export_check.WrittenChild(work.path, parent.checkpoint, plan, mode, frozenset({PLAN}))
    with work.hashing():
        passed = export_check.check_child(written)
    work.measured.export_check = ExportCheck(compared=mode, seconds=round(time.monotonic() - started, 3))
    return passed


def serving_findings(work: StageBuild, plan: PrunePlan) -> Iterator[ServingFinding]:
    """What inference engines refuse, or serve slowly, of the written child."""
    layer_types = getattr(hf.load_config(work.path), "layer_types", None)
    for found in serving.findings(plan.child, layer_types, plan.parent):
        yield ServingFinding(reader=found.reader, level=found.level, reason=found.reason, nearest=dict(found.nearest))
