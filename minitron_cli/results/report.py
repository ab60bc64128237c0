"""Result of the report stage; the page and the card are files beside it."""

from typing import ClassVar

from minitron_cli.results.base import Result


class ReportResult(Result):
    """The product that the page describes."""

    schema_name: ClassVar[str] = "report/1"
    verb: ClassVar[str] = "minitron report"

    product: str
    """Fingerprint of the artifact that the page is about."""
