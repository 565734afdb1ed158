"""The calculator tool: arithmetic and letter counts by parsing, never by `eval`, with bounded work.

Numbers are exact fractions until they are printed, so 0.1 + 0.2 is 0.3; results print like Python's floats, whole ones
without `.0`.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_LENGTH = 1000
"""Characters of an expression."""
MAX_DEPTH = 50
"""Nested parentheses and signs."""
MAX_BITS = 1000
"""Size of a numerator or denominator, below the float range."""

_NUMBER = re.compile(r"([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(\.[0-9]*)?|\.[0-9]+")
_STRING = r"""(?:'([^'\\\n]*)'|"([^"\\\n]*)")"""
_COUNT = re.compile(rf"\s*{_STRING}\.count\(\s*{_STRING}\s*\)\s*")


def use_calculator(expression: str) -> str | None:
    """The value of an expression, or None if it is not one that the calculator knows.

    Knows `+ - * / ( )` on whole and decimal numbers with or without thousands commas, and `'text'.count('letter')`.

    >>> use_calculator("1,200 * (3 - 0.5)")
    '3000'
    >>> use_calculator("'strawberry'.count('r')")
    '3'
    """
    if len(expression) > MAX_LENGTH:
        return None
    count = _COUNT.fullmatch(expression)
    if count:
        single, double, needle_single, needle_double = count.groups()
        text = single if double is None else double
        needle = needle_single if needle_double is None else needle_double
        return str(text.count(needle))
    try:
        value = _Parser(expression).parse()
    except (_NotAnExpressionError, ZeroDivisionError):
        return None
    return str(value.numerator) if value.denominator == 1 else repr(float(value))


class _NotAnExpressionError(ValueError):
    """The text is no expression, or one too large to work out."""


class _Parser:
    """Recursive descent: sum = product (+- product)*, product = factor (*/ factor)*, factor = sign factor | number."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def parse(self) -> Fraction:
        value = self._sum()
        if self._peek():
            raise _NotAnExpressionError
        return value

    def _peek(self) -> str:
        """The next character that is no space, '' at the end."""
        while self._at < len(self._text) and self._text[self._at] == " ":
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _take(self, characters: str) -> str:
        """The next character if it is one of these, else ''."""
        character = self._peek()
        if not character or character not in characters:
            return ""
        self._at += 1
        return character

    def _sum(self) -> Fraction:
        value = self._product()
        while operator := self._take("+-"):
            term = self._product()
            value = _bounded(value + term if operator == "+" else value - term)
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while operator := self._take("*/"):
            factor = self._factor()
            value = _bounded(value * factor if operator == "*" else value / factor)
        return value

    def _factor(self) -> Fraction:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NotAnExpressionError
        if sign := self._take("+-"):
            value = self._factor()
            value = -value if sign == "-" else value
        elif self._take("("):
            value = self._sum()
            if not self._take(")"):
                raise _NotAnExpressionError
        else:
            value = self._number()
        self._depth -= 1
        return value

    def _number(self) -> Fraction:
        self._peek()
        match = _NUMBER.match(self._text, self._at)
        if not match:
            raise _NotAnExpressionError
        self._at = match.end()
        whole, _, decimals = match.group().replace(",", "").partition(".")
        digits = whole + decimals
        if len(digits) > MAX_BITS // 3:
            raise _NotAnExpressionError
        return _bounded(Fraction(int(digits), 10 ** len(decimals)))


def _bounded(value: Fraction) -> Fraction:
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        raise _NotAnExpressionError
    return value
