"""A model behind a URL as VLMEvalKit's judge: its own prompts and payloads, sent with bounds. `Judge` is the child's.

Left alone, VLMEvalKit retries for minutes, logs the key, and turns failures into wrong or random answers.
"""

import json
import os
import threading
import time
import types
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3

from dft_mm.evaluate.connection import why
from dft_mm.evaluate.vlmevalkit.kit import writable

_IN_A_ROW = 3
_LONGEST = 1 << 20
_LONGEST_WAIT_S = 4.0
_CONTACT_S = 10.0
_SHOWN = 100  # characters of what a judge said that could not be used


def contact(url: str, key: str | None) -> str | None:
    """Ask a server for the list of its models; returns why it does not answer, None where it does."""
    found = [f"nothing came within {_CONTACT_S:g} s"]

    def ask() -> None:
        try:
            with session_to(url) as session, session.get(
                url.rstrip("/") + "/models", auth=lambda request: with_key(request, key), timeout=_CONTACT_S,
                stream=True, allow_redirects=False,
            ) as response:  # fmt: skip
                refused = response.status_code in (401, 403)
                said = response.raw.read(1000).decode(errors="replace") if refused else ""
                found[0] = f"HTTP {response.status_code}: {without_key(said, key)[:200]}" if refused else ""
        except requests.Timeout:
            return
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            found[0] = without_key(why(error), key)

    # A thread: looking up a name, or a server that sends byte by byte, knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_CONTACT_S)
    return found[0] or None


def session_to(url: str) -> requests.Session:
    session = requests.Session()
    host = urlsplit(url).hostname or ""
    session.trust_env = host not in ("localhost", "::1") and not host.startswith("127.")  # no proxy leads here
    return session


def with_key(request: requests.PreparedRequest, key: str | None) -> requests.PreparedRequest:
    """As `auth`, it also keeps `requests` from taking another key out of a .netrc file."""
    if key:
        request.headers["Authorization"] = f"Bearer {key}"
    return request


def without_key(text: str, key: str | None) -> str:
    """Servers repeat a key that they do not like, and what they say is written into files."""
    return text.replace(key, "***") if key else text


class _RequestError(Exception):
    """One request that failed; `again`: it may go better."""

    def __init__(self, reason: str, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class Judge:
    """Takes the place of `requests` in VLMEvalKit's client, which so never sees the key.

    Each request ends within `deadline_s`, retries included, and a row whose request failed gets no other. Several
    failures in a row, or one before any success, and the judge counts as down: the child says so and ends.
    """

    made_up = ("All 5 retries failed", "thus randomly generate one")
    """What VLMEvalKit writes beside a verdict that it made up because the judge gave none that it could use."""

    def __init__(self, settings: Mapping[str, Any], tell: Callable[..., None]) -> None:
        self.address = settings["url"].rstrip("/") + "/chat/completions"
        self.model, self.key = settings["model"], settings["key"]
        self.deadline_s, self.threads = settings["deadline_s"], settings["threads"]
        self.tell = tell
        self.session = session_to(self.address)
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=self.threads))
        self.current = threading.local()
        self.failed: dict[str, str] = {}
        """Rows without a verdict, and why."""
        self.said: dict[str, str] = {}
        """Its last words on each row, cut short."""
        self.options: dict[str, str] = {}
        """Letters that WeMath's answers were read as; its tables do not keep them."""
        self.lock = threading.Lock()
        self.answered, self.judged, self.in_a_row = 0, 0, 0

    def install(self, kit: Any, kind: str) -> None:
        """Put itself into VLMEvalKit's client, and into its functions that judge a row."""
        model = self.model

        class Client(kit.gpt.OpenAIWrapper):
            def __init__(self, _: str, **settings: Any) -> None:
                # The name as the user gave it: VLMEvalKit sends others in the place of some.
                super().__init__(model, key="-", api_base="http://judge", **settings)

        kit.api.OpenAIWrapper = Client
        kit.judge_util.load_env = lambda: None  # a .env beside the installed package would change judge and key
        kit.gpt.requests = types.SimpleNamespace(post=self.post)
        kit.base.time = types.SimpleNamespace(sleep=lambda _: None)  # waiting is done here
        module, names = {
            "mathvision": (kit.mathv, ["MATH_V_auxeval"]),
            "mathverse": (kit.mathverse, ["MathVerse_auxeval_extract", "MathVerse_auxeval_score"]),
            "wemath": (kit.multiple_choice, ["eval_vanilla"]),
        }[kind]
        for name in names:
            setattr(module, name, self._of_a_row(getattr(module, name), name == names[-1]))
        read_option = kit.multiple_choice.extract_answer_from_item

        def recorded(model: Any, item: Any, **more: Any) -> Any:
            found = read_option(model, item, **more)
            self.options[str(item["index"])] = found["opt"]
            return found

        kit.multiple_choice.extract_answer_from_item = recorded

    def _of_a_row(self, judge_row: Callable[..., Any], last: bool) -> Callable[..., Any]:
        """The same, knowing in its thread which row its requests are for."""

        def judged(model: Any, item: Any, **more: Any) -> Any:
            self.current.row = str(item["index"])
            result = judge_row(model, item, **more)
            if last:
                with self.lock:
                    self.judged += 1
                self.tell(advance=1)
            return result

        def by_position_or_name(*positional: Any, **named: Any) -> Any:
            model, item = positional or (named.pop("model"), named.pop("item"))
            return judged(model, item, **named)

        return by_position_or_name

    def post(self, _: str, data: str, **more: Any) -> Any:
        """Stands in for requests.post; `more` is VLMEvalKit's headers, proxies and timeout."""
        row = getattr(self.current, "row", None)
        if row in self.failed:
            return types.SimpleNamespace(status_code=500, text="")
        try:
            text = self._ask(data)
        except _RequestError as error:
            self._failed(row, str(error))
            return types.SimpleNamespace(status_code=500, text="")
        with self.lock:
            self.answered += 1
            self.in_a_row = 0
            if row is not None:
                self.said[row] = text[:_SHOWN]
        body = json.dumps({"choices": [{"message": {"content": text}}]})
        return types.SimpleNamespace(status_code=200, text=body)

    def _failed(self, row: str | None, reason: str) -> None:
        reason = self._without_key(reason)
        with self.lock:
            self.in_a_row += 1
            if row is not None:
                self.failed[row] = reason
            if self.in_a_row >= _IN_A_ROW or not self.answered:
                self.tell(judge={"reason": reason, "judged": max(0, self.judged - len(self.failed))})
                os._exit(0)  # the other threads' rows would only wait for it, too

    def _ask(self, payload: str) -> str:
        end = time.monotonic() + self.deadline_s
        wait = 0.5
        while True:
            try:
                return self._ask_once(payload, end)
            except _RequestError as error:
                if not error.again or wait > _LONGEST_WAIT_S or time.monotonic() + wait >= end:
                    raise
            time.sleep(wait)
            wait *= 2

    def _ask_once(self, payload: str, end: float) -> str:
        """Text of an answer. Raises _RequestError."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        late = f"no whole answer within {self.deadline_s:g} s"
        try:
            with self.session.post(
                self.address, data=payload.encode(), headers=headers, stream=True, allow_redirects=False,
                auth=lambda request: with_key(request, self.key), timeout=max(end - time.monotonic(), 0.1),
            ) as response:  # fmt: skip
                status, body = response.status_code, b""
                while chunk := response.raw.read1(65536):
                    body += chunk
                    if time.monotonic() > end or len(body) > _LONGEST:
                        raise _RequestError(late if len(body) <= _LONGEST else "an answer of over 1 MiB", again=False)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            over = time.monotonic() >= end
            raise _RequestError(late if over else why(error), again=not over) from None
        text = self._without_key(body.decode(errors="replace"))
        if not 200 <= status < 300:
            raise _RequestError(f"HTTP {status}: {text[:200]}", again=status >= 500 or status in (408, 429))
        try:
            content = json.loads(text)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError):
            content = None
        if not isinstance(content, str) or not content.strip():
            raise _RequestError(f"not an OpenAI-compatible answer: {text[:200]!r}", again=True)
        return writable(self._without_key(content))

    def _without_key(self, text: str) -> str:
        return without_key(text, self.key)
