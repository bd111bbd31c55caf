"""Packed files (gz, bz2, xz, zst) → what they hold, once, whole or not at all."""

import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from dft_mm.atomic import replacing

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_NAMES = (".gz", ".bz2", ".xz", ".zst")
_BLOCK = 1 << 22  # bytes


def packing(path: Path) -> str | None:
    """gzip, bz2, xz or zstd, by the file's first bytes; None for a file that is not packed."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((name for magic, name in _PACKED.items() if head.startswith(magic)), None)


def inner_suffix(path: Path) -> str:
    """How a file's name ends, in lower case, without what says that it is packed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in _NAMES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def unpack(path: Path, packing: str) -> Iterator[bytes]:
    """Blocks of what a packed file holds; raises OSError, EOFError or LZMAError when it breaks off or is damaged."""
    if packing == "xz":
        yield from _unpack_xz(path)
        return
    with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, packing) as stream:
        while block := stream.read(_BLOCK):
            yield block


def _unpack_xz(path: Path) -> Iterator[bytes]:
    """Unlike lzma.open, this refuses what follows a stream and is none: it may be a damaged one."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    with path.open("rb") as file:
        while block := file.read(1 << 16):
            while block:
                if decoder.eof:
                    block = block.lstrip(b"\0")  # padding between streams
                    if not block:
                        break
                    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)
                yield decoder.decompress(block)
                block = decoder.unused_data
    if not decoder.eof:
        raise EOFError("it ends within a stream")


def write_once(target: Path, write: Callable[[Any], Any]) -> Path:
    """`target`, made by `write`, which gets an open file, unless it is there: whole, or not at all."""
    if target.is_file():
        return target
    with replacing(target) as sink:
        write(sink)
    return target
