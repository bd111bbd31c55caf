"""One request to VLMEvalKit, in a child process of its own with a bare environment (`child`)."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dft_mm.errors import InputError
from dft_mm.evaluate.benchmark import BenchmarkConfig, EndpointJudge

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from dft_mm.evaluate.vlmevalkit.child import main; main()"
)
_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "LMUData")
_PASSED_TO_NETWORK = (
    "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "REQUESTS_CA_BUNDLE",
)  # fmt: skip


class Refused(Exception):
    """The child found the user's file at fault."""


class JudgeDown(Exception):
    def __init__(self, reason: str, judged: int) -> None:
        super().__init__(reason)
        self.judged = judged


def run(
    request: dict[str, Any],
    folder: Path,
    limit_s: int,
    network: bool = False,
    own_data: bool = True,
    advance: Callable[[int], None] = lambda count: None,
) -> Any:
    """One request to a child of its own, which works in `folder`."""
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    if network:
        environment |= {name: os.environ[name] for name in _PASSED_TO_NETWORK if name in os.environ}
    environment |= {"PRED_FORMAT": "tsv", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if own_data:  # its folder of data sets, which it otherwise makes in the user's home
        environment["LMUData"] = str(folder.absolute())
    paths = [str(Path(path).absolute()) for path in sys.path]
    said = folder / "child.log"
    with said.open("wb") as errors:
        child = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=errors, cwd=folder, env=environment, start_new_session=True,
        )  # fmt: skip
        timer = threading.Timer(limit_s, _kill, [child])
        timer.daemon = True
        timer.start()
        last: dict[str, Any] = {}
        try:
            with child:
                child.stdin.write(json.dumps(request).encode())
                child.stdin.close()
                for line in child.stdout:
                    last = json.loads(line)
                    advance(last.get("advance", 0))
        except BrokenPipeError:  # it ended before it read everything; its last words say why
            last = {}
        finally:
            timer.cancel()
            _kill(child)
    if "wrong" in last:
        raise Refused(last["wrong"])
    if "judge" in last:
        raise JudgeDown(last["judge"]["reason"], last["judge"]["judged"])
    if "result" not in last:
        words = said.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
        raise RuntimeError(f"VLMEvalKit ended without a result (exit {child.returncode}; {said}):\n{words}")
    return last["result"]


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The child and what it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def judge_key(bench: BenchmarkConfig) -> str | None:
    """The judge's key. Raises InputError where its variable is not set."""
    judge = bench.judge
    if not isinstance(judge, EndpointJudge) or judge.key_env is None:
        return None
    if not os.environ.get(judge.key_env):
        raise InputError(
            f"benchmark {bench.key}: judge.key_env is {judge.key_env}, and no such environment variable is set; set "
            "it, or leave key_env out for a server without keys"
        )
    return os.environ[judge.key_env]
