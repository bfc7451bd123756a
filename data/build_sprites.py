"""Build the emoji world's sprites: seven art styles, one parquet file each, from openly licensed npm packages.

    python data/build_sprites.py [--packages FOLDER]

Needs `npm` (to fetch the pinned packages below, once) and `rsvg-convert` (Debian: librsvg2-bin) while BUILDING. Using the
sprites needs neither. Every row of the result carries its concept, style, role, licence and the package it came from.
"""

import argparse
import io
import json
import re
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from tqdm import tqdm

SIZE = 64  # pixels, the size at which emoji-datasource ships its drawings

# style: (npm package, version, role, licence of the drawings, who drew them)
STYLES = {
    "noto": ("emoji-datasource-google", "16.0.0", "source", "Apache-2.0", "Google, Noto Emoji"),
    "noto-v1": ("@iconify-json/noto-v1", "1.2.5", "source", "Apache-2.0", "Google, first version of Noto Emoji"),
    "emojione": ("@iconify-json/emojione", "1.2.3", "source", "CC-BY-4.0", "Emoji One 2.3"),
    "fluent-flat": ("@iconify-json/fluent-emoji-flat", "1.2.6", "source", "MIT", "Microsoft, Fluent Emoji, flat"),
    "fxemoji": ("@iconify-json/fxemoji", "1.2.2", "source", "Apache-2.0", "Mozilla, FxEmojis"),
    "twemoji": ("emoji-datasource-twitter", "16.0.0", "target", "CC-BY-4.0", "Twitter and contributors, Twemoji"),
    "fluent-line": ("fluentui-emoji", "1.3.0", "target", "MIT", "Microsoft, Fluent Emoji, high contrast"),
}
NAMES = ("emojibase-data", "17.0.0")  # CLDR names and keywords, MIT

GROUPS = {3: "animals-nature", 4: "food-drink", 5: "travel-places", 6: "activities", 7: "objects"}
# Twenty-four clock faces and eight phases of the moon cannot be told apart by a person at 40 pixels.
INDISTINCT = re.compile(
    r"o’clock|-thirty$|^(new|full) moon$|(crescent|quarter|gibbous) moon$|^last quarter|^first quarter"
)


def slug(name: str) -> str:
    """'T-Rex' -> 't-rex', 'Mount Fuji' -> 'mount-fuji': how icon sets name their files."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("’", "").replace("ñ", "n")).strip("-")


def plain(hexcode: str) -> str:
    """Hexcodes without the variation selector, in which packages differ."""
    return hexcode.upper().replace("-FE0F", "")


def fetch(package: str, version: str, folder: Path) -> Path:
    """The unpacked package, fetched once by `npm pack`."""
    target = folder / f"{package.replace('/', '-').lstrip('@')}-{version}"
    if not target.exists():
        archive = target.parent / f"{target.name}.tgz"
        if not archive.exists():
            subprocess.run(["npm", "pack", f"{package}@{version}", "--silent"], cwd=folder, check=True)
        partial = target.with_suffix(".partial")
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        (partial / "package").rename(target)
        partial.rmdir()
    return target


def concepts(names: Path) -> list[dict]:
    """The nameable things: animals, food, places, activities, objects, each with its CLDR name and keywords."""
    unicode_names = json.loads((names / "meta/unicode-names.json").read_text())
    found = []
    for entry in json.loads((names / "en/data.json").read_text()):
        if entry.get("group") not in GROUPS or INDISTINCT.search(entry["label"]):
            continue
        old_name = unicode_names.get(entry["hexcode"], unicode_names.get(plain(entry["hexcode"]), entry["label"]))
        found.append(
            {
                "concept": entry["label"].replace("’", "'").lower(),
                "emoji": entry["emoji"],
                "hexcode": plain(entry["hexcode"]),
                "group": GROUPS[entry["group"]],
                "subgroup": entry["subgroup"],
                "keywords": entry.get("tags", []),
                "slugs": [slug(entry["label"]), slug(old_name)],
            }
        )
    return found


def rasterise(svg: str) -> bytes:
    return subprocess.run(
        ["rsvg-convert", "-w", str(SIZE), "-h", str(SIZE), "--keep-aspect-ratio"],
        input=svg.encode(),
        capture_output=True,
        check=True,
    ).stdout


class Drawings:
    """How one package stores its pictures: `png(concept)` is the drawing of a concept, or None."""

    def __init__(self, style: str, package: Path):
        self.style, self.package = style, package
        if (package / "emoji.json").exists():
            rows = json.loads((package / "emoji.json").read_text())
            self.company = package.name.split("-")[2]
            self.files = {plain(row["unified"]): row["image"] for row in rows if row[f"has_img_{self.company}"]}
        elif (package / "icons.json").exists():
            self.icons = json.loads((package / "icons.json").read_text())

    def png(self, concept: dict) -> bytes | None:
        if hasattr(self, "files"):
            name = self.files.get(concept["hexcode"])
            return (self.package / "img" / self.company / "64" / name).read_bytes() if name else None
        svg = self.icon_svg(concept) if hasattr(self, "icons") else self.file_svg(concept)
        return rasterise(svg) if svg else None

    def icon_svg(self, concept: dict) -> str | None:
        aliases = self.icons.get("aliases", {})
        for name in [s for s in concept["slugs"]] + [s.replace("-", "") for s in concept["slugs"]]:
            name = aliases.get(name, {}).get("parent", name)
            if icon := self.icons["icons"].get(name):
                width = icon.get("width", self.icons.get("width", 16))
                height = icon.get("height", self.icons.get("height", 16))
                return (
                    f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="0 0 {width} {height}" width="{width}" height="{height}">{icon["body"]}</svg>'
                )
        return None

    def file_svg(self, concept: dict) -> str | None:
        path = self.package / "icons" / "high-contrast" / f"{concept['slugs'][0]}.svg"
        return path.read_text() if path.exists() else None


def as_sprite(png: bytes) -> bytes:
    """A SIZE x SIZE RGBA PNG, centred, losslessly packed. A drawing is never enlarged: it would blur."""
    picture = PILImage.open(io.BytesIO(png)).convert("RGBA")
    picture.thumbnail((SIZE, SIZE), PILImage.Resampling.LANCZOS)
    canvas = PILImage.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    canvas.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    packed = io.BytesIO()
    canvas.save(packed, "PNG", optimize=True)
    return packed.getvalue()


FEATURES = Features(
    {
        "image": Image(),
        "concept": Value("string"),
        "emoji": Value("string"),
        "hexcode": Value("string"),
        "group": Value("string"),
        "keywords": List(Value("string")),
        "style": Value("string"),
        "role": Value("string"),
        "licence": Value("string"),
        "artist": Value("string"),
        "package": Value("string"),
    }
)


def draw_style(style: str, found: list[dict], folder: Path) -> dict[str, bytes]:
    drawings = Drawings(style, fetch(*STYLES[style][:2], folder))
    with ThreadPoolExecutor(2) as pool:
        pictures = list(tqdm(pool.map(drawings.png, found), total=len(found), desc=style))
    return {c["hexcode"]: as_sprite(png) for c, png in zip(found, pictures) if png}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packages", type=Path, default=Path("data/.packages"), help="where npm packages are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "sprites")
    options = parser.parse_args()
    options.packages.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)

    found = concepts(fetch(*NAMES, options.packages))
    sprites = {style: draw_style(style, found, options.packages) for style in STYLES}
    # A concept of the world is drawn in both target styles and in at least two source styles.
    targets = [s for s, row in STYLES.items() if row[2] == "target"]
    sources = [s for s, row in STYLES.items() if row[2] == "source"]
    kept = [
        c
        for c in found
        if all(c["hexcode"] in sprites[s] for s in targets) and sum(c["hexcode"] in sprites[s] for s in sources) >= 2
    ]
    for style, (package, version, role, licence, artist) in STYLES.items():
        rows = [
            {key: c[key] for key in ("concept", "emoji", "hexcode", "group", "keywords")}
            | {
                "image": {"bytes": sprites[style][c["hexcode"]], "path": None},
                "style": style,
                "role": role,
                "licence": licence,
                "artist": artist,
                "package": f"{package}@{version}",
            }
            for c in kept
            if c["hexcode"] in sprites[style]
        ]
        partial = options.out / f"{style}.parquet.partial"
        Dataset.from_list(rows, features=FEATURES).to_parquet(partial)
        partial.rename(options.out / f"{style}.parquet")
        print(
            f"{style:12} {role:6} {len(rows):4} sprites  {(options.out / f'{style}.parquet').stat().st_size / 1e6:.2f} MB"
        )
    print(f"{len(kept)} concepts, {sum(len(s) for s in sprites.values())} drawings read", file=sys.stderr)


if __name__ == "__main__":
    main()
