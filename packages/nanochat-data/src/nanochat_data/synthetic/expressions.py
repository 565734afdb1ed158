"""Expressions as people type them: trees of two to four operands, and their values as the calculator prints them."""

from __future__ import annotations

import ast
import operator
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

OPERATIONS: Mapping[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
SIGNS: Mapping[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2}
LEAF = 3


@dataclass(frozen=True, slots=True)
class Expression:
    """Text without spaces, its value, and the precedence of its last operation."""

    text: str
    value: Fraction
    precedence: int = LEAF

    @property
    def shown(self) -> str:
        return shown(self.value)


def shown(value: Fraction) -> str:
    """A value as the calculator prints it."""
    return str(value.numerator) if value.denominator == 1 else repr(float(value))


def number(text: str) -> Expression:
    return Expression(text, Fraction(text))


def combined(left: Expression, op: str, right: Expression) -> Expression:
    """One operation, with the parentheses that it needs. Raises `ZeroDivisionError`."""
    precedence = PRECEDENCE[op]
    a = f"({left.text})" if left.precedence < precedence else left.text
    tight = right.precedence < precedence or (right.precedence == precedence and op in "-/")
    b = f"({right.text})" if tight else right.text
    return Expression(f"{a}{op}{b}", OPERATIONS[op](left.value, right.value), precedence)


def parsed(text: str) -> Expression:
    """An expression of the world's templates with its numbers filled in."""

    def fold(node: ast.expr) -> Expression:
        if isinstance(node, ast.BinOp):
            return combined(fold(node.left), SIGNS[type(node.op)], fold(node.right))
        assert isinstance(node, ast.Constant), text
        return number(str(node.value))

    return fold(ast.parse(text, mode="eval").body)


def random_expression(rng: random.Random) -> Expression:
    """Two operands of up to five digits mostly, up to four shorter ones; some have decimals; quotients are short."""
    num_operands = rng.choices((2, 3, 4), weights=(6, 3, 1))[0]
    decimals = rng.random() < 0.15
    while True:
        made = _pair(rng, decimals) if num_operands == 2 else _tree(rng, num_operands, decimals)
        if abs(made.value) < 10**9 and len(made.shown) <= 12:
            return made


def _pair(rng: random.Random, decimals: bool) -> Expression:
    op = rng.choice("++--**/")
    if op == "/":
        divisor, quotient = _whole(rng, 2), _whole(rng, 3)
        return combined(_leaf(divisor * quotient), op, _leaf(divisor))
    digits = (3, 2) if op == "*" else (5, 5)
    a, b = (_operand(rng, most, decimals) for most in digits)
    if op == "-" and a.value < b.value and rng.random() < 0.8:
        a, b = b, a
    return combined(a, op, b) if op == "-" or rng.random() < 0.5 else combined(b, op, a)


def _tree(rng: random.Random, num_operands: int, decimals: bool) -> Expression:
    if num_operands == 1:
        return _operand(rng, 2 if rng.random() < 0.9 else 3, decimals)
    num_left = rng.choice((num_operands - 1, num_operands - 1, rng.randint(1, num_operands - 1)))
    left, right = (_tree(rng, num, decimals) for num in (num_left, num_operands - num_left))
    op = rng.choice("+-*/")
    if op != "/":
        return combined(left, op, right)
    divisors = [d for d in range(2, 13) if (left.value / d).denominator == 1]
    return combined(left, op, _leaf(rng.choice(divisors))) if divisors else combined(left, "+", right)


def _operand(rng: random.Random, max_digits: int, decimals: bool) -> Expression:
    whole = _whole(rng, max_digits) if rng.random() < 0.98 else 0
    if not decimals or rng.random() < 0.3:
        return _leaf(whole)
    return number(f"{whole}.{rng.choice((rng.randint(1, 9), 25, 75, rng.randint(11, 99)))}".rstrip("0").rstrip("."))


def _leaf(value: int) -> Expression:
    return number(str(value))


def _whole(rng: random.Random, max_digits: int) -> int:
    """Every number of digits as likely as another."""
    digits = rng.randint(1, max_digits)
    return rng.randint(max(1, 10 ** (digits - 1)), 10**digits - 1)


def typed(rng: random.Random, text: str, signs: Mapping[str, str]) -> str:
    """The expression with the spaces and signs that people use; `signs`: characters to choose from, by operator."""
    space = rng.choice((" ", " ", " ", " ", "", "", "", None))
    parts = []
    for character in text:
        if character not in OPERATIONS:
            parts.append(character)
            continue
        before, after = (rng.choice(("", " ", "  ")) if space is None else space for _ in "ab")
        parts.append(f"{before}{rng.choice(signs[character])}{after}")
    return "".join(parts)
