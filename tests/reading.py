"""Records, read by a layout as preparation reads them, and written so that an expectation can be read."""

from dft_mm.data.layouts.choose import Layout
from dft_mm.data.layouts.rows import parse
from dft_mm.data.records import BadRow


def shown(conversation):
    """[("user", "~text"), …]: pictures as ~."""
    return [
        (message["role"], "".join("~" if part["type"] == "image" else part["text"] for part in message["content"]))
        for message in conversation.messages
    ]


def sources(conversation):
    return [picture.source for picture in conversation.images]


def learned(conversation):
    """Texts of the answers that are learned."""
    return [
        text
        for message, (role, text) in zip(conversation.messages, shown(conversation), strict=True)
        if role == "assistant" and message.get("train", True)
    ]


def read(name, record, columns=None, entry=None, system=None):
    return parse(record, Layout(name, columns, entry), system)


def convert(name, record, columns=None):
    """(messages, pictures) of a record before it is checked."""
    conversation = Layout(name, columns).read(record)
    return shown(conversation), sources(conversation)


def reason(name, record, columns=None, entry=None):
    """Why a record cannot be learned."""
    try:
        read(name, record, columns, entry)
    except BadRow as bad:
        return bad.reason if bad.detail else "a reason without a detail"
    return None
