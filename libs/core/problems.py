"""A list of problems found by a check that does not stop at the first, each with severity, place and remedy.

    problems = Problems()
    problems.error("missing-features", path, "video 'a'", "has no feature file", "extract it")
    for problem in problems.found: print(problem)
"""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from libs.core.errors import UserError

ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Problem:
    """One finding.

    severity: ERROR (training or evaluation stops, or gives wrong numbers) or WARNING; kind: the name in the documentation;
    file; where: video, entry or key in the file ('' for the whole file); what: the description; remedy.
    """

    severity: str
    kind: str
    file: str
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{': '.join(part for part in (self.file, self.where, self.what) if part)}; {self.remedy}"


@dataclass
class Problems:
    """Problems in the order in which they were found."""

    found: list[Problem] = field(default_factory=list)

    def error(self, kind: str, file: str, where: str, what: str, remedy: str) -> None:
        """Add a problem that stops training or evaluation, or makes it wrong."""
        self.found.append(Problem(ERROR, kind, str(file), where, what, remedy))

    def warning(self, kind: str, file: str, where: str, what: str, remedy: str) -> None:
        """Add something valid but suspicious."""
        self.found.append(Problem(WARNING, kind, str(file), where, what, remedy))

    def caught(self, kind: str, file: str, where: str, error: UserError) -> None:
        """Add a `UserError` of a strict reader ('file: where: what; remedy') as an error."""
        text = str(error).removeprefix(f"{file}: ").removeprefix(where).lstrip(":,. ")
        what, _, remedy = text.rpartition("; ")
        self.error(kind, file, where, what or text, remedy if what else "correct it")

    def counts(self) -> dict[str, int]:
        """Severity -> number of findings."""
        tally = Counter(problem.severity for problem in self.found)
        return {ERROR: tally[ERROR], WARNING: tally[WARNING]}
