"""Where answers come from: the folder's own model (`hf`, `vllm`), a server (`openai`), a file of answers (`replay`).

A backend is one entry of `BACKENDS`. It says what decides its answers, cuts the requests into batches whose
composition never changes, and answers them.
"""

import dataclasses
from collections.abc import Callable

from dft_mm.errors import InputError
from dft_mm.evaluate.backends.replay import Replay
from dft_mm.evaluate.requests import Backend, BackendOptions


@dataclasses.dataclass(frozen=True)
class Entry:
    make: Callable[[BackendOptions], Backend]
    takes: frozenset[str]
    """Which of the options it understands."""
    shared: bool = False
    """Several ranks may share its work."""


def _hf(options: BackendOptions) -> Backend:
    from dft_mm.evaluate.backends.hf import HuggingFace  # loads torch and transformers, which others can do without

    return HuggingFace(options)


def _vllm(options: BackendOptions) -> Backend:
    from dft_mm.evaluate.backends.vllm import Vllm

    return Vllm(options)


def _openai(options: BackendOptions) -> Backend:
    from dft_mm.evaluate.backends.openai import Endpoint

    return Endpoint(options)


BACKENDS: dict[str, Entry] = {
    "hf": Entry(_hf, frozenset({"dtype", "batch_size"}), shared=True),
    "vllm": Entry(_vllm, frozenset({"dtype", "batch_size", "tensor_parallel"})),
    "openai": Entry(
        _openai, frozenset({"url", "served_model", "key_env", "concurrency", "request_timeout", "retries"})
    ),
    "replay": Entry(Replay, frozenset({"replay"})),
}


def make(name: str | None, options: BackendOptions, ranks: int) -> Backend:
    """The backend of this name; without one, the one that the options ask for. Raises InputError for an option that
    would change nothing, in silence."""
    name = name or ("replay" if options.replay is not None else "openai" if options.url is not None else "hf")
    if name not in BACKENDS:
        raise InputError(f"--backend {name!r}: there are {', '.join(BACKENDS)}")
    entry = BACKENDS[name]
    given = {field.name for field in dataclasses.fields(options) if getattr(options, field.name) is not None}
    for option in sorted(given - entry.takes - {"model", "sampling"}):
        takers = ", ".join(other for other, each in BACKENDS.items() if option in each.takes)
        raise InputError(f"--{option.replace('_', '-')} is for the backend {takers}, not for {name}")
    if ranks > 1 and not entry.shared:
        raise InputError(f"--backend {name} works in one process: start it without the launcher")
    return entry.make(options)
