"""Result folders as dft-mm eval leaves them, with scores of one's own."""

import json

import pytest

MATH = ("math500", "minerva", "olympiadbench", "aime24", "amc23")


def _metric(percent):
    value = percent / 100
    return {"value": value, "se": 0.01, "ci95": [max(0, value - 0.02), min(1, value + 0.02)], "n": 40}


@pytest.fixture
def make_scores():
    def make(folder, percent, suite="math", ungradable=()):
        """Of each benchmark its percent graded as the paper did, and half of it as avg@16; of those that are
        `ungradable` nothing but their count."""
        folder.mkdir(parents=True)
        entries = {}
        for name, value in percent.items():
            metrics = {"avg@16": _metric(value / 2), "pass@1": _metric(value / 2), "pass@16": _metric(90.0)}
            metrics["official avg@16"] = _metric(value)
            none = name in ungradable
            entries[name] = {
                "metrics": {} if none else metrics, "samples": 16, "judge": "rule",
                "status": {"ungradable": 7} if none else {"correct": 3, "wrong": 5},
            }  # fmt: skip
        mean = _metric(sum(percent.values()) / len(percent)) | {"of": list(percent)}
        told = {"suite": suite, "model": "m", "benchmarks": entries, "averages": {"average": mean}}
        (folder / "results.json").write_text(json.dumps(told))
        lines = [
            {"benchmark": name, "id": str(question), "sample": 0, "gold": "1"}
            | {"status": "correct" if question < value / 2.5 else "wrong"}
            for name, value in percent.items()
            for question in range(40)
        ]
        (folder / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make
