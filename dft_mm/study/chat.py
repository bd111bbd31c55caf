"""A talk with an exported model in the terminal. It is asked as an evaluation would ask it: the same rendering, picture
loader, pixel limits and tokens that end an answer.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from dft_mm.data.images import ImageError, image_grid, load_image
from dft_mm.errors import InputError
from dft_mm.evaluate.backends.hf import HuggingFace
from dft_mm.evaluate.requests import BackendOptions, Generation, Request, seed_of
from dft_mm.evaluate.suite import SamplingConfig
from dft_mm.evaluate.task import Question

ABOUT = (
    "A line is a question. /image PATH adds a picture to the next one, /reset begins anew, /quit or Ctrl-D ends, "
    "Ctrl-C stops an answer."
)
_ROOT = Path("/")
_SEED = 0


class Conversation:
    """What was said so far."""

    def __init__(self, model: str, sampling: SamplingConfig, system: str | None = None) -> None:
        self._backend = HuggingFace(BackendOptions(model, sampling))
        self._system = system
        self._asked = 0
        self.reset()

    def load(self) -> None:
        """The weights, which are else loaded for the first answer."""
        self._backend.load()

    def reset(self) -> None:
        self._messages: list[dict[str, Any]] = [_turn("system", self._system)] if self._system else []
        self._images: list[str] = []
        self._next: list[str] = []
        """Pictures of the next question."""

    def add_image(self, text: str) -> None:
        """A picture for the next question, by its path. Raises InputError for one that cannot be shown."""
        settings = self._backend.prompts.images
        if settings is None:
            raise InputError("this is a text model, which sees no pictures")
        path = Path(text).expanduser().resolve()
        if not path.exists():
            raise InputError(f"there is no file {path}")
        name = str(path.relative_to(_ROOT))
        try:
            image_grid(*load_image(name, _ROOT).size, settings)
        except ImageError as error:
            raise InputError(f"{text}: {error.detail}") from error
        self._next.append(name)

    def ask(self, text: str, say: Callable[[str], None]) -> Generation:
        """Ask, and hand the answer over as it comes. It is part of the conversation also where Ctrl-C cuts it short.

        Raises InputError for a question that cannot be asked, which is forgotten then, and KeyboardInterrupt.
        """
        asked = [*self._messages, _turn("user", text, len(self._next))]
        images = [*self._images, *self._next]
        self._asked += 1
        question = Question(str(self._asked), asked, "", tuple(images), str(_ROOT))
        request = Request("chat", question, 0, seed_of(_SEED, "chat", question.id, 0))
        self._next = []
        self._backend.plan([request])
        said: list[str] = []

        def tell(piece: str) -> None:
            said.append(piece)
            say(piece)

        try:
            answer = self._backend.stream(request, tell)
            said = [answer.text]
        finally:
            if "".join(said).strip():
                self._messages, self._images = [*asked, _turn("assistant", "".join(said))], images
        return answer


def _turn(role: str, text: str, images: int = 0) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}


def chat(model: str, system: str | None, temperature: float, max_tokens: int) -> None:
    """Read questions from the terminal, or one a line from a pipe; answers go to standard output, all else to standard
    error.

    Through a pipe, what cannot be done ends the chat (InputError), and so does Ctrl-C: nobody is there to say it anew.
    """
    on_terminal = sys.stdin.isatty()
    aside = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)

    def say(piece: str) -> None:
        sys.stdout.write(piece)  # the model's own letters: rich would expand tabs and strip control codes
        sys.stdout.flush()

    def note(text: str) -> None:
        aside.print(text, style="dim" if on_terminal else None, markup=False)

    conversation = Conversation(model, SamplingConfig(temperature=temperature, max_tokens=max_tokens), system)
    if on_terminal:
        note(f"{model}. {ABOUT}")
    conversation.load()
    for line in _typed() if on_terminal else sys.stdin:
        word, _, rest = line.strip().partition(" ")
        try:
            if word in ("/quit", "/exit"):
                return
            if word == "/reset":
                conversation.reset()
            elif word == "/image":
                conversation.add_image(rest.strip().strip("'\""))
            elif word.startswith("/"):
                raise InputError(f"{word} is not known. {ABOUT}")
            elif word:
                answer = conversation.ask(line.strip(), say)
                say("\n")
                if answer.finish_reason == "length":
                    note(f"(cut after {answer.tokens} tokens; --max-tokens says how many there may be)")
        except KeyboardInterrupt:
            say("\n")
            if not on_terminal:
                raise
            note("(stopped)")
        except InputError as error:
            if not on_terminal:
                raise
            note(str(error))


def _typed() -> Iterator[str]:
    """Lines typed in the terminal, with the keys and the history of readline."""
    import readline  # noqa: F401 - input() takes it once it is there

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D ends")
