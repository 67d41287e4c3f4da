"""The people and animals of the kitchen scene."""

from frankenlm.scripts.pictures.drawing import INK, Canvas, arc

SKIN, TAN, BROWN = "#f3c9a5", "#d9a070", "#9c6644"


def face(c: Canvas, x, y, size, skin, *, look: float = 0, mouth: str = "smile", brow: str = INK) -> None:
    """Draw a head with ears, eyes, nose and mouth; look: where it turns, -1 left to 1 right."""
    for side in (-1, 1):
        c.oval(x + side * size * 0.98 - look * size * 0.1, y + size * 0.08, size * 0.2, size * 0.24, skin)
    c.oval(x, y, size, size * 1.08, skin)
    shift = look * size * 0.3
    for side in (-1, 1):
        eye = x + shift + side * size * 0.36
        c.oval(eye, y - size * 0.02, size * 0.1, size * 0.13, INK, None)
        c.oval(eye + size * 0.03, y - size * 0.07, size * 0.035, fill="#ffffff", ink=None)
        c.curve(
            [(eye - size * 0.17, y - size * 0.3), (eye, y - size * 0.36), (eye + size * 0.17, y - size * 0.3)],
            brow,
            2.6,
        )
        c.oval(x + shift + side * size * 0.56, y + size * 0.32, size * 0.15, size * 0.1, "#eda88c", None)
    nose = x + shift * 1.25
    c.curve(
        [
            (nose - size * 0.08, y + size * 0.2),
            (nose + size * 0.02, y + size * 0.27),
            (nose + size * 0.1, y + size * 0.19),
        ],
        "#b5765a",
        2.4,
    )
    at = x + shift
    if mouth == "smile":
        c.curve(
            [(at - size * 0.3, y + size * 0.47), (at, y + size * 0.64), (at + size * 0.3, y + size * 0.47)],
            "#9c3f3a",
            2.8,
        )
    else:
        c.polygon(arc(at, y + size * 0.42, size * 0.3, size * 0.34, 0, 180), "#a8423f")
        c.polygon(arc(at, y + size * 0.42, size * 0.22, size * 0.1, 0, 180), "#ffffff", None)


def grandfather(c: Canvas) -> None:
    for x in (492, 540):
        c.limb([(x, 560), (x, 690)], "#56606e", 30)
        c.blob([(x - 24, 704), (x - 18, 690), (x + 14, 686), (x + 20, 704)], "#5b3d2e")
    c.blob("468,344 516,330 566,346 574,450 570,590 464,590 460,450", "#7fa7d6")
    c.polygon("484,372 550,372 566,450 568,620 468,620 468,450", "#d8503f")
    c.curve("486,374 492,350 500,338", "#b23a2c", 6)
    c.curve("548,374 542,350 534,338", "#b23a2c", 6)
    c.box(490, 480, 546, 530, "#e26a58", radius=6)
    # the pancake in the air, the pan below it
    c.oval(412, 272, 33, 11, "#e8b45c", turn=-14)
    c.oval(410, 268, 24, 6, "#c98436", None, turn=-14)
    for x in (388, 412, 436):
        c.line([(x, 322 - (x - 388) * 0.2), (x, 302 - (x - 388) * 0.2)], "#b98d5e", 2.4)
    c.limb("484,364 446,360", "#33343b", 8)
    c.polygon("370,350 450,350 440,372 380,372", "#45464f")
    c.oval(410, 350, 40, 8, "#5d5e69")
    c.limb("562,366 588,420 574,470", "#7fa7d6", 28)
    c.oval(566, 486, 15, fill=SKIN)
    c.limb("484,372 456,426 478,378", "#7fa7d6", 26)
    c.oval(481, 364, 14, fill=SKIN)
    c.box(504, 306, 530, 344, SKIN, None, radius=8)
    face(c, 516, 276, 42, SKIN, look=-0.5, brow="#d9d9d9")
    for x in (477, 558):
        c.blob([(x - 7, 254), (x + 5, 250), (x + 8, 276), (x, 294), (x - 8, 278)], "#e4e4e4")
    for x in (492, 524):
        c.oval(x, 276, 13, fill=None, width=2.6)
    c.line("505,275 511,275", INK, 2.6)
    c.line("537,274 556,270", INK, 2.4)
    c.blob("478,298 494,288 509,294 524,288 540,299 524,306 509,301 494,306", "#ececec")


def woman(c: Canvas) -> None:
    for x in (762, 796):
        c.limb([(x, 600), (x, 690)], TAN, 20)
    c.blob("744,372 786,358 826,378 820,470 858,640 716,640 748,470", "#3f9a8c")
    for x, y in ((760, 420), (796, 440), (770, 500), (812, 520), (750, 560), (790, 580), (832, 600), (786, 392)):
        c.oval(x, y, 5, fill="#f3e3a4", ink=None)
    # the watering can and its water
    for column in range(3):
        for row in range(3):
            x, y = 660 + 9 * column - 3 * row, 232 + 3 * column + 13 * row
            c.line([(x, y), (x - 2, y + 6)], "#4a9fd6", 3)
    c.limb("720,246 698,234 684,222", "#7b8f3c", 8)
    c.polygon("672,220 690,210 694,226 680,234", "#93a94c")
    c.curve("720,216 738,190 766,210 764,246", INK, 8)
    c.curve("720,216 738,190 766,210 764,246", "#93a94c", 4.6)
    c.polygon("714,210 758,220 752,272 708,262", "#93a94c")
    c.limb("820,386 846,440 822,486", "#3f9a8c", 24)
    c.oval(816, 498, 13, fill=TAN)
    c.limb("756,384 722,350 738,300", TAN, 17)
    c.limb("758,384 734,366", "#3f9a8c", 25)
    c.limb("735,306 752,244", TAN, 15)
    c.oval(754, 234, 12, fill=TAN)
    c.blob("752,300 762,250 796,240 832,262 836,330 846,380 806,372", "#5a3524")
    c.box(774, 330, 800, 372, TAN, None, radius=8)
    face(c, 788, 302, 39, TAN, look=-0.6, brow="#5a3524")
    c.blob("748,296 752,266 784,252 820,264 832,300 812,282 784,278 764,282", "#5a3524")


def girl(c: Canvas) -> None:
    for side in (-1, 1):
        c.blob(
            [
                (600 + side * 38, 452),
                (600 + side * 62, 468),
                (600 + side * 66, 516),
                (600 + side * 50, 540),
                (600 + side * 44, 500),
            ],
            "#e08a35",
        )
        c.oval(600 + side * 47, 466, 8, fill="#d8503f", width=1.6)
    c.blob("556,556 600,540 644,556 652,600 650,680 550,680 548,600", "#f2c14e")
    for y in (580, 604, 628):
        c.line([(554, y), (646, y)], "#e2a52f", 5)
    c.box(588, 522, 612, 552, SKIN, None, radius=7)
    face(c, 600, 486, 42, SKIN, mouth="open", brow="#b5651d")
    for x, y in ((580, 498), (574, 506), (587, 507), (619, 498), (626, 506), (613, 507)):
        c.oval(x, y, 1.6, fill="#c98a5b", ink=None)
    c.blob(
        "556,484 558,452 584,434 616,434 642,452 644,484 628,458 604,452 576,458",
        "#e08a35",
    )


def boy(c: Canvas) -> None:
    c.limb("120,806 176,826 100,842", "#3d5a99", 36)
    c.limb("96,806 48,828 120,846", "#3d5a99", 36)
    c.oval(144, 850, 22, 11, "#e9e9e9")
    c.oval(66, 856, 22, 11, "#e9e9e9")
    c.blob("72,700 108,690 144,700 152,770 146,828 70,828 64,770", "#58a94f")
    for y in (726, 758, 790):
        c.line([(70, y), (146, y)], "#f4f1ea", 8)
    c.limb("78,712 46,762 68,800", "#58a94f", 22)
    c.oval(72, 806, 12, fill=BROWN)
    c.limb("140,712 176,716 196,676", BROWN, 16)
    c.limb("138,712 164,718", "#58a94f", 23)
    c.oval(197, 668, 13, fill=BROWN)
    c.box(96, 670, 120, 702, BROWN, None, radius=7)
    face(c, 108, 638, 43, BROWN, look=0.5, mouth="open", brow="#2b1d18")
    for x, y in arc(108, 622, 38, 32, 190, 350)[::4]:
        c.oval(x, y, 15, 14, "#2b1d18", None)
    c.oval(108, 600, 30, 14, "#2b1d18", None)
    c.oval(205, 640, 22, fill="#e2486b")
    c.curve("186,632 204,642 226,634", "#ffffff", 4)


def cat(c: Canvas) -> None:
    c.limb("834,684 868,664 862,622 878,600", "#6e6e78", 11)
    c.blob("786,640 812,606 842,626 850,684 796,690", "#6e6e78")
    c.limb("798,650 782,668 766,664", "#6e6e78", 13)
    c.limb("808,660 806,684", "#6e6e78", 14)
    for side in (-1, 1):
        c.polygon([(792 + side * 25, 604), (792 + side * 23, 570), (792 + side * 4, 586)], "#6e6e78")
        c.polygon([(792 + side * 21, 596), (792 + side * 20, 580), (792 + side * 9, 588)], "#e9a6a6", None)
    c.oval(792, 606, 29, 25, "#6e6e78")
    for side in (-1, 1):
        c.oval(790 + side * 11, 601, 6, 7, "#d9e86a", width=1.4)
        c.oval(789 + side * 11, 602, 2.4, 5, INK, None)
        for y in (612, 618):
            c.line([(790 + side * 12, y), (790 + side * 36, y + (y - 615) * 1.6)], "#f4f1ea", 1.6)
    c.polygon("786,610 794,610 790,615", "#e9a6a6", width=1)
    c.curve("782,619 786,621 790,616 794,621 798,619", INK, 1.8)
    for y in (634, 648, 662):
        c.curve([(832, y), (842, y + 3), (848, y + 2)], "#4d4d56", 4)


def dog(c: Canvas) -> None:
    c.limb("340,812 372,794 378,762", "#b9793f", 13)
    c.blob("270,744 300,736 330,766 356,820 350,862 280,864 266,810", "#c98a4b")
    c.limb("334,826 352,848 318,860", "#b9793f", 22)
    c.limb("284,790 280,856", "#c98a4b", 18)
    c.limb("272,780 240,784 222,760", "#c98a4b", 16)
    c.oval(274, 862, 15, 8, "#e5b877")
    c.blob("256,700 280,680 306,696 306,736 284,752 262,742", "#c98a4b")
    c.blob("264,704 240,706 226,716 230,732 262,740", "#e5b877")
    c.oval(229, 713, 7, 6, "#2f2f36")
    c.curve("236,730 250,732 262,726", INK, 2.4)
    c.blob("242,732 254,733 252,750 244,750", "#e2486b", width=1.6)
    c.oval(265, 704, 4, 5, INK, None)
    c.blob("286,684 308,690 320,722 310,744 296,732 290,706", "#8a5a3b")
    c.curve("266,750 286,758 308,744", "#3d5a99", 8)
    c.oval(282, 764, 6, fill="#ffd84d", width=1.4)
