"""SFT, DFT, or SFT first? Simple rules on what a probe has measured; each answer comes with its reasons and numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

WEAK_P, WEAK_MEDIAN = 0.2, 0.05
"""A model whose mean or median p is lower is too weak. DFT's gradients are weighted by p (arXiv 2508.05629, equation
9): from the typical token it then learns less than a fifth, or a twentieth, of what SFT does, and from random weights
nothing at all. For comparison: SmolLM2-135M has means of 0.48 to 0.57 and medians of 0.47 to 0.67 on GSM8K, MATH and
everyday instructions."""
GUESSING_NATS = 1.0
"""A cross-entropy above ln V less this is that of a model that knows nothing: a uniform guess among V tokens has
ln V."""
IGNORED = 0.1
"""DFT all but ignores an example from which it keeps less than this share of SFT's gradient."""
FACTS_TOKENS, FACTS_KEPT = 128, 0.18
"""A source looks like facts where DFT keeps less than that share of its gradient, so that what is to be learned could
not be derived from anything, and its median answer is no longer than that many tokens: long derivations by a model
that finds them hard are no facts. Measured with SmolLM2-135M, 16 to 53 rows each: identities 0.14, bare choices 0.12,
invented dates and places 0.15, short chat answers 0.16; ScienceQA and TabMWP solutions 0.21 and 0.22, everyday
instructions 0.22, MATH 0.24, GSM8K 0.25, AIME 0.19. One small model: near the limit it is an indication."""


def source_advice(source: Mapping[str, Any]) -> str:
    """warmup, sft or dft for one source of a probe."""
    if _is_weak(source):
        return "warmup"
    is_short = source["answer_tokens"] <= FACTS_TOKENS
    return "sft" if is_short and source["signal_kept"] < FACTS_KEPT else "dft"


def advise(report: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """The advice for the whole sample, and its reasons.

    Args:
        report: `tokens`, `p_mean`, `p_median`, `ce`, `vocabulary`, `effective_token_ratio`, `ignored_examples`.
        sources: those with rows in the sample, with their `advice`.
    """
    if report["ce"] > math.log(report["vocabulary"]) - GUESSING_NATS:
        return "warmup", [
            f"the model knows nothing of this text: its cross-entropy of {report['ce']:.2f} is that of guessing among "
            f"{report['vocabulary']:,} tokens ({math.log(report['vocabulary']):.2f}); its weights are random, or not "
            "those of its tokenizer",
            _weighted_by_p(report),
        ]
    if _is_weak(report):
        return "warmup", [
            f"the model is too weak on this text: mean p {report['p_mean']:.3g} (limit {WEAK_P}), median "
            f"{report['p_median']:.3g} (limit {WEAK_MEDIAN})",
            _weighted_by_p(report),
        ]
    rows = sum(source["rows"] for source in sources)
    facts = [source for source in sources if source["advice"] == "sft"]
    share = sum(source["rows"] for source in facts) / rows
    reasons = [_of_source(source) for source in sources if source["advice"] != "dft"]
    if share > 0.5:
        weak_spot = f"{share:.0%} of the rows are of sources that look like facts to be learned by heart"
        return "sft", [f"{weak_spot}, the known weak spot of DFT", *reasons]
    knows = (
        f"the model knows this text: mean p {report['p_mean']:.2f}, median {report['p_median']:.2f}, effective tokens "
        f"{report['effective_token_ratio']:.0%}; DFT all but ignores {report['ignored_examples']:.0%} of the examples"
    )
    return "dft", [knows, *reasons]


def _is_weak(measured: Mapping[str, Any]) -> bool:
    return measured["p_mean"] < WEAK_P or measured["p_median"] < WEAK_MEDIAN


def _weighted_by_p(report: Mapping[str, Any]) -> str:
    return (
        f"DFT weights each token's gradient by p, here {report['p_mean']:.2g} on average, so it would hardly train: "
        "begin with SFT (loss.warmup_steps, or a run of its own), then probe again"
    )


def _of_source(source: Mapping[str, Any]) -> str:
    if source["advice"] == "warmup":
        return (
            f"{source['path']}: too weak there (mean p {source['p_mean']:.3g}, median {source['p_median']:.3g}): give "
            "it `loss: sft`, or loss.warmup_steps"
        )
    has = " (it has that already)" if source["loss"] == "sft" else ""
    return (
        f"{source['path']}: looks like facts rather than reasoning: answers of {source['answer_tokens']:g} tokens, of "
        f"whose gradient DFT keeps {source['signal_kept']:.0%} (limits {FACTS_TOKENS} tokens, {FACTS_KEPT:.0%}): give "
        f"it `loss: sft`{has}"
    )
