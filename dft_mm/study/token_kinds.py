"""What a token is, by its text: a number, an operator, a word or punctuation. One token at a time, in any language."""

import unicodedata

from transformers import PreTrainedTokenizerBase

KINDS = ("numbers", "operators", "words", "punctuation")
_OPERATORS = frozenset("-*/^%·\N{HYPHEN}\N{FULLWIDTH SOLIDUS}")
"""Those that Unicode does not call mathematical symbols (Sm: + < = > | ~ × ÷ ∑ → …). A hyphen is taken for a minus."""
_COMMANDS = frozenset(
    ["times", "div", "cdot", "pm", "mp", "frac", "dfrac", "tfrac", "sqrt", "sum", "prod", "int", "to", "mod", "pmod"]
    + ["le", "leq", "ge", "geq", "ne", "neq", "approx", "equiv", "sim", "rightarrow", "implies", "cap", "cup", "in"]
)
"""LaTeX's names of operators, with a backslash before them."""
_PARTIAL = "\N{REPLACEMENT CHARACTER}"


def token_kind(text: str) -> str:
    """The kind of a token's text. A digit without a letter makes a number, a letter a word, and white space alone is
    punctuation; so is what is nothing else. Part of a character that takes several tokens counts as part of a word.
    """
    stripped = text.strip()
    if stripped.startswith("\\") and stripped[1:] in _COMMANDS:
        return "operators"
    categories = {unicodedata.category(character) for character in stripped}
    if any(category[0] in "LM" for category in categories) or _PARTIAL in stripped:
        return "words"
    if any(category[0] == "N" for category in categories):
        return "numbers"
    if "Sm" in categories or _OPERATORS & set(stripped):
        return "operators"
    return "punctuation"


def kinds_of(tokenizer: PreTrainedTokenizerBase, ids: set[int]) -> dict[int, str | None]:
    """The kind of each token; None for control tokens, such as the one that ends a turn: they are no content."""
    control = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {id_: None if id_ in control else token_kind(_text(tokenizer, id_)) for id_ in ids}


def _text(tokenizer: PreTrainedTokenizerBase, id_: int) -> str:
    return tokenizer.decode([id_], clean_up_tokenization_spaces=False)
