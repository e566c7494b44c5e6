"""``check("4.1", my_transition_matrix)``: the last word of each exercise."""

from __future__ import annotations

import html
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from IPython.display import display

from affinity_lib.errors import InputError

STRICT = "AFFINITY_CHECKS"
"""Environment variable: "strict" lets a check that fails stop the notebook."""

LESSONS = [import_module(f"affinity_lib.teaching.lesson_{number}") for number in range(7)]
EXERCISES = {each.number: each for lesson in LESSONS for each in lesson.EXERCISES}

_failed: Counter[str] = Counter()  # how often in a row a check has failed


class NotSolved(Exception):
    """A check that failed; a notebook shows its sentence and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


@dataclass(frozen=True)
class Verdict:
    """What a check says.

    Attributes:
        head: "4.1 is solved".
        text: what more there is to say.
        solved: whether it is.
    """

    head: str
    text: str
    solved: bool = False

    def __repr__(self) -> str:
        return f"{self.head}. {self.text}".strip()

    def _repr_html_(self) -> str:
        color, mark = ("#009e73", "&#10003;") if self.solved else ("#e69f00", "&#9675;")
        text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(self.text))
        return (
            f'<div style="border-left: 4px solid {color}; padding: 0.2em 0.8em">'
            f"{mark} <b>{self.head}.</b> {text}</div>"
        )


def check(number: str, answer: Callable[..., Any]) -> None:
    """Say whether an answer is right, and if not, which property it lacks.

    Asked again after it has failed, it gives one more hint each time. It goes on whatever it
    finds, so that a notebook with open exercises runs through. It stops the notebook if
    ``AFFINITY_CHECKS=strict`` is set, and under nbgrader, where only an error costs points.

    Args:
        number: of the exercise, such as "4.1".
        answer: the function that was asked for.

    Raises:
        InputError: there is no such exercise.
        NotSolved: the answer is not right, and checks are strict.

    >>> check("4.1", ...)
    4.1 is still open.
    """
    if number not in EXERCISES:
        raise InputError(f"there is no exercise {number!r}: there are {', '.join(EXERCISES)}")
    verdict = _verdict(number, answer)
    if not verdict.solved and _is_strict():
        raise NotSolved(repr(verdict))
    display(verdict)


def _verdict(number: str, answer: Callable[..., Any]) -> Verdict:
    exercise = EXERCISES[number]
    fault = exercise.fault(answer)
    if fault == "":
        _failed[number] = 0
        return Verdict(f"{number} is solved", exercise.insight, solved=True)
    hints = exercise.hints[: _failed[number]]
    _failed[number] += 1
    text = [f"Hint: {hints[-1]}"] if hints else []
    if fault is None:
        return Verdict(f"{number} is still open", " ".join(text))
    return Verdict(
        f"{number} is not right yet", " ".join([f"{fault[:1].upper()}{fault[1:]}.", *text])
    )


def _is_strict() -> bool:
    return os.environ.get(STRICT) == "strict" or "NBGRADER_EXECUTION" in os.environ
