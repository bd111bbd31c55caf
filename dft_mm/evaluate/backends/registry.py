"""Where answers come from: the folder's own model (`hf`), or a file of answers made elsewhere (`replay`).

A backend is one entry of `BACKENDS`. It says what decides its answers, cuts the requests into batches whose
composition never changes, and answers one batch after the other.
"""

from collections.abc import Callable

from dft_mm.evaluate.backends.replay import Replay
from dft_mm.evaluate.requests import Backend, BackendOptions


def _hf(options: BackendOptions) -> Backend:
    from dft_mm.evaluate.backends.hf import HuggingFace  # loads torch and transformers, which replay can do without

    return HuggingFace(options)


BACKENDS: dict[str, Callable[[BackendOptions], Backend]] = {"hf": _hf, "replay": Replay}
