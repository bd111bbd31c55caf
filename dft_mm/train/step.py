"""One optimizer step: forward, loss and backward for each micro-batch, a joint check, the update.

The loss is divided by the supervised tokens of the whole global batch, so no split of the batch over ranks or
micro-batches changes the step: torch's own means of means would.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from dft_mm import dist
from dft_mm.batch import Batch
from dft_mm.dist import log
from dft_mm.errors import InputError
from dft_mm.loss.family import Objective
from dft_mm.train.telemetry import Sums, Totals


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite; the update was not made, on no rank."""


def train_step(
    engine: Any,
    micro_batches: Iterable[Batch],
    count: int,
    tokens: int,
    objective: Objective,
    end_id: int,
    stop_wanted: bool = False,
    saving: bool = False,
    at: Callable[[str], None] = lambda _: None,
) -> tuple[Totals, float]:
    """Run `count` micro-batches of this rank and update the weights.

    Args:
        engine: a DeepSpeedEngine around `Trainable`, with an accumulation of 1 in its config.
        micro_batches: this rank's share; every rank has the same number.
        tokens: supervised tokens of the global batch, over all ranks. Where pictures turn out to be lost, the update is
            that of the tokens that are left.
        objective: the losses of the step, which the batches' `policy` numbers.
        end_id: the id that ends a turn, for telemetry.
        stop_wanted: this rank was asked to stop after the step.
        saving: this rank's last checkpoint is still on its way to the disk.
        at: told what comes next.

    Returns:
        Sums over all ranks, and the norm of the whole gradient before clipping.

    Raises:
        NonFiniteError: on every rank, naming the examples, before the update.
    """
    device = engine.device
    sums = Sums.zeros(device)
    done: list[tuple[tuple[str, ...], Tensor]] = []  # not the batches: their pictures would stay on the device
    at("waiting for data")
    for number, batch in enumerate(micro_batches, start=1):
        at(f"micro-batch {number}")
        engine.set_gradient_accumulation_boundary(number == count)
        batch = batch.to(device)
        outputs = _forward(engine, batch, objective)
        sums.add(outputs, batch, end_id)
        # DeepSpeed averages over ranks; the product is a new tensor, which its hooks on outputs leave alone.
        engine.backward(outputs[0] * (dist.world_size() / tokens), scale_wrt_gas=False)
        done.append((batch.example_ids, outputs[0].detach()))
        if number < count:
            engine.step()
        at("waiting for data")
    at("the sums over ranks")
    sums.tell(stop_wanted, saving)
    sums = sums.over_ranks()
    if not sums.finite:
        ids = [id_ for names, value in done if not value.isfinite() for id_ in names]
        raise NonFiniteError(f"the loss is not finite; examples: {_over_ranks(ids)}")
    if sums.supervised_tokens + sums.lost_tokens != tokens:
        raise RuntimeError(f"the plan counted {tokens} supervised tokens, the step {sums.supervised_tokens}")
    if not sums.supervised_tokens:
        raise InputError("no token of the step is left to learn from: the pictures of all its examples are lost")
    at("the update")
    left = sums.supervised_tokens / tokens
    norm = _plain_norm(engine, left)
    if norm is None or norm.isfinite():
        _step(engine, left)
    if (norm is not None and not norm.isfinite()) or not engine.was_step_applied():
        ids = [id_ for names, _ in done for id_ in names]
        raise NonFiniteError(f"the gradient is not finite; the step's examples: {_over_ranks(ids)}")
    return sums, float(engine.get_global_grad_norm() if norm is None else norm)


def _forward(engine: Any, batch: Batch, objective: Objective) -> tuple[Tensor, ...]:
    return engine(batch.rows, batch.targets, objective, batch.policy, batch.sequences, **batch.model_inputs)


def _plain_norm(engine: Any, left: float) -> Tensor | None:
    """The gradient norm where no ZeRO stage is on: there DeepSpeed neither reports nor checks it. Gradients are divided
    by `left` there.
    """
    if engine.zero_optimization_stage() > 0:
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    if left != 1.0:
        torch._foreach_div_(gradients, left)
    return torch.nn.utils.get_total_norm(gradients)


def _step(engine: Any, left: float) -> None:
    """The update, of gradients divided by `left` under ZeRO: what DeepSpeed does for a loss that was scaled."""
    scaled = left != 1.0 and engine.zero_optimization_stage() > 0
    if scaled:
        engine.optimizer.loss_scale = left
    engine.step()
    if scaled:
        engine.optimizer.loss_scale = 1.0


def _over_ranks(ids: list[str]) -> str:
    every = [id_ for of_rank in dist.gather_objects(ids) for id_ in of_rank]
    return ", ".join(every[:20]) + (f" and {len(every) - 20} more" if len(every) > 20 else "")


@torch.no_grad()
def heldout_pass(engine: Any, micro_batches: Iterable[Batch], end_id: int) -> dict[str, Any]:
    """Plain cross-entropy over a data set, every rank with the same number of micro-batches: keys of metrics.jsonl."""
    engine.eval()
    sums = Sums.zeros(engine.device)
    for batch in micro_batches:
        batch = batch.to(engine.device)
        sums.add(_forward(engine, batch, Objective("sft")), batch, end_id)
    engine.train()
    sums = sums.over_ranks()
    if sums.lost:
        log.warning("%d held-out rows are not measured: their pictures are gone or changed", sums.lost)
    if not sums.supervised_tokens:
        return {}
    measured = sums.metrics()
    return {"heldout_ce": measured["ce"], "heldout_p_hist": measured["p_hist"]}
