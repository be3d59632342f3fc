"""Escapes untrusted text, such as names of models, classes and files, for terminals and CI logs."""

from __future__ import annotations

from robustbench_local.io.safe_read import printable


def plain(text: str) -> str:
    """The text on one line, with control characters escaped and nothing that a CI log reads as a command.

    GitHub's runner reads `::error::` at the start of a line and `##[error]` anywhere; a terminal reads escape codes.
    """
    return printable(text).replace("\n", "\\n").replace("##[", "# #[")
