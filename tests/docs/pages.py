"""Code blocks of README.md and the pages in docs/, and what their info strings say is to be done with them.

A block's info string is its language and words behind it that no page shows:

    bash            run here, with all such blocks of the page, in order, in one folder
    bash long       likewise, in the long tests
    bash WORD       not run (WORD: gpus, hub, cluster, install): its commands are checked
    python          run, in the page's folder; `fragment`, `hub`: compiled
    yaml            a recipe, or a part of one; `suite`; `llamafactory`: a training file of theirs
    json            one object, or one a line; `layout=NAME`: rows of this layout
    console         wrong input and what is said to it: typed, and compared
    text            nothing
    file=NAME       (any) written into the page's folder, where the page tells its reader to save it
"""

from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

REPO = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (REPO / "docs").glob("*.md"))]
NOT_RUN = {"gpus", "hub", "cluster", "install"}
KNOWN = {
    "bash": NOT_RUN | {"long"}, "python": {"fragment", "hub", "file"}, "yaml": {"suite", "llamafactory", "file"},
    "json": {"layout", "file"}, "text": set(), "console": set(), "{generated}": set(), "{toctree}": set(),
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    marks: dict[str, str]
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks(page):
    found = []
    for token in MarkdownIt("commonmark").parse((REPO / page).read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            language, *words = token.info.split() or [""]
            marks = {} if language.startswith("{") else dict((*word.split("=", 1), "")[:2] for word in words)
            found.append(Block(page, token.map[0] + 1, language, marks, token.content))
    return found


def all_blocks(language):
    return [block for page in PAGES for block in blocks(page) if block.language == language]
