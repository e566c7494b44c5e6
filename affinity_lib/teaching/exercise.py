"""An exercise: seeded inputs, the library's answer, and the properties that an answer must have."""

from __future__ import annotations

import ast
import copy
import inspect
import io
import textwrap
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from types import EllipsisType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Property:
    """One thing that must be true of an answer.

    Predicates see a case: ``c.got``, what the answer returned, and ``c.want``, what the library
    returns, both as float64 tensors, and the inputs by their names.

    Attributes:
        sentence: what must be true, what is true instead (at ``{}``) and the remedy.
        holds: whether it is true in a case.
        values: what stands at ``{}``, or a tuple for several; the answer itself unless given.

    >>> rows = Property("the rows must sum to one", lambda c: close(c.got.sum(1), 1))
    >>> rows.holds(SimpleNamespace(got=torch.eye(3)))
    True
    """

    sentence: str
    holds: Callable[[Any], bool]
    values: Callable[[Any], Any] = lambda c: c.got

    def fault(self, case: Any) -> str:
        """The sentence, or nothing if the property holds."""
        if self.holds(case):
            return ""
        values = self.values(case)
        return self.sentence.format(*(values if isinstance(values, tuple) else (values,)))


@dataclass(frozen=True)
class Exercise:
    """What ``check`` knows of an exercise.

    Attributes:
        number: lesson and place, such as "4.1".
        cases: makes the inputs of some calls, the arguments by name in their order.
        properties: looked at one after the other, the most telling first.
        hints: one more with each time that a check fails again.
        insight: said when it is solved.
        reference: the library's answer; its values are the last property. None where many answers
            are right.
    """

    number: str
    cases: Callable[[], Sequence[Mapping[str, Any]]]
    properties: Sequence[Property]
    hints: Sequence[str]
    insight: str
    reference: Callable[..., Any] | None = None

    def fault(self, answer: Callable[..., Any]) -> str | None:
        """What is wrong with an answer.

        Returns:
            A sentence, "" if nothing is wrong, None if the stub is still in it.
        """
        if not callable(answer):
            return None if answer is ... else "`check` wants the function itself, without a call"
        cases, changed = [], []
        for inputs in self.cases():
            given = _copies(inputs)
            try:
                with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
                    got = answer(*given)  # a grader takes a warning for an error
            except Exception as error:  # noqa: BLE001 - an answer can raise anything
                return None if has_stub(answer) else _stopped(answer, error)
            pairs = zip(inputs.items(), given, strict=True)
            changed += [name for (name, value), now in pairs if not _is_as_it_was(now, value)]
            if got is None or got is ...:
                return None if has_stub(answer) else "your function returns nothing: add a `return`"
            try:
                got = as_tensor(got)
            except (TypeError, ValueError, RuntimeError):
                return f"the result must be numbers in one tensor; yours is a {type(got).__name__}"
            want = self.reference and as_tensor(self.reference(*_copies(inputs)))
            cases.append(SimpleNamespace(**inputs, got=got, want=want))
        properties = [*self.properties, *([EQUAL] if self.reference else [])]
        faults = (each.fault(case) for each in properties for case in cases)
        if fault := next(filter(None, faults), ""):
            return fault
        return CHANGED.format(changed[0]) if changed else ""


CHANGED = (
    "others read {0}, too, and it must stay as it was; yours changes it: work on a copy of {0}"
)

EQUAL = Property(
    "the values must be those of the library; the largest difference is {:.2g}",
    lambda c: close(c.got, c.want),
    lambda c: float((c.got - c.want).abs().max()) if c.got.shape == c.want.shape else float("nan"),
)


def shape(what: str) -> Property:
    """The property of having the library's shape, told as ``what``."""
    return Property(
        f"the result must have {what}, the shape {{}}; yours has the shape {{}}",
        lambda c: c.got.shape == c.want.shape,
        lambda c: (tuple(c.want.shape), tuple(c.got.shape)),
    )


def unlike(sentence: str, *mistakes: Callable[[Any], Any]) -> Property:
    """The property of not being what one of some known mistakes makes of the inputs."""

    def holds(c: Any) -> bool:
        made = [mistake(c) for mistake in mistakes]
        return all(close(c.want, wrong) or not close(c.got, wrong) for wrong in made)

    return Property(sentence, holds)


def close(got: Any, want: Any) -> bool:
    """Whether two tensors are equal but for rounding; a number stands for a tensor full of it."""
    got, want = as_tensor(got), as_tensor(want)
    if want.ndim == 0:
        want = want.expand_as(got)
    return got.shape == want.shape and torch.allclose(got, want, 1e-4, 1e-5)


def as_tensor(value: Any) -> Tensor:
    """Numbers in any wrapping as one float64 tensor; equal tensors in a tuple are stacked."""
    if isinstance(value, tuple | list) and any(isinstance(v, Tensor | np.ndarray) for v in value):
        return torch.stack([as_tensor(each) for each in value])
    if isinstance(value, np.ndarray):
        value = value.copy()  # torch knows no negative strides
    return torch.as_tensor(value).detach().double()


def rand(*size: int, seed: int = 0) -> Tensor:
    """Numbers in [0, 1), the same for a seed."""
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


def has_stub(answer: Callable[..., Any]) -> bool:
    """Whether a statement of a function is still ``...``, or a name still stands for it."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(answer)))
    except (OSError, TypeError, SyntaxError):
        return False
    statements = (n for n in ast.walk(tree) if isinstance(n, ast.Expr | ast.Assign | ast.Return))
    values = (statement.value for statement in statements)
    return any(isinstance(getattr(value, "value", None), EllipsisType) for value in values)


def _copies(inputs: Mapping[str, Any]) -> list[Any]:
    """The arguments of a call, each a copy."""
    return copy.deepcopy(list(inputs.values()))


def _is_as_it_was(now: Any, before: Any) -> bool:
    """Whether an argument has the values that it was given with, and no gradient."""
    if isinstance(before, Tensor):
        return now.requires_grad == before.requires_grad and torch.equal(now, before)
    return not isinstance(before, np.ndarray | list) or np.array_equal(now, before)


def _stopped(answer: Callable[..., Any], error: Exception) -> str:
    """In which line of an answer an error was."""
    file = inspect.unwrap(answer).__code__.co_filename
    lines = [f.line for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    where = f" at `{lines[-1]}`" if lines and lines[-1] else ""
    return f"your function stops{where}: {type(error).__name__}: {error}"
