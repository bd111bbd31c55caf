"""Rewrite the figures of README.md beside this file from results/*.json, so that they never drift from the measured.

    python -m scripts.bench.readme
"""

import json
from pathlib import Path
from typing import Any

from scripts.bench.measure import RESULTS, table, verdict

README = Path(__file__).parent / "README.md"
HEADING = "## Last figures"


def section(file: Path) -> str:
    """One bench's figures; its machine, versions, targets and table."""
    found = json.loads(file.read_text(encoding="utf-8"))
    machine = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if version)
    cores = f"{machine['cores']} cores, {machine['threads']} threads"
    lines = [f"### {file.stem}", "", f"{machine['device']}, {cores}; Python {machine['python']}, {versions}.", ""]
    lines += [f"- {verdict(judged)}" for judged in found["targets"]]
    lines += [f"- not run: {name}: {why}" for name, why in found["absent"].items()]
    return "\n".join([*lines, "", table(found["rows"], found["columns"]), ""])


def rewritten(text: str, results: Path) -> str:
    """The README with its last section made anew; files of other shapes are left to whoever writes them."""
    files = [file for file in sorted(results.glob("*.json")) if is_found(json.loads(file.read_text(encoding="utf-8")))]
    before, heading, _ = text.partition(HEADING)
    if not heading:
        raise ValueError(f"{README} has no line {HEADING!r}")
    return "\n\n".join([before + heading, *(section(file).strip() for file in files)]) + "\n"


def is_found(value: Any) -> bool:
    return isinstance(value, dict) and {"bench", "machine", "columns", "targets"} <= value.keys()


def main() -> None:
    README.write_text(rewritten(README.read_text(encoding="utf-8"), RESULTS), encoding="utf-8")
    print(f"written: {README}")


if __name__ == "__main__":
    main()
