"""What reading hands to layouts: one row of a file, or why there is none."""

from dataclasses import dataclass
from typing import Any


class BadRow(Exception):
    """A row that cannot be learned from; `reason` is a short slug, `detail` a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)  # both, so that it travels between processes
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


@dataclass(frozen=True)
class Record:
    """One row of a file as it was written."""

    line: int | None
    """Physical line where it begins, from 1; None in files without lines."""
    row: int
    """Its number among the rows, from 0."""
    value: Any
    """The decoded JSON value, or the BadRow that says why there is none."""
