"""Draw the kitchen scene: python -m frankenlm.scripts.pictures.draw_kitchen kitchen.png

Our own picture (CC0), 896 x 896: four people, a cat and a dog on a Sunday in the kitchen. What a viewer can name
stands in kitchen_units.json. Needs Pillow.
"""

import math
import sys

from PIL import Image

from frankenlm.scripts.pictures.draw_people import SKIN, boy, cat, dog, girl, grandfather, woman
from frankenlm.scripts.pictures.drawing import INK, Canvas, arc

SIZE = 896


def draw_kitchen() -> Image.Image:
    """Return the picture, RGB, 896 x 896; the same pixels every time."""
    canvas = Canvas(SIZE, "#f7e8cd")
    for part in (
        room, window, plants, shelf, clock, lamp, fridge, counter, stove, broom, grandfather, woman, girl, table, cake,
        bowl, spilt_milk, cat, boy, dog,
    ):  # fmt: skip
        part(canvas)
    return canvas.finished()


# --- the room


def room(c: Canvas) -> None:
    for x in range(0, SIZE, 56):
        c.line([(x + 28, 0), (x + 28, 430)], "#f3e0bf", 10)
    c.box(0, 430, SIZE, 616, "#cfe3dd", None)
    for x in range(0, SIZE + 1, 48):
        c.line([(x, 430), (x, 616)], "#b9d3cc", 1.6)
    for y in (430, 478, 526, 574):
        c.line([(0, y), (SIZE, y)], "#b9d3cc", 1.6)
    c.box(0, 612, SIZE, 626, "#a9795a", None)
    c.box(0, 626, SIZE, SIZE, "#dda77b", None)
    rows = (626, 668, 724, 798, 900)
    for index, (top, bottom) in enumerate(zip(rows, rows[1:], strict=False)):
        for column in range(-12, 12):
            if (column + index) % 2:
                at = [
                    (448 + (column + side) * (66 + 0.34 * (y - 626)), y)
                    for side, y in ((0, top), (1, top), (1, bottom), (0, bottom))
                ]
                c.polygon(at, "#cf9468", None)


def window(c: Canvas) -> None:
    c.box(584, 96, 792, 322, "#ffffff", radius=4)
    c.box(596, 108, 780, 312, "#a9d9f2", width=1.6)
    c.oval(634, 150, 24, fill="#ffd84d", ink="#f0b429")
    for turn in range(0, 360, 45):
        x, y = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        c.line([(634 + 29 * x, 150 + 29 * y), (634 + 36 * x, 150 + 36 * y)], "#f0b429", 3)
    for x, y, size in ((716, 136, 15), (734, 130, 19), (752, 138, 13)):
        c.oval(x, y, size, size * 0.75, "#ffffff", None)
    c.polygon([(597, 312), (597, 268), *arc(688, 290, 90, 40, 190, 350), (779, 312)], "#8cc56b", None)
    c.box(727, 226, 739, 290, "#8a5a3b", width=1.6)
    for x, y in ((714, 214), (750, 214), (732, 190), (732, 220)):
        c.oval(x, y, 25, 22, "#4f9a4a", None)
    c.line("688,108 688,312", "#ffffff", 9)
    c.line("596,208 780,208", "#ffffff", 9)
    for side in (-1, 1):
        x = 688 + side * 116
        c.blob([(x, 92), (x - side * 62, 94), (x - side * 52, 150), (x - side * 16, 226), (x, 232)], "#ef8f7c")
        c.curve([(x - side * 20, 100), (x - side * 18, 160), (x - side * 8, 215)], "#d97462", 2)
        c.curve([(x - side * 42, 100), (x - side * 36, 140), (x - side * 22, 190)], "#d97462", 2)
    c.line("560,90 816,90", "#8a5a3b", 7)
    c.oval(560, 90, 7, fill="#8a5a3b")
    c.oval(816, 90, 7, fill="#8a5a3b")
    c.box(572, 322, 804, 340, "#e9dcc6", radius=3)


def plants(c: Canvas) -> None:
    for x, petal in ((606, "#e2486b"), (660, "#8d5bc1")):
        for lean in (-16, 0, 16):
            top = 252 if lean == 0 else 264
            c.curve([(x, 296), (x + lean * 0.5, 280), (x + lean, top)], "#3f8a3f", 3.4)
            for turn in range(0, 360, 72):
                u, v = math.cos(math.radians(turn)), math.sin(math.radians(turn))
                c.oval(x + lean + 6 * u, top + 6 * v, 5, fill=petal, ink=None)
            c.oval(x + lean, top, 4, fill="#ffd84d", ink=None)
        for lean in (-1, 1):
            c.oval(x + lean * 12, 288, 12, 5, "#58a94f", "#3f8a3f", 1.4, turn=lean * -28)
        c.polygon([(x - 19, 296), (x + 19, 296), (x + 14, 323), (x - 14, 323)], "#c8643c")
        c.box(x - 22, 290, x + 22, 300, "#d8754c", radius=2)


def shelf(c: Canvas) -> None:
    c.box(206, 228, 420, 240, "#a9795a")
    for x in (232, 394):
        c.polygon([(x - 5, 240), (x + 5, 240), (x + 5, 262)], "#8a5a3b")
    for x, content in ((216, "#c98a3b"), (250, "#d8503f"), (284, "#79a94a")):
        c.box(x, 184, x + 28, 228, "#e8f3f5", radius=5)
        c.box(x + 3, 198, x + 25, 225, content, None, radius=3)
        c.box(x + 2, 176, x + 26, 186, "#b98d5e", radius=2)
    c.oval(350, 206, 24, 21, "#5b8fc7")
    c.curve("372,206 386,196 390,184", INK, 11)
    c.curve("372,206 386,196 390,185", "#5b8fc7", 7)
    c.curve("328,196 314,198 316,216 330,216", INK, 8)
    c.curve("328,196 314,198 316,216 330,216", "#5b8fc7", 4.4)
    c.oval(350, 187, 13, 5, "#4a7bb1")
    c.oval(350, 180, 4, fill="#4a7bb1")
    c.box(394, 204, 414, 228, "#f2c14e", radius=3)
    c.curve("394,210 386,212 388,221 394,222", INK, 3)


def clock(c: Canvas) -> None:
    c.oval(490, 128, 43, fill="#3f6c8f")
    c.oval(490, 128, 35, fill="#fffaf0", width=1.6)
    for hour in range(12):
        u, v = math.sin(math.radians(30 * hour)), -math.cos(math.radians(30 * hour))
        inner = 25 if hour % 3 == 0 else 28
        c.line([(490 + inner * u, 128 + inner * v), (490 + 31 * u, 128 + 31 * v)], INK, 2.6)
    c.line("490,128 475,119", INK, 4.4)  # ten o'clock
    c.line("490,128 490,103", INK, 3)
    c.oval(490, 128, 3.6, fill="#d8503f")


def lamp(c: Canvas) -> None:
    c.oval(300, 112, 62, 46, "#fcf1cf", None)
    c.oval(300, 112, 40, 32, "#fff6d8", None)
    c.line("300,0 300,56", INK, 3)
    c.oval(300, 112, 16, 15, "#fff3a8")
    c.polygon("282,56 318,56 356,110 244,110", "#e2a52f")
    c.box(290, 46, 310, 58, "#8a5a3b", radius=2)


def fridge(c: Canvas) -> None:
    c.box(24, 204, 176, 652, "#e4ecef", radius=12)
    c.line("24,348 176,348", INK, 2.6)
    for top, bottom in ((286, 334), (364, 426)):
        c.box(154, top, 163, bottom, "#9fb0b7", radius=4, width=1.6)
    c.box(36, 648, 60, 660, "#6f7c82")
    c.box(140, 648, 164, 660, "#6f7c82")
    # a child's drawing, held by magnets
    c.polygon("52,378 134,372 139,470 57,476", "#ffffff", width=1.6)
    c.polygon("72,452 72,424 116,420 117,448", "#f2c14e", "#d8503f", 2)
    c.polygon("67,425 93,400 121,420", "#d8503f", "#b23a2c", 2)
    c.box(89, 430, 100, 451, "#5b8fc7", None)
    c.oval(124, 390, 7, fill="#ffd84d", ink=None)
    c.curve("60,464 80,458 110,461 136,456", "#58a94f", 4)
    c.oval(58, 380, 6, fill="#d8503f", width=1.4)
    c.oval(130, 375, 6, fill="#3f8a3f", width=1.4)
    for x, y, colour in ((60, 300, "#5b8fc7"), (86, 288, "#f2c14e"), (110, 304, "#8d5bc1")):
        c.oval(x, y, 7, fill=colour, width=1.4)
    # the radio on top
    c.line("128,150 158,96", INK, 2.6)
    c.box(46, 146, 150, 204, "#b5533c", radius=9)
    c.oval(76, 175, 20, fill="#f0dcb8", width=1.8)
    for radius in (13, 7):
        c.oval(76, 175, radius, fill=None, width=1.4)
    c.box(104, 156, 142, 172, "#fff3c9", width=1.4)
    c.line("118,158 118,170", "#d8503f", 2.2)
    for x in (112, 133):
        c.oval(x, 187, 7, fill="#f0dcb8", width=1.6)
    for x, y in ((60, 112), (100, 92)):
        c.oval(x, y, 7, 5, INK, None, turn=-20)
        c.curve([(x + 6, y - 2), (x + 6, y - 30), (x + 18, y - 22)], INK, 2.6)


def counter(c: Canvas) -> None:
    c.box(178, 446, 572, 646, "#86a9a0")
    for x in (188, 474):
        c.box(x, 462, x + 88, 632, "#9bbcb3", radius=4)
        c.oval(x + (76 if x < 300 else 12), 540, 5, fill="#e9dcc6", width=1.6)
    c.box(172, 432, 578, 448, "#d9b48a", radius=4)
    # the toaster
    for x in (210, 238):
        c.box(x, 356, x + 24, 402, "#c98a4b", radius=7)
        c.box(x + 4, 362, x + 20, 402, "#e5b877", None, radius=4)
        for offset in (-6, 8):
            c.line([(x + 12 + offset, 344), (x + 12 + offset, 334)], "#b98d5e", 2.2)
    c.box(196, 388, 276, 432, "#c3ccd1", radius=10)
    c.line("206,396 266,396", INK, 3)
    c.box(276, 402, 286, 410, INK, None, radius=2)
    c.line("210,418 250,418", "#eef3f5", 3)


def stove(c: Canvas) -> None:
    c.box(304, 430, 458, 650, "#f4f1ea", radius=4)
    c.box(304, 424, 458, 436, "#59636b", radius=3)
    for x in (322, 348, 410, 436):
        c.oval(x, 456, 8, fill="#d8503f", width=1.8)
        c.line([(x, 456), (x, 450)], "#ffffff", 2)
    c.box(318, 480, 444, 612, "#dfe4e4", radius=6)
    c.box(334, 506, 428, 586, "#4d4a52", radius=5)
    c.line("342,576 372,516", "#6f6c76", 5)
    c.line("330,493 432,493", "#8a959b", 6)
    # the steaming pot
    for x, top in ((324, 306), (342, 292), (360, 308)):
        c.curve([(x, 358), (x - 8, 344), (x + 7, 328), (x - 3, top)], "#ffffff", 6)
        c.curve([(x, 358), (x - 8, 344), (x + 7, 328), (x - 3, top)], "#c6d6dc", 2.6)
    c.box(310, 376, 374, 424, "#3f6c8f", radius=7)
    c.oval(342, 376, 33, 8, "#5683a8")
    c.oval(342, 365, 5, fill="#2f2f36")
    for x in (304, 380):
        c.oval(x, 392, 8, 5, None, width=4)


def broom(c: Canvas) -> None:
    c.limb("700,396 690,596", "#c98a4b", 7)
    c.polygon("674,592 706,594 716,664 656,662", "#e8c76a")
    for x in (670, 685, 700):
        c.line([(686 + (x - 685) * 0.5, 612), (x, 658)], "#c09a3c", 2)
    c.line("674,606 707,608", "#d8503f", 6)


# --- the table


def table(c: Canvas) -> None:
    for x in (428, 832):
        c.polygon([(x - 12, 740), (x + 12, 740), (x + 8, 876), (x - 8, 876)], "#a9795a")
    c.polygon("424,652 848,652 880,706 392,706", "#f5f0e6")
    front = [(392, 706), (880, 706)]
    for index in range(8):
        front += [(880 - index * 61, 772), (865 - index * 61, 784), (834 - index * 61, 784)]
    c.polygon([*front, (392, 772)], "#f5f0e6")
    for index in range(1, 8):
        x = 392 + index * 61
        c.line([(x, 708), (x, 770)], "#d8685a", 9)
        c.line([(424 + index * 53, 654), (x, 704)], "#d8685a", 7)
    for y, left, right in ((679, 409, 864), (726, 394, 878), (754, 394, 878)):
        c.line([(left, y), (right, y)], "#e2938a", 6)
    c.line("392,706 880,706", INK, 2)


def cake(c: Canvas) -> None:
    c.oval(486, 680, 58, 14, "#dfe9f2")
    c.box(444, 630, 528, 676, "#8a5a3b", radius=6)
    c.box(446, 652, 526, 660, "#f6dcc0", None)
    c.blob(
        "442,630 486,618 530,630 530,644 518,652 506,642 494,652 480,642 466,653 454,643 443,648",
        "#f7a8b8",
    )
    for x in (458, 476, 496, 514):
        c.box(x - 3, 596, x + 3, 626, "#5b8fc7" if x in (458, 496) else "#f2c14e", width=1.4)
        c.blob([(x, 578), (x + 5, 588), (x, 595), (x - 5, 588)], "#ff9d2e", "#e2702a", 1.4)


def bowl(c: Canvas) -> None:
    c.limb("634,560 664,602 628,628", "#f2c14e", 20)
    c.limb("566,560 538,604 562,640", "#f2c14e", 20)
    c.limb("620,656 640,596", "#b98d5e", 7)
    c.oval(598, 650, 46, 10, "#e8d9a8")
    c.polygon([*arc(598, 650, 46, 46, 0, 180)], "#5b8fc7")
    c.oval(598, 650, 46, 10, "#4a7bb1")
    c.oval(598, 652, 38, 6, "#f3e2ae", None)
    c.limb("612,654 636,600", "#b98d5e", 7)
    c.oval(632, 622, 11, fill=SKIN)
    c.oval(556, 650, 11, fill=SKIN)
    for x, y in ((654, 694), (674, 688)):
        c.oval(x, y, 11, 8, "#f6dcc0")


def spilt_milk(c: Canvas) -> None:
    c.blob("680,684 712,676 748,684 764,696 742,706 700,704", "#ffffff", "#9fb6c2", 1.8)
    c.blob(
        "722,700 750,700 748,740 742,762 736,744 732,784 726,786 722,740",
        "#ffffff",
        "#9fb6c2",
        1.8,
    )
    for y in (802, 824):
        c.blob([(728, y - 8), (733, y + 2), (728, y + 7), (723, y + 2)], "#ffffff", "#9fb6c2", 1.6)
    c.blob("672,862 716,848 776,852 798,866 760,880 700,878", "#ffffff", "#9fb6c2", 1.8)
    c.polygon("690,690 694,674 712,672 724,662 764,652 772,682 732,692 714,690", "#e6f2f8")
    c.polygon("722,684 762,674 766,682 732,692", "#ffffff", None)
    c.box(684, 672, 694, 692, "#d8503f", radius=2, width=1.6)


if __name__ == "__main__":
    draw_kitchen().save(sys.argv[1], optimize=True)
