"""Units: how each one is written, and what a value with a unit is."""

from nanotir.answers.trees import fail

# Another spelling of a unit -> its name. A plural "s" is ignored.
UNIT_NAMES = {"centimeter": "cm", "centimetre": "cm", "millimeter": "mm", "millimetre": "mm"}
UNIT_NAMES |= {"kilometer": "km", "kilometre": "km", "metre": "meter", "feet": "foot", "ft": "foot"}
UNIT_NAMES |= {"inche": "inch", "in": "inch", "yd": "yard", "mi": "mile", "kmh": "kph"}
UNIT_NAMES |= {"kilogram": "kg", "kilo": "kg", "milligram": "mg", "pound": "lb", "lbs": "lb"}
UNIT_NAMES |= {
    "oz": "ounce",
    "milliliter": "ml",
    "litre": "liter",
    "sec": "second",
    "min": "minute",
}
UNIT_NAMES |= {"hr": "hour", "yr": "year", "usd": "dollar", "buck": "dollar", "deg": "degree"}
UNIT_NAMES |= {"radian": "rad", "sq": "square"}
# Words of four letters and more that are not in these tables are units of their own.
UNITS = {*UNIT_NAMES.values(), *"gram day week month cent euro mph unit cubic am pm".split()}
UNITS |= {"percent", "way", "men", "per"}
UNIT_LETTERS = {"m": "meter", "s": "second", "g": "gram", "h": "hour", "l": "liter", "L": "liter"}
POWERS_OF_TEN = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}


def unit_name(word: str) -> str:
    """Return the name of a unit written in more than one letter."""
    word = word.lower()
    singular = word.removesuffix("s")
    return UNIT_NAMES.get(word) or UNIT_NAMES.get(singular) or singular or word


def measured(tree: tuple, words: list[str]) -> tuple:
    """Return the value with its unit. Degrees and percent have nodes of their own."""
    names = [UNIT_LETTERS.get(word, word) if len(word) == 1 else unit_name(word) for word in words]
    if not names or names == ["unit"]:
        return tree
    if len(names) > 7 or "not" in names:
        fail("no unit")
    if names in (["degree"], ["percent"]):
        return ("deg" if names == ["degree"] else "pct", tree)
    # Square cm is cm^2.
    if names[0] in ("square", "cubic"):
        names = [*names[1:], "^", "2" if names[0] == "square" else "3"]
    return ("unit", tree, " ".join("/" if name == "per" else name for name in names))
