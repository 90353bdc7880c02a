"""The little world that the demo model learns: one colored shape on a plain background.

A caption names what is seen, a `Scene` fixes what the caption leaves open (place, size, light), and
`Scene.render` draws any frames of it. All lengths are pixels of a grid of 128 by 128, whatever size
is drawn; the picture is a torus, so that what leaves on one side comes back on the other and a
motion never ends.

Shape legend: F frames, H W space, h w the drawn window, P pixels near the object along one axis.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Frames: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]

GRID = 128
"""Pixels along one side of the grid that all lengths refer to."""

SIZES = ("small", "large")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "star")
MOTIONS = ("moving left", "moving right", "moving up", "moving down", "standing still")
BACKGROUNDS = ("black", "white", "gray", "brown")

COLOR_RGB: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (250, 130, 15),
    "yellow": (245, 220, 40),
    "green": (40, 165, 60),
    "cyan": (45, 210, 225),
    "blue": (35, 70, 220),
    "purple": (130, 40, 185),
    "pink": (250, 130, 190),
}
BACKGROUND_RGB: dict[str, tuple[int, int, int]] = {
    "black": (18, 18, 18),
    "white": (236, 236, 236),
    "gray": (128, 128, 128),
    "brown": (88, 54, 30),
}
VELOCITIES: dict[str, tuple[int, int]] = {
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
    "standing still": (0, 0),
}
"""Direction (x, y) of each motion; y grows downwards."""

RADII: dict[str | None, tuple[float, float]] = {
    "small": (13.0, 16.0),
    None: (17.0, 23.0),
    "large": (26.0, 31.0),
}
"""Range of the radius for each size word: that of the circle with the shape's area."""

SPEEDS = (2.1, 1.9)
"""Speed of the smallest and of the largest that moves, in pixels a frame: by the radius between.

What moves is seen to be small or large in any frame of it, so that a stream that looks back on no
more than a second goes on at the same speed for ever.
"""

_SQUARE_HALF = math.sqrt(math.pi) / 2
_TRIANGLE_CORNER = math.sqrt(math.pi * 4 / (3 * math.sqrt(3)))
_STAR_WAIST = 0.45
_STAR_TIP = math.sqrt(math.pi / (5 * _STAR_WAIST * math.sin(math.pi / 5)))
REACH: dict[str, float] = {
    "circle": 1.0,
    "square": _SQUARE_HALF * math.sqrt(2),
    "triangle": _TRIANGLE_CORNER,
    "star": _STAR_TIP,
}
"""Distance from the center to the farthest point of each shape, in radii (all areas are equal)."""


@dataclass(frozen=True)
class Caption:
    """What a scene shows. `size` is "small", "large" or None, when the caption does not say."""

    size: str | None
    color: str
    shape: str
    motion: str
    background: str

    @property
    def text(self) -> str:
        """The sentence, such as "a small red circle moving left on a gray background"."""
        size = f"{self.size} " if self.size else ""
        return f"a {size}{self.color} {self.shape} {self.motion} on a {self.background} background"

    @property
    def triple(self) -> tuple[str, str, str]:
        """Color, shape and motion: what `HELD_OUT` is about."""
        return self.color, self.shape, self.motion


def parse(text: str) -> Caption:
    """The caption that a sentence states; upper case, "an" and a full stop are forgiven.

    Raises `InputError` when the sentence is not of the demo's grammar.
    """
    words = text.lower().strip().rstrip(".").split()
    if words and words[0] == "an":
        words[0] = "a"
    size = words[1] if len(words) > 1 and words[1] in SIZES else None
    rest = words[2:] if size else words[1:]
    if len(rest) == 8:
        color, shape, motion, background = rest[0], rest[1], " ".join(rest[2:4]), rest[6]
        caption = Caption(size, color, shape, motion, background)
        known = (
            color in COLORS and shape in SHAPES and motion in MOTIONS and background in BACKGROUNDS
        )
        if known and caption.text.split() == words:
            return caption
    raise InputError(
        f"caption {text!r} is not of the form 'a [{'|'.join(SIZES)}] {{{'|'.join(COLORS)}}} "
        f"{{{'|'.join(SHAPES)}}} {{{'|'.join(MOTIONS)}}} on a {{{'|'.join(BACKGROUNDS)}}} "
        "background'"
    )


def _held_out_triples() -> frozenset[tuple[str, str, str]]:
    triples = set()
    for i, color in enumerate(COLORS):
        triples.add((color, SHAPES[i % 4], MOTIONS[i % 5]))
        triples.add((color, SHAPES[(i + 2) % 4], MOTIONS[(i + 3) % 5]))
    return frozenset(triples)


HELD_OUT = _held_out_triples()
"""Color, shape and motion that training never sees together: 2 triples of the 20 of each color."""


def is_held_out(caption: Caption) -> bool:
    """Whether training never sees this caption.

    Held out are all captions of a `HELD_OUT` triple, and a further eleventh of all combinations of
    color, shape, motion and background, whatever the size word.
    """
    if caption.triple in HELD_OUT:
        return True
    place = (
        COLORS.index(caption.color)
        + 2 * SHAPES.index(caption.shape)
        + 3 * MOTIONS.index(caption.motion)
        + 5 * BACKGROUNDS.index(caption.background)
    )
    return place % 11 == 0


@cache
def all_captions() -> tuple[Caption, ...]:
    """Every caption of the grammar, in a fixed order."""
    return tuple(
        Caption(size, color, shape, motion, background)
        for size in (None, *SIZES)
        for color in COLORS
        for shape in SHAPES
        for motion in MOTIONS
        for background in BACKGROUNDS
    )


@cache
def training_captions() -> tuple[Caption, ...]:
    """The captions that training draws from: all but the held-out ones."""
    return tuple(caption for caption in all_captions() if not is_held_out(caption))


@cache
def held_out_captions() -> tuple[Caption, ...]:
    """The captions that training never sees, for `livereel eval`."""
    return tuple(caption for caption in all_captions() if is_held_out(caption))


@dataclass(frozen=True)
class Scene:
    """A caption with everything it leaves open, so that each frame is a function of its number.

    `center` is (x, y) at frame 0, `radius` that of a circle of the same area. `light` is the
    direction the light comes from (radians), `shading` the share by which the object brightens from
    its center to its lit edge, `slope` how many levels the background gains from its middle to its
    lower edge, `hue` a shift in turns, `value` a factor on the object's brightness, `tone` levels
    added to the background.
    """

    caption: Caption
    center: tuple[float, float]
    radius: float
    light: float = 0.0
    shading: float = 0.0
    slope: float = 0.0
    hue: float = 0.0
    value: float = 1.0
    tone: float = 0.0

    @classmethod
    def sample(cls, caption: Caption, rng: np.random.Generator) -> Scene:
        """A scene that fits the caption, all else drawn from `rng`."""
        return cls(
            caption=caption,
            center=(float(rng.uniform(0, GRID)), float(rng.uniform(0, GRID))),
            radius=float(rng.uniform(*RADII[caption.size])),
            light=float(rng.uniform(0, 2 * math.pi)),
            shading=float(rng.uniform(0.04, 0.14)),
            slope=float(rng.uniform(-9, 9)),
            hue=float(rng.uniform(-0.009, 0.009)),
            value=float(rng.uniform(0.93, 1.0)),
            tone=float(rng.uniform(-5, 5)),
        )

    @property
    def speed(self) -> float:
        """Pixels a frame when the caption says that it moves: the larger, the slower."""
        smallest, largest = RADII["small"][0], RADII["large"][1]
        share = (self.radius - smallest) / (largest - smallest)
        return SPEEDS[0] + share * (SPEEDS[1] - SPEEDS[0])

    @property
    def velocity(self) -> tuple[float, float]:
        """Pixels a frame along (x, y)."""
        x, y = VELOCITIES[self.caption.motion]
        return x * self.speed, y * self.speed

    def position(self, frame: int) -> tuple[float, float]:
        """The object's center (x, y) at a frame, within the grid."""
        (x, y), (vx, vy) = self.center, self.velocity
        return (x + vx * frame) % GRID, (y + vy * frame) % GRID

    def switch(self, caption: Caption, frame: int) -> Scene:
        """The scene that goes on under another caption from `frame` on.

        At that frame the object is where it was, and as large unless the caption names a size that
        it does not have; color, shape, background and motion are the new caption's.
        """
        radius = self.radius
        if caption.size is not None:
            low, high = RADII[caption.size]
            old_low, old_high = RADII[self.caption.size]
            share = min(max((radius - old_low) / (old_high - old_low), 0.0), 1.0)
            if not low <= radius <= high:
                radius = low + share * (high - low)
        x, y = self.position(frame)
        moved = replace(self, caption=caption, radius=radius)
        vx, vy = moved.velocity
        return replace(moved, center=((x - vx * frame) % GRID, (y - vy * frame) % GRID))

    @cached_property
    def _object_rgb(self) -> Floats:
        red, green, blue = COLOR_RGB[self.caption.color]
        hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
        rgb = colorsys.hsv_to_rgb((hue + self.hue) % 1.0, saturation, value * self.value)
        scaled: Floats = np.array(rgb, np.float32) * np.float32(255)
        return scaled

    def render(
        self,
        first_frame: int,
        count: int,
        size: int = GRID,
        crop: tuple[int, int, int, int] | None = None,
    ) -> Frames:
        """Draw frames `first_frame` to `first_frame + count - 1`.

        Args:
            first_frame: number of the first frame drawn; any integer.
            count: how many frames.
            size: side of the square picture in pixels.
            crop: draw only the window (y, x, height, width), in pixels of the picture.

        Returns:
            uint8 frames `[F, size, size, 3]`, or `[F, height, width, 3]` with `crop`.

        Raises:
            InputError: `count` or `size` is not positive, or the window leaves the picture.
        """
        if count < 1 or size < 1:
            raise InputError(f"count and size must be positive, got {count} and {size}")
        top, left, height, width = crop if crop is not None else (0, 0, size, size)
        if min(top, left) < 0 or min(height, width) < 1 or max(top + height, left + width) > size:
            raise InputError(f"crop {crop} (y, x, height, width) leaves a picture of side {size}")
        pixel = GRID / size
        ys = _centers(top, height, pixel)
        xs = _centers(left, width, pixel)
        frames = np.empty((count, height, width, 3), np.uint8)
        background = self._background(ys)  # [h, 3]
        frames[:] = _to_uint8(background)[None, :, None, :]

        moment = np.arange(first_frame, first_frame + count, dtype=np.float64)
        (x, y), (vx, vy) = self.center, self.velocity
        reach = REACH[self.caption.shape] * self.radius + pixel
        rows, dy = _nearest(ys, y + vy * moment, reach, pixel)  # [F, P]
        columns, dx = _nearest(xs, x + vx * moment, reach, pixel)
        dx, dy = dx[:, None, :], dy[:, :, None]
        distance = signed_distance(self.caption.shape, dx, dy, self.radius)  # [F, P, P]
        cover = _cover(distance, pixel)[..., None]
        lit = (dx * math.cos(self.light) + dy * math.sin(self.light)) / self.radius
        paint = (1 + np.float32(self.shading) * lit)[..., None] * self._object_rgb
        behind = background[rows][:, :, None, :]
        picture = (behind + cover * (paint - behind)).astype(np.float32, copy=False)
        index = np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
        frames[index] = _to_uint8(picture)
        return frames

    def mask(self, first_frame: int, count: int, size: int = GRID) -> Floats:
        """How much of each pixel the object covers: float32 `[F, size, size]` in 0..1."""
        pixel = GRID / size
        grid = _centers(0, size, pixel)
        moment = np.arange(first_frame, first_frame + count, dtype=np.float64)
        (x, y), (vx, vy) = self.center, self.velocity
        dx = _wrap(grid - (x + vx * moment)[:, None])[:, None, :]
        dy = _wrap(grid - (y + vy * moment)[:, None])[:, :, None]
        distance = signed_distance(self.caption.shape, dx, dy, self.radius)
        return _cover(distance, pixel)

    def _background(self, ys: npt.NDArray[np.float64]) -> Floats:
        base = np.array(BACKGROUND_RGB[self.caption.background], np.float32) + self.tone
        level = self.slope * (2 * ys / GRID - 1)
        return (base + level[:, None]).astype(np.float32)


def signed_distance(shape: str, dx: Floats, dy: Floats, radius: float) -> Floats:
    """Distance to the shape's edge, negative inside; exact near the straight parts of the edge.

    `dx` and `dy` are offsets from the shape's center and broadcast to `[F, H, W]`; `radius` is that
    of the circle with the same area.
    """
    distance: Floats
    if shape == "circle":
        distance = np.sqrt(dx * dx + dy * dy) - np.float32(radius)
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - np.float32(_SQUARE_HALF * radius)
    elif shape == "triangle":
        inner = np.float32(_TRIANGLE_CORNER * radius / 2)
        side = np.abs(dx) * np.float32(math.sqrt(3) / 2) - dy * np.float32(0.5)
        distance = np.maximum(side, dy) - inner
    elif shape == "star":
        # Fold the plane into the wedge between a tip (pointing up) and the next waist.
        px, py = np.abs(dx), -dy
        cosine, sine = np.float32(math.cos(math.pi / 5)), np.float32(math.sin(math.pi / 5))
        for along in (cosine, -cosine):
            beyond: Floats = 2 * np.maximum(px * along - py * sine, np.float32(0))
            px, py = px - beyond * along, py + beyond * sine
        px = np.abs(px)
        tip = _STAR_TIP * radius
        waist = _STAR_WAIST * tip
        edge_x, edge_y = waist * math.sin(math.pi / 5), waist * math.cos(math.pi / 5) - tip
        length = math.hypot(edge_x, edge_y)
        nx, ny = np.float32(-edge_y / length), np.float32(edge_x / length)
        distance = px * nx + (py - np.float32(tip)) * ny
    else:
        raise InputError(f"unknown shape {shape!r}; known are {', '.join(SHAPES)}")
    return distance


def _centers(first: int, count: int, pixel: float) -> npt.NDArray[np.float64]:
    """Where the centers of `count` pixels lie along an axis of the grid."""
    return (np.arange(first, first + count, dtype=np.float64) + 0.5) * pixel


def _cover(distance: Floats, pixel: float) -> Floats:
    """Share of each pixel inside the edge, from its signed distance: 0..1 over one pixel."""
    cover: Floats = np.clip(np.float32(0.5) - distance / np.float32(pixel), 0, 1)
    return cover


def _wrap(offset: npt.NDArray[np.float64]) -> Floats:
    """Offsets on the torus, in -GRID/2 .. GRID/2."""
    return ((offset + GRID / 2) % GRID - GRID / 2).astype(np.float32)


def _nearest(
    grid: npt.NDArray[np.float64], place: npt.NDArray[np.float64], reach: float, pixel: float
) -> tuple[npt.NDArray[np.intp], Floats]:
    """Which pixels of one axis can touch the object: their numbers and offsets, both `[F, P]`."""
    offset = _wrap(grid - place[:, None])
    near = min(len(grid), math.ceil(2 * reach / pixel) + 1)
    index = np.argsort(np.abs(offset), axis=1)[:, :near]
    return index, np.take_along_axis(offset, index, axis=1)


def _to_uint8(picture: Floats) -> Frames:
    rounded: Frames = np.clip(picture + np.float32(0.5), 0, 255).astype(np.uint8)
    return rounded
