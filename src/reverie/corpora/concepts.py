"""Which things can stand in an emoji scene, and what they are called in English and Chinese.

Names and keywords are read from Unicode CLDR (Debian package ``unicode-cldr-core``); the pictures are the glyphs of
Noto Color Emoji (Debian package ``fonts-noto-color-emoji``). Neither is part of reverie: a missing file is reported
with the package that brings it.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from reverie.errors import ReverieError

CLDR = Path(os.environ.get("REVERIE_CLDR", "/usr/share/unicode/cldr/common"))
VARIATION_SELECTOR = "\N{VARIATION SELECTOR-16}"
OTHER = "other"  # the label of an emoji newer than CLDR's labels

# Label groups of CLDR's properties/labels.txt that are signs to read, not things to draw.
SKIPPED_LABELS = {"skin-tone", "family", "arrow", "av-symbol", "alphanum", "other-symbol", "transport-sign", "flag"}
SKIPPED_NAMES = ("o’clock", "-thirty", "button")

# Newer emoji (Unicode 12 to 14) have no label in CLDR 41; these blocks hold things, not marks.
UNLABELLED_BLOCKS = ((0x1F900, 0x1F9FF), (0x1FA70, 0x1FAFF), (0x1F6D5, 0x1F6FF), (0x1F7E0, 0x1F7EB), (0x1F90C, 0x1F93A))

# What people call a thing where CLDR's formal name differs: emoji -> (English, Chinese) further names.
EVERYDAY_NAMES = {
    "🍎": ("apple", "苹果"), "🐔": ("hen", "母鸡"), "🚗": ("car", "汽车"),
    "🚕": ("cab", "出租车"), "🌲": ("fir", "松树"),
    "🚓": ("police car", "警车"), "🚌": ("bus", "公交车"), "🌽": ("corn", "玉米"), "🌙": ("moon", "月亮"),
    "❤": ("heart", "红心"), "🐞": ("ladybug", "瓢虫"), "☕": ("coffee", "咖啡"), "🍺": ("beer", "啤酒"),
    "🎂": ("cake", "蛋糕"), "👕": ("shirt", "衬衫"), "🌍": ("earth", "地球"), "🐑": ("sheep", "绵羊"),
    "🐿": ("squirrel", "松鼠"), "🎹": ("piano", "钢琴"), "🌳": ("tree", "树"), "🚲": ("bike", "单车"),
    "⚽": ("football", "足球"), "🥛": ("milk", "牛奶"), "🍷": ("wine", "红酒"), "💧": ("drop", "水滴"),
    "🎁": ("gift", "礼物"), "🎃": ("pumpkin", "南瓜"), "👶": ("baby", "婴儿"), "🐝": ("bee", "蜜蜂"),
    "🐵": ("monkey", "猴子"), "🐮": ("cow", "奶牛"), "🐷": ("pig", "小猪"), "🐯": ("tiger", "老虎"),
    "🐰": ("rabbit", "兔子"), "🐭": ("mouse", "老鼠"), "🐴": ("horse", "马"), "🐳": ("whale", "鲸鱼"),
    "🍳": ("fried egg", "煎蛋"), "🔒": ("lock", "锁"), "⚡": ("lightning", "闪电"), "⛄": ("snowman", "雪人"),
    "💎": ("gem", "宝石"), "😀": ("smiley", "笑脸"), "😡": ("angry face", "怒脸"), "🎱": ("eight ball", "八号球"),
}  # fmt: skip

# What the bundled U-Net draws as long as two cores train it: as many things as some hours carry, easy to tell apart.
BASIC = "🐻🐼🦊🐸🐧🐘🐢🐟🦋🐝🍎🍌🍇🍊🍋🍓🍉🥕🍄🍔🍕🍩🌲🌵🌻🌙⭐🌈🔥⛄🚗🚲🚀⛵🏠🎷🎸🎹🎺🥁⚽🎈🎁🔑👑❤😀👻"

# What the bundled CLIP, the autoencoder and the judge are trained on: everyday things, `BASIC` among them.
COMMON = (
    "🐻🐼🐨🐯🦁🐮🐷🐸🐵🐔🐧🦊🐰🐭🐺🐴🦄🦒🐘🐪🐑🐿🦔🦇🐊🐢🐍🐳🐬🐟🐙🦀🦋🐌🐝🐞🐜🦉🦆🦅🦢🦜🦩🦖"
    "🍎🍌🍇🍉🍊🍋🍍🍓🍒🍑🍐🥥🍅🍆🥑🥕🌽🥦🍄🌶🍞🥐🥨🧀🍔🍟🍕🌭🌮🍦🍩🍪🎂🍰🍫🍭🍯☕🍷🍺🍳"
    "🌲🌳🌴🌵🌷🌹🌻🍀🍁🌸☀🌙⭐☁⛄🌈⚡❄🔥💧🌍"
    "🚗🚕🚌🚒🚓🚜🚲🚂✈🚁🚀⛵🚢🛸🏠🏰🗼⛺"
    "🎷🎸🎹🎺🎻🥁🎤🪕⚽🏀🏈⚾🎾🎱🥊🎯🏆"
    "🔨🪓🔧✂🔑🔒💡🕯📷📺💻📱⌚⏰📚✏📦✉🎁🎈💎💰🔔🧲🔬💊🚪🛁🪑🧸🎨⚓⚙"
    "👑🎩👒👕👖👗👠👢🧣🧤🧦🎒👓☂❤💙💔☯⚠🛑😀😂😍😎😡😭😱🤖👻👽💀🎃🤡👶"
)

# What a stranger tries first, beside `COMMON`: the commonest concrete nouns (wordfreq) that the font can draw.
TRIED_FIRST = "🐱🐶🐦🦓🦈🕷🐉🦌🐥🐹🌼🪴🏔🌊🏝🎄⛪🏢🚚🏍👩👨👧👦🧑👸🎅🧙👁✋👟🛏👜💍🎮🗡📖🎵💣🥚🍬🥪🍜💚💛🧡💜🖤"

# What people call things of `EVERYDAY` beside the names above; a thing may have several, which "|" parts.
SPOKEN_NAMES = {
    "🐱": ("cat|kitten", "猫|小猫"), "🐶": ("dog|puppy", "狗|小狗"), "🐦": ("", "小鸟"), "🐥": ("chick", "小鸡"),
    "🌼": ("flower", "花"), "🪴": ("plant", "植物"), "🏔": ("mountain", "山"), "🌊": ("wave|sea", "海浪|大海"),
    "🏝": ("island", "岛"), "🏢": ("building|office", "大楼"), "🚚": ("truck", "卡车"), "🏍": ("motorbike", "摩托"),
    "🧙": ("wizard", "巫师"), "🎅": ("Santa", "圣诞爷爷"), "✋": ("hand", "手"), "👟": ("shoe|sneaker", "鞋|运动鞋"),
    "👜": ("bag", "包"), "🗡": ("sword", "剑"), "📖": ("book", "书"), "🎵": ("music|note", "音乐"), "🥚": ("", "鸡蛋"),
    "🍜": ("noodles", "拉面"), "🖤": ("", "黑色的心"), "💚": ("", "绿色的心"), "💜": ("", "紫色的心"),
    "📱": ("phone|cell phone", "电话"), "⛵": ("boat", "船"), "⏰": ("clock", "钟"), "🎩": ("hat", "帽子"),
    "🦖": ("dinosaur", "恐龙"), "✈": ("plane", ""), "💻": ("computer", "电脑"), "📺": ("tv", "电视"),
    "🍁": ("leaf", "叶子"), "🚂": ("train", "火车"), "😀": ("face", "脸"), "☕": ("cup", "杯子"),
    "🍫": ("chocolate", ""),
    "🎮": ("game controller", "游戏机"), "🧑": ("", "人"), "🎄": ("", "圣诞"), "🌹": ("", "玫瑰"), "🏠": ("", "房屋"),
}  # fmt: skip

SUBSETS: dict[str, tuple[tuple[str, ...], str]] = {  # name -> prefixes of CLDR labels, and emoji that CLDR 41 lacks
    "animals": (("animal-", "monkey-face", "cat-face"), "🦧🦮🦬🦣🦫🦥🦦🦨🦤🦩🦭🪲🪳🪰🪱🪸"),
    "faces": (("face-", "cat-face", "monkey-face"), "🥹🫠🫡🫢🫣🫤🫥🥲🥸🥱"),
    "people": (("person", "body"), "🧌🫃🫄🫅🧏🥷🧍🧎🫂🫦🫰🫱🫲🫳🫴🫵🤌🤏🦾🦿🦻🫀🫁"),
    "food": (("food-", "drink", "dishware"), "🫘🫙🫗🫐🫒🫑🧄🧅🫓🧇🫔🧆🫕🧈🦪🫖🧋🧃🧉🧊"),
    "plants": (("plant-",), "🪷🪴"),
    "weather": (("sky & weather",), "🪐"),
    "vehicles": (("transport-",), "🛻🦽🦼🛺🛼🪂🏎🏍"),
    "buildings": (("place-",), "🛖🛕🛝"),
    "instruments": (("musical-instrument", "music", "sound"), "🪗🪕🪘"),
    "sport": (("sport", "award-medal", "game"), "🛼🤿🪀🪁🪄🪅🪆🪃"),
    "clothes": (("clothing",), "🦺🥻🩱🩲🩳🩴🩰🪖"),
    "tools": (("tool", "science", "household", "office", "writing", "lock"), "🪓🪚🪛🪝🪜🪡🩺🪞🪟🪑🪠🪤🪒🪣🪥🩹"),
    "hearts": (("emotion",), "🫶🤎🤍"),
    "symbols": (("religion", "zodiac", "warning", "geometric"), "🟠🟡🟢🟣🟤🟥🟧🟨🟩🟦🟪🟫"),
}  # "all" is made in `concepts`

EVERYDAY = COMMON + TRIED_FIRST
CHOSEN = {"basic": BASIC, "common": COMMON, "everyday": EVERYDAY}  # subsets that are chosen one by one, in this order


@dataclass(frozen=True)
class Concept:
    """Name one drawable thing: its emoji, its CLDR label and its names (the first is CLDR's) in both languages."""

    emoji: str
    label: str
    en: tuple[str, ...]
    zh: tuple[str, ...]
    keywords_en: tuple[str, ...] = ()
    keywords_zh: tuple[str, ...] = ()


def _cldr(*parts: str) -> Path:
    path = CLDR.joinpath(*parts)
    if not path.is_file():
        raise ReverieError(f"no Unicode CLDR names at {path}; install the Debian package unicode-cldr-core")
    return path


def _annotations(language: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Read emoji -> (short name, keywords) of one language from CLDR's annotations."""
    names: dict[str, str] = {}
    keywords: dict[str, tuple[str, ...]] = {}
    for node in ElementTree.parse(_cldr("annotations", f"{language}.xml")).iter("annotation"):
        emoji, text = node.get("cp", ""), node.text or ""
        if node.get("type") == "tts":
            names[emoji] = text.strip()
        else:
            keywords[emoji] = tuple(word.strip() for word in text.split("|"))
    return {emoji: (name, keywords.get(emoji, ())) for emoji, name in names.items()}


def parse_unicode_set(text: str) -> list[str]:
    """Expand the plain UnicodeSets of labels.txt, such as ``[a-c{xy}]`` -> a, b, c, xy (UTS 35, Unicode Sets)."""
    body = text[1:-1] if text.startswith("[") else text
    found: list[str] = []
    i = 0
    while i < len(body):
        if body[i] == "{":
            end = body.index("}", i)
            found.append(body[i + 1 : end])
            i = end + 1
        elif body[i] == "-" and found and i + 1 < len(body):
            found += [chr(code) for code in range(ord(found[-1]) + 1, ord(body[i + 1]) + 1)]
            i += 2
        else:
            found.append(body[i])
            i += 1
    return [emoji.replace(VARIATION_SELECTOR, "") for emoji in found]


def _labels() -> dict[str, str]:
    """Read emoji -> label ("animal-mammal", ...) from CLDR's properties/labels.txt."""
    labels: dict[str, str] = {}
    for line in _cldr("properties", "labels.txt").read_text(encoding="utf-8").splitlines():
        fields = [field.strip() for field in line.split(";")]
        if len(fields) >= 3 and not line.startswith("#"):
            labels.update(dict.fromkeys(parse_unicode_set(fields[0]), fields[2]))
    return labels


def _usable(emoji: str, name: str, label: str | None) -> bool:
    if len(emoji) != 1 or any(part in name for part in SKIPPED_NAMES):
        return False
    if label is None:
        return any(low <= ord(emoji) <= high for low, high in UNLABELLED_BLOCKS)
    return label not in SKIPPED_LABELS


@cache
def concepts(subset: str = "all") -> tuple[Concept, ...]:
    """Return the concepts of a subset ("all", or a key of ``CHOSEN`` or ``SUBSETS``), in a fixed order.

    Raises ReverieError for an unknown subset or where CLDR's files are missing.
    """
    if subset not in {"all", *CHOSEN, *SUBSETS}:
        raise ReverieError(f"unknown subset {subset!r}; choose from all, {', '.join([*CHOSEN, *SUBSETS])}")
    english, chinese, labels = _annotations("en"), _annotations("zh"), _labels()
    if subset in CHOSEN:
        chosen = list(CHOSEN[subset])
    else:
        prefixes, others = SUBSETS.get(subset, (("",), ""))
        usable = (e for e in english if e in chinese and _usable(e, english[e][0], labels.get(e)))
        chosen = [e for e in usable if labels.get(e, OTHER).startswith(prefixes) or e in others]
    formal = {english[emoji][0] for emoji in chosen} | {chinese[emoji][0] for emoji in chosen}
    found: list[Concept] = []
    taken: set[str] = set()
    for emoji in chosen:
        (en, words_en), (zh, words_zh) = english[emoji], chinese[emoji]
        if en not in taken and zh not in taken:  # a name means one thing
            more_en, more_zh = (further_names(emoji, language, subset, formal) for language in (0, 1))
            found.append(Concept(emoji, labels.get(emoji, OTHER), (en, *more_en), (zh, *more_zh), words_en, words_zh))
            taken |= {en, zh}
    return tuple(found)


def further_names(emoji: str, language: int, subset: str, formal: Collection[str]) -> list[str]:
    """Return what else a thing is called, in English (0) or Chinese (1), by names that no other thing has formally."""
    tables = (EVERYDAY_NAMES, SPOKEN_NAMES) if subset == "everyday" else (EVERYDAY_NAMES,)
    names = [name for table in tables for name in table.get(emoji, ("", ""))[language].split("|")]
    return [name for name in dict.fromkeys(names) if name and name not in formal]
