"""Scores → metrics with their uncertainty, results.json and results.md."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dft_mm.atomic import write_atomically
from dft_mm.evaluate.statistics import Z95, metric, pass_at_k
from dft_mm.evaluate.suite import Suite
from dft_mm.evaluate.task import NOT_SCORED, RIGHT, Answer, Grade, Scored


def summarise(
    suite: Suite, model: str, answers: Mapping[str, Sequence[Answer]], scored: Mapping[str, Scored]
) -> dict[str, Any]:
    """What stands in results.json."""
    benchmarks = {
        bench.key: _entry(bench.judge_name, answers[bench.key], scored[bench.key], suite.sampling.samples)
        for bench in suite.benchmarks
    }
    summary: dict[str, Any] = {"suite": suite.name, "model": model, "benchmarks": benchmarks}
    if suite.averages:
        summary["averages"] = {
            title: mean
            for name, members in suite.averages.items()
            for title, mean in _averages(name, {member: benchmarks[member]["metrics"] for member in members})
        }
    return summary


def _entry(judge: str, answers: Sequence[Answer], scored: Scored, samples: int) -> dict[str, Any]:
    metrics = scored.metrics
    if metrics is None:
        metrics = sample_metrics([answer.question.id for answer in answers], scored.grades, samples)
    status = Counter(grade.status for grade in scored.grades)
    cut = sum(answer.finish_reason == "length" for answer in answers)
    return {
        "metrics": dict(metrics),
        "status": dict(sorted(status.items())),
        "samples": samples,
        "judge": judge,
        "cut_at_max_tokens": cut,
        **({"headline": list(scored.headline)} if scored.headline else {}),
        **({"notes": list(scored.notes)} if scored.notes else {}),
    }


def sample_metrics(ids: Sequence[str], grades: Sequence[Grade], samples: int) -> dict[str, Any]:
    """avg@n and pass@k over questions from the grades of all samples; `official` where the task has such a verdict.

    A question with an answer that could not be scored is left out of them, and stands in the status counts.
    """
    questions: dict[str, list[Grade]] = {}
    for question, grade in zip(ids, grades, strict=True):
        questions.setdefault(question, []).append(grade)
    kept = [each for each in questions.values() if not any(grade.status in NOT_SCORED for grade in each)]
    if not kept:
        return {}
    right = [sum(grade.status in RIGHT for grade in each) for each in kept]
    metrics = {f"avg@{samples}": metric([count / samples for count in right], samples == 1)}
    for k in (2**power for power in range(samples.bit_length())):
        metrics[f"pass@{k}"] = metric([pass_at_k(samples, count, k) for count in right], samples == 1)
    if all(grade.official is not None for each in kept for grade in each):
        official = [sum(bool(grade.official) for grade in each) / samples for each in kept]
        metrics[f"official avg@{samples}"] = metric(official, samples == 1)
    return metrics


def _averages(name: str, metrics: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Mean of the members' first metrics and, where every member has an official one, of these as `NAME official`."""
    yield name, _average({member: next(iter(own.values()), None) for member, own in metrics.items()})
    official = {
        member: next((value for key, value in own.items() if key.startswith("official")), None)
        for member, own in metrics.items()
    }
    if None not in official.values():
        yield f"{name} official", _average(official)


def _average(values: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Any]:
    """Unweighted mean; its standard error takes the members as independent."""
    members, first = list(values), list(values.values())
    missing = [member for member, value in zip(members, first) if value is None]
    if missing:
        return {"value": None, "se": None, "ci95": None, "of": members, "missing": missing}
    mean = sum(value["value"] for value in first) / len(first)
    errors = [value["se"] for value in first]
    if any(error is None for error in errors):
        return {"value": mean, "se": None, "ci95": None, "of": members}
    error = math.sqrt(sum(each**2 for each in errors)) / len(first)
    # Without any spread the normal approximation knows nothing.
    interval = [max(0.0, mean - Z95 * error), min(1.0, mean + Z95 * error)] if error else None
    return {"value": mean, "se": error, "ci95": interval, "of": members}


def to_markdown(results: Mapping[str, Any]) -> str:
    """The table: values in percent with 95 % intervals, and what the answers came to."""
    lines = [
        f"# {results['suite']}: {_cell(results['model'])}",
        "",
        "| benchmark | metric | % | 95 % interval | questions | answers |",
        "|---|---|---:|---:|---:|---|",
    ]
    notes: list[str] = []
    for name, entry in results["benchmarks"].items():
        status = ", ".join(f"{count} {key.replace('_', ' ')}" for key, count in entry["status"].items())
        cut = entry["cut_at_max_tokens"]
        if cut != entry["status"].get("truncated", 0):
            status += f"; {cut} cut at max_tokens"
        if NOT_SCORED & entry["status"].keys():
            notes.append(f"{name}: questions with an answer that could not be scored are not part of the values.")
        if entry["judge"] != "rule":
            notes.append(f"{name}: judged by {entry['judge']}; values of different judges do not compare.")
        notes += [f"{name}: {note}" for note in entry.get("notes", ())]
        # With one sample, pass@1 repeats avg@1.
        rows = [each for each in entry["metrics"].items() if each[0] != "pass@1" or entry["samples"] > 1] or [
            ("", None)
        ]
        for number, (key, value) in enumerate(rows):
            lines.append(_row(name, key, value, status if number == 0 else ""))
    for name, value in results.get("averages", {}).items():
        lines.append(_row(name, f"mean of {len(value['of'])}", value if value["value"] is not None else None, ""))
        if value["value"] is None:
            notes.append(f"{name}: no value, since {', '.join(value['missing'])} have none.")
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def _row(name: str, key: str, value: Mapping[str, Any] | None, status: str) -> str:
    if value is None:
        return f"| {name} | {key} | | | 0 | {status} |"
    interval = "" if value["ci95"] is None else " to ".join(f"{100 * bound:.1f}" for bound in value["ci95"])
    return f"| {name} | {key} | {100 * value['value']:.1f} | {interval} | {value.get('n', '')} | {status} |"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def write(results: Mapping[str, Any], out: Path) -> None:
    """results.json and results.md."""
    write_atomically(out / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write_atomically(out / "results.md", to_markdown(results))
