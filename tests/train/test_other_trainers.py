"""The loss inside transformers.Trainer and TRL's SFTTrainer: the gradient of the first step is our own loop's."""

import pytest
import torch
from tiny_models import IMAGE_ID, TEXT, tiny_vl
from train.mixed_batches import IMAGES, WINDOW, example, pixel_values
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainerCallback, TrainingArguments

from dft_mm.config import LossConfig
from dft_mm.data.collate import Collator
from dft_mm.loss.family import Objective
from dft_mm.loss.hf import loss_func
from dft_mm.train.module import Trainable
from dft_mm.train.step import train_step


def tiny_qwen():
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**TEXT, initializer_range=0.2))


MODELS = {"qwen2": tiny_qwen, "qwen2_5_vl": lambda: tiny_vl(tied=True, initializer_range=0.2)}


def examples(pictures):
    generator = torch.Generator().manual_seed(4)
    lengths = [(14, 3), (9, 5), (21, 20), (6, 1)]
    return [example(generator, f"{n}", *sizes, pictures and n % 2 == 0) for n, sizes in enumerate(lengths)]


class PlainEngine:
    """What the step asks of an engine, without an update."""

    device = torch.device("cpu")

    def __init__(self, module):
        self.module = module

    def __call__(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    def set_gradient_accumulation_boundary(self, is_boundary):
        pass

    def backward(self, loss, scale_wrt_gas):
        loss.backward()

    def step(self):
        pass

    def was_step_applied(self):
        return True

    def zero_optimization_stage(self):
        return 0


def own_gradient(name, rows, loss):
    model = MODELS[name]().train()
    collate = Collator(0, IMAGE_ID if name == "qwen2_5_vl" else None, IMAGES, WINDOW)
    tokens = sum(int(e.supervised[1:].sum()) for e in rows)
    batches = [collate(rows[:3]), collate(rows[3:])]
    train_step(PlainEngine(Trainable(model)), batches, 2, tokens, Objective(loss, step=1), end_id=1)
    return {n: p.grad for n, p in model.named_parameters()}


class KeepGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def padded(rows):
    """A collator of the trainer's side: padded, with labels; nothing of the package's."""
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {
        "input_ids": pad([row["input_ids"] for row in rows], batch_first=True),
        "attention_mask": pad([torch.ones_like(row["input_ids"]) for row in rows], batch_first=True),
        "labels": pad([row["labels"] for row in rows], batch_first=True, padding_value=-100),
    }
    pictures = [row for row in rows if "pixel_values" in row]
    if pictures:
        batch["pixel_values"] = torch.cat([row["pixel_values"] for row in pictures])
        batch["image_grid_thw"] = torch.cat([row["image_grid_thw"] for row in pictures])
        batch["mm_token_type_ids"] = (batch["input_ids"] == IMAGE_ID).int()
    return batch


def as_rows(of_examples):
    rows = []
    for e in of_examples:
        row = {"input_ids": e.ids, "labels": e.ids.masked_fill(~e.supervised, -100)}
        if e.patches is not None:
            row |= {"pixel_values": pixel_values(e.patches), "image_grid_thw": e.image_grid_thw}
        rows.append(row)
    return rows


ARGUMENTS = {
    "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 1, "optim": "sgd", "use_cpu": True,
    "max_grad_norm": 0.0, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False,
}  # fmt: skip


def assert_same(theirs, ours):
    largest = max(float(g.abs().max()) for g in ours.values())
    assert set(theirs) == set(ours)
    assert largest > 1e-4
    for name, gradient in theirs.items():
        # Sums over patches and tokens in another order: at most 2.1e-6 was seen.
        assert float((gradient - ours[name]).abs().max()) <= 3e-6 * largest, name


@pytest.mark.parametrize("loss", ["dft", "sed"])
@pytest.mark.parametrize("name", MODELS)
def test_transformers_trainer_takes_the_same_first_step(tmp_path, name, loss):
    rows = examples(pictures=name == "qwen2_5_vl")
    keep = KeepGradients()
    Trainer(
        MODELS[name](), TrainingArguments(output_dir=str(tmp_path), **ARGUMENTS), data_collator=padded,
        train_dataset=as_rows(rows), compute_loss_func=loss_func(loss), callbacks=[keep],
    ).train()  # fmt: skip
    assert_same(keep.gradients, own_gradient(name, rows, loss))


@pytest.mark.filterwarnings("ignore:`compute_loss_func` is deprecated")
def test_trls_sft_trainer_takes_the_same_first_step(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    rows = examples(pictures=False)
    keep = KeepGradients()
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), bf16=False, gradient_checkpointing=False, **ARGUMENTS,
        dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    lists = [{key: value.tolist() for key, value in row.items()} for row in as_rows(rows)]
    trl.SFTTrainer(
        tiny_qwen(), arguments, train_dataset=Dataset.from_list(lists),
        data_collator=lambda batch: padded([{k: torch.tensor(v) for k, v in row.items()} for row in batch]),
        processing_class=Tokenizer.make(), compute_loss_func=loss_func("dft"), callbacks=[keep],
    ).train()  # fmt: skip
    assert_same(keep.gradients, own_gradient("qwen2", rows, "dft"))


class Tokenizer:
    """SFTTrainer wants one, though the rows are token ids already."""

    @staticmethod
    def make():
        from tokenizers import Tokenizer as Fast
        from tokenizers.models import WordLevel
        from transformers import PreTrainedTokenizerFast

        words = Fast(WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
        return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def test_a_loss_that_sets_in_over_steps_is_told_the_step(tmp_path):
    rows = examples(pictures=False)
    config = LossConfig(name="dft", warmup_steps=0, ramp_steps=4)
    with pytest.raises(ValueError, match="step= is missing"):
        loss_func(config)
    keep = KeepGradients()
    trainer = Trainer(
        tiny_qwen(), TrainingArguments(output_dir=str(tmp_path), **ARGUMENTS), data_collator=padded,
        train_dataset=as_rows(rows), callbacks=[keep],
    )  # fmt: skip
    trainer.compute_loss_func = loss_func(config, step=lambda: trainer.state.global_step + 1)
    trainer.train()
    assert_same(keep.gradients, own_gradient("qwen2", rows, config))


@pytest.mark.parametrize("name", ["asft", "iw_sft"])
def test_a_loss_with_a_reference_is_refused_before_training(name):
    with pytest.raises(ValueError, match=f"{name} compares with a reference model, which a trainer does not hand over"):
        loss_func(name)
