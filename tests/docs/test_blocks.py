"""Shell and Python blocks of README.md and docs/ that can run here: page by page, in order, in a folder of its own."""

import json
import re

import pytest
from pages import NOT_RUN, PAGES, REPO, blocks
from shell import shell

LINKED = ("scripts", "ds_configs", "eval", "examples")
"""What a page may name of the clone that it is read in."""


def runs(page, long):
    """The page's blocks that run here or are saved; without the long ones, or up to the last of these."""
    found = [
        block for block in blocks(page)
        if (block.language == "bash" and not block.marks.keys() & NOT_RUN and (long or "long" not in block.marks))
        or (block.language == "python" and not block.marks)
        or "file" in block.marks
    ]  # fmt: skip
    if not any(block.language in ("bash", "python") and "file" not in block.marks for block in found):
        return []
    return found if not long or any("long" in block.marks for block in found) else []


@pytest.fixture
def clone(tmp_path):
    """A folder with what a page may name of its clone, and the rows of its pages, and a shell in it."""
    for name in LINKED:
        if (REPO / name).exists():
            (tmp_path / name).symlink_to(REPO / name)
    with shell(tmp_path) as run:
        yield tmp_path, run


def carry_out(page, long, folder, run):
    for block in runs(page, long):
        if "file" in block.marks:
            (folder / block.marks["file"]).write_text(block.text)
            continue
        code, said = run(block.language, block.text)
        assert code == 0, f"{block}: exit code {code}\n{said[-3000:]}"
        assert "Traceback" not in said, f"{block}:\n{said[-3000:]}"


@pytest.mark.docs
@pytest.mark.parametrize("page", [page for page in PAGES if runs(page, long=False)])
def test_the_blocks_of_a_page_run(page, clone):
    folder, run = clone
    carry_out(page, False, folder, run)
    for metrics in folder.glob("runs/*/metrics.jsonl"):
        check_metrics(metrics)


@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in PAGES if runs(page, long=True)])
def test_the_long_blocks_of_a_page_run(page, clone):
    carry_out(page, True, *clone)


def check_metrics(path):
    """What a run wrote is explained on the page about it."""
    told = set(re.findall(r"`(\w+)`", (REPO / "docs/run_folder.md").read_text()))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines
    assert {key for line in lines for key in line} <= told
    assert {*json.loads((path.parent / "STATUS.json").read_text())} <= told
