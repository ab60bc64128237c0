"""Result of the check of a workspace."""

from minitron_cli.spec import Spec


class Finding(Spec):
    """What is wrong with one artifact or file of a workspace."""

    path: str
    problems: tuple[str, ...]
    """Files and what is wrong with each."""
    is_damaged: bool
    """False if all is as it was written, but something that it was made from is gone."""
    command: str
    """Shell command that makes it again, or what else to do."""


class Verification(Spec):
    """A workspace, every byte of which was compared with what was written."""

    workspace: str
    artifacts: int
    size_bytes: int
    """Bytes of all artifacts and token files."""
    findings: tuple[Finding, ...]

    @property
    def damaged(self) -> tuple[Finding, ...]:
        """Findings on what is not as it was written."""
        return tuple(finding for finding in self.findings if finding.is_damaged)
