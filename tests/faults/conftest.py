import pytest
from faults.harness import FaultRuns


@pytest.fixture(scope="module")
def runs(tmp_path_factory, repo, free_port):
    """With one run that nothing befell, `whole`."""
    runs = FaultRuns(tmp_path_factory.mktemp("faults"), repo, free_port)
    code, output = runs("whole")
    assert code == 0, output
    return runs
