"""Type of each stage's result."""

from minitron_cli.results.base import Result
from minitron_cli.results.evaluation import EvaluationResult
from minitron_cli.results.family import FamilyResult
from minitron_cli.results.importance import ImportanceResult
from minitron_cli.results.landscape import LandscapeResult
from minitron_cli.results.prune import PruneResult
from minitron_cli.results.report import ReportResult
from minitron_cli.results.search import SearchResult
from minitron_cli.results.sparsify import SparsifyResult
from minitron_cli.results.teach import TeachResult
from minitron_cli.results.ticket import RoundResult, StartResult, SupermaskResult, TicketResult, TransferResult
from minitron_cli.results.training import CorrectionResult, TeacherResult, TrainingResult

RESULTS: dict[str, type[Result]] = {
    "teacher": TeacherResult,
    "importance": ImportanceResult,
    "search": SearchResult,
    "prune": PruneResult,
    "sparsify": SparsifyResult,
    "correct": CorrectionResult,
    "teach": TeachResult,
    "distill": TrainingResult,
    "evaluate": EvaluationResult,
    "report": ReportResult,
    "family": FamilyResult,
    "landscape": LandscapeResult,
    "ticket_start": StartResult,
    "ticket_round": RoundResult,
    "ticket": TicketResult,
    "transfer": TransferResult,
    "supermask": SupermaskResult,
}
"""Stage -> type of its result."""
