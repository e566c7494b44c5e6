"""The one exception of the project: input that a person can put right."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input, told in one sentence that names the thing, its value and the remedy.

    The command line prints the sentence alone; in a notebook it ends the traceback.

    >>> raise InputError("alpha must be >= 1 (Eq. 2), got 0.5")
    Traceback (most recent call last):
    affinity_lib.errors.InputError: alpha must be >= 1 (Eq. 2), got 0.5
    """
