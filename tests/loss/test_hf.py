"""The loss inside transformers.Trainer, which counts, accumulates and calls it."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.modeling_outputs import CausalLMOutput

from dft_mm.loss.hf import loss_func

VOCABULARY, LENGTH = 23, 9


def tiny(kind):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1,
    }  # fmt: skip
    return (
        Qwen2ForCausalLM(Qwen2Config(**sizes)) if kind == "qwen2" else LlamaForCausalLM(LlamaConfig(**sizes))
    ).float()


def rows_of(supervised_counts):
    """One row a count, with that many supervised labels at its end; a whole one has its first position labelled too."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for count in supervised_counts:
        ids = torch.randint(VOCABULARY, (LENGTH,), generator=generator)
        labels = ids.clone()
        labels[: LENGTH - count] = -100
        rows.append({"input_ids": ids, "labels": labels})
    return rows


def expected_weights(model, rows, loss, lr):
    """One SGD step on the mean over all supervised tokens of all rows, from the softmax in float64."""
    model = model.double()
    total, count = 0.0, 0
    for row in rows:
        p = torch.softmax(model(input_ids=row["input_ids"][None]).logits[0, :-1], -1)
        keep = row["labels"][1:] != -100
        p = p[keep].gather(1, row["labels"][1:][keep][:, None])
        total = total + (-p.log().sum() if loss == "sft" else -p.sum())
        count += int(keep.sum())
    names, parameters = zip(*model.named_parameters())
    gradients = torch.autograd.grad(total / count, parameters)
    return {name: p.detach() - lr * g for name, p, g in zip(names, parameters, gradients)}


@pytest.mark.parametrize("loss", ["sft", "dft"])
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_trainer_step_normalises_by_all_tokens_of_all_micro_batches(tmp_path, kind, loss):
    rows = rows_of([1, LENGTH, 3, 7])
    model = tiny(kind)
    expected = expected_weights(tiny(kind), rows, loss, lr=50.0)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=1,
        learning_rate=50.0, lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0, use_cpu=True,
        report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows, compute_loss_func=loss_func(loss)).train()
    before = tiny(kind).double().state_dict()
    for name, value in model.state_dict().items():
        step, right = value.double() - before[name], expected[name] - before[name]
        assert float((step - right).norm()) <= 1e-4 * float(right.norm()) + 1e-7, name


def test_without_a_count_it_is_the_mean_over_supervised_tokens():
    logits = torch.randn(2, LENGTH, VOCABULARY, dtype=torch.float64)
    labels = torch.stack([row["labels"] for row in rows_of([3, 6])])
    ours = loss_func("sft")(CausalLMOutput(logits=logits), labels)
    theirs = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("count", [10, torch.tensor(10), torch.tensor(10.0), torch.tensor([[5], [5]])])
def test_the_count_may_be_a_number_a_tensor_or_one_a_device(count):
    outputs = {"logits": torch.randn(1, LENGTH, VOCABULARY)}
    labels = rows_of([4])[0]["labels"][None]
    compute = loss_func("dft")
    torch.testing.assert_close(compute(outputs, labels, num_items_in_batch=count) * 10, compute(outputs, labels) * 4)


def test_nothing_supervised_gives_an_attached_zero():
    logits = torch.randn(1, LENGTH, VOCABULARY, requires_grad=True)
    loss = loss_func("dft")({"logits": logits}, torch.full((1, LENGTH), -100))
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad.eq(0).all()


def test_missing_logits_or_labels_are_errors():
    labels = torch.zeros(1, LENGTH, dtype=torch.long)
    logits = torch.zeros(1, LENGTH, VOCABULARY)
    for outputs in ({"loss": torch.tensor(1.0)}, CausalLMOutput(loss=torch.tensor(1.0)), (logits,)):
        with pytest.raises(ValueError, match="no logits"):
            loss_func("dft")(outputs, labels)
    with pytest.raises(ValueError, match="no labels"):
        loss_func("dft")({"logits": logits}, None)


def test_an_unknown_loss_is_refused_before_training():
    with pytest.raises(ValueError, match="did you mean 'sft'"):
        loss_func("sftt")
