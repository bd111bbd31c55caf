"""Why a server could not be reached, in few words."""

import socket

import requests


def why(error: BaseException) -> str:
    """The innermost cause, without the chain of wrappers around it."""
    last = error
    seen = {id(last)}
    while (inner := _inner(last)) is not None and id(inner) not in seen:
        last = inner
        seen.add(id(last))
    at_proxy = "the proxy: " if isinstance(error, requests.exceptions.ProxyError) else ""
    if isinstance(last, ConnectionRefusedError):
        return f"{at_proxy}connection refused"
    if isinstance(last, socket.gaierror):
        return f"{at_proxy}name not known"
    words = (last.strerror if isinstance(last, OSError) else None) or str(last)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _inner(error: BaseException) -> BaseException | None:
    inside = (getattr(error, "reason", None), *error.args, error.__cause__)
    return next((each for each in inside if isinstance(each, BaseException)), None)
