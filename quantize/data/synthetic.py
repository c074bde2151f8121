"""Procedural surfaces with defects: data for the demo and the tests that nobody has to license or download.

A *part* is one piece of surface, a little larger than a photograph, with its defects. A *photograph* is a
window on a part under its own light, with its own sensor noise. Photographs of one part share a group and
so a split. Everything follows from the seed.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PHOTOGRAPHS_PER_PART = 2
GOOD_SHARE = 0.75
FAINT_SHARE = 0.04
SPLIT_SHARES = (("train", 0.6), ("val", 0.2), ("test", 0.2))
COLUMNS = ("image", "mask", "defective", "split", "group", "defect_type")


@dataclass(frozen=True)
class Photograph:
    """One image (uint8 H x W or H x W x 3), its defect mask (bool H x W) and what is known of it."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    group: int
    defect_type: str

    @property
    def defective(self) -> bool:
        return bool(self.mask.any())


def write_surfaces(
    folder: str | Path, *, count: int = 900, size: int = 128, seed: int = 0, channels: int = 1
) -> Path:
    """Write a native data set (``samples.csv``, ``images/``, ``masks/``) of ``count`` photographs.

    ``size`` is the side in pixels, ``channels`` 1 (grey) or 3 (RGB). The folder appears complete or not at
    all. Raises ``InputError`` if it exists.
    """
    from edge.folders import new_folder
    from edge.images import write_png
    from edge.progress import progress

    target = Path(folder)
    with new_folder(target) as staging:
        (staging / "images").mkdir()
        (staging / "masks").mkdir()
        rows = []
        plan = plan_parts(count, seed)
        for index, (photograph, split) in enumerate(
            progress(_photographs(plan, size, seed, channels), "drawing surfaces", total=count)
        ):
            name = f"surface-{index:05d}.png"
            write_png(staging / "images" / name, photograph.image)
            mask = ""
            if photograph.defective:
                mask = f"masks/{name}"
                write_png(staging / "masks" / name, photograph.mask.astype(np.uint8) * 255)
            rows.append(
                (
                    f"images/{name}",
                    mask,
                    int(photograph.defective),
                    split,
                    photograph.group,
                    photograph.defect_type,
                )
            )
        with (staging / "samples.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(rows)
    return target


@dataclass(frozen=True)
class PartPlan:
    """What to draw: photographs of part ``group`` for ``split``, with one kind of defect or ``good``."""

    group: int
    split: str
    defect_type: str
    photographs: int


def plan_parts(count: int, seed: int) -> list[PartPlan]:
    """Divide ``count`` photographs into parts, splits and defects so that every split has all of them."""
    rng = np.random.default_rng([seed, 0])
    plans: list[PartPlan] = []
    remaining = count
    group = 0
    defects = list(DEFECTS)
    # Defects and splits are dealt like cards, not drawn, so that a small set still has every kind.
    decks: dict[str, list[str]] = {}

    def deal(name: str, cards: list[str]) -> str:
        if not decks.get(name):
            decks[name] = [cards[i] for i in rng.permutation(len(cards))]
        return decks[name].pop()

    splits = [split for split, share in SPLIT_SHARES for _ in range(round(share * 5))]
    labels = ["good"] * round(GOOD_SHARE * 8) + ["defective"] * round((1 - GOOD_SHARE) * 8)
    while remaining:
        split = deal("split", splits)
        label = deal(f"label-{split}", labels)
        kind = deal(f"kind-{split}", defects) if label == "defective" else "good"
        photographs = min(PHOTOGRAPHS_PER_PART, remaining)
        plans.append(PartPlan(group, split, kind, photographs))
        remaining -= photographs
        group += 1
    return plans


def _photographs(
    plans: list[PartPlan], size: int, seed: int, channels: int
) -> Iterator[tuple[Photograph, str]]:
    """Draw the plan: each photograph with its split."""
    for plan in plans:
        rng = np.random.default_rng([seed, 1, plan.group])
        part = draw_part(plan.defect_type, size, rng)
        for _ in range(plan.photographs):
            yield photograph_part(part, plan, size, channels, rng), plan.split


@dataclass(frozen=True)
class Part:
    """Reflectance (float, about 0..1) and defect mask of one surface, with a margin around the window."""

    surface: Array
    mask: NDArray[np.bool_]
    tint: Array


def draw_part(defect_type: str, size: int, rng: np.random.Generator) -> Part:
    """Draw one surface of ``size`` plus a margin of an eighth, with one or a few defects of one type."""
    side = size + size // 8
    names = sorted(TEXTURES)
    texture = TEXTURES[names[rng.integers(len(names))]](side, rng)
    contrast = rng.uniform(0.03, 0.06)
    surface = rng.uniform(0.4, 0.62) + contrast * texture
    mask = np.zeros((side, side), dtype=bool)
    if defect_type != "good":
        faint = rng.random() < FAINT_SHARE
        for _ in range(1 + int(rng.random() < 0.25)):
            shape = DEFECTS[defect_type](side, rng)
            strength = rng.uniform(1.2, 1.8) if faint else rng.uniform(3.8, 6.5)
            depth = max(strength * contrast, 0.05 if faint else 0.16)
            surface = surface + depth * shape
            # What the eye would call the defect: where it stands out at half of its strength or more.
            mask |= np.abs(shape) >= 0.45
    return Part(surface, mask, 1 + rng.normal(0, 0.06, 3))


def photograph_part(
    part: Part, plan: PartPlan, size: int, channels: int, rng: np.random.Generator
) -> Photograph:
    """Take one photograph: a window on the part, a light from one side, sensor noise, 8 bits."""
    surface, mask = part.surface, part.mask
    for _ in range(20):  # a window that cuts the defect off is no photograph of a defective part
        margin = surface.shape[0] - size
        top, left = rng.integers(0, margin + 1, 2)
        window = mask[top : top + size, left : left + size]
        if plan.defect_type == "good" or window.sum() >= 0.6 * mask.sum():
            break
    view = surface[top : top + size, left : left + size]
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.12)
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    light = rng.uniform(0.88, 1.12) + slope * (np.cos(angle) * x + np.sin(angle) * y)
    view = view * light
    if channels == 3:
        view = view[..., None] * part.tint
    noisy = view + rng.normal(0, rng.uniform(0.004, 0.012), view.shape)
    image = np.clip(np.rint(noisy * 255), 0, 255).astype(np.uint8)
    return Photograph(image, window.copy(), plan.group, plan.defect_type)


def brushed(side: int, rng: np.random.Generator) -> Array:
    """Metal brushed in one direction: noise, long along the brush and short across."""
    texture = _filtered_noise(side, rng, (1.0, side / 5))
    return texture if rng.random() < 0.5 else texture.T


def cast(side: int, rng: np.random.Generator) -> Array:
    """A cast or blasted skin: grains of several sizes."""
    grain = sum(weight * _filtered_noise(side, rng, (sigma, sigma)) for sigma, weight in CAST_GRAIN)
    return _normalised(np.asarray(grain))


def woven(side: int, rng: np.random.Generator) -> Array:
    """A fabric: two crossing waves of threads, a little irregular."""
    period = rng.uniform(6, 10)
    y, x = np.mgrid[0:side, 0:side].astype(float)
    warp = 1.2 * _filtered_noise(side, rng, (side / 10, side / 10))
    weave = np.sin(2 * np.pi * x / period + warp) * np.sin(2 * np.pi * y / period + warp)
    return _normalised(weave + 0.5 * _filtered_noise(side, rng, (1.0, 1.0)))


def paper(side: int, rng: np.random.Generator) -> Array:
    """Paper or plastic: fine noise on slow clouds."""
    clouds = _filtered_noise(side, rng, (side / 12, side / 12))
    return _normalised(0.6 * clouds + _filtered_noise(side, rng, (0.8, 0.8)))


def scratch(side: int, rng: np.random.Generator) -> Array:
    """A thin curved line, dark or bright, that fades at its ends."""
    length = side * min(0.15 * (1 + rng.pareto(2.0)), 0.7)
    width = rng.uniform(0.9, 1.6) * side / 128
    angle, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.6) / side
    steps = np.linspace(-0.5, 0.5, 96) * length
    headings = angle + bend * steps
    path_x = np.cumsum(np.cos(headings)) * (length / 96)
    path_y = np.cumsum(np.sin(headings)) * (length / 96)
    centre_x, centre_y = _place(side, rng, margin=0.25)
    path_x += centre_x - path_x.mean()
    path_y += centre_y - path_y.mean()
    y, x = np.mgrid[0:side, 0:side].astype(float)
    distance = np.full((side, side), np.inf)
    for px, py in zip(path_x, path_y):
        np.minimum(distance, (x - px) ** 2 + (y - py) ** 2, out=distance)
    sign = -1.0 if rng.random() < 0.6 else 1.0
    return np.asarray(sign * np.exp(-distance / (2 * width**2)))


def pit(side: int, rng: np.random.Generator) -> Array:
    """A small dark hole with a faint bright rim."""
    radius = min(side * 0.022 * (1 + rng.pareto(2.5)), side * 0.11)
    squash, angle = rng.uniform(0.65, 1.0), rng.uniform(0, np.pi)
    centre_x, centre_y = _place(side, rng, margin=0.2)
    y, x = np.mgrid[0:side, 0:side].astype(float)
    along = (x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)
    across = (y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)
    r = np.hypot(along, across / squash) / radius
    hole = 1 / (1 + np.exp(np.clip((r - 1) * radius / 0.7, -40, 40)))
    rim = 0.3 * np.exp(-((r - 1.35) ** 2) / 0.03)
    return np.asarray(rim - 1.15 * hole)


def stain(side: int, rng: np.random.Generator) -> Array:
    """A dried spill: a patch of irregular outline, darker than its surroundings and darkest at its rim."""
    radius = min(side * 0.06 * (1 + rng.pareto(2.5)), side * 0.17)
    centre_x, centre_y = _place(side, rng, margin=0.25)
    y, x = np.mgrid[0:side, 0:side].astype(float)
    angle = np.arctan2(y - centre_y, x - centre_x)
    outline = np.ones_like(angle)
    for wave in (2, 3, 5):
        outline += rng.normal(0, 0.22 / wave) * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    r = np.hypot(x - centre_x, y - centre_y) / (radius * np.maximum(outline, 0.3))
    inside = 1 / (1 + np.exp(np.clip((r - 1) * radius / 1.5, -40, 40)))
    rim = 0.3 * np.exp(-(((r - 0.92) * radius / 2.0) ** 2))  # where it dried last it is darkest
    return np.asarray(-0.85 * inside - rim)


CAST_GRAIN = ((0.9, 1.0), (2.2, 0.9), (5.0, 0.5))
TEXTURES: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "brushed": brushed,
    "cast": cast,
    "woven": woven,
    "paper": paper,
}
DEFECTS: dict[str, Callable[[int, np.random.Generator], Array]] = {
    "scratch": scratch,
    "pit": pit,
    "stain": stain,
}


def _filtered_noise(side: int, rng: np.random.Generator, sigmas: tuple[float, float]) -> Array:
    """White noise through a Gaussian of the given (vertical, horizontal) sigmas in pixels; mean 0, std 1.

    Filtered by FFT, so it wraps around: no border looks different from the middle.
    """
    frequency = np.fft.fftfreq(side)
    gain_y = np.exp(-2 * (np.pi * frequency * sigmas[0]) ** 2)
    gain_x = np.exp(-2 * (np.pi * frequency * sigmas[1]) ** 2)
    spectrum = np.fft.fft2(rng.standard_normal((side, side))) * gain_y[:, None] * gain_x[None, :]
    return _normalised(np.real(np.fft.ifft2(spectrum)))


def _normalised(texture: Array) -> Array:
    return np.asarray((texture - texture.mean()) / max(float(texture.std()), 1e-9))


def _place(side: int, rng: np.random.Generator, margin: float) -> tuple[float, float]:
    x, y = rng.uniform(side * margin, side * (1 - margin), 2)
    return float(x), float(y)
