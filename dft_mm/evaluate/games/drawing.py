"""Pictures of the games, in the colours that are learned from and in others.

Cards: the visual shift of arXiv 2501.17161 (section 5.2), black suits to learn from and red ones as the shift. Boards:
another palette. What a thing is can be told by its shape alone.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dft_mm.atomic import replacing

TILE = 56
"""Pixels of a board cell's side: 2 x 2 image tokens of Qwen2.5-VL."""
CARD = (112, 140)
"""Pixels of a card with the cloth around it: 4 x 5 image tokens."""
_FINE = 4  # everything is drawn so much larger and then reduced, for smooth edges
_CLOTH = "#2e6b4a"
_BLACK, _RED = "#1c1c22", "#c81e2d"


def save(image: Image.Image, folder: Path) -> str:
    """Write a picture below a folder as a whole file; its name there is made of its content, so that another
    picture has another name.
    """
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = buffer.getvalue()
    name = f"{sha256(data).hexdigest()[:20]}.png"
    path = folder / name
    if not (path.is_file() and path.read_bytes() == data):
        with replacing(path) as file:
            file.write(data)
    return name


def hand(cards: Sequence[str], other_colours: bool = False) -> Image.Image:
    """Cards side by side. A rank that comes again has the colour's other suit."""
    suits = ("heart", "diamond") if other_colours else ("spade", "club")
    picture = Image.new("RGB", (CARD[0] * len(cards), CARD[1]), _CLOTH)
    last: dict[str, int] = {}
    for place, rank in enumerate(cards):
        last[rank] = 1 - last[rank] if rank in last else (place + len("".join(cards))) % 2
        picture.paste(_card(rank, suits[last[rank]]), (place * CARD[0], 0))
    return picture


@cache
def _card(rank: str, suit: str) -> Image.Image:
    width, height = (side * _FINE for side in CARD)
    image = Image.new("RGB", (width, height), _CLOTH)
    draw = ImageDraw.Draw(image)
    edge = 6 * _FINE
    draw.rounded_rectangle(
        (edge, edge, width - edge, height - edge), 9 * _FINE, fill="#fdfdf8", outline="#8d8d84", width=_FINE
    )
    colour = _RED if suit in ("heart", "diamond") else _BLACK
    corner = Image.new("RGBA", (width, height))
    marks = ImageDraw.Draw(corner)
    marks.text((29 * _FINE, 27 * _FINE), rank, fill=colour, font=_font(35), stroke_width=_FINE / 2, anchor="mm")
    _draw_suit(marks, suit, colour, 29 * _FINE, 54 * _FINE, 8 * _FINE)
    image.paste(corner, (0, 0), corner)
    turned = corner.rotate(180)
    image.paste(turned, (0, 0), turned)
    _draw_suit(draw, suit, colour, width / 2, height / 2, 21 * _FINE)
    return image.resize(CARD, Image.Resampling.LANCZOS)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size * _FINE)


def _draw_suit(draw: ImageDraw.ImageDraw, suit: str, colour: str, x: float, y: float, r: float) -> None:
    """A suit's sign around (x, y), about 2 r high."""

    def disc(cx: float, cy: float, radius: float) -> None:
        draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), fill=colour)

    def shape(*points: tuple[float, float]) -> None:
        draw.polygon([(x + r * px, y + r * py) for px, py in points], fill=colour)

    if suit == "diamond":
        shape((0, -1.05), (0.72, 0), (0, 1.05), (-0.72, 0))
        return
    if suit == "heart":
        for side in (-1, 1):
            disc(x + side * 0.43 * r, y - 0.4 * r, 0.48 * r)
        shape((-0.86, -0.2), (0.86, -0.2), (0, 1))
        return
    shape((0, 0.1), (0.42, 1), (-0.42, 1))  # the stem of both black suits
    if suit == "spade":
        for side in (-1, 1):
            disc(x + side * 0.43 * r, y + 0.22 * r, 0.48 * r)
        shape((-0.87, 0.06), (0.87, 0.06), (0, -1.05))
    else:
        for px, py in ((0, -0.52), (-0.5, 0.2), (0.5, 0.2)):
            disc(x + px * r, y + py * r, 0.46 * r)
        disc(x, y, 0.3 * r)


@dataclass(frozen=True)
class _Palette:
    floor: str
    grid: str
    brick: str
    mortar: str
    goal: str
    box: str
    box_edge: str
    player: str
    skin: str


_STANDARD = _Palette("#f1e8d6", "#ddd0b8", "#8a4b3c", "#c9b5a6", "#d0342c", "#d9a441", "#7a4f16", "#2456a6", "#f0bf97")
_OTHER = _Palette("#26303f", "#3a475b", "#6f8f72", "#3d5340", "#36d6e0", "#a678d4", "#3f2263", "#f2c230", "#fff3d6")


def board(text: str, other_colours: bool = False) -> Image.Image:
    """A board in XSB, cell by cell; short lines are filled with floor."""
    lines = text.split("\n")
    palette = _OTHER if other_colours else _STANDARD
    picture = Image.new("RGB", (TILE * max(map(len, lines)), TILE * len(lines)), palette.floor)
    for row, line in enumerate(lines):
        for column, char in enumerate(line):
            picture.paste(_tile(char, palette), (column * TILE, row * TILE))
    return picture


@cache
def _tile(char: str, palette: _Palette) -> Image.Image:
    side = TILE * _FINE
    image = Image.new("RGB", (side, side), palette.floor)
    draw = ImageDraw.Draw(image)
    if char == "#":
        _draw_bricks(draw, side, palette)
    else:
        draw.rectangle((0, 0, side - 1, side - 1), outline=palette.grid, width=_FINE)
    if char in "$*":
        _draw_crate(draw, side, palette)
    if char in ".*+":
        _draw_ring(draw, side, palette, around=char == "+")
    if char in "@+":
        _draw_player(draw, side, palette)
    return image.resize((TILE, TILE), Image.Resampling.LANCZOS)


def _draw_bricks(draw: ImageDraw.ImageDraw, side: int, palette: _Palette) -> None:
    draw.rectangle((0, 0, side, side), fill=palette.mortar)
    height, gap = side / 4, 1.5 * _FINE
    for row in range(4):
        start = 0 if row % 2 else -side / 4
        for brick in range(3):
            left = start + brick * side / 2
            draw.rectangle(
                (left + gap, row * height + gap, left + side / 2 - gap, (row + 1) * height - gap), fill=palette.brick
            )


def _draw_crate(draw: ImageDraw.ImageDraw, side: int, palette: _Palette) -> None:
    edge, beam = side * 0.1, round(side * 0.08)
    box = (edge, edge, side - edge, side - edge)
    draw.rectangle(box, fill=palette.box)
    near, far = edge + beam, side - edge - beam
    draw.line((near, near, far, far), fill=palette.box_edge, width=beam)
    draw.line((near, far, far, near), fill=palette.box_edge, width=beam)
    draw.rectangle(box, outline=palette.box_edge, width=beam)


def _draw_ring(draw: ImageDraw.ImageDraw, side: int, palette: _Palette, around: bool) -> None:
    """A goal: a ring with a dot; larger where the player stands on it."""
    for radius, colour in ((0.46 if around else 0.27, palette.goal), (0.38 if around else 0.18, palette.floor)):
        r = radius * side
        draw.ellipse((side / 2 - r, side / 2 - r, side / 2 + r, side / 2 + r), fill=colour)
    r = 0.08 * side
    draw.ellipse((side / 2 - r, side / 2 - r, side / 2 + r, side / 2 + r), fill=palette.goal)


def _draw_player(draw: ImageDraw.ImageDraw, side: int, palette: _Palette) -> None:
    """A figure with head, arms and legs."""

    def limb(x0: float, y0: float, x1: float, y1: float) -> None:
        draw.line((side * x0, side * y0, side * x1, side * y1), fill=palette.player, width=round(side * 0.09))

    limb(0.5, 0.45, 0.3, 0.56)
    limb(0.5, 0.45, 0.7, 0.56)
    limb(0.46, 0.6, 0.4, 0.84)
    limb(0.54, 0.6, 0.6, 0.84)
    draw.rounded_rectangle((side * 0.4, side * 0.38, side * 0.6, side * 0.66), side * 0.06, fill=palette.player)
    draw.ellipse((side * 0.39, side * 0.15, side * 0.61, side * 0.37), fill=palette.skin, outline=palette.player,
                 width=round(side * 0.025))  # fmt: skip
