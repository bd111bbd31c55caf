"""Fixtures that all tests share."""

import logging
import os
import shutil
import socket
from pathlib import Path

import pytest

REPO = Path(__file__).parents[1]
if shutil.which("nvidia-smi") is None:
    # Triton's kernels run in its interpreter, if it is so before anything imports Triton.
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _logger_as_new():
    """Each test finds the package's logger as new: a verb that ran in this process has set it up for its own output."""
    logger = logging.getLogger("dft_mm")
    logger.handlers[:], logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def repo() -> Path:
    return REPO


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real data beside the checkout; tests that need it are skipped where it is absent."""
    folder = REPO.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("no ../shared/data beside the checkout")
    return folder


@pytest.fixture(scope="session")
def free_port():
    """A function that finds a port for a launcher to meet on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find
