"""The backend `openai`: any server that speaks OpenAI's chat completions, or its completions for a base model's texts.

Many requests are under way at once. What may go better the next time is tried again: a lost connection, a server that
is busy or ill, an answer that is none. Every answer is handed on as it comes, so that nothing paid for is lost.
"""

import base64
import email.utils
import hashlib
import io
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import requests

from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.evaluate.backends.content import before_stop, completion_text, load_picture, load_pictures
from dft_mm.evaluate.connection import why
from dft_mm.evaluate.requests import BackendOptions, Generation, Request

_CONCURRENCY, _TIMEOUT_S, _RETRIES = 16, 600.0, 8
_KEY_ENV = "OPENAI_API_KEY"
_AGAIN = {408, 409, 429}
_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _LONGEST_ASKED_S = 0.5, 60.0, 3600.0
_SHOWN = 500  # characters of what a server says
_LOOK_EVERY_S = 0.1
_WARN_EVERY_S = 30.0


class _Passing(Exception):
    """It may go better the next time; `after_s` as the server asks."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


class _Key(requests.auth.AuthBase):
    """The key as the server wants it; also keeps `requests` from taking another one out of a .netrc file."""

    def __init__(self, key: str | None) -> None:
        self.key = key

    def __call__(self, prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.key:
            prepared.headers["Authorization"] = f"Bearer {self.key}"
        return prepared


class Endpoint:
    """One server."""

    def __init__(self, options: BackendOptions) -> None:
        self.url = _checked(options.url)
        self.model = options.served_model or options.model
        self.sampling = options.sampling
        self.concurrency = options.concurrency or _CONCURRENCY
        self.timeout_s = options.request_timeout or _TIMEOUT_S
        self.retries = _RETRIES if options.retries is None else options.retries
        if options.key_env is not None and not os.environ.get(options.key_env):
            raise InputError(f"--key-env {options.key_env}: this environment variable is not set")
        self._key = (os.environ.get(options.key_env or _KEY_ENV) or "").strip() or None
        self._warned: float | None = None
        self._warning = threading.Lock()
        self.settings: dict[str, Any] = {"name": "openai", "served_model": self.model}

    def plan(self, wanted: Sequence[Request]) -> list[list[Request]]:
        """Every answer is a batch of its own. All pictures are read, so that a bad one is known before it costs."""
        pictures = hashlib.sha256()
        seen = set()
        for request in wanted:
            if (key := (request.benchmark, request.question.id)) not in seen:
                seen.add(key)
                load_pictures(request.question, request.where, pictures)
                if request.question.completion:
                    completion_text(request.question, request.where)
        self.settings["pictures_sha256"] = pictures.hexdigest()
        return [[request] for request in wanted]

    def generate(
        self, batches: Sequence[Sequence[Request]], halted: Callable[[], bool]
    ) -> Iterator[tuple[int, list[Generation]]]:
        """In the order in which they come. After a failure or a signal those under way are waited for, since they are
        paid for."""
        left: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in range(len(batches)):
            left.put(number)
        come: queue.SimpleQueue[tuple[int, Generation | Exception | None]] = queue.SimpleQueue()
        stop = threading.Event()
        # Daemons: a process that must end at once does not wait for a server.
        threads = [
            threading.Thread(target=self._work, args=(batches, left, come, stop), daemon=True)
            for _ in range(min(self.concurrency, len(batches)))
        ]
        failure: Exception | None = None
        try:
            for thread in threads:
                thread.start()
            working = len(threads)
            while working:
                if halted() and not stop.is_set():
                    log.warning("stopping: waiting for answers that are under way; a second signal ends this at once")
                    stop.set()
                try:
                    number, answer = come.get(timeout=_LOOK_EVERY_S)
                except queue.Empty:
                    continue
                if answer is None:
                    working -= 1
                elif isinstance(answer, Exception):
                    failure = failure or answer
                else:
                    yield number, [answer]
        finally:
            stop.set()
        if failure is not None:
            raise failure

    def _work(
        self,
        batches: Sequence[Sequence[Request]],
        left: "queue.SimpleQueue[int]",
        come: "queue.SimpleQueue[tuple[int, Generation | Exception | None]]",
        stop: threading.Event,
    ) -> None:
        """One thread: a question after the other; in the end None."""
        try:
            with requests.Session() as session:
                session.auth = _Key(self._key)
                while not stop.is_set():
                    try:
                        number = left.get_nowait()
                    except queue.Empty:
                        break
                    try:
                        answer = self._ask(session, batches[number][0], stop)
                    except Exception as error:  # raised again where the answers are taken
                        stop.set()
                        come.put((number, error))
                    else:
                        if answer is not None:
                            come.put((number, answer))
        finally:
            come.put((-1, None))

    def _ask(self, session: requests.Session, request: Request, stop: threading.Event) -> Generation | None:
        """The answer; None when it is given up after `stop`."""
        path, body = self._body(request)
        for attempt in range(self.retries + 1):
            try:
                return self._once(session, path, body, request)
            except _Passing as error:
                if attempt == self.retries:
                    raise InputError(
                        f"{self.url}{path}: no answer to {request.where} in {attempt + 1} attempts, at last: {error}. "
                        "What was answered is kept: look after the server and start the same command again; see "
                        "--retries, --request-timeout and --concurrency"
                    ) from error
                self._warn(error)
                pause_s = min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)
                if stop.wait(pause_s if error.after_s is None else error.after_s):
                    return None
        return None

    def _warn(self, error: _Passing) -> None:
        """The first failure of a run is told at once, the others now and then: a server may be down for minutes."""
        with self._warning:
            now = time.monotonic()
            if self._warned is not None and now - self._warned < _WARN_EVERY_S:
                return
            self._warned = now
        log.warning("%s: no answer yet (%s); trying again up to %d times", self.url, error, self.retries)

    def _once(self, session: requests.Session, path: str, body: dict[str, Any], request: Request) -> Generation:
        try:
            response = session.post(self.url + path, json=body, timeout=self.timeout_s, allow_redirects=False)
        except requests.Timeout as error:
            raise _Passing(f"nothing came within {self.timeout_s:g} s (--request-timeout)") from error
        except requests.RequestException as error:
            raise _Passing(self._shown(why(error))) from error
        status = response.status_code
        if status in _AGAIN or status >= 500:
            raise _Passing(self._said(response), _retry_after(response))
        if status != 200:
            raise InputError(
                f"{self.url}{path}: {self._said(response)} to {request.where}. {_way_out(status, response.text)} "
                "What was answered is kept, and the same command goes on from there"
            )
        try:
            return self._generation(response.json(), request)
        except requests.exceptions.JSONDecodeError as error:
            raise _Passing(f"what came is not JSON: {self._shown(response.text)!r}") from error

    def _body(self, request: Request) -> tuple[str, dict[str, Any]]:
        question, sampling = request.question, self.sampling
        body: dict[str, Any] = {
            "model": self.model, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens, "seed": request.seed,
        }  # fmt: skip
        if question.stop:
            body["stop"] = list(question.stop)
        if question.completion:
            return "/completions", {**body, "prompt": completion_text(question, request.where)}
        images = iter(question.images)

        def part(part: dict[str, Any]) -> dict[str, Any]:
            if part["type"] == "text":
                return {"type": "text", "text": part["text"]}
            png = io.BytesIO()
            load_picture(question, next(images)).save(png, "PNG")
            data = base64.b64encode(png.getvalue()).decode()
            return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}

        messages = []
        for message in question.messages:
            parts = [part(each) for each in message["content"]]
            # Not every server takes parts where a text is enough.
            only_text = all(each["type"] == "text" for each in parts)
            content = "".join(each["text"] for each in parts) if only_text else parts
            messages.append({"role": message["role"], "content": content})
        return "/chat/completions", {**body, "messages": messages}

    def _generation(self, reply: Any, request: Request) -> Generation:
        """Raises _Passing for whatever is no answer: it must not be taken for an empty one."""
        choices = reply.get("choices") if isinstance(reply, dict) else None
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            raise _Passing(f"the reply has no choices: {self._shown(str(reply))}")
        reason = choice.get("finish_reason")
        if reason not in ("stop", "length"):
            raise _Passing(f"the answer ended with finish_reason {reason!r}, which is neither stop nor length")
        message = choice if request.question.completion else choice.get("message")
        text = message.get("text" if request.question.completion else "content") if isinstance(message, dict) else None
        if not isinstance(text, str):
            hint = ""
            if isinstance(message, dict) and (message.get("reasoning_content") or message.get("reasoning")):
                hint = " (the server keeps the reasoning apart: start it without a reasoning parser)"
            raise _Passing(f"the reply has no text{hint}: {self._shown(str(reply))}")
        if (before := before_stop(text, request.question.stop)) is not None:  # some servers leave it there
            text, reason = before, "stop"
        usage = reply.get("usage")
        counts = [usage.get(key) if isinstance(usage, dict) else None for key in ("completion_tokens", "prompt_tokens")]
        tokens, prompt_tokens = (count if isinstance(count, int) else None for count in counts)
        return Generation(request.question.text, text, reason, tokens, prompt_tokens)

    def _said(self, response: requests.Response) -> str:
        """Status and message of a refusal."""
        try:
            reply = response.json()
            error = reply.get("error", reply)
            text = str(error.get("message", error) if isinstance(error, dict) else error)
        except (ValueError, AttributeError):
            text = response.text
        if response.is_redirect:
            text = f"it redirects to {response.headers['location']}"
        return self._shown(f"status {response.status_code} ({text or response.reason})")

    def _shown(self, text: str) -> str:
        """What a server said, cut short and without the key."""
        text = text.replace(self._key, "[key]") if self._key else text
        return text if len(text) <= _SHOWN else text[:_SHOWN] + " …"


def _checked(url: str | None) -> str:
    if url is None:
        raise InputError("the backend `openai` needs the address of a server: --url http://HOST:PORT/v1")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InputError(f"--url {url}: not an address such as http://HOST:PORT/v1")
    if "@" in parts.netloc:
        raise InputError("--url: holds a password, which would be in every message; name its variable with --key-env")
    if parts.path.endswith("/completions"):
        raise InputError(f"--url {url}: ends too late; give the address up to and with /v1")
    return url.rstrip("/")


def _retry_after(response: requests.Response) -> float | None:
    """Seconds that the server asks to wait, as a number or a date."""
    asked = response.headers.get("Retry-After", "").strip()
    try:
        seconds = (
            float(asked) if asked[:1].isdigit() else email.utils.parsedate_to_datetime(asked).timestamp() - time.time()
        )
    except ValueError:
        return None
    return min(max(seconds, 0.0), _LONGEST_ASKED_S)


def _way_out(status: int, text: str) -> str:
    if status in (401, 403):
        return "Put a valid key into an environment variable and name it with --key-env."
    if status == 404:
        return "See --url (up to and with /v1) and --served-model."
    if 300 <= status < 400:
        return "Give that address with --url."
    if "seed" in text:
        return "A server that takes no `seed` cannot be used: answers could not be asked for again."
    if "max_completion_tokens" in text:
        return "A server that takes no `max_tokens` cannot be used."
    return "Ask what the server can answer: see sampling.max_tokens, the question and --served-model."
