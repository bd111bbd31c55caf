"""The backend `vllm` against a stand-in that holds vLLM's rules: what is asked, and what becomes of its answers."""

import json
import os
import sys
import types
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from dft_mm.data.images import load_image
from dft_mm.errors import InputError
from dft_mm.evaluate.run import evaluate
from dft_mm.evaluate.suite import Suite


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    stop: list[str]
    stop_token_ids: list[int]
    checked: None = field(init=False, default=None)

    def __post_init__(self):
        assert 0 <= self.seed < 2**63
        assert self.max_tokens > 0
        assert all(isinstance(each, int) for each in self.stop_token_ids)


@dataclass(frozen=True)
class _Completion:
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str


@dataclass(frozen=True)
class _Output:
    outputs: list[_Completion]


@pytest.fixture
def engines(monkeypatch):
    """The engines that were started; each answers with the question's own last words."""
    made = []

    class LLM:
        def __init__(
            self, model, *, dtype, seed, tensor_parallel_size, generation_config, enable_prefix_caching,
            max_model_len, mm_processor_kwargs=None, limit_mm_per_prompt=None,
        ):  # fmt: skip
            self.arguments = {
                "model": model, "dtype": dtype, "seed": seed, "tensor_parallel_size": tensor_parallel_size,
                "generation_config": generation_config, "enable_prefix_caching": enable_prefix_caching,
                "max_model_len": max_model_len, "mm_processor_kwargs": mm_processor_kwargs,
                "limit_mm_per_prompt": limit_mm_per_prompt,
            }  # fmt: skip
            assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
            assert isinstance(model, str)
            self.tokenizer = AutoTokenizer.from_pretrained(model)
            self.calls, self.reason = [], "stop"
            made.append(self)

        def generate(self, prompts, sampling_params, use_tqdm):
            assert use_tqdm is False
            assert isinstance(prompts, list)
            assert len(prompts) == len(sampling_params)
            self.calls.append((prompts, sampling_params))
            return [self._answer(*each) for each in zip(prompts, sampling_params)]

        def _answer(self, prompt, parameters):
            assert prompt.keys() <= {"prompt_token_ids", "multi_modal_data"}
            assert type(prompt["prompt_token_ids"]) is list
            assert all(type(each) is int for each in prompt["prompt_token_ids"])
            placeholders = self.tokenizer.decode(prompt["prompt_token_ids"]).count("<|image_pad|>")
            assert placeholders == len(prompt.get("multi_modal_data", {"image": []})["image"])
            text = f"It is \\boxed{{{parameters.seed}}}. Next."
            return _Output([_Completion(text, tuple(range(9)), self.reason)])

    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = LLM, SamplingParams, "0.99"
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)
    return made


def _suite(task, data, sampling=None, **bench):
    return Suite.model_validate(
        {"name": "s", "sampling": sampling or {}, "benchmarks": [{"task": task, "data": str(data), **bench}]}
    )


def _lines(out):
    return [json.loads(line) for line in (out / "generations.jsonl").read_text(encoding="utf-8").splitlines()]


def test_prompts_are_those_of_hf_and_every_answer_has_its_seed(engines, text_model, sums, tmp_path):
    suite = _suite("gsm8k", sums, {"temperature": 0.5, "top_p": 0.9, "max_tokens": 6, "samples": 2}, limit=3)
    evaluate(suite, text_model, tmp_path / "v", backend="vllm", batch_size=4, tensor_parallel=2)
    evaluate(suite, text_model, tmp_path / "h")
    (engine,) = engines
    prompts = [prompt for batch, _ in engine.calls for prompt in batch]
    assert [len(batch) for batch, _ in engine.calls] == [4, 2]
    ours, theirs = ({(line["id"], line["sample"]): line for line in _lines(tmp_path / out)} for out in "vh")
    for line in ours.values():
        other = theirs[line["id"], line["sample"]]
        assert (line["prompt"], line["seed"]) == (other["prompt"], other["seed"])
        assert line["text"] == f"It is \\boxed{{{line['seed']}}}. Next."
        assert (line["finish_reason"], line["tokens"]) == ("stop", 9)
    shown = {engine.tokenizer.decode(prompt["prompt_token_ids"]) for prompt in prompts}
    assert shown == {line["prompt"] for line in ours.values()}
    parameters = engine.calls[0][1][0]
    assert (parameters.temperature, parameters.top_p, parameters.max_tokens, parameters.stop) == (0.5, 0.9, 6, [])
    assert engine.tokenizer.eos_token_id in parameters.stop_token_ids
    assert engine.tokenizer.convert_tokens_to_ids("<|im_end|>") in parameters.stop_token_ids
    longest = max(len(prompt["prompt_token_ids"]) for prompt in prompts)
    assert engine.arguments == {
        "model": str(text_model), "dtype": "bfloat16", "seed": 0, "tensor_parallel_size": 2,
        "generation_config": "vllm", "enable_prefix_caching": False, "max_model_len": longest + 6,
        "mm_processor_kwargs": None, "limit_mm_per_prompt": None,
    }  # fmt: skip


def test_an_adapter_is_refused_with_the_way_out(engines, sums, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text('{"base_model_name_or_path": "org/name"}')
    with pytest.raises(InputError, match=r"--backend vllm: .*adapter is an adapter; `dft-mm export RUN --merge"):
        evaluate(_suite("gsm8k", sums), tmp_path / "adapter", tmp_path / "out", backend="vllm")
    assert not engines


def test_pictures_go_in_with_one_placeholder_each_and_the_limits_of_training(
    engines, picture_model, pictures, tmp_path
):
    evaluate(_suite("digits", pictures, {"max_tokens": 6}), picture_model, tmp_path, backend="vllm")
    (engine,) = engines
    assert engine.arguments["limit_mm_per_prompt"] == {"image": 1}
    assert engine.arguments["mm_processor_kwargs"].keys() == {"min_pixels", "max_pixels"}
    # The longest prompt as vLLM expands it: 84 x 140 pixels are 15 merged patches.
    prompts = engine.calls[0][0]
    expanded = max(len(prompt["prompt_token_ids"]) for prompt in prompts) - 1 + 15
    assert engine.arguments["max_model_len"] == expanded + 6
    seen = {prompt["multi_modal_data"]["image"][0].tobytes() for prompt in prompts}
    assert seen == {load_image(f"{n}.png", pictures).tobytes() for n in range(3)}
    assert all(isinstance(prompt["multi_modal_data"]["image"][0], Image.Image) for prompt in prompts)
    assert all(np.array(prompt["multi_modal_data"]["image"][0]).shape[2] == 3 for prompt in prompts)


def test_completions_and_stop_texts(engines, text_model, sums, tmp_path):
    prompt = {"user": "Q: {question}\nA:", "completion": True, "stop": [". N"]}
    evaluate(_suite("gsm8k", sums, limit=1, prompt=prompt), text_model, tmp_path, backend="vllm")
    (batch, (parameters,)) = engines[0].calls[0]
    assert engines[0].tokenizer.decode(batch[0]["prompt_token_ids"]) == "Q: What is 1 + 1? Think of apples.\nA:"
    assert parameters.stop == [". N"]
    assert _lines(tmp_path)[0]["text"].endswith("}")


def test_a_run_that_goes_on_asks_for_the_rest_of_the_batches(engines, text_model, sums, tmp_path):
    suite = _suite("gsm8k", sums)
    evaluate(suite, text_model, tmp_path, backend="vllm", batch_size=3)
    whole = (tmp_path / "generations.jsonl").read_bytes()
    (tmp_path / "generations.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    evaluate(suite, text_model, tmp_path, backend="vllm", batch_size=3)
    assert (tmp_path / "generations.jsonl").read_bytes() == whole
    assert engines[1].calls == engines[0].calls[1:]
    assert engines[1].arguments == engines[0].arguments


def test_an_answer_that_vllm_gave_up_is_none(engines, text_model, sums, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["vllm"].LLM, "_answer", lambda *_: _Output([_Completion("x", (1,), "abort")]))
    with pytest.raises(RuntimeError, match=r"question '.'.*'abort'"):
        evaluate(_suite("gsm8k", sums), text_model, tmp_path, backend="vllm")
    assert _lines(tmp_path) == []


def test_without_vllm_it_says_how_to_get_it(text_model, sums, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(InputError, match=r"pip install 'dft_mm\[vllm\]'"):
        evaluate(_suite("gsm8k", sums), text_model, tmp_path, backend="vllm")
