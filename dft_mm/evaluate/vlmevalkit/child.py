"""What runs VLMEvalKit: a child process with a bare environment. It reads one request and writes lines of JSON.

The stand-ins that its light import needs would confuse a process that wants the real modules, and it gives model text
to `eval`: two reasons for a process of its own.
"""

import json
import logging
import multiprocessing
import os
import resource
import socket
import sys
import threading
from typing import Any

from dft_mm.evaluate.vlmevalkit.asking import Wrong, load, locate
from dft_mm.evaluate.vlmevalkit.tabulating import score
from dft_mm.workers import end_with_parent

_MEMORY_BYTES = 4 << 30
_DOWNLOAD_SILENCE_S = 60


def main() -> None:
    """Answer the request on standard input with lines {"advance": n} and at last {"result"}, {"wrong"} or {"judge"}."""
    end_with_parent()  # a killed evaluation leaves nothing behind that goes on asking a judge
    request = json.load(sys.stdin)
    if request["verb"] == "score":  # model text is at work
        limits = {resource.RLIMIT_AS: _MEMORY_BYTES, resource.RLIMIT_CPU: request["limit_s"], resource.RLIMIT_CORE: 0}
        for which, limit in limits.items():
            resource.setrlimit(which, (limit, limit))
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # VLMEvalKit prints tables
    lock = threading.Lock()

    def tell(**message: Any) -> None:
        with lock:
            lines.write(json.dumps(message) + "\n")

    socket.setdefaulttimeout(_DOWNLOAD_SILENCE_S)  # its download has no time limit of its own
    multiprocessing.set_start_method("fork", force=True)  # under spawn it silently counts equal answers as wrong
    logging.getLogger("vlmeval").addHandler(logging.StreamHandler())
    try:
        tell(result={"locate": locate, "load": load, "score": score}[request["verb"]](request, tell))
    except Wrong as error:
        tell(wrong=str(error))
