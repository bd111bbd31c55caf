"""The backend `replay`: answers that were made elsewhere, from a file."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.evaluate.requests import BackendOptions, Generation, Request
from dft_mm.sections import read_text


class Replay:
    """Answers from a JSONL file with `benchmark`, `id`, `sample` (0 where absent), `text`, and, where known,
    `finish_reason` and `tokens`."""

    def __init__(self, options: BackendOptions) -> None:
        if options.replay is None:
            raise InputError("the backend `replay` needs a file of answers: --replay FILE.jsonl")
        self.path = options.replay
        text = read_text(self.path, "replay file")
        self.settings = {"name": "replay", "answers_sha256": hashlib.sha256(text.encode()).hexdigest()}
        self.answers: dict[tuple[str, str, int], dict[str, Any]] = {}
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                self._add(line, f"{self.path}:{number}")

    def _add(self, line: str, where: str) -> None:
        try:
            row = json.loads(line)
            key = (str(row["benchmark"]), str(row["id"]), int(row.get("sample", 0)))
            if not isinstance(row["text"], str) or row.get("finish_reason", "stop") not in ("stop", "length"):
                raise ValueError("`text` must be text and `finish_reason` stop or length")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            why = f"no {error}" if isinstance(error, KeyError) else error
            raise InputError(f'{where}: not an answer {{"benchmark", "id", "sample", "text"}}: {why}') from error
        if key in self.answers:
            raise InputError(f"{where}: benchmark {key[0]!r}, id {key[1]!r}, sample {key[2]} is there twice")
        self.answers[key] = row

    def plan(self, wanted: Sequence[Request]) -> list[list[Request]]:
        missing = [request for request in wanted if self._key(request) not in self.answers]
        if missing:
            benchmark, question, sample = self._key(missing[0])
            raise InputError(
                f"{self.path}: no answer for benchmark {benchmark!r}, id {question!r}, sample {sample} "
                f"({len(missing)} of {len(wanted)} are missing); add it, or ask less with `limit`"
            )
        spare = len(self.answers) - len(wanted)
        if spare:
            log.warning("%s: %d of its answers are to questions that nobody asks", self.path, spare)
        return [list(wanted)]

    def generate(
        self, batches: Sequence[Sequence[Request]], halted: Callable[[], bool]
    ) -> Iterator[tuple[int, list[Generation]]]:
        """The rows of the file."""
        for number, batch in enumerate(batches):
            yield number, [self._generation(request) for request in batch]

    def _generation(self, request: Request) -> Generation:
        row = self.answers[self._key(request)]
        return Generation(request.question.text, row["text"], row.get("finish_reason", "stop"), row.get("tokens"))

    @staticmethod
    def _key(request: Request) -> tuple[str, str, int]:
        return request.benchmark, request.question.id, request.sample
