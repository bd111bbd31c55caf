"""An OpenAI-compatible server on the loopback that does what a test tells it to, and remembers what it was asked."""

import contextlib
import json
import re
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def reply(text, reason="stop", usage=True, **message):
    """The body of a chat completion, which also passes for a completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "text": text}
    counts = {"usage": {"prompt_tokens": 11, "completion_tokens": 5}} if usage else {}
    return {"choices": [{**choice, "finish_reason": reason}], **counts}


class Server:
    """`script`: what the n-th attempt at a question gets, by the number in `What is N + N?`: a reply, a status (with
    headers and text), `reset`, `garbage`, or seconds to wait before the right answer. Beyond its end, and without one,
    the right answer comes after `delay_s`."""

    def __init__(self, script=None, delay_s=0.0):
        self.script, self.delay_s = script or {}, delay_s
        self.asked, self.at_once, self.most = [], 0, 0
        self.counts = Counter()
        self.answered = Counter()
        self.lock = threading.Lock()

    def _post(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        found = re.search(r"What is (\d+) \+", json.dumps(body))
        question = int(found[1]) if found else 0
        with self.lock:
            attempt = self.counts[question]
            self.counts[question] += 1
            self.asked.append((time.monotonic(), question, handler.path, dict(handler.headers), body))
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            steps = self.script.get(question, [])
            self._do(handler, question, steps[attempt] if attempt < len(steps) else self.delay_s)
        finally:
            with self.lock:
                self.at_once -= 1

    def _do(self, handler, question, step):
        if step == "reset":
            linger = struct.pack("ii", 1, 0)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            handler.connection.close()
            handler.close_connection = True
            return
        status, headers, content = 200, {}, None
        if isinstance(step, (int, float)) and not isinstance(step, bool):
            time.sleep(step)
            content = reply(f"It is \\boxed{{{2 * question}}}.")
        elif isinstance(step, tuple):
            status, headers, content = step
        else:
            content = step
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        with contextlib.suppress(OSError):  # who asked is gone
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
            with self.lock:
                self.answered[question] += 1


@contextlib.contextmanager
def serving(script=None, delay_s=0.0):
    """The server, with its `url`."""
    server = Server(script, delay_s)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            server._post(self)

        def log_message(self, *args):
            pass

        def finish(self):
            with contextlib.suppress(OSError, ValueError):
                super().finish()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.handle_error = lambda *args: None
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
