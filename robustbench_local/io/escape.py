"""Text of others – names of models, classes and files – made fit for a line of a terminal or of a CI log."""

from __future__ import annotations

from robustbench_local.io.safe_read import printable


def plain(text: str) -> str:
    """The text on one line, control characters written out, and nothing in it that a CI log takes for a command.

    GitHub's runner reads `::error::` at the beginning of a line and `##[error]` anywhere in it; a terminal reads
    escape sequences.
    """
    return printable(text).replace("\n", "\\n").replace("##[", "# #[")
