"""A sandbox that works, or a reason to skip."""

import pytest

from dft_mm.evaluate.code.sandbox import broken
from dft_mm.evaluate.code.toolchain import open_sandbox


@pytest.fixture(scope="session")
def sandbox():
    opened = open_sandbox()
    reason = broken(opened)
    if reason is not None:
        assert "does not hide enough" not in reason, reason
        pytest.skip(f"no sandbox: {reason}")
    return opened
