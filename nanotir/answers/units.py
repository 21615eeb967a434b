"""The words that may follow a number: a closed list. "5 tenths" and "5 plus seven" are not 5."""

import functools

# Units, and what is counted. Each is an unknown of its own, so that algebra compares them.
UNITS = (
    "mm cm dm m km inch foot yard mile mg g kg ounce pound ml liter gallon quart pint cup "
    "second minute hour day week month year cent dollar euro yen rupee rad am pm celsius "
    "fahrenheit kelvin joule watt newton volt ampere ohm hertz pascal calorie mole bit byte ton "
    "acre knot unit point people person men man women woman child children kid student teacher "
    "boy girl friend player member worker animal dog cat cow chicken bird fish egg apple orange "
    "banana cookie candy candies cake slice bottle can box bag pack page book word letter pen "
    "pencil sticker card coin marble toy ball flower tree plant seed clip bolt car bus bike "
    "table chair room house piece part item pair set group team game ticket vote shirt way "
    "solution root digit integer number term triangle square rectangle circle cube side edge "
    "vertex vertices face line region path arrangement combination permutation outcome value "
    "element subset function zero step move turn"
).split()
# Another spelling -> the name in the list.
SPELLINGS = {"meter": "m", "metre": "m", "centimeter": "cm", "centimetre": "cm", "gram": "g"}
SPELLINGS |= {"millimeter": "mm", "millimetre": "mm", "kilometer": "km", "kilometre": "km"}
SPELLINGS |= {"feet": "foot", "ft": "foot", "in": "inch", "yd": "yard", "mi": "mile", "lb": "pound"}
SPELLINGS |= {"kilogram": "kg", "kilo": "kg", "milligram": "mg", "oz": "ounce", "sec": "second"}
SPELLINGS |= {"min": "minute", "hr": "hour", "yr": "year", "milliliter": "ml", "litre": "liter"}
SPELLINGS |= {"usd": "dollar", "buck": "dollar", "radian": "rad", "gal": "gallon", "qt": "quart"}
LETTERS = {"m": "m", "s": "second", "g": "g", "h": "hour", "l": "liter", "L": "liter"}
NUMERALS = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9}
NUMERALS |= {"trillion": 10**12, "quadrillion": 10**15}


@functools.lru_cache(maxsize=1024)
def unit_name(word: str) -> str | None:
    """Return the name of the unit that a word of two letters or more means."""
    forms = (word, word.removesuffix("s"), word.removesuffix("es"))
    names = (SPELLINGS.get(form, form) for form in forms)
    return next((name for name in names if name in UNITS), None)
