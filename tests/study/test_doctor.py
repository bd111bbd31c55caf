"""doctor: what it finds, what it advises, and its exit code."""

import json
import subprocess
import sys

import pytest

from dft_mm import __main__ as command
from dft_mm.evaluate.code.languages import LANGUAGES
from dft_mm.study import doctor


@pytest.fixture(scope="module")
def told(repo):
    """One real run, as JSON."""
    run = subprocess.run(
        [sys.executable, "-m", "dft_mm", "doctor", "--json"], capture_output=True, text=True, cwd=repo, timeout=120
    )
    return run.returncode, json.loads(run.stdout)


def test_json_has_the_fields_of_the_contract(told):
    code, report = told
    assert code == 0
    assert report["ok"] is True
    assert isinstance(report["sandbox"], bool)
    assert set(report["languages"]) == set(LANGUAGES)
    assert all(isinstance(runs, bool) for runs in report["languages"].values())
    assert not report["sandbox"] or report["languages"]["py"]
    names = {finding["name"] for finding in report["findings"]}
    assert names >= {"python", "torch", "transformers", "deepspeed", "peft", "collectives", "sandbox", "disk", "memory"}
    assert {finding["state"] for finding in report["findings"] if finding["name"] == "collectives"} == {"ok"}


def test_text_is_one_screen_with_the_way_out_beneath(told):
    text = doctor.to_text(told[1])
    assert len(text.splitlines()) <= 40
    assert max(map(len, text.splitlines())) <= 160
    report = {
        "ok": False,
        "findings": [{"name": "torch", "state": "missing", "found": "1.0", "advice": "pip install x"}],
    }
    assert doctor.to_text(report).splitlines() == ["!!  torch  1.0", "           → pip install x",
                                                   "1 needed things are missing (!!)"]  # fmt: skip


@pytest.fixture
def quick(monkeypatch):
    """Without the two processes and the languages, which other tests start."""
    monkeypatch.setattr(doctor, "_start_ranks", lambda meeting: [])
    found = [], doctor.Finding("collectives", "ok", "gloo")
    monkeypatch.setattr(doctor, "_collect", lambda ranks: found)
    monkeypatch.setattr(doctor, "_programs", lambda: ([], dict.fromkeys(LANGUAGES, False)))


def test_a_package_that_is_too_old_is_missing_and_the_exit_code_1(quick, monkeypatch, capsys):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "0.1" if name == "deepspeed" else real(name))
    assert command.main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    (wrong,) = [finding for finding in report["findings"] if finding["state"] == "missing"]
    assert (wrong["name"], wrong["found"]) == ("deepspeed", "0.1")
    assert "pip install 'deepspeed>=" in wrong["advice"]


def test_what_only_benchmarks_need_is_optional(quick, monkeypatch, capsys):
    real = doctor._version
    absent = ("ms-vlmeval", "math-verify")
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in absent else real(name))
    assert command.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "pip install --no-deps ms-vlmeval" in text
    assert "--  math-verify" in text


def test_ranks_that_cannot_meet_are_told_with_their_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_RANK", "raise SystemExit('no interface')")
    accelerators, collectives = doctor._collect(doctor._start_ranks(tmp_path / "meeting"))
    assert accelerators == []
    assert collectives.state == "missing"
    assert "no interface" in collectives.found
    assert "GLOO_SOCKET_IFNAME" in collectives.advice


def test_without_a_sandbox_no_language_runs(monkeypatch):
    monkeypatch.setattr(doctor, "broken", lambda sandbox: "bwrap is not installed; install bubblewrap")
    findings, runs = doctor._programs()
    assert not any(runs.values())
    assert [(each.state, each.advice) for each in findings] == [
        ("optional", "bwrap is not installed; install bubblewrap")
    ]


def test_a_language_without_its_library_does_not_count(monkeypatch):
    java = LANGUAGES["java"]
    without = tuple(word.replace("javatuples.jar", "absent.jar") for word in java.compile)
    monkeypatch.setitem(LANGUAGES, "java", java.__class__(**{**vars(java), "compile": without}))
    monkeypatch.setattr(doctor, "LANGUAGES", {key: LANGUAGES[key] for key in ("java", "sh")})
    findings, runs = doctor._programs()
    if not runs["sh"]:
        pytest.skip(findings[0].advice)
    assert runs == {"java": False, "sh": True}
    (found,) = [each for each in findings if each.name == "Java"]
    assert "libjavatuples-java" in found.advice
