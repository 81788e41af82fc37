"""Things that are no people, many of them as tall and narrow as one: they stand around in the scenes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from uhd.data.synthetic_shapes import Colour, Sketch, hsv, pick, shade

Draw = Callable[[np.random.Generator, Sketch], None]


def draw_object(rng: np.random.Generator, indoors: bool) -> Sketch:
    """A random object of the kind of place, in metres."""
    sketch = Sketch()
    pick(rng, _INDOORS if indoors else _OUTDOORS)(rng, sketch)
    return sketch


def _paint(rng: np.random.Generator) -> Colour:
    return hsv(float(rng.random()), float(rng.uniform(0.1, 0.85)), float(rng.uniform(0.3, 0.95)))


def _wood(rng: np.random.Generator) -> Colour:
    return hsv(float(rng.uniform(0.05, 0.11)), float(rng.uniform(0.3, 0.65)), float(rng.uniform(0.3, 0.8)))


def _leaves(rng: np.random.Generator) -> Colour:
    return hsv(float(rng.uniform(0.2, 0.4)), float(rng.uniform(0.35, 0.75)), float(rng.uniform(0.25, 0.65)))


def _tree(rng: np.random.Generator, sketch: Sketch) -> None:
    height, leaves = float(rng.uniform(3.0, 6.0)), _leaves(rng)
    sketch.limb((0, 0), (0, 0.6 * height), (0.16, 0.1), hsv(0.07, 0.45, float(rng.uniform(0.25, 0.45))))
    for x, y, radius, tone in ((-0.2, 0.6, 0.2, 0.8), (0.19, 0.62, 0.2, 0.85), (0.0, 0.78, 0.22, 1.0)):
        sketch.ellipse((x * height, y * height), (radius * height, radius * height * 0.9), shade(leaves, tone))
    sketch.ellipse((-0.06 * height, 0.84 * height), (0.11 * height, 0.08 * height), shade(leaves, 1.15))


def _conifer(rng: np.random.Generator, sketch: Sketch) -> None:
    height, leaves = float(rng.uniform(1.4, 4.5)), shade(_leaves(rng), 0.8)
    sketch.rectangle(-0.08, 0, 0.08, 0.2 * height, (84, 60, 44))
    for base, top, half, tone in ((0.12, 0.55, 0.24, 0.8), (0.35, 0.8, 0.19, 0.95), (0.6, 1.0, 0.13, 1.1)):
        corners = ((-half * height, base * height), (half * height, base * height), (0.0, top * height))
        sketch.polygon(corners, shade(leaves, tone))


def _bush(rng: np.random.Generator, sketch: Sketch) -> None:
    size, leaves = float(rng.uniform(0.5, 1.0)), _leaves(rng)
    for x, y, radius, tone in ((-0.5, 0.4, 0.45, 0.85), (0.5, 0.4, 0.42, 0.8), (0.0, 0.55, 0.55, 1.0)):
        sketch.ellipse((x * size, y * size), (radius * size, radius * size), shade(leaves, tone))


def _lamp_post(rng: np.random.Generator, sketch: Sketch) -> None:
    height, metal = float(rng.uniform(2.6, 4.2)), pick(rng, ((52, 56, 60), (96, 100, 104), (40, 70, 60)))
    sketch.limb((0, 0.1), (0, height), (0.09, 0.05), metal)
    sketch.rectangle(-0.15, 0, 0.15, 0.22, shade(metal, 0.8))
    sketch.ellipse((0, height + 0.12), (0.2, 0.22), (250, 240, 200))
    sketch.dome((0, height + 0.2), (0.25, 0.18), metal)


def _bollard(rng: np.random.Generator, sketch: Sketch) -> None:
    height, colour = float(rng.uniform(0.8, 1.2)), _paint(rng)
    sketch.limb((0, 0.08), (0, height), (0.11, 0.1), colour)
    sketch.rectangle(-0.105, height * 0.6, 0.105, height * 0.75, (240, 240, 236))


def _hydrant(rng: np.random.Generator, sketch: Sketch) -> None:
    red = hsv(float(rng.uniform(-0.02, 0.14)), 0.8, float(rng.uniform(0.6, 0.9)))
    sketch.rectangle(-0.19, 0, 0.19, 0.1, shade(red, 0.7))
    sketch.rectangle(-0.13, 0.1, 0.13, 0.62, red)
    sketch.limb((-0.2, 0.45), (0.2, 0.45), (0.07, 0.07), shade(red, 0.8))
    sketch.dome((0, 0.62), (0.16, 0.2), shade(red, 1.1))


def _bin(rng: np.random.Generator, sketch: Sketch) -> None:
    height, colour = float(rng.uniform(0.8, 1.2)), _paint(rng)
    half = 0.3 * height
    sketch.polygon(((-half * 0.8, 0), (half * 0.8, 0), (half, height), (-half, height)), colour)
    sketch.rectangle(half * 0.2, 0.1, half * 0.5, height * 0.9, shade(colour, 0.85))
    sketch.limb((-half, height), (half, height), (0.06, 0.06), shade(colour, 0.6))


def _sign(rng: np.random.Generator, sketch: Sketch) -> None:
    height, colour = float(rng.uniform(1.7, 2.6)), _paint(rng)
    sketch.rectangle(-0.035, 0, 0.035, height, (140, 144, 148))
    if rng.random() < 0.5:
        sketch.ellipse((0, height), (0.32, 0.32), colour)
        sketch.ellipse((0, height), (0.22, 0.22), (240, 240, 240))
        sketch.rectangle(-0.14, height - 0.04, 0.14, height + 0.04, colour)
    else:
        sketch.rectangle(-0.45, height - 0.3, 0.45, height + 0.3, (240, 240, 240))
        sketch.rectangle(-0.4, height - 0.25, 0.4, height + 0.25, colour)
        sketch.rectangle(-0.25, height - 0.03, 0.25, height + 0.05, (240, 240, 240))


def _car(rng: np.random.Generator, sketch: Sketch) -> None:
    colour, glass = _paint(rng), (120, 150, 170)
    cabin = ((-1.35, 0.85), (1.0, 0.85), (0.55, 1.42), (-0.95, 1.42))
    sketch.polygon(cabin, shade(colour, 0.9))
    sketch.polygon(((-1.15, 0.88), (-0.25, 0.88), (-0.25, 1.34), (-0.88, 1.34)), glass)
    sketch.polygon(((-0.15, 0.88), (0.82, 0.88), (0.48, 1.34), (-0.15, 1.34)), shade(glass, 1.1))
    sketch.limb((-1.8, 0.58), (1.8, 0.55), (0.33, 0.3), colour)
    sketch.rectangle(-2.05, 0.26, 2.05, 0.4, shade(colour, 0.6))
    sketch.ellipse((2.0, 0.62), (0.1, 0.09), (255, 244, 200))
    for x in (-1.25, 1.25):
        sketch.ellipse((x, 0.33), (0.34, 0.34), (32, 32, 36))
        sketch.ellipse((x, 0.33), (0.17, 0.17), (170, 174, 178))


def _bench(rng: np.random.Generator, sketch: Sketch) -> None:
    wood = _wood(rng)
    for x in (-0.75, 0.65):
        sketch.rectangle(x, 0, x + 0.1, 0.85, (60, 62, 66))
    sketch.rectangle(-0.85, 0.4, 0.85, 0.5, wood)
    for y in (0.58, 0.74):
        sketch.rectangle(-0.85, y, 0.85, y + 0.1, shade(wood, 0.9))


def _fence(rng: np.random.Generator, sketch: Sketch) -> None:
    wood = pick(rng, (_wood(rng), (226, 224, 218)))
    half = float(rng.uniform(1.0, 2.0))
    for y in (0.3, 0.75):
        sketch.rectangle(-half, y, half, y + 0.08, shade(wood, 0.8))
    for x in np.arange(-half, half, 0.28).tolist():
        sketch.polygon(((x, 0), (x + 0.15, 0), (x + 0.15, 0.95), (x + 0.075, 1.05), (x, 0.95)), wood)


def _wall(rng: np.random.Generator, sketch: Sketch) -> None:
    stone = hsv(float(rng.uniform(0.0, 0.12)), float(rng.uniform(0.08, 0.5)), float(rng.uniform(0.45, 0.8)))
    half, height = float(rng.uniform(0.7, 1.8)), float(rng.uniform(0.7, 1.3))
    sketch.rectangle(-half, 0, half, height, stone)
    for row in range(int(height / 0.2)):
        y = 0.2 * row
        sketch.rectangle(-half, y, half, y + 0.025, shade(stone, 0.8))
    sketch.rectangle(-half - 0.06, height, half + 0.06, height + 0.1, shade(stone, 1.15))


def _dog(rng: np.random.Generator, sketch: Sketch) -> None:
    fur, size = pick(rng, (_wood(rng), (48, 44, 42), (228, 222, 210))), float(rng.uniform(0.6, 1.1))
    for x, tone in ((-0.32, 0.8), (0.28, 0.8), (-0.24, 1.0), (0.34, 1.0)):
        sketch.limb((x * size, 0.4 * size), (x * size, 0.05 * size), (0.08 * size, 0.045 * size), shade(fur, tone))
    sketch.limb((-0.36 * size, 0.5 * size), (-0.62 * size, 0.75 * size), (0.05 * size, 0.03 * size), fur)
    sketch.limb((-0.28 * size, 0.47 * size), (0.3 * size, 0.5 * size), (0.15 * size, 0.17 * size), fur)
    sketch.limb((0.34 * size, 0.55 * size), (0.5 * size, 0.76 * size), (0.12 * size, 0.11 * size), fur)
    sketch.limb((0.52 * size, 0.76 * size), (0.7 * size, 0.7 * size), (0.13 * size, 0.065 * size), fur)
    sketch.ellipse((0.76 * size, 0.7 * size), (0.04 * size, 0.04 * size), (30, 26, 26))
    sketch.limb((0.44 * size, 0.85 * size), (0.4 * size, 0.68 * size), (0.06 * size, 0.05 * size), shade(fur, 0.7))


def _phone_box(rng: np.random.Generator, sketch: Sketch) -> None:
    colour = _paint(rng)
    sketch.rectangle(-0.45, 0, 0.45, 2.1, colour)
    for x in (-0.35, 0.03):
        for y in (0.5, 1.0, 1.5):
            sketch.rectangle(x, y, x + 0.32, y + 0.42, (176, 200, 208))
    sketch.dome((0, 2.1), (0.48, 0.14), shade(colour, 0.8))


def _cactus(rng: np.random.Generator, sketch: Sketch) -> None:
    green, height = _leaves(rng), float(rng.uniform(1.2, 2.0))
    sketch.limb((0, 0), (0, height), (0.17, 0.15), green)
    for way, low in ((-1, 0.42), (1, 0.55)):
        elbow = (way * 0.42, low * height)
        sketch.limb((0, low * height), elbow, (0.09, 0.09), shade(green, 0.85))
        sketch.limb(elbow, (way * 0.42, (low + 0.28) * height), (0.09, 0.08), green)
    sketch.limb((0.05, 0.1), (0.05, height), (0.02, 0.02), shade(green, 1.2))


def _box_stack(rng: np.random.Generator, sketch: Sketch) -> None:
    bottom = 0.0
    for _ in range(int(rng.integers(1, 4))):
        colour, half, height = _wood(rng), float(rng.uniform(0.22, 0.45)), float(rng.uniform(0.3, 0.6))
        sketch.rectangle(-half, bottom, half, bottom + height, colour)
        sketch.rectangle(-half, bottom + height * 0.85, half, bottom + height, shade(colour, 0.8))
        sketch.rectangle(-0.05, bottom, 0.05, bottom + height, shade(colour, 1.15))
        bottom += height


def _table(rng: np.random.Generator, sketch: Sketch) -> None:
    wood, half = _wood(rng), float(rng.uniform(0.5, 1.0))
    for x in (-half + 0.05, half - 0.13):
        sketch.rectangle(x, 0, x + 0.08, 0.7, shade(wood, 0.75))
    sketch.rectangle(-half, 0.68, half, 0.76, wood)
    sketch.rectangle(-0.1, 0.76, 0.08, 0.98, _paint(rng))
    sketch.ellipse((0.3, 0.82), (0.09, 0.07), _paint(rng))


def _cupboard(rng: np.random.Generator, sketch: Sketch) -> None:
    wood, half, height = _wood(rng), float(rng.uniform(0.3, 0.65)), float(rng.uniform(1.3, 2.1))
    sketch.rectangle(-half, 0, half, height, wood)
    for x in (-half + 0.05, 0.03):
        sketch.rectangle(x, 0.12, x + half - 0.08, height - 0.08, shade(wood, 1.12))
    for x in (-0.08, 0.08):
        sketch.ellipse((x, height * 0.5), (0.03, 0.04), (60, 50, 40))


def _bookshelf(rng: np.random.Generator, sketch: Sketch) -> None:
    wood, height = _wood(rng), float(rng.uniform(1.2, 2.0))
    sketch.rectangle(-0.45, 0, 0.45, height, shade(wood, 0.7))
    for y in np.arange(0.06, height - 0.3, 0.4).tolist():
        x = -0.4
        while x < 0.3:
            width = float(rng.uniform(0.06, 0.16))
            sketch.rectangle(x, y, x + width, y + float(rng.uniform(0.22, 0.34)), _paint(rng))
            x += width
        sketch.rectangle(-0.45, y - 0.05, 0.45, y, wood)


def _floor_lamp(rng: np.random.Generator, sketch: Sketch) -> None:
    height, light = float(rng.uniform(1.3, 1.8)), pick(rng, ((255, 240, 200), (250, 220, 170), _paint(rng)))
    sketch.rectangle(-0.025, 0, 0.025, height, (70, 66, 62))
    sketch.dome((0, 0), (0.18, 0.07), (70, 66, 62))
    sketch.polygon(((-0.27, height - 0.1), (0.27, height - 0.1), (0.16, height + 0.3), (-0.16, height + 0.3)), light)


def _pot_plant(rng: np.random.Generator, sketch: Sketch) -> None:
    leaves, height = _leaves(rng), float(rng.uniform(0.8, 1.7))
    for angle, tone in ((-0.6, 0.8), (0.6, 0.85), (-0.3, 1.0), (0.3, 0.95), (0.0, 1.1)):
        tip = (float(np.sin(angle)) * height * 0.6, 0.3 + float(np.cos(angle)) * (height - 0.3))
        sketch.limb((0, 0.3), tip, (0.05, 0.09), shade(leaves, tone))
    sketch.polygon(((-0.16, 0), (0.16, 0), (0.22, 0.38), (-0.22, 0.38)), _paint(rng))


def _coat_stand(rng: np.random.Generator, sketch: Sketch) -> None:
    wood, coat = _wood(rng), _paint(rng)
    sketch.limb((-0.22, 0.02), (0.22, 0.02), (0.03, 0.03), wood)
    sketch.rectangle(-0.03, 0, 0.03, 1.8, wood)
    sketch.limb((-0.2, 1.72), (0.2, 1.72), (0.03, 0.03), wood)
    sketch.polygon(((0.02, 0.75), (0.34, 0.7), (0.27, 1.6), (0.14, 1.68)), coat)
    if rng.random() < 0.5:
        sketch.dome((-0.18, 1.74), (0.15, 0.13), _paint(rng))


def _armchair(rng: np.random.Generator, sketch: Sketch) -> None:
    cloth = _paint(rng)
    half = pick(rng, (0.45, 0.5, 1.0))
    sketch.limb((-half + 0.1, 0.75), (half - 0.1, 0.75), (0.2, 0.2), shade(cloth, 0.8))
    sketch.rectangle(-half, 0.1, half, 0.75, shade(cloth, 0.8))
    sketch.rectangle(-half, 0.1, half, 0.45, cloth)
    for x in (-half, half):
        sketch.limb((x, 0.12), (x, 0.55), (0.12, 0.13), shade(cloth, 0.92))


def _chair(rng: np.random.Generator, sketch: Sketch) -> None:
    wood = pick(rng, (_wood(rng), _paint(rng)))
    for x in (-0.22, 0.17):
        sketch.rectangle(x, 0, x + 0.05, 0.95 if x < 0 else 0.45, shade(wood, 0.75))
    sketch.rectangle(-0.24, 0.42, 0.24, 0.49, wood)
    sketch.rectangle(-0.24, 0.65, -0.16, 0.98, wood)


def _fridge(rng: np.random.Generator, sketch: Sketch) -> None:
    body, height = pick(rng, ((232, 234, 236), (180, 186, 192), _paint(rng))), float(rng.uniform(1.5, 1.9))
    sketch.rectangle(-0.33, 0, 0.33, height, body)
    sketch.rectangle(-0.33, height * 0.62, 0.33, height * 0.64, shade(body, 0.6))
    for low, high in ((0.3, 0.58), (0.68, 0.85)):
        sketch.rectangle(0.22, height * low, 0.26, height * high, shade(body, 0.5))


def _vase(rng: np.random.Generator, sketch: Sketch) -> None:
    clay = _paint(rng)
    sketch.limb((0, 0.12), (0, 0.45), (0.12, 0.24), clay)
    sketch.limb((0, 0.6), (0, 0.82), (0.13, 0.09), clay)
    sketch.limb((-0.11, 0.88), (0.11, 0.88), (0.04, 0.04), shade(clay, 0.8))
    sketch.limb((0.09, 0.35), (0.09, 0.5), (0.03, 0.03), shade(clay, 1.25))


_ANYWHERE: tuple[Draw, ...] = (_box_stack, _dog, _bin, _pot_plant, _vase)
_OUTDOORS: tuple[Draw, ...] = (
    *_ANYWHERE,
    *(_tree, _tree, _conifer, _conifer, _bush, _bush, _lamp_post, _lamp_post, _bollard, _hydrant),
    *(_sign, _sign, _car, _car, _bench, _fence, _wall, _wall, _phone_box, _cactus),
)
_INDOORS: tuple[Draw, ...] = (
    *_ANYWHERE,
    *(_table, _table, _table, _cupboard, _bookshelf, _floor_lamp, _coat_stand, _armchair, _armchair, _chair, _fridge),
)
