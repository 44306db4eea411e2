"""Whether two written maths answers mean the same: numbers, fractions, roots, powers, letters, in plain text or LaTeX.

What a model wrote is parsed, never evaluated as code. Two expressions in letters are equal if they agree at fixed points: no
rewriting into a normal form has to be trusted. Text, nesting and numbers are bounded, so any text costs a bounded time.
"""

from __future__ import annotations

import cmath
import re
import zlib
from collections.abc import Callable
from fractions import Fraction

LONGEST, DEEPEST, BITS, POINTS = 300, 40, 4096, 3
Value = Fraction | complex

_SPELT = {
    "\\left": "", "\\right": "", "\\!": "", "\\,": " ", "\\;": " ", "\\:": " ", "\\ ": " ", "~": " ", "$": "", "\\(": "",
    "\\)": "", "\\[": "", "\\]": "", "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cdot": "*", "\\times": "*", "\\div": "/",
    "×": "*", "·": "*", "÷": "/", ":": "/",
    "−": "-", "–": "-", "**": "^", "√": "\\sqrt", "π": "\\pi", "²": "^2", "³": "^3", "\\{": "{", "\\}": "}",
}  # fmt: skip
_PLAIN = re.compile(r"[\w\s.,+/^()=-]*", re.ASCII)  # without anything of _SPELT
_NUMBER = re.compile(r"\s*-?\d{1,30}(?:\.\d{1,30})?\s*", re.ASCII)
_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*|\.\d+)|(\\?[A-Za-z]+)|([-+*/^(){}\[\]|])|([α-ω]))")
_CALLS: dict[str, Callable[[complex], complex]] = {
    "sqrt": cmath.sqrt, "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "ln": cmath.log, "exp": cmath.exp, "abs": abs,
}  # fmt: skip
_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_NAME = r"\\?[A-Za-z]\w*(?:\([A-Za-z]\))?|[α-ω]|∠\s*[A-Z]+|\\angle\s*[A-Z]+"
_ASSIGNED = re.compile(rf"\s*({_NAME})\s*=([^=]*)")
_UNITS = (
    "mm|cm|dm|km|kg|mg|ml|ft|feet|foot|yd|yards?|inch(?:es)?|miles?|met(?:er|re)s?|centimet(?:er|re)s?|kilomet(?:er|re)s?|units?|"
    "degrees?|deg|hours?|minutes?|min|seconds?|sec|days?|years?|dollars?|cents?|grams?|lit(?:er|re)s?|mph|"
    "people|times"
)
_KIND = r"(?:(?:sq(?:uare|\.)?|cubic|cu\.)\s+)?"
_UNIT = re.compile(rf"(?<![A-Za-z\\])\s*{_KIND}(?:{_UNITS}|(?<=\d)\s+[mgsLl])(?:\s*\^?\{{?[23]\}}?)?\.?$", re.IGNORECASE)
_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|rm)\s*\{([^{}]*)\}")
_MARKS = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree|°|\\?%")


class Unreadable(ValueError):
    """The text is no expression that is known here."""


class NoValue(ValueError):
    """An expression without a value, or one beyond the bounds."""


def verdict(said: str, gold: str, tolerance: float) -> bool | None:
    """Whether `said` means `gold`; None where one of them is no expression that is known here. A unit that only one of them has
    does not matter, nor does a name before "=" ("x = 5").

    Whole numbers and fractions are equal exactly. Where a text holds a decimal point, a root or a function, they may differ by
    `tolerance`, relative to the gold. Lists in brackets are equal by part, in order; without, or in braces, in any order.
    """
    if max(len(said), len(gold)) > LONGEST:
        return False
    if _NUMBER.fullmatch(said) and _NUMBER.fullmatch(gold):  # most answers: the same as below, ten times as fast
        if "." not in said and "." not in gold:
            return int(said) == int(gold)
        return _close(Fraction(said), Fraction(gold), tolerance, True)
    (a, unit_a, name_a), (b, unit_b, name_b) = _plain(said), _plain(gold)
    if (unit_a and unit_b and unit_a != unit_b) or (name_a and name_b and name_a != name_b):
        return False
    decimal = "." in a or "." in b
    left, right = _parts(a), _parts(b)
    try:
        if left[0] != right[0] or len(left[1]) != len(right[1]):
            for part in (*left[1], *right[1]):
                _Reader(part, 0).value()
            return False
        if left[0] in ("", "{}"):
            rest = list(right[1])
            for part in left[1]:
                found = next((r for r in rest if _equal(part, r, tolerance, decimal)), None)
                if found is None:
                    return False
                rest.remove(found)
            return True
        return all(_equal(x, y, tolerance, decimal) for x, y in zip(left[1], right[1], strict=True))
    except NoValue:
        return False
    except Unreadable:
        return None


def unwrapped(text: str) -> str:
    """The text without LaTeX's marks for words, as in "\\text{yes}"."""
    return _WRAPPED.sub(r" \1", text)


def _plain(text: str) -> tuple[str, str, str]:
    """(expression, unit, name before "=") of an answer; the last two may be empty."""
    if not _PLAIN.fullmatch(text):
        text = unwrapped(text)
        for there, here in _SPELT.items():
            text = text.replace(there, here)
        text = _MARKS.sub("", text)
    text = text.strip().rstrip(".").strip()
    name = ""
    if found := _ASSIGNED.fullmatch(text):
        name, text = re.sub(r"\s+", "", found[1]), found[2].strip()
    unit = ""
    if (found := _UNIT.search(text)) and found.start() > 0:
        unit, text = re.sub(r"[\s^{}.]", "", found[0]).lower(), text[: found.start()].strip()
    text = text.removesuffix("\\").strip()
    if "(" not in text and "[" not in text:
        text = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    return text, unit, name


def _parts(text: str) -> tuple[str, list[str]]:
    """The brackets around a list ("" for none) and its parts; a text without a comma is a list of itself."""
    pieces: list[str] = []
    depth, at = 0, 0
    inside = text[1:-1] if text[:1] in "([{" and text[-1:] in ")]}" and text[:1] else text
    for n, c in enumerate(inside):
        depth += (c in "([{") - (c in ")]}")
        if depth < 0:
            return "", [text]
        if c == "," and not depth:
            pieces.append(inside[at:n])
            at = n + 1
    if not pieces:
        return "", [text]
    return (text[0] + text[-1] if inside is not text else ""), [*pieces, inside[at:]]


def _equal(said: str, gold: str, tolerance: float, decimal: bool) -> bool:
    if "".join(said.split()) == "".join(gold.split()):
        return bool(gold.strip())
    for point in range(POINTS):
        readers = _Reader(said, point), _Reader(gold, point)
        a, b = (r.value() for r in readers)
        if not _close(a, b, tolerance, decimal):
            return False
        if not any(r.lettered for r in readers):
            break  # the same at every point
    return True


def _close(a: Value, b: Value, tolerance: float, decimal: bool) -> bool:
    if a == b:
        return True
    if isinstance(a, Fraction) and isinstance(b, Fraction) and not decimal:
        return False
    return abs(complex(a) - complex(b)) <= tolerance * abs(complex(b))


class _Reader:
    """Recursive descent. Letters take values of their own at each of the points: a rule of their names and `point`."""

    def __init__(self, text: str, point: int) -> None:
        self.tokens: list[tuple[str, str]] = []
        self.lettered = False  # whether a letter was given a value
        self.at, self.depth, self.point = 0, 0, point
        at = 0
        text = text.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found:
                raise Unreadable(text)
            number, word, sign, letter = found.groups()
            if number:
                self.tokens.append(("number", number))
            elif sign:
                self.tokens.append(("sign", sign))
            else:
                self.tokens += _words(letter or word)
            at = found.end()

    def value(self) -> Value:
        try:
            found = self._sum()
            finite = cmath.isfinite(complex(found))
        except Unreadable:
            raise
        except (ZeroDivisionError, OverflowError, ValueError) as e:
            raise NoValue(str(e)) from None
        if self.at < len(self.tokens):
            raise Unreadable("more than an expression")
        if not finite:
            raise NoValue("not finite")
        return found

    def _peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def _take(self, sign: str) -> bool:
        if self._peek() == ("sign", sign):
            self.at += 1
            return True
        return False

    def _sum(self) -> Value:
        self.depth += 1
        if self.depth > DEEPEST:
            raise NoValue("too deep")
        negative = self._take("-")
        if not negative:
            self._take("+")
        total = self._product()
        total = -total if negative else total
        while True:
            if self._take("+"):
                total = _bounded(total + self._product())
            elif self._take("-"):
                total = _bounded(total - self._product())
            else:
                self.depth -= 1
                return total

    def _product(self) -> Value:
        total = self._power()
        while True:
            if self._take("*"):
                total = _bounded(total * self._signed())
            elif self._take("/"):
                total = _bounded(total / self._signed())
            elif (mixed := self._mixed()) is not None:
                total = _bounded(total + mixed)
            elif self._peek()[0] in ("letter", "command") or self._peek()[1] in ("(", "{"):
                total = _bounded(total * self._power())
            else:
                return total

    def _mixed(self) -> Fraction | None:
        """The fraction of a mixed number whose whole part has just been read: 1\\frac{1}{2} or 1 1/2, in digits only."""
        before, ahead = self.tokens[max(self.at - 2, 0) : self.at], self.tokens[self.at : self.at + 7]
        if not before or before[-1][0] != "number" or "." in before[-1][1] or before[0][1] in ("*", "/", "^"):
            return None
        kinds, texts = [k for k, _ in ahead], [t for _, t in ahead]
        braced = [texts[i] for i in (0, 1, 3, 4, 6)] == ["\\frac", "{", "}", "{", "}"] if len(texts) == 7 else False
        if braced and kinds[2] == kinds[5] == "number":
            self.at += 7
            return Fraction(texts[2]) / Fraction(texts[5])
        if texts[:1] == ["\\frac"] and kinds[1:2] == ["number"] and len(texts[1]) == 2 and texts[1].isdigit():
            self.at += 2
            return Fraction(int(texts[1][0]), int(texts[1][1]))
        if kinds[:3] == ["number", "sign", "number"] and texts[1] == "/":
            self.at += 3
            return Fraction(texts[0]) / Fraction(texts[2])
        return None

    def _signed(self) -> Value:
        return -self._power() if self._take("-") else self._power()

    def _power(self) -> Value:
        base = self._atom()
        if not self._take("^"):
            return base
        self.depth += 1
        if self.depth > DEEPEST:
            raise NoValue("too deep")
        exponent = -self._power() if self._take("-") else self._power()
        self.depth -= 1
        if isinstance(base, Fraction) and isinstance(exponent, Fraction) and exponent.denominator == 1 and abs(exponent) <= 64:
            return _bounded(base ** int(exponent))
        return complex(base) ** complex(exponent)

    def _atom(self) -> Value:
        kind, text = self._peek()
        self.at += 1
        if kind == "number":
            return Fraction(int(text)) if text.isdecimal() else Fraction(text)
        if kind == "letter":
            self.lettered = True
            # Between 1/2 and 3/2, another for another letter and another point; a fraction, so that polynomials are exact.
            return Fraction(zlib.crc32(f"{text} {self.point}".encode()) % 9973 + 4987, 9973)
        if text in ("(", "{", "["):
            inside = self._sum()
            self._close({"(": ")", "{": "}", "[": "]"}[text])
            return inside
        if text == "|":
            inside = self._sum()
            self._close("|")
            return abs(inside)
        if text == "\\pi":
            return complex(cmath.pi)
        if text == "\\frac":
            top, bottom = self._digit_or_group(), self._digit_or_group()
            return _bounded(top / bottom)
        if text == "\\sqrt" and self._take("["):
            root = self._sum()
            self._close("]")
            return complex(self._digit_or_group()) ** (1 / complex(root))
        if kind == "command" and text[1:] in _CALLS:
            return complex(_CALLS[text[1:]](complex(self._digit_or_group() if text == "\\sqrt" else self._power())))
        raise Unreadable(text)

    def _digit_or_group(self) -> Value:
        """LaTeX's argument: a group, a letter, or a single digit of a number ("\\frac12" is a half)."""
        kind, text = self._peek()
        if kind == "number" and len(text) > 1 and text.isdigit() and self.tokens[self.at - 1][1] != "\\sqrt":
            self.tokens[self.at] = ("number", text[1:])
            return Fraction(int(text[0]))
        return self._atom()

    def _close(self, sign: str) -> None:
        if not self._take(sign):
            raise Unreadable(f"no {sign}")


def _words(word: str) -> list[tuple[str, str]]:
    """A LaTeX command or a function by name; "xy" is a product, but "AB" one name."""
    name = word.removeprefix("\\")
    if name in _CALLS or name in ("pi", "frac"):
        return [("command", "\\" + name)]
    if word.startswith("\\") or len(word) > 3:
        if word in ("\\alpha", "\\beta", "\\gamma", "\\theta", "\\phi", "\\lambda"):
            return [("letter", word)]
        raise Unreadable(word)  # a word of prose is no product of letters
    return [("letter", word)] if word.isupper() else [("letter", c) for c in word]


def _bounded(value: Value) -> Value:
    if isinstance(value, Fraction) and max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS:
        return complex(value)
    return value
