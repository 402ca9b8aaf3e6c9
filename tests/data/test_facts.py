"""The facts: of one form, without slips, and right wherever a computer can tell."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict

import pytest

import ugap.data.facts
from ugap.data.facts import Fact, fact_kinds, load_facts
from ugap.errors import InputError
from ugap.study.probes.facts import answer_words

FACTS = load_facts()

_WORDS = """\
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen \
seventeen eighteen nineteen
zero ten twenty thirty forty fifty sixty seventy eighty ninety
Monday Tuesday Wednesday Thursday Friday Saturday Sunday
January February March April May June July August September October November December
H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc \
Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi \
Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
"""
ONES, TENS, DAYS, MONTHS, SYMBOLS = map(str.split, _WORDS.splitlines())
# Of each unit, what it is made of, down to a base unit.
SIZES = {
    "time": {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800, "leap year": 366 * 86_400},
    "calendar": {"month": 1, "year": 12, "decade": 120, "century": 1200, "millennium": 12_000},
    "length": {"inch": 1, "foot": 12, "yard": 36, "mile": 63_360},
    "metric length": {"millimetre": 1, "centimetre": 10, "metre": 1000, "kilometre": 1_000_000},
    "volume": {"quart": 1, "gallon": 4},
    "metric volume": {"millilitre": 1, "litre": 1000},
    "weight": {"ounce": 1, "pound": 16, "stone": 224},
    "mass": {"milligram": 1, "gram": 1000, "kilogram": 1_000_000, "tonne": 1_000_000_000},
    "information": {"bit": 1, "byte": 8},
}
SINGULAR = {"feet": "foot", "inches": "inch"}


def of_kind(*kinds: str) -> list[Fact]:
    return [fact for fact in FACTS if fact.kind in kinds]


def spelt(n: int) -> str:
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")
    rest = f" and {spelt(n % 100)}" if n % 100 else ""
    return "one thousand" if n == 1000 else f"{ONES[n // 100]} hundred{rest}"


VALUES = {spelt(n): n for n in range(1001)}


def value(text: str) -> int:
    """The number that digits or English words stand for."""
    text = text.lower().replace(",", "").removesuffix(" degrees")
    if text.startswith("a "):
        text = f"one {text[2:]}"
    if " " in text and text not in VALUES:
        text = text.replace(" ", "-")
    return int(text) if text.isdigit() else VALUES[text]


def computed(prompt: str) -> int:
    """The number that a prompt of arithmetic asks for."""
    number = r"(\d+|[a-z-]+(?: hundred)?)"
    operations: list[tuple[str, Callable[..., int | None]]] = [
        (rf"{number} (?:plus|\+) {number} (?:equals|=)", lambda a, b: a + b),
        (rf"the sum of {number} and {number} is", lambda a, b: a + b),
        (rf"{number} (?:minus|-) {number} (?:equals|=)", lambda a, b: a - b),
        (rf"{number} times {number} equals", lambda a, b: a * b),
        (rf"the product of {number} and {number} is", lambda a, b: a * b),
        (rf"{number} divided by {number} is", lambda a, b: a // b if a % b == 0 else None),
        (rf"half of {number} equals", lambda a: a // 2 if a % 2 == 0 else None),
        (rf"twice {number} equals", lambda a: 2 * a),
        (rf"the square root of {number} is", lambda a: math.isqrt(a) if math.isqrt(a) ** 2 == a else None),
        (rf"the square of {number} is", lambda a: a * a),
    ]
    for pattern, operation in operations:
        if found := re.fullmatch(pattern, prompt.lower()):
            result = operation(*map(value, found.groups()))
            assert result is not None, f"{prompt}: not whole"
            return result
    raise AssertionError(f"{prompt}: of no known form")


def test_there_are_enough_of_every_kind():
    assert len(FACTS) >= 400
    counts = {kind: len(of_kind(kind)) for kind in fact_kinds()}
    assert sum(counts.values()) == len(FACTS)
    assert min(counts.values()) >= 20


@pytest.mark.parametrize("field", ["id", "prompt"])
def test_ids_and_prompts_are_unique(field):
    assert len({getattr(fact, field) for fact in FACTS}) == len(FACTS)


def check_form(fact: Fact) -> None:
    assert re.fullmatch(rf"{fact.kind}/[a-z0-9-]+", fact.id), fact
    assert fact.prompt == fact.prompt.strip()
    assert "  " not in fact.prompt
    right = [answer_words(answer) for answer in (fact.answer, *fact.accept)]
    wrong = [answer_words(answer) for answer in fact.wrong]
    assert len(wrong) == 3
    assert all(right)
    assert all(wrong)
    for answers in (wrong, right):
        assert len({tuple(words) for words in answers}) == len(answers)
    # Neither side may be the beginning of the other: a completion could be both.
    for a in right:
        for b in wrong:
            shorter = min(len(a), len(b))
            assert a[:shorter] != b[:shorter]
    asked = f" {' '.join(answer_words(fact.prompt))} "
    assert f" {' '.join(right[0])} " not in asked
    assert all(len(words) <= 5 for words in right)


def test_the_form():
    for fact in FACTS:
        try:
            check_form(fact)
        except AssertionError as error:
            raise AssertionError(f"{fact}: {error}") from error


def test_prompts_are_worded_in_several_ways():
    for kind in fact_kinds():
        starts = {tuple(fact.prompt.split()[:2]) for fact in of_kind(kind)}
        assert len(starts) >= 2


def test_files_hold_nothing_that_is_not_read():
    for kind in fact_kinds():
        lines = (ugap.data.facts._FOLDER / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
        for line, fact in zip(lines, of_kind(kind), strict=True):
            row = {"accept": [], **json.loads(line)}
            assert {**asdict(fact), "wrong": list(fact.wrong), "accept": list(fact.accept)} == row


def test_arithmetic():
    for fact in of_kind("arithmetic"):
        right = computed(fact.prompt)
        assert value(fact.answer) == right, fact
        assert all(value(answer) == right for answer in fact.accept), fact
        assert right not in map(value, fact.wrong), fact
        assert all(fact.answer.isdigit() == answer.isdigit() for answer in fact.wrong), fact


def test_units():
    n_checked = 0
    for fact in of_kind("units"):
        found = re.fullmatch(
            r"(?:The number of|How many) (\w+) (?:in|are there in) one ([a-z ]+?)(?: is|\?.*)", fact.prompt
        )
        if not found:
            continue
        part, whole = found.groups()
        part = SINGULAR.get(part, part.removesuffix("s"))
        (ratio,) = {sizes[whole] // sizes[part] for sizes in SIZES.values() if {part, whole} <= sizes.keys()}
        assert value(fact.answer) == ratio
        assert all(value(answer) == ratio for answer in fact.accept)
        assert ratio not in map(value, fact.wrong)
        n_checked += 1
    assert n_checked >= 25


def test_numbers_that_are_counted():
    for fact in of_kind("units", "animals", "science"):
        numbers = [answer for answer in (fact.answer, *fact.accept) if re.fullmatch(r"\d+( degrees)?", answer)]
        if fact.id != "science/normal-temperature-of-the-human-body-in-degrees-celsius-is-about":
            assert len({value(number) for number in numbers}) <= 1


def test_the_calendar_and_the_alphabet():
    rows = [DAYS, MONTHS, [chr(65 + i) for i in range(26)]]
    n_checked = 0
    for fact in of_kind("calendar"):
        found = re.search(r"(after|before)(?: the letter)? ([A-Z]\w*) (?:is|comes)", fact.prompt, flags=re.IGNORECASE)
        row = next((row for row in rows if found and found[2] in row), [])
        if not found or not row:
            continue
        step = 1 if found[1].lower() == "after" else -1
        assert fact.answer == row[(row.index(found[2]) + step) % len(row)], fact
        assert set(fact.wrong) < set(row), fact
        n_checked += 1
    assert n_checked >= 20


def test_elements():
    for fact in of_kind("elements"):
        if "symbol-of" in fact.id:
            assert {fact.answer, *fact.wrong} < set(SYMBOLS)
        if found := re.search(r"symbol ([A-Z][a-z]?) |symbol is ([A-Z][a-z]?) ", fact.prompt):
            assert (found[1] or found[2]) in SYMBOLS
    numbered = {
        "hydrogen": "H",
        "helium": "He",
        "carbon": "C",
        "nitrogen": "N",
        "oxygen": "O",
        "iron": "Fe",
        "gold": "Au",
        "uranium": "U",
    }
    for fact in of_kind("elements"):
        if found := re.search(r"atomic number (\d+)", fact.prompt):
            assert SYMBOLS[int(found[1]) - 1] == numbered[fact.answer]
    # What is asked in both directions has one answer.
    symbols = {fact.id.rpartition("-of-")[2]: fact.answer for fact in FACTS if "symbol-of" in fact.id}
    names = {fact.id.rpartition("-of-")[2]: fact.answer for fact in FACTS if "elements/name-of" in fact.id}
    for symbol, name in names.items():
        assert symbols.get(name, symbol.capitalize()).lower() == symbol


def test_years():
    for fact in of_kind("dates"):
        assert all(re.fullmatch(r"\d{4}", year) for year in (fact.answer, *fact.wrong))


def test_a_limit_takes_from_every_kind_in_turn():
    kinds = fact_kinds()
    few = load_facts(limit=2 * len(kinds) + 1)
    assert [fact.kind for fact in few] == [*kinds, *kinds, kinds[0]]
    assert set(few) < set(FACTS)
    assert load_facts(limit=10_000) != []
    assert sorted(load_facts(limit=10_000), key=lambda fact: fact.id) == sorted(FACTS, key=lambda fact: fact.id)


def test_kinds_in_the_order_asked_for():
    both = load_facts(["units", "animals"])
    assert [fact.kind for fact in both] == ["units"] * len(of_kind("units")) + ["animals"] * len(of_kind("animals"))


def test_facts_are_not_to_be_changed():
    with pytest.raises(FrozenInstanceError):
        FACTS[0].answer = "other"  # type: ignore[misc]
    assert hash(FACTS[0]) == hash(load_facts()[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"kinds": ["capitols"]}, "unknown kind of facts 'capitols': choose of animals, arithmetic"),
        ({"limit": 0}, "limit is 0, and at least 1 is needed"),
    ],
)
def test_bad_input(words, message):
    with pytest.raises(InputError, match=re.escape(message)):
        load_facts(**words)
