"""The live page: what is served, to whom, and when it is made anew."""

import gzip
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from urllib.error import HTTPError

import pytest

from dft_mm.__main__ import main
from dft_mm.errors import InputError
from dft_mm.report.watch import LivePage, address_of, serve


@contextmanager
def served(page, **options):
    with serve(page, **{"port": 0} | options) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield address_of(server)
        server.shutdown()


def ask(address, **headers):
    """Status, headers, text."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=60) as answer:
            return answer.status, answer.headers, gzip.decompress(answer.read()).decode()
    except HTTPError as error:
        return error.code, error.headers, error.read().decode()


def text_of(page):
    return gzip.decompress(page.version().body).decode()


def test_the_page_is_served_and_the_same_one_is_not_sent_twice(make_run):
    with served(LivePage([make_run("a", steps=0)])) as address:
        status, headers, text = ask(address)
        assert status == 200
        assert 'data-every="' in text
        assert "connect-src &#39;self&#39;" in text
        assert ask(address, If_None_Match=headers["ETag"])[0] == 304
        assert ask(address + "etc/passwd")[0] == 404


def test_nobody_else_may_read_it(make_run):
    with served(LivePage([make_run("a", steps=0)])) as address:
        assert address.startswith("http://127.0.0.1:")
        assert ask(address, Host="evil.example")[0] == 403
        assert ask(address, Host="localhost:1")[0] == 200


def test_another_address_is_served_when_it_is_asked_for(make_run):
    with served(LivePage([make_run("a", steps=0)]), host="0.0.0.0") as address:
        port = address.rsplit(":", 1)[1]
        assert ask(f"http://127.0.0.1:{port}", Host="gpu7.example")[0] == 200


def test_a_run_grows_from_nothing_through_half_a_line_to_results(make_run, make_results, tmp_path):
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    page = LivePage([folder])
    assert f"{folder} holds no run yet" in text_of(page)
    folder.rmdir()
    make_run("a", steps=0, state="running")
    page.refresh()
    assert "holds no run yet" not in text_of(page)
    assert '<section id="training" data-part="training" hidden>' in text_of(page)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "ce": 2.5}\n{"step": 2, "ce"')
    page.refresh()
    assert "Cross-entropy by step: a 2.5 to 2.5 at step 1" in text_of(page)
    make_results(folder / "eval" / "digits", 30)
    page.refresh()
    assert "<strong>75.0</strong>" in text_of(page)


def test_a_damaged_file_leaves_what_was_there_and_is_named(make_run):
    run = make_run("a", steps=0)
    (run / "metrics.jsonl").write_text('{"step": 1, "ce": 2.5}\n')
    page = LivePage([run])
    (run / "STATUS.json").write_text('{"state": "runn')
    page.refresh()
    assert "STATUS.json: not valid JSON" in text_of(page)
    assert "Cross-entropy by step" in text_of(page)


def test_what_did_not_change_is_not_made_again(make_run, monkeypatch):
    page = LivePage([make_run("a", steps=0)])
    monkeypatch.setattr(page, "_read", lambda: pytest.fail("read again"))
    before = page.version()
    page.refresh()
    assert page.version() is before


@pytest.mark.parametrize("what", ["_read", "_make"])
def test_what_nobody_foresaw_leaves_what_was_there_and_is_told_once(make_run, monkeypatch, what):
    monkeypatch.setattr("dft_mm.report.watch._SHARE", 10**6)  # nothing is made but by this test
    run = make_run("a", steps=2)
    page = LivePage([run])

    def fails(*_):
        raise PermissionError(13, "<Permission denied>")

    with monkeypatch.context() as patched:
        patched.setattr(page, what, fails)
        (run / "STATUS.json").write_text('{"state": "failed"}')
        page.refresh()
        told = text_of(page)
        assert "Since then: PermissionError: [Errno 13] &lt;Permission denied&gt;</footer>" in told
        assert "Cross-entropy by step" in told
        page.refresh()
        assert text_of(page) == told
    (run / "STATUS.json").write_text('{"state": "finished"}')
    page.refresh()
    assert "Since then" not in text_of(page)


def test_whatever_refreshing_comes_to_it_rests_ten_times_as_long(make_run, monkeypatch):
    run = make_run("a", steps=0)
    page = LivePage([run])

    def fails():
        time.sleep(0.2)
        raise InputError("damaged")

    monkeypatch.setattr(page, "_read", fails)
    (run / "STATUS.json").write_text("{}")
    page._not_before = 0.0
    page.refresh()
    assert page._not_before >= time.monotonic() + 1.9

    def nothing_new(paths):
        time.sleep(0.2)
        return page._stamps

    monkeypatch.setattr("dft_mm.report.watch.stamps", nothing_new)
    page._not_before = 0.0
    page.refresh()
    assert page._not_before >= time.monotonic() + 1.9


def test_asking_answers_at_once_and_has_the_next_page_made(make_run, monkeypatch):
    run = make_run("a", steps=0, state="running")
    page = LivePage([run])
    page._not_before = 0.0
    may_end = threading.Event()
    make = page._make
    monkeypatch.setattr(page, "_make", lambda content: may_end.wait(60) and make(content))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "ce": 9.25}) + "\n")
    before = page.version()
    assert page.version() is before  # while the next one is being made
    may_end.set()
    while page.version() is before:
        time.sleep(0.02)
    assert "9.25" in text_of(page)


def test_a_port_that_is_taken_is_named_and_the_usual_one_gives_way(make_run, monkeypatch):
    page = LivePage([make_run("a", steps=0)])
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.raises(InputError, match=f"--port {taken}: cannot be served on"):
            serve(page, port=taken)
        monkeypatch.setattr("dft_mm.report.watch.PORT", taken)
        with serve(page) as server:
            assert server.server_address[1] not in (taken, 0)
    with pytest.raises(InputError, match="--host no such host"):
        serve(page, host="no such host")


def test_control_c_ends_it_quietly(make_run, monkeypatch, capsys):
    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("socketserver.BaseServer.serve_forever", interrupted)
    assert main(["report", str(make_run("a", steps=0)), "--watch", "--port", "0"]) == 0
    output = capsys.readouterr()
    assert "Ctrl-C ends it" in output.out
    assert output.err == ""


@pytest.mark.long
def test_control_c_ends_the_command_with_exit_code_0_and_no_traceback(make_run):
    command = [sys.executable, "-m", "dft_mm", "report", str(make_run("a", steps=2)), "--watch", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().split()[0]
        assert ask(address)[0] == 200
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "either --out FILE"),
        (["--watch", "--out", "x.html"], "either --out FILE"),
        (["--out", "x.html", "--port", "80"], "add --watch"),
        (["--out", "x.txt"], r"ends in .html"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, capsys, words, message):
    assert main(["report", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
