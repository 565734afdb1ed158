"""Words of tinyworld: names, things, and made-up words of any length for spelling and counting letters."""

from __future__ import annotations

import random

NAMES = (
    "Ana Ben Cara Dan Ella Finn Gina Hugo Iris Jack Kira Leo Mia Noah Olga Paul Rosa Sam Tina Uma Vera Will Zoe Tom "
    "Lily Max Nora Oscar Ruth Simon Anna Peter Maria John Sarah David Laura Mark Julia Alex"
).split()
THINGS = (
    "apples pears plums coins books pens stamps cards shells marbles stones eggs cookies balloons tickets buttons "
    "stickers candles flowers nuts cups plates toys keys oranges pencils bottles chairs boxes beads"
).split()
PLACES = ("garden kitchen forest park school market river village beach library farm house barn hill street").split()
COLOURS = ("red blue green yellow white black brown orange purple pink grey").split()
OBJECTS = ("ball hat cup kite boat coat bag box car bike lamp chair book drum scarf pen").split()
ANIMALS = ("cat dog bird fox horse rabbit mouse bear duck frog goat owl").split()

COMMON = (
    "apple banana cherry orange lemon melon grape peach plum berry strawberry raspberry blueberry tomato potato "
    "carrot onion pepper garlic cabbage lettuce bread butter cheese milk water coffee tea sugar salt honey cookie "
    "cake chocolate dinner breakfast lunch table chair window door kitchen bedroom bathroom garden mirror pillow "
    "blanket candle bottle glass plate spoon fork knife basket school teacher student pencil paper letter number book "
    "library computer keyboard screen mouse phone camera television radio music guitar piano violin trumpet drum "
    "dance song movie theater picture painting color yellow purple green orange silver golden summer winter spring "
    "autumn weather rain snow cloud thunder lightning storm wind rainbow sunshine morning evening night mountain "
    "river ocean island forest desert valley beach lake bridge street village city country castle tower church market "
    "animal elephant giraffe monkey tiger lion zebra kangaroo penguin dolphin whale shark turtle rabbit squirrel "
    "hamster chicken butterfly spider mosquito dragon unicorn dinosaur family mother father sister brother cousin "
    "uncle grandmother friend neighbor doctor nurse police firefighter farmer soldier pilot sailor engineer scientist "
    "artist writer singer actor king queen prince happy sad angry funny clever brave honest gentle lazy hungry "
    "thirsty sleepy beautiful wonderful terrible dangerous important difficult interesting expensive delicious "
    "comfortable possible impossible necessary running swimming jumping walking reading writing singing dancing "
    "cooking sleeping thinking learning building opening closing beginning question answer problem solution "
    "mississippi tennessee alabama committee bookkeeper balloon coffee address success process parallel assessment "
    "occurrence successful immediately tomorrow yesterday calendar holiday birthday vacation airplane bicycle "
    "motorcycle automobile train boat umbrella raincoat sweater trousers jacket pocket button zipper hammer "
    "screwdriver wrench ladder bucket shovel engine machine battery electricity temperature science history geography "
    "mathematics language dictionary sentence paragraph alphabet"
).split()

ONSETS = (
    "b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr qu sc sh sl sm sn sp st str sw th tr tw"
).split()
NUCLEI = ("a e i o u a e i o u ai ea ee ie oo ou").split()
CODAS = [
    "",
    "",
    "",
    *[
        "b",
        "d",
        "g",
        "k",
        "l",
        "m",
        "n",
        "p",
        "r",
        "s",
        "t",
        "ck",
        "ll",
        "ng",
        "nk",
        "nt",
        "ss",
        "st",
        "tt",
        "mp",
        "rd",
        "rn",
        "x",
        "y",
    ],
]


def word(rng: random.Random) -> str:
    """A word of 3 to 14 letters: a common one, one made of syllables, or now and then any letters."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(COMMON)
    if kind < 0.5:
        return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 8)))
    while True:
        syllables = [rng.choice(ONSETS) + rng.choice(NUCLEI) + rng.choice(CODAS) for _ in range(rng.randint(1, 4))]
        made = "".join(syllables)
        if 3 <= len(made) <= 14:
            return made


def quoted(rng: random.Random, text: str) -> str:
    """As people write a word they talk about: plain or between quotes."""
    return rng.choice(("{}", "{}", "'{}'", "'{}'", '"{}"')).format(text)
