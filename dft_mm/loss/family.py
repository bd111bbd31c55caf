"""The losses, one entry each. All have one form; a new one is one new entry here and its name in config.py.

    loss_t = sg(w) · nll + penalty(nll) + λ · KL(reference || model),    nll = -log p,   p = softmax(logits_t)[target_t]

sg: no gradient passes. With this form the gradient for the logits is (w + penalty') · (softmax - onehot), and
λ · (softmax - reference) more, so the head needs nothing of a loss but numbers a token.

Axes: M supervised tokens, K most probable tokens of each.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from dft_mm.config import LossConfig, LossName


@dataclass(frozen=True)
class Tokens:
    """What is known of the tokens without gradients; float32, or float64 for float64 logits."""

    nll: Tensor
    """(M,): -log p of the target."""
    top: Tensor | None = None
    """(M, K): the largest log-probabilities, falling."""
    reference_nll: Tensor | None = None
    """(M,): the reference's -log p of the target."""
    sequences: Tensor | None = None
    """(M,) int64 in [0, M): number of the answer that each belongs to."""

    @property
    def p(self) -> Tensor:
        return torch.exp(-self.nll)


@dataclass(frozen=True)
class Form:
    """One loss."""

    about: str
    """Paper, formula and defaults."""
    weight: Callable[[Tokens, LossConfig], Tensor]
    """(M,): what nll is multiplied with."""
    penalty: Callable[[Tokens, LossConfig], Tensor] | None = None
    """(M,): what is added, a function of the target's probability that gradients pass through."""
    needs_reference: bool = False
    by_sequence: bool = False
    """The weight of a token depends on other tokens of its answer."""


def _entropy(tokens: Tokens, config: LossConfig) -> Tensor:
    """Entropy of the top_k most probable tokens among themselves, over its largest value: in [0, 1]."""
    top = tokens.top[:, : config.top_k]
    log_q = top - top.logsumexp(1, keepdim=True)
    return -(log_q.exp() * log_q).sum(1) / math.log(max(2, top.shape[1]))


def _diversity(tokens: Tokens, config: LossConfig) -> Tensor:
    uncertain = tokens.top[:, : config.top_k].exp().sum(1) < config.tau
    return uncertain * (tokens.p - 0.5) ** 2 * config.diversity


def _sequence_weight(tokens: Tokens, config: LossConfig) -> Tensor:
    """Summed as logarithms in float64; below about e^-100 float32 has only zero left."""
    log_p = -tokens.nll.double()
    of_sequences = torch.zeros_like(log_p).index_add_(0, tokens.sequences, log_p)
    return of_sequences[tokens.sequences].exp().to(tokens.nll.dtype)


def _ones(tokens: Tokens, config: LossConfig) -> Tensor:
    return torch.ones_like(tokens.nll)


FORMS: dict[LossName, Form] = {
    "sft": Form("""Supervised fine-tuning: w = 1, cross-entropy.""", _ones),
    "dft": Form(
        """Dynamic Fine-Tuning (arXiv 2508.05629, eq. 9): w = p. The gradient of -sg(p) log p is -∇p.""",
        lambda t, c: t.p,
    ),
    "power": Form(
        """Beyond Log Likelihood (arXiv 2510.00526): w = p^α, the gradient of (1 - p^α) / α. From sft (α = 0) over dft
        (1) to -p^10; default α = 0.5.""",
        lambda t, c: torch.exp(-c.alpha * t.nll),
    ),
    "mix": Form(
        """Between sft (α = 0) and dft (1): w = α p + 1 - α, default α = 0.5. A token of p = 0 is still learned.""",
        lambda t, c: c.alpha * t.p + (1 - c.alpha),
    ),
    "profit": Form(
        """ProFit (arXiv 2601.09195): w = 1[p > τ]; default τ = 0.1, that of its published script.""",
        lambda t, c: (t.p > c.tau).to(t.nll.dtype),
    ),
    "eaft": Form(
        """Entropy-Adaptive Fine-Tuning (arXiv 2601.02151): w = (H_k / ln k)^α, H_k the entropy of the k most probable
        tokens among themselves; α = 1, k = 20. (LLaMA-Factory's port divides by 3.0 in the place of ln 20.)""",
        lambda t, c: _entropy(t, c) ** c.alpha,
    ),
    "chord": Form(
        """CHORD (arXiv 2508.11408), its φ for the tokens of an expert: w = p (1 - p). What is certain or hopeless is
        let be.""",
        lambda t, c: t.p * (1 - t.p),
    ),
    "focal": Form(
        """Focal loss (arXiv 1708.02002): w = (1 - p)^γ, default γ = 2; the weight is detached as in the others.""",
        lambda t, c: (1 - t.p) ** c.gamma,
    ),
    "iw_sft": Form(
        """Importance-weighted SFT (arXiv 2507.12856), a token at a time: w = p / p_reference, clipped; default
        [0.2, 1.8], that of its code.""",
        lambda t, c: torch.exp(t.reference_nll - t.nll).clamp(*c.clip),
        needs_reference=True,
    ),
    "asft": Form(
        """Anchored SFT (arXiv 2509.23753): w = p, and λ KL(reference || model); λ = `kl`, default 0.1, that of its
        code.""",
        lambda t, c: t.p,
        needs_reference=True,
    ),
    "sed": Form(
        """SED-SFT (arXiv 2602.07464): w = 1, and λ M (p - 1/2)², M = 1[the k most probable tokens hold less than τ];
        λ = `diversity`; defaults λ = 0.2, k = 2, τ = 0.95, those of its code.""",
        _ones,
        penalty=_diversity,
    ),
    "dft_sequence": Form(
        """DFT of whole answers (arXiv 2508.05629, eq. 8): w = Π p over the answer's tokens. For study: of an answer of
        any length it is nearly nothing, which is why the paper weights tokens.""",
        _sequence_weight,
        by_sequence=True,
    ),
}
assert set(FORMS) == set(get_args(LossName))


class Weighted(NamedTuple):
    """Of each token (M,), detached."""

    weight: Tensor
    value: Tensor
    """weight · nll + penalty."""
    slope: Tensor
    """d value / d nll, the weight taken as constant."""
    anchor: Tensor | float
    """λ of the divergence from the reference; 0.0 where no loss has one."""


class Objective:
    """The losses of a step, each at the share that the step has of it.

    Args:
        losses: names or recipe sections; tokens name theirs by number, and without a number have the first.
        step: the step, from 1, for losses that set in by and by; None: there is none of these.

    Raises:
        ValueError: an unknown name; a loss with warmup_steps or ramp_steps, but no step.
    """

    def __init__(self, losses: str | LossConfig | Sequence[str | LossConfig], step: int | None = None) -> None:
        self._step = step
        several = [losses] if isinstance(losses, str | LossConfig) else losses
        self.losses = tuple(config_of(loss) for loss in several)
        self._shares = [_share(loss, step) for loss in self.losses]
        forms = [FORMS[loss.name] for loss, share in zip(self.losses, self._shares) if share > 0]
        self.needs_reference = any(form.needs_reference for form in forms)
        self.by_sequence = any(form.by_sequence for form in forms)
        self.top_k = max((loss.top_k or 0 for loss in self.losses), default=0)
        """How many of the largest log-probabilities `Tokens.top` is to have; 0: none."""

    def only(self, number: int) -> "Objective":
        """One of the losses, at the same share."""
        return Objective(self.losses[number], self._step)

    @property
    def name(self) -> str:
        return ", ".join(dict.fromkeys(loss.name for loss in self.losses))

    @property
    def is_anchored(self) -> bool:
        """Whether the divergence from the reference is wanted, for which its target's probability is not enough."""
        return any(loss.kl and share for loss, share in zip(self.losses, self._shares))

    def __call__(self, tokens: Tokens, kinds: Tensor | None = None) -> Weighted:
        """kinds (M,): number of each token's loss; None: the first."""
        if kinds is None or len(self.losses) == 1:
            return _weigh(tokens, self.losses[0], self._shares[0])
        every = [_weigh(tokens, loss, share) for loss, share in zip(self.losses, self._shares)]
        mine = kinds[None].long()
        anchors = tokens.nll.new_tensor([one.anchor for one in every])
        stacked = (torch.stack(of_all).gather(0, mine).squeeze(0) for of_all in list(zip(*every))[:3])
        return Weighted(*stacked, anchors[kinds.long()] if self.is_anchored else 0.0)

    def check_inputs(self, reference: object | None, sequences: object | None) -> None:
        """Raises ValueError when a loss needs what is not there."""
        if self.needs_reference and reference is None:
            raise ValueError(f"loss {self.name} compares with a reference model: ref_logits= is missing")
        if self.by_sequence and sequences is None:
            raise ValueError(f"loss {self.name} weights whole answers: sequences= is missing")


def config_of(loss: str | LossConfig) -> LossConfig:
    """A loss by name, with its defaults; raises ValueError with the known names for an unknown one."""
    if isinstance(loss, LossConfig):
        return loss
    if loss not in FORMS:
        near = difflib.get_close_matches(loss, FORMS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown loss {loss!r}, known are {', '.join(FORMS)}{hint}")
    return LossConfig(name=loss)


def _share(loss: LossConfig, step: int | None) -> float:
    if step is not None:
        return loss.share(step)
    if loss.warmup_steps or loss.ramp_steps:
        raise ValueError(
            f"loss {loss.name} sets in over steps (warmup_steps {loss.warmup_steps}, ramp_steps {loss.ramp_steps}): "
            "step= is missing, which says how far it is"
        )
    return 1.0


def _weigh(tokens: Tokens, config: LossConfig, share: float) -> Weighted:
    """The loss at its share; the rest is sft, whose weight is 1."""
    form, nll = FORMS[config.name], tokens.nll.detach()
    if share == 0.0:
        ones = torch.ones_like(nll)
        return Weighted(ones, nll, ones, 0.0)
    weight = form.weight(tokens, config).detach()
    if share < 1.0:
        weight = weight.mul(share).add_(1 - share)
    value, slope = weight * nll, weight
    if form.penalty is not None:
        with torch.enable_grad():
            variable = nll.clone().requires_grad_()
            penalty = form.penalty(replace(tokens, nll=variable), config)
            (derivative,) = torch.autograd.grad(penalty.sum(), variable)
        value, slope = value + share * penalty.detach(), slope + share * derivative
    return Weighted(weight, value, slope, share * (config.kl or 0.0))
