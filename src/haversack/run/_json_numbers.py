"""JSON numbers within bounds, as regular expressions over their decimal text.

A bounded number is written without an exponent and with few enough digits (15 together) that two different
texts are two different doubles: what satisfies a bound as a decimal then satisfies it in every reader."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from haversack.run._regex import Builder, Dfa, PatternError, Re

DIGITS = 15
FRACTION = 10
DIGIT = ((48, 57),)
LISTED = 512
"""Multiples that are listed one by one; of more and large ones, those nearest to zero."""
STEPS = 100
"""Larger multiples are listed, smaller ones told by their remainders."""


@dataclass
class Bounds:
    """What a schema says of a number; `above` and `below` exclude the bound itself."""

    low: Fraction | None = None
    high: Fraction | None = None
    above: bool = False
    below: bool = False
    multiple: Fraction | None = None

    def at_least(self, value: Fraction, exclusive: bool) -> None:
        """Narrow from below."""
        if self.low is None or (value, exclusive) > (self.low, self.above):
            self.low, self.above = value, exclusive

    def at_most(self, value: Fraction, exclusive: bool) -> None:
        """Narrow from above."""
        if self.high is None or (-value, exclusive) > (-self.high, self.below):
            self.high, self.below = value, exclusive

    def multiple_of(self, value: Fraction) -> None:
        """A multiple of two numbers is one of their least common multiple."""
        if self.multiple is None:
            self.multiple = value
        else:
            from math import gcd, lcm

            one, two = self.multiple, value
            self.multiple = Fraction(lcm(one.numerator, two.numerator), gcd(one.denominator, two.denominator))

    def scaled(self, scale: int) -> tuple[int | None, int | None]:
        """The bounds as whole numbers of 1/scale, inclusive."""
        low = high = None
        if self.low is not None:
            exact = self.low * scale
            low = exact.__ceil__()
            low += self.above and low == exact
        if self.high is not None:
            exact = self.high * scale
            high = exact.__floor__()
            high -= self.below and high == exact
        return low, high


def integers(b: Builder, bounds: Bounds) -> Dfa:
    """The whole numbers within `bounds`. Raises PatternError for a multiple that is too large."""
    low, high = bounds.scaled(1)
    most = 10**DIGITS - 1
    if low is None:
        low = min(-most, (high or 0) * 10)
    if high is None:
        high = max(most, low * 10)
    multiple = bounds.multiple
    if multiple is None:
        return b.automaton(_signed(b, low, high))
    step = multiple.numerator  # whole multiples of p/q are the multiples of p
    first, last = -(-low // step) * step, high // step * step
    count = (last - first) // step + 1
    if count > LISTED and step <= STEPS:
        return b.automaton(_signed(b, low, high)).multiples(step)
    if count > LISTED:
        begin = min(max(first, -(LISTED // 2) * step), last - (LISTED - 1) * step)
        first, count = begin, LISTED
    return b.automaton(b.either(*(b.text(str(first + step * n)) for n in range(max(count, 0)))))


def numbers(b: Builder, bounds: Bounds) -> Dfa:
    """The decimal numbers within `bounds`."""
    if bounds.multiple is not None:
        if bounds.multiple.denominator == 1:
            return integers(b, bounds)
        return b.automaton(b.both(_bounded(b, bounds), _halves(b, bounds.multiple)))
    if bounds.low is None and bounds.high is None:
        whole = b.cat(b.repeat(b.text("-"), 0, 1), _range(b, 0, 10**DIGITS - 1))
        fraction = b.cat(b.text("."), b.repeat(b.set(DIGIT), 1, FRACTION))
        sign = b.repeat(b.set(((43, 43), (45, 45))), 0, 1)
        power = b.cat(b.set(((69, 69), (101, 101))), sign, b.repeat(b.set(DIGIT), 1, 2))
        return b.automaton(b.cat(whole, b.repeat(fraction, 0, 1), b.repeat(power, 0, 1)))
    return b.automaton(_bounded(b, bounds))


def _bounded(b: Builder, bounds: Bounds) -> Re:
    ends = [abs(end) for end in (bounds.low, bounds.high) if end is not None]
    largest = max([Fraction(1), *ends])
    if len(ends) < 2:
        largest = max(Fraction(10**9 - 1), largest * 10)
    whole = len(str(largest.__ceil__()))
    if whole > DIGITS:
        raise PatternError(f"its bounds have more than {DIGITS} digits")
    places = min(FRACTION, DIGITS - whole)
    scale = 10**places
    low, high = bounds.scaled(scale)
    most = (10**whole - 1) * scale
    low = -most if low is None else low
    high = most if high is None else high
    found = [b.nothing]
    if high >= 0:
        found.append(_decimal(b, max(low, 0), high, places))
    if low < 0:
        found.append(b.cat(b.text("-"), _decimal(b, max(-high, 1), -low, places)))
    return b.either(*found)


def _halves(b: Builder, multiple: Fraction) -> Re:
    """Decimals that are multiples of p / 2^k: what a binary reader divides without an error."""
    if (
        multiple.denominator & (multiple.denominator - 1)
        or multiple.denominator > 64
        or multiple.numerator != 1
    ):
        raise PatternError(
            f"multiples of {float(multiple):g} cannot be told in binary fractions (allowed: whole numbers, "
            "and 0.5, 0.25, 0.125 and so on)"
        )
    whole = b.cat(b.repeat(b.text("-"), 0, 1), b.repeat(b.set(DIGIT), 1, DIGITS))
    parts = [b.nil]
    for part in range(multiple.denominator):
        digits = f"{part / multiple.denominator:.8f}".partition(".")[2].rstrip("0")
        zeros = b.repeat(b.text("0"), 0 if digits else 1, FRACTION)
        parts.append(b.cat(b.text("." + digits), zeros))
    return b.cat(whole, b.either(*parts))


def _signed(b: Builder, low: int, high: int) -> Re:
    found = [b.nothing]
    if high >= 0:
        found.append(_range(b, max(low, 0), high))
    if low < 0:
        found.append(b.cat(b.text("-"), _range(b, max(-high, 1), -low)))
    return b.either(*found)


def _range(b: Builder, low: int, high: int) -> Re:
    """Whole numbers low..high, 0 <= low, without leading zeros."""
    if low > high:
        return b.nothing
    if len(str(low)) < len(str(high)):
        cut = 10 ** len(str(low))
        return b.either(_range(b, low, cut - 1), _range(b, cut, high))
    return _digits(b, low, high, len(str(low)))


def _digits(b: Builder, low: int, high: int, count: int) -> Re:
    """Numbers low..high written with exactly `count` digits."""
    if low > high:
        return b.nothing
    if count == 0:
        return b.nil
    size = 10 ** (count - 1)
    first, last = low // size, high // size
    if low == first * size and high == (last + 1) * size - 1:
        return b.cat(_digit(b, first, last), b.repeat(b.set(DIGIT), count - 1, count - 1))
    if first == last:
        return b.cat(_digit(b, first, first), _digits(b, low % size, high % size, count - 1))
    return b.either(
        b.cat(_digit(b, first, first), _digits(b, low % size, size - 1, count - 1)),
        b.cat(_digit(b, first + 1, last - 1), b.repeat(b.set(DIGIT), count - 1, count - 1)),
        b.cat(_digit(b, last, last), _digits(b, 0, high % size, count - 1)),
    )


def _digit(b: Builder, first: int, last: int) -> Re:
    return b.set(((48 + first, 48 + last),) if first <= last else ())


def _decimal(b: Builder, low: int, high: int, places: int) -> Re:
    """Decimals between low and high, both counted in units of the last of `places` digits."""
    if low > high:
        return b.nothing
    size = 10**places
    if low // size == high // size:
        return b.cat(b.text(str(low // size)), _fraction(b, low % size, high % size, places))
    return b.either(
        b.cat(b.text(str(low // size)), _fraction(b, low % size, size - 1, places)),
        b.cat(_range(b, low // size + 1, high // size - 1), _fraction(b, 0, size - 1, places)),
        b.cat(b.text(str(high // size)), _fraction(b, 0, high % size, places)),
    )


def _fraction(b: Builder, low: int, high: int, places: int) -> Re:
    """Nothing or a point and digits, which padded with zeros to `places` lie within low..high."""
    dotted = b.cat(b.text("."), _padded(b, low, high, places)) if places else b.nothing
    return b.either(b.nil, dotted) if low == 0 else dotted


def _padded(b: Builder, low: int, high: int, places: int) -> Re:
    """One to `places` digits that padded lie within low..high."""
    if places == 0 or low > high:
        return b.nothing

    if low == 0 and high == 10**places - 1:
        return b.repeat(b.set(DIGIT), 1, places)

    def rest(begin: int, end: int) -> Re:
        more = _padded(b, begin, end, places - 1)
        return b.either(b.nil, more) if begin == 0 else more

    size = 10 ** (places - 1)
    first, last = low // size, high // size
    if first == last:
        return b.cat(_digit(b, first, first), rest(low % size, high % size))
    return b.either(
        b.cat(_digit(b, first, first), rest(low % size, size - 1)),
        b.cat(_digit(b, first + 1, last - 1), rest(0, size - 1)),
        b.cat(_digit(b, last, last), rest(0, high % size)),
    )
