"""The one error type for whatever a user can cause."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad usage or bad input: one sentence that says what, where, what is allowed and how to mend it.

    The command line prints it without a traceback and exits with code 2.
    """


class Diverged(UserError):
    """A training that went astray: what was asked for made sense, but its numbers did not stay finite or useful."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'pgd'?"`, or nothing when no known name is near."""
    found = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""
