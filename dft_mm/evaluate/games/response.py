"""Which part of a response is its answer."""

import re

MARK = "Answer:"
# What models put around an answer; each is taken off once, the outermost first.
_AROUND = (("`", "`"), ("$", "$"), ("\\boxed{", "}"))


def final_answer(response: str) -> str | None:
    """The first line with text after the last `Answer:`, as it is written; None when there is none.

    Not part of it are the asterisks of a bold `**Answer:** …` or `**Answer: …**`, a full stop at the end, and
    backticks, dollars or a `\\boxed{…}` around it.
    """
    before, mark, rest = response.rpartition(MARK)
    if not mark:
        return None
    bold = before.endswith("**")
    closed = bold and rest.startswith("**")
    line = re.split(r"[\r\n]", rest.removeprefix("**" if closed else "").lstrip(), maxsplit=1)[0].strip()
    if bold and not closed:
        line = line.removesuffix("**").rstrip()
    line = line.removesuffix(".")
    for opening, closing in _AROUND:
        if line.startswith(opening) and line.endswith(closing):
            line = line[len(opening) : max(len(opening), len(line) - len(closing))].strip()
    return line or None
