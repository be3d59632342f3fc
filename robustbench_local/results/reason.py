"""A reason in two forms: a slug for programs and a sentence for people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """Why something is refused or doubtful. slug: a stable name in kebab-case. sentence: for people; it may improve."""

    slug: str
    sentence: str
