"""The words of the scenes' world: what things there are, how they are named, and what can be said of them."""

from __future__ import annotations

#: Name of a thing -> short name of its picture in the emoji data sets. The order is the order in the artwork sheets.
SHORT_NAMES: dict[str, str] = {
    "dog": "dog", "cat": "cat", "panda": "panda_face", "pig": "pig", "frog": "frog", "cow": "cow",
    "elephant": "elephant", "penguin": "penguin", "owl": "owl", "duck": "duck", "turtle": "turtle",
    "octopus": "octopus", "crab": "crab", "butterfly": "butterfly", "bee": "bee", "snail": "snail",
    "whale": "whale", "apple": "apple", "banana": "banana", "strawberry": "strawberry",
    "pineapple": "pineapple", "watermelon": "watermelon", "carrot": "carrot", "lemon": "lemon",
    "pizza": "pizza", "hamburger": "hamburger", "doughnut": "doughnut", "mushroom": "mushroom",
    "cactus": "cactus", "tree": "evergreen_tree", "sunflower": "sunflower", "car": "car", "bus": "bus",
    "bicycle": "bike", "airplane": "airplane", "rocket": "rocket", "boat": "boat", "house": "house",
    "umbrella": "umbrella", "key": "key", "bell": "bell", "guitar": "guitar", "camera": "camera",
    "book": "book", "chair": "chair", "crown": "crown", "balloon": "balloon", "ball": "soccer",
    "star": "star", "snowman": "snowman_without_snow", "ghost": "ghost", "clock": "alarm_clock",
    "cup": "cup_with_straw", "drum": "drum_with_drumsticks", "robot": "robot_face", "gift": "gift",
}  # fmt: skip

CLASSES: tuple[str, ...] = tuple(SHORT_NAMES)

#: A plate with a number on it: the one thing that is drawn and not taken from the artwork.
SIGN = "sign"

#: Colours of the cards behind things.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 90, 235),
    "yellow": (240, 220, 40),
    "purple": (150, 50, 190),
    "orange": (245, 140, 30),
}

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

_IRREGULAR_PLURALS = {
    "butterfly": "butterflies",
    "strawberry": "strawberries",
    "octopus": "octopuses",
    "bus": "buses",
    "cactus": "cactuses",
    "snowman": "snowmen",
}


def plural(name: str) -> str:
    """The plural of a thing's name."""
    return _IRREGULAR_PLURALS.get(name, name + "s")


def with_article(name: str) -> str:
    """The name with its indefinite article: ``"an apple"``."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
