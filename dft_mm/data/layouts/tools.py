"""Tools and thoughts as text, exactly as Qwen2.5's own text template writes them for a row."""

import json
from collections.abc import Mapping
from typing import Any

from dft_mm.data.layouts.formats import decoded, empty
from dft_mm.data.records import BadRow

DEFAULT_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
"""What that template says before the tools where there is no system prompt."""
_OFFER = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>{tools}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
    'XML tags:\n<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)
RESULT = ("<tool_response>\n", "\n</tool_response>")


def offered(value: Any) -> str:
    """What the system turn says of the tools of a row, which are a list or its JSON; "" where there are none.

    A bare function signature is put into `{"type": "function", "function": …}`, which is what the model is given
    when it is served.
    """
    given = decoded(value)
    if empty(given):
        return ""
    listed = [given] if isinstance(given, Mapping) else given
    tools = [decoded(tool) for tool in listed] if isinstance(listed, list) else [None]
    if not all(isinstance(tool, Mapping) and tool for tool in tools):
        raise BadRow("tools", f"`tools` is no list of function signatures: {str(value)[:60]!r}")
    lines = (_json(tool if "function" in tool else {"type": "function", "function": tool}) for tool in tools)
    return _OFFER.format(tools="".join(f"\n{line}" for line in lines))


def thought(text: str) -> str:
    return f"<think>\n{text}\n</think>\n\n"


def calls(value: Any, where: str) -> list[str]:
    """The text of each tool call of a value: an object with name and arguments, a list of them, or their JSON."""
    given = decoded(value)
    return [_call(decoded(call), where) for call in (given if isinstance(given, list) else [given])]


def _call(call: Any, where: str) -> str:
    inner = call.get("function") if isinstance(call, Mapping) else None
    call = inner if isinstance(inner, Mapping) else call
    name = call.get("name") if isinstance(call, Mapping) else None
    if not isinstance(name, str) or not name:
        raise BadRow("tool_call", f"{where}: {str(call)[:60]!r} is no call: an object with name and arguments")
    arguments = call.get("arguments")
    arguments = {} if empty(arguments) else decoded(arguments)
    if not isinstance(arguments, Mapping):
        raise BadRow("tool_call", f"{where}: the arguments of {name!r} are no JSON object: {str(arguments)[:60]!r}")
    return f'<tool_call>\n{{"name": "{name}", "arguments": {_json(arguments)}}}\n</tool_call>'


def _json(value: Any) -> str:
    """As `tojson` does in the chat templates of transformers."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadRow("tools", f"cannot be written as JSON: {error}") from error
