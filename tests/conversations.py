"""Conversations, small tokenizers, and what transformers itself makes of them."""

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def say(role, *parts, **more):
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content, **more}


def as_given_to_transformers(messages):
    """Pictures as parts, everything else as plain strings."""
    return [
        {
            "role": m["role"],
            "content": m["content"]
            if any(p["type"] == "image" for p in m["content"])
            else "".join(p["text"] for p in m["content"]),
        }
        for m in messages
    ]


def official(tokenizer, template, messages, merged=(), **names):
    """Ids of the whole rendering, image tokens expanded in the text as the processor of transformers does; `names` are
    for the template."""
    text = tokenizer.apply_chat_template(
        as_given_to_transformers(messages), chat_template=template, tokenize=False, **names
    )
    head, *tails = text.split("<|image_pad|>") if merged else [text]
    assert len(tails) == len(merged)
    text = head + "".join("<|image_pad|>" * count + tail for count, tail in zip(merged, tails))
    return tokenizer(text, add_special_tokens=False).input_ids


def supervised_segments(rendered):
    """Runs of supervised ids, in order."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], rendered.supervised.astype(int), [0]])))
    return [rendered.ids[start:end].tolist() for start, end in zip(edges[::2], edges[1::2])]


TURNS = [say("user", "1"), say("assistant", "one"), say("user", "2"), say("assistant", "two")]


def small_tokenizer(special, **names):
    """Byte-level BPE learned from a few words: quick to copy, and of the same kind as the real ones."""
    backend = Tokenizer(models.BPE(ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    corpus = ["the user asks and the assistant answers in two lines\n\nof text, then three: a b c d\n"] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=backend, additional_special_tokens=special, **names)
