"""Where the files of a published data set are: fetched from the hub, or placed by the user."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from dft_mm.errors import InputError

_ASK_S = 10.0


class Found(NamedTuple):
    """Where the files of a source are."""

    folder: Path
    revision: str | None
    """None where it is not known: of files that the user placed, or that were made here."""


class Source(Protocol):
    """Files that something is made of."""

    @property
    def files(self) -> tuple[str, ...]: ...

    @property
    def name(self) -> str:
        """Whose they are, with the revision that is asked for."""

    def locate(self, placed: Path | None) -> Found:
        """Find them below a folder of the user's, or where they come from. Raises InputError."""

    def way_out(self, placed: Path) -> str:
        """What a user can do who has not got them."""


@dataclass(frozen=True)
class Hub:
    """Files of a data set of the Hugging Face hub."""

    repository: str
    files: tuple[str, ...]
    """All of them, in the order of their rows."""
    revision: str = "main"
    """A commit in full. `main` where none is known: the newest is taken, and the manifest has its commit."""

    @property
    def name(self) -> str:
        return f"{self.repository}@{self.revision}"

    def locate(self, placed: Path | None) -> Found:
        """What the hub's cache on this machine lacks is fetched, and a fetch that was cut off goes on."""
        if placed is not None:
            return Found(_all_in(placed, self.files), None)
        try:
            folder = self._cached() or self._fetched()
        except Exception as error:  # the hub's library raises whatever its parts raise
            reason = str(error).strip().partition("\n")[0]
            why = f"{type(error).__name__}: {reason}"
            raise InputError(f"{self.name} cannot be fetched from the hub ({why}).") from error
        return Found(_all_in(folder, self.files), folder.name)

    def _cached(self) -> Path | None:
        """The snapshot in the cache, if it has all files."""
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            folder = self._snapshot(local_files_only=True)
        except LocalEntryNotFoundError:
            return None
        return None if _missing(folder, self.files) else folder

    def _fetched(self) -> Path:
        from huggingface_hub import HfApi

        # One question first: without a network it fails at once, where a download tries again for half a minute.
        HfApi().dataset_info(self.repository, revision=self.revision, timeout=_ASK_S)
        return self._snapshot()

    def _snapshot(self, local_files_only: bool = False) -> Path:
        from huggingface_hub import snapshot_download

        found = snapshot_download(
            self.repository, repo_type="dataset", revision=self.revision, allow_patterns=list(self.files),
            local_files_only=local_files_only,
        )  # fmt: skip
        return Path(found)

    def way_out(self, placed: Path) -> str:
        names = "".join(f"\n  {placed / name}" for name in self.files)
        return (
            f"Place the files of {self.name} as{names}\nand run this with --files {placed}; where there is a network, "
            f"they come by\n  hf download {self.repository} {' '.join(self.files)} --repo-type dataset "
            f"--revision {self.revision} --local-dir {placed}"
        )


@dataclass(frozen=True)
class Made:
    """Files that another script of this folder makes."""

    by: str
    """Its name."""
    folder: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"scripts.paper.data.{self.by}"

    def locate(self, placed: Path | None) -> Found:
        return Found(_all_in(placed or Path(self.folder), self.files), None)

    def way_out(self, placed: Path) -> str:
        return f"Make it first, python -m {self.name}, or say where it is by --files DIR"


def _missing(folder: Path, names: Sequence[str]) -> list[str]:
    return [str(folder / name) for name in names if not (folder / name).is_file()]


def _all_in(folder: Path, names: Sequence[str]) -> Path:
    if missing := _missing(folder, names):
        raise InputError(f"not found: {', '.join(missing)}.")
    return folder
