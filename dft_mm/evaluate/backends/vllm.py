"""The backend `vllm`: fast generation in this process, with the same prompts as `hf` and a seed for every answer.

Its answers are its own: kernels differ from transformers', and last digits depend on what is computed together. So that
a run that goes on equals one that was never stopped, batches are fixed and no work of one is kept for the next.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dft_mm.errors import InputError
from dft_mm.evaluate.backends.content import before_stop, load_picture
from dft_mm.evaluate.backends.prompts import Prompts
from dft_mm.evaluate.requests import BackendOptions, Generation, Request
from dft_mm.model.folder import check_whole, resolve

_BATCH_SIZE = 512
# Scheduling in another process is not the same each time. vLLM reads this when it is imported.
_REPEATABLE = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


class Vllm:
    """The engine is started when the first batch is generated."""

    def __init__(self, options: BackendOptions) -> None:
        for name, value in _REPEATABLE.items():
            os.environ.setdefault(name, value)
        try:
            import vllm
        except ImportError as error:
            raise InputError(f"--backend vllm: {error}; install it with `pip install 'dft_mm[vllm]'`") from error
        check_whole(resolve(options.model), "--backend vllm")
        self.vllm = vllm
        self.sampling = options.sampling
        self.prompts = Prompts(options.model, options.sampling.max_tokens)
        self.batch_size = options.batch_size or _BATCH_SIZE
        self.llm: Any = None
        self.engine: dict[str, Any] = {}
        dtype = options.dtype if options.dtype not in (None, "auto") else "bfloat16"
        self.settings: dict[str, Any] = {
            "name": "vllm", "version": vllm.__version__, "dtype": dtype,
            "batch_size": self.batch_size, "tensor_parallel": options.tensor_parallel or 1,
        }  # fmt: skip

    def plan(self, wanted: Sequence[Request]) -> list[list[Request]]:
        """Longest prompts first, as in `hf`."""
        self.prompts.prepare(wanted)
        self.settings |= self.prompts.settings
        prompts = [self.prompts.of(request) for request in wanted]
        # Of all requests, whatever is left of them: the engine's shape may show in last digits.
        self.engine["max_model_len"] = max(len(prompt.ids) + self.prompts.room(prompt) for prompt in prompts)
        if self.prompts.images is not None:
            limits = {"min_pixels": self.prompts.images.min_pixels, "max_pixels": self.prompts.images.max_pixels}
            self.engine["mm_processor_kwargs"] = limits
            self.engine["limit_mm_per_prompt"] = {"image": max(len(request.question.images) for request in wanted)}
        ordered = sorted(wanted, key=lambda request: -len(self.prompts.of(request).ids))
        return [ordered[start : start + self.batch_size] for start in range(0, len(ordered), self.batch_size)]

    def generate(
        self, batches: Sequence[Sequence[Request]], halted: Callable[[], bool]
    ) -> Iterator[tuple[int, list[Generation]]]:
        """One batch after the other."""
        for number, batch in enumerate(batches):
            if halted():
                return
            self.llm = self.llm or self._start()
            outputs = self.llm.generate(
                [self._prompt(request) for request in batch],
                [self._parameters(request) for request in batch],
                use_tqdm=False,
            )
            yield number, [self._generation(*each) for each in zip(batch, outputs, strict=True)]

    def _start(self) -> Any:
        return self.vllm.LLM(
            model=str(self.prompts.processing.folder),
            dtype=self.settings["dtype"],
            tensor_parallel_size=self.settings["tensor_parallel"],
            seed=0,
            # The folder's own temperature or repetition penalty is no part of a score.
            generation_config="vllm",
            enable_prefix_caching=False,
            **self.engine,
        )

    def _prompt(self, request: Request) -> dict[str, Any]:
        """Our own ids, with one placeholder a picture: vLLM makes as many of it as the picture needs."""
        prompt: dict[str, Any] = {"prompt_token_ids": list(self.prompts.of(request).short)}
        if request.question.images:
            images = [load_picture(request.question, name) for name in request.question.images]
            prompt["multi_modal_data"] = {"image": images}
        return prompt

    def _parameters(self, request: Request) -> Any:
        return self.vllm.SamplingParams(
            temperature=self.sampling.temperature,
            top_p=self.sampling.top_p,
            max_tokens=self.prompts.room(self.prompts.of(request)),
            seed=request.seed,
            stop=list(request.question.stop),
            stop_token_ids=sorted(self.prompts.ends),
        )

    def _generation(self, request: Request, output: Any) -> Generation:
        answer = output.outputs[0]
        if answer.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"{request.where}: vLLM ended the answer with {answer.finish_reason!r}")
        text, reason = answer.text, answer.finish_reason
        if (before := before_stop(text, request.question.stop)) is not None:
            text, reason = before, "stop"
        return Generation(self.prompts.of(request).text, text, reason, len(answer.token_ids))
