"""The one error type for whatever a user can cause."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Bad usage or bad input, in one sentence: what is wrong, where, what is allowed and how to fix it.

    slug: a stable name in kebab-case, such as `unknown-attack`. Programs and tests rely on it, so that the sentence may
    improve. The command line prints both without a traceback and exits with code 2.
    reported_elsewhere: whether another process of a run under torchrun prints the same message. None: not known.
    """

    reported_elsewhere: bool | None = None

    def __init__(self, message: str, *, slug: str = "user-error") -> None:
        super().__init__(message)
        self.slug = slug

    def __reduce__(self) -> tuple[Callable[..., UserError], tuple[type[UserError], str, str]]:
        """Pickle the slug too: errors travel between processes."""
        return _rebuilt, (type(self), str(self), self.slug)


def _rebuilt(kind: type[UserError], message: str, slug: str) -> UserError:
    error = kind.__new__(kind)
    UserError.__init__(error, message, slug=slug)
    return error


class RobustWarning(UserWarning):
    """A warning of this package, for `warnings.warn(RobustWarning(message, slug=...))`.

    slug: a stable name in kebab-case. The command line prints `robust: warning: message [slug]`.
    """

    def __init__(self, message: str, *, slug: str) -> None:
        super().__init__(message)
        self.slug = slug


class Diverged(UserError):
    """Training failed: the request was valid, but loss, gradients or predictions did not stay finite or useful."""


def nearest(name: str, candidates: Iterable[str]) -> str:
    """`" Did you mean 'pgd'?"`, or nothing when no known name is near."""
    matches = difflib.get_close_matches(name.lower(), list(candidates), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""
