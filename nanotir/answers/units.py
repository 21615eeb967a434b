"""The words that may follow a number: a closed list. "5 squared" and "5 dozen" are not 5."""

import functools

from nanotir.answers.trees import num

# How many of the first unit of its row each unit is.
FAMILIES = (
    {"mm": 1, "cm": 10, "dm": 100, "m": 1000, "km": 10**6},
    {"inch": 1, "foot": 12, "yard": 36, "mile": 63360},
    {"mg": 1, "g": 1000, "kg": 10**6},
    {"ounce": 1, "pound": 16},
    {"ml": 1, "liter": 1000},
    {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800},
    {"month": 1, "year": 12},
    {"cent": 1, "dollar": 100},
)
# Units that cannot be converted, and what is counted.
OTHERS = (
    "am pm celsius fahrenheit kelvin euro yen rupee joule watt newton volt ampere ohm hertz "
    "pascal calorie mole bit byte ton acre gallon quart pint cup unit point people person men man "
    "women woman child children kid student teacher boy girl friend player member worker customer "
    "animal dog cat cow chicken bird fish egg apple orange banana cookie candy candies cake slice "
    "bottle can box bag pack page book word letter pen pencil sticker card coin marble toy ball "
    "flower tree plant seed clip bolt car bus bike table chair room house piece part item pair set "
    "group team game ticket vote shirt way solution root digit integer number term triangle square "
    "rectangle circle cube side edge vertex vertices face line region path arrangement combination "
    "permutation outcome value element subset function zero step move turn lap trip question"
).split()
# Another spelling -> the name in the tables.
SPELLINGS = {"meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "gram": "g"}
SPELLINGS |= {"millimeter": "mm", "millimetre": "mm", "kilometer": "km", "kilometre": "km"}
SPELLINGS |= {"feet": "foot", "ft": "foot", "in": "inch", "yd": "yard", "mi": "mile", "lb": "pound"}
SPELLINGS |= {"kilogram": "kg", "kilo": "kg", "milligram": "mg", "oz": "ounce", "sec": "second"}
SPELLINGS |= {"min": "minute", "hr": "hour", "yr": "year", "milliliter": "ml", "litre": "liter"}
SPELLINGS |= {"usd": "dollar", "buck": "dollar", "radian": "rad", "gal": "gallon", "qt": "quart"}
LETTERS = {"m": "m", "s": "second", "g": "g", "h": "hour", "l": "liter", "L": "liter"}
LETTERS = {("sym", letter): ("unit", name) for letter, name in LETTERS.items()}
NUMERALS = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
NUMERALS |= {"trillion": 10**12, "quadrillion": 10**15}

# Each unit by the first of its row, which is an unknown: algebra converts units.
FAMILIES = (*FAMILIES, *({name: 1} for name in OTHERS))
IN_FIRST_UNITS = {}
for family in FAMILIES:
    first = ("sym", f"unit {min(family, key=family.get)}")
    IN_FIRST_UNITS |= {("unit", name): ("*", num(n), first) for name, n in family.items()}


@functools.lru_cache(maxsize=1024)
def unit_name(word: str) -> str | None:
    """Return the name of the unit that a word of two letters or more means."""
    forms = (word, word.removesuffix("s"), word.removesuffix("es"))
    names = (SPELLINGS.get(form, form) for form in forms)
    return next((name for name in names if ("unit", name) in IN_FIRST_UNITS or name == "rad"), None)
