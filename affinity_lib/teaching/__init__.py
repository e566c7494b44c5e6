"""Exercises that check themselves: what is asked, what an answer must have, and what to say."""

from affinity_lib.teaching.checking import check

__all__ = ["check"]
