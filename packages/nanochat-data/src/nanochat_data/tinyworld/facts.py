"""A few hundred facts as relations, with statements and questions; some wordings of each question are kept for test."""

from __future__ import annotations

import random
from dataclasses import dataclass

from nanochat_data.tasks.choices import ONLY_LETTER, render_choices
from nanochat_data.tinyworld.randomness import Split, phrasings


@dataclass(frozen=True, slots=True)
class Relation:
    """Pairs (subject, value) that are stated and asked in the same ways."""

    pairs: tuple[tuple[str, str], ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    entries = (entry.split(":") for entry in text.split(","))
    return tuple((subject.strip(), value.strip()) for subject, value in entries)


RELATIONS = {
    "capital": Relation(
        _pairs(
            "France: Paris, Germany: Berlin, Italy: Rome, Spain: Madrid, Portugal: Lisbon, Greece: Athens, Austria: Vienna, Poland: Warsaw, "
            "Norway: Oslo, Sweden: Stockholm, Finland: Helsinki, Denmark: Copenhagen, Ireland: Dublin, England: London, Scotland: Edinburgh, "
            "Hungary: Budapest, Russia: Moscow, Turkey: Ankara, Egypt: Cairo, Kenya: Nairobi, Japan: Tokyo, China: Beijing, India: Delhi, "
            "Thailand: Bangkok, Vietnam: Hanoi, Cuba: Havana, Peru: Lima, Chile: Santiago, Canada: Ottawa, Iran: Tehran, Iraq: Baghdad, "
            "Belgium: Brussels, Romania: Bucharest, Bulgaria: Sofia, Morocco: Rabat, Nepal: Kathmandu, Korea: Seoul, Mexico: Mexico City"
        ),
        ("The capital of {s} is {v}.", "{v} is the capital of {s}.", "The capital city of {s} is called {v}.", "In {s}, the capital is {v}."),
        (
            "What is the capital of {s}?", "Which city is the capital of {s}?", "What is the capital city of {s}?", "Name the capital of {s}.",
            "{s} has which capital?", "What city is the capital of {s}?", "Do you know the capital of {s}?", "The capital of {s} is what?",
            "Can you name the capital of {s}?", "What is the name of the capital of {s}?", "Which city is {s}'s capital?", "What is {s}'s capital city?",
        ),
    ),
    "continent": Relation(
        _pairs(
            "France: Europe, Germany: Europe, Italy: Europe, Spain: Europe, Norway: Europe, Poland: Europe, Greece: Europe, Egypt: Africa, Kenya: Africa, "
            "Morocco: Africa, Nigeria: Africa, Japan: Asia, China: Asia, India: Asia, Thailand: Asia, Vietnam: Asia, Nepal: Asia, Iran: Asia, Peru: South America, "
            "Chile: South America, Brazil: South America, Argentina: South America, Canada: North America, Mexico: North America, Cuba: North America"
        ),
        ("{s} is in {v}.", "{s} is a country in {v}.", "The country {s} lies in {v}."),
        (
            "On which continent is {s}?", "Which continent is {s} in?", "Where in the world is {s}?", "What continent is {s} on?", "{s} is on which continent?",
            "What continent does {s} belong to?", "{s} lies on which continent?", "Name the continent of {s}.", "Which continent does {s} lie in?",
            "{s} is a country on what continent?", "To which continent does {s} belong?", "In which continent can you find {s}?",
        ),
    ),
    "opposite": Relation(
        _pairs(
            "hot: cold, big: small, tall: short, fast: slow, happy: sad, old: young, new: old, good: bad, light: dark, day: night, up: down, left: right, open: closed, "
            "full: empty, hard: soft, wet: dry, rich: poor, early: late, loud: quiet, strong: weak, clean: dirty, thick: thin, wide: narrow, near: far, high: low, "
            "first: last, sweet: sour, heavy: light, deep: shallow, brave: afraid, smooth: rough, inside: outside, front: back, win: lose, push: pull, buy: sell, "
            "begin: end, love: hate, true: false, always: never"
        ),
        ("The opposite of {s} is {v}.", "{s} is the opposite of {v}.", "If something is not {s}, it may be {v}; these are opposites."),
        (
            "What is the opposite of {s}?", "Which word is the opposite of {s}?", "Name the opposite of {s}.", "{s} is the opposite of what?", "What word means the opposite of {s}?",
            "Give the opposite of {s}.", "The opposite of {s} is which word?", "Tell me the opposite of {s}.", "What is the contrary of {s}?", "Do you know the opposite of {s}?",
            "What would be the opposite of {s}?", "What's the opposite of the word {s}?",
        ),
    ),
    "young": Relation(
        _pairs(
            "cat: kitten, dog: puppy, cow: calf, horse: foal, sheep: lamb, goat: kid, pig: piglet, bear: cub, duck: duckling, goose: gosling, hen: chick, frog: tadpole, "
            "deer: fawn, kangaroo: joey, swan: cygnet, owl: owlet"
        ),
        ("A young {s} is called a {v}.", "A {v} is a baby {s}.", "The baby of a {s} is a {v}."),
        (
            "What is a baby {s} called?", "What do you call a young {s}?", "What is the name for a baby {s}?", "A young {s} is called what?", "What is a young {s} called?",
            "What do we call a baby {s}?", "Which word means a young {s}?", "The baby of a {s} is called what?", "What is the word for a baby {s}?", "Name the young of a {s}.",
            "How do you call the baby of a {s}?", "What's the name of a {s}'s baby?",
        ),
    ),
    "sound": Relation(
        _pairs(
            "cat: meow, dog: woof, cow: moo, sheep: baa, pig: oink, duck: quack, lion: roar, bee: buzz, snake: hiss, owl: hoot, frog: croak, mouse: squeak, rooster: crow, "
            "horse: neigh, wolf: howl"
        ),
        ("The sound of a {s} is {v}.", "A {s} says {v}.", "When a {s} makes a sound, it goes {v}."),
        (
            "What sound does a {s} make?", "What does a {s} say?", "Which sound does a {s} make?", "How does a {s} sound?", "A {s} makes which sound?", "What noise does a {s} make?",
            "What is the sound of a {s}?", "Name the sound of a {s}.", "The sound a {s} makes is what?", "How does a {s} go?", "What kind of noise comes from a {s}?",
            "What do you hear from a {s}?",
        ),
    ),
    "home": Relation(
        _pairs(
            "bird: nest, bee: hive, dog: kennel, horse: stable, spider: web, rabbit: burrow, fox: den, lion: den, pig: sty, cow: barn, fish: water, bear: cave, ant: anthill, "
            "king: castle, chicken: coop"
        ),
        ("A {s} lives in a {v}.", "The home of a {s} is a {v}.", "You can find a {s} at home in a {v}."),
        (
            "Where does a {s} live?", "What is the home of a {s}?", "In what does a {s} live?", "A {s} lives where?", "What is a {s}'s home called?", "Where is the home of a {s}?",
            "Name the home of a {s}.", "What does a {s} live in?", "Where would you find a {s} at home?", "Which home does a {s} have?", "What do you call the home of a {s}?",
            "Where can a {s} be found living?",
        ),
    ),
    "colour": Relation(
        _pairs(
            "grass: green, snow: white, coal: black, blood: red, the sky: blue, the sun: yellow, a banana: yellow, a carrot: orange, chocolate: brown, milk: white, "
            "a tomato: red, a frog: green, an elephant: grey, a pumpkin: orange, salt: white, a raven: black, a lemon: yellow, the sea: blue, a plum: purple, a flamingo: pink, "
            "a strawberry: red, a cucumber: green"
        ),
        ("The colour of {s} is {v}.", "{s} has the colour {v}.", "If you look at {s}, you see {v}."),
        (
            "What colour is {s}?", "What is the colour of {s}?", "Which colour does {s} have?", "What color is {s}?", "{s} has which colour?", "Name the colour of {s}.",
            "The colour of {s} is what?", "What color does {s} have?", "Tell me the colour of {s}.", "Which color is {s}?", "What is the usual color of {s}?",
            "If you paint {s}, which colour do you need?",
        ),
    ),
    "workplace": Relation(
        _pairs(
            "teacher: school, doctor: hospital, farmer: farm, cook: kitchen, baker: bakery, sailor: ship, pilot: plane, judge: court, actor: theatre, miner: mine, "
            "librarian: library, gardener: garden, banker: bank, soldier: army, priest: church, astronaut: space"
        ),
        ("A {s} works in a {v}.", "The place of work of a {s} is a {v}.", "You meet a {s} at work in a {v}."),
        (
            "Where does a {s} work?", "What is the workplace of a {s}?", "In which place does a {s} work?", "A {s} works where?", "Where would you meet a {s} at work?",
            "What place does a {s} work in?", "Name the workplace of a {s}.", "Where is a {s} at work?", "At what place does a {s} work?", "The workplace of a {s} is what?",
            "Where is the job of a {s} done?", "Where can you find a {s} working?",
        ),
    ),
    "after": Relation(
        _pairs(
            "Monday: Tuesday, Tuesday: Wednesday, Wednesday: Thursday, Thursday: Friday, Friday: Saturday, Saturday: Sunday, Sunday: Monday, January: February, "
            "February: March, March: April, April: May, May: June, June: July, July: August, August: September, September: October, October: November, "
            "November: December, December: January, spring: summer, summer: autumn, autumn: winter, winter: spring"
        ),
        ("After {s} comes {v}.", "{v} comes after {s}.", "{s} is followed by {v}."),
        (
            "What comes after {s}?", "Which one comes after {s}?", "What follows {s}?", "{s} is followed by what?", "What is next after {s}?", "After {s} comes what?",
            "Name what comes after {s}.", "Tell me what comes after {s}.", "What comes right after {s}?", "What is it after {s}?", "When {s} is over, what comes?",
            "What comes next after {s}?",
        ),
    ),
    "number": Relation(
        _pairs(
            "legs of a dog: four, legs of a bird: two, legs of a spider: eight, legs of an insect: six, wheels of a car: four, wheels of a bicycle: two, "
            "sides of a triangle: three, sides of a square: four, sides of a hexagon: six, sides of a pentagon: five, days of a week: seven, months of a year: twelve, "
            "fingers of a hand: five, arms of an octopus: eight, eyes of a person: two, seasons of a year: four, wheels of a tricycle: three, colours of a rainbow: seven"
        ),
        ("The number of {s} is {v}.", "There are {v}: that is the number of {s}.", "If you count the {s}, you get {v}."),
        (
            "What is the number of {s}?", "How many are the {s}?", "Count the {s}: how many?", "The {s} are how many?", "Tell me the number of {s}.", "What number are the {s}?",
            "Name the number of {s}.", "What do you get if you count the {s}?", "Say the number of {s}.", "Do you know the number of {s}?", "How many would the {s} be?",
            "If you count, how many are the {s}?",
        ),
    ),
}  # fmt: skip

LETTERS = "ABCD"


def statement(rng: random.Random) -> str:
    """A fact in a sentence."""
    relation = RELATIONS[rng.choice(tuple(RELATIONS))]
    subject, value = rng.choice(relation.pairs)
    return _sentence(rng.choice(relation.statements).format(s=subject, v=value))


def question(rng: random.Random, split: Split) -> tuple[str, str]:
    """A question and its answer, in a sentence of the relation's own."""
    relation, subject, value = _pick(rng)
    return _sentence(rng.choice(phrasings(relation.questions, split)).format(s=subject)), value


LOOKUPS = (
    "Which one is {v}?",
    "Where is {v}?",
    "Find {v}.",
    "Which letter has {v}?",
    "Which choice says {v}?",
    "Pick {v}.",
    "Which is {v}?",
)
"""Questions that name the choice: they teach to bind a choice to its letter, apart from knowing the fact."""
WHOLE_LINE = "Respond with the line of the correct answer."
LINES = (
    "Which line is {l}?",
    "Read line {l}.",
    "Show {l}.",
    "Which line says {v}?",
    "Read the line of {v}.",
    "Show {v}.",
    "And the line of {v}?",
)
"""Questions whose answer is a line of the list, word for word: the letter follows its choice."""


def multiple_choice(rng: random.Random, split: Split) -> tuple[str, str]:
    """A question with four choices in the reference's form, and the letter of the right one."""
    relation, subject, value = _pick(rng)
    choices = _choices(rng, relation, subject, value)
    asked = _sentence(rng.choice(phrasings(relation.questions, split)).format(s=subject))
    return render_choices(asked, choices), LETTERS[choices.index(value)]


def choice_lesson(rng: random.Random) -> list[tuple[str, str]]:
    """A multiple-choice question and a few short ones about the same choices, with their answers.

    A letter alone is little to learn from: the others teach where each choice and its letter stand.
    """
    relation, subject, value = _pick(rng)
    choices = _choices(rng, relation, subject, value)
    lines = {choice: f"- {choice}={letter}" for choice, letter in zip(choices, LETTERS, strict=True)}
    asked = _sentence(rng.choice(phrasings(relation.questions, "train")).format(s=subject))
    if rng.random() < 0.3:
        asked = rng.choice(LOOKUPS).format(v=value)
    if rng.random() < 0.3:
        listed = render_choices(asked, choices).replace(ONLY_LETTER, WHOLE_LINE)
        turns = [(listed, lines[value])]
    else:
        turns = [(render_choices(asked, choices), lines[value][-1])]
    for choice in rng.sample(choices, rng.randint(0, 3)):
        if rng.random() < 0.5:
            turns.append((rng.choice(LOOKUPS).format(v=choice), lines[choice][-1]))
        else:
            turns.append((rng.choice(LINES).format(v=choice, l=lines[choice][-1]), lines[choice]))
    return turns


def _choices(rng: random.Random, relation: Relation, subject: str, value: str) -> list[str]:
    """The right value and three that are wrong, in any order."""
    others = sorted({v for _, v in relation.pairs} - {v for s, v in relation.pairs if s == subject})
    choices = [value, *rng.sample(others, 3)]
    rng.shuffle(choices)
    return choices


def _pick(rng: random.Random) -> tuple[Relation, str, str]:
    """Every fact as likely as another."""
    every = [(relation, pair) for relation in RELATIONS.values() for pair in relation.pairs]
    relation, (subject, value) = rng.choice(every)
    return relation, subject, value


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]
