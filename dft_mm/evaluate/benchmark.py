"""One entry of a suite: what is asked, how it is put, and who judges. Plain values."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from dft_mm.sections import Section

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Prompt(Section):
    """How a question is put to a model."""

    system: str | None = None
    """System turn; none, and the chat template's own default stands."""
    user: str = "{question}"
    """The user's turn; `{question}` is where the question stands."""
    completion: bool = False
    """For base models: the text is shown as it is, without a chat template, and the model goes on writing."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer, and are not part of it; completions have no other end than the model's own."""

    @model_validator(mode="after")
    def _the_question_stands_in_it(self) -> "Prompt":
        if "{question}" not in self.user:
            raise ValueError(f"prompt: `user` must say where the {{question}} stands, and is {self.user[:60]!r}")
        if self.completion and self.system is not None:
            raise ValueError("prompt: a completion has no system turn; put its text into `user`")
        return self


class EndpointJudge(Section):
    url: str = Field(pattern=r"^https?://.*/v1/?$")
    """Address of an OpenAI-compatible server, up to and with `/v1`."""
    model: str
    """Name of the judge there."""
    key_env: str | None = None
    """Name of the environment variable that holds its key."""


def _kind(judge: Any) -> str:
    return "endpoint" if isinstance(judge, dict | EndpointJudge) else "name"


Judge = Annotated[
    Annotated[Literal["rule", "exact"], Tag("name")] | Annotated[EndpointJudge, Tag("endpoint")], Discriminator(_kind)
]


class BenchmarkConfig(Section):
    task: str
    """What is asked and how it is graded."""
    data: str | None = None
    """File of questions, or a folder with a test.jsonl; without it, the published location."""
    name: str | None = Field(default=None, pattern=NAME)
    """Name in the results; default: the task."""
    limit: int | None = Field(default=None, ge=1)
    """Ask the first so many questions."""
    judge: Judge = "rule"
    """`rule`: our own code; `exact`: the benchmark's own exact matching, where it has one; or a model behind a URL."""
    prompt: Prompt | str | None = None
    """How questions are put: file, name of one in eval/prompts, or the keys themselves; default: the task's own."""
    split: str | None = None
    """Which of the task's splits, where it has several."""
    pictures: Literal["none", "standard", "other_colours"] = "none"
    """Games: whether the state is drawn, and in which colours."""
    instructions: Literal["seen", "unseen"] = "seen"
    """Games: wordings that the demonstrations use, or others."""

    @property
    def key(self) -> str:
        """Its name everywhere in the results."""
        return self.name or self.task

    @property
    def judge_kind(self) -> str:
        return self.judge if isinstance(self.judge, str) else "endpoint"

    @property
    def judge_name(self) -> str:
        """What results call it: values of different judges do not compare."""
        return self.judge if isinstance(self.judge, str) else self.judge.model


def named_files(kind: str) -> dict[str, Path]:
    """`eval/KIND/NAME.yaml` by name, those below the working folder before those beside the package's own source."""
    folders = (Path(__file__).parents[2] / "eval" / kind, Path("eval") / kind)
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}
