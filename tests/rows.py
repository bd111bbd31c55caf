"""Small image-text data in WeThink's layout, made where a test wants it."""

import json

from PIL import Image, ImageDraw


def write_wethink(folder, count=24, text_every=4):
    """`count` rows about counting bars, every `text_every`th without a picture; returns the JSONL path."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for number in range(count):
        bars = number % 5 + 1
        picture = Image.new("RGB", (56 + 28 * (number % 3), 56), "white")
        for bar in range(bars):
            ImageDraw.Draw(picture).rectangle((6 + 10 * bar, 10, 10 + 10 * bar, 46), fill=(20 * number % 255, 0, 90))
        picture.save(folder / f"images/{number}.png")
        rows.append(
            {
                "id": f"row-{number}",
                "problem": f"How many bars are there? ({number})",
                "answer": str(bars),
                "refined_cot": " ".join(f"bar {bar + 1}" for bar in range(bars)),
                "image_path": None if number % text_every == text_every - 1 else f"{number}.png",
            }
        )
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
