"""Reads untrusted files: plain files of a sensible size, and values that can be read in one way only.

An untrusted file may never end, unpack to a thousand times its size, give a key twice, or hold characters that control
a terminal. Such files are refused here before anything uses them.
"""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import yaml

from robustbench_local.errors import UserError

MOST_SETTINGS = 256 * 2**10
"""Bytes of a YAML file of settings. People write a few hundred."""
MOST_DESCRIPTION = 32 * 2**20
"""Bytes of a JSON file. A result with a hundred thousand classes has about as many."""
MOST_UNPACKED, MOST_RATIO = 256 * 2**20, 100
"""An archive may unpack to this many bytes, or to this many times its own size, whichever is more."""
_MAX_NUMBER = 1024  # bits
_MAX_QUOTE = 80
_MAX_REASON = 300
# Control characters, the marks that turn text around or break its lines, and halves of characters.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def require_plain_file(path: Path, most: int | None = None) -> None:
    """Refuse devices, pipes and directories, which may never end, and files of more than `most` bytes.

    Raises UserError that says what the path is instead.
    """
    shown = printable(path)
    try:
        if not path.exists():
            raise UserError(f"there is no file {shown}: check its path", slug="no-such-file")
        if path.is_dir():
            raise UserError(f"{shown} is a directory: name a file in it", slug="not-a-plain-file")
        if not path.is_file():
            raise UserError(
                f"{shown} is a device or a pipe: save its content as a file, and name that", slug="not-a-plain-file"
            )
        size = path.stat().st_size
    except (OSError, ValueError) as error:  # also for names that no file can have
        message = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {shown}: {message}", slug="file-unreadable") from None
    if most is not None and size > most:
        raise UserError(
            f"{shown} has {size:,} bytes, but such a file may have at most {most:,}: check that it is the right file",
            slug="file-too-large",
        )


def read_text(path: Path, most: int) -> str:
    """The text of a plain file of at most `most` bytes.

    Raises UserError where it cannot be read or is not text.
    """
    require_plain_file(path, most)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise UserError(f"cannot read {printable(path)}: {message}", slug="file-unreadable") from None


def parse_json(text: str) -> Any:
    """The value of a JSON text that can be read in one way only.

    Raises ValueError for invalid JSON, duplicate keys, NaN and infinity, control characters, deep nesting and very long
    numbers.
    """
    try:
        content = json.loads(text, parse_constant=_no_constant, object_pairs_hook=no_duplicate_keys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _require_printable(content)
    return content


def parse_yaml(text: str) -> Any:
    """The value of a YAML text that can be read in one way only, without references (`*name`) and Python tags.

    Raises ValueError like `parse_json`.
    """
    try:
        content = yaml.load(text, _StrictLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # of malformed numbers and dates the library raises any type
        raise ValueError(printable(" ".join(str(error).split())[:_MAX_REASON])) from None
    _require_printable(content)
    return content


class _StrictLoader(yaml.SafeLoader):
    """YAML without references, which can expand one line to a thousand, and without duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                None, None, f"*{event.anchor}: references are not allowed, write the value out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if (duplicate := first_duplicate(keys)) is not None:
            raise yaml.MarkedYAMLError(None, None, f"{quoted(duplicate)} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not allowed in JSON")


def no_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` for `json.loads`.

    Raises ValueError for a key given twice.
    """
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"{quoted(first_duplicate([key for key, _ in pairs]))} is given twice")
    return content


def first_duplicate(keys: list[str]) -> str | None:
    """The first key that occurs a second time, or None."""
    visited: set[str] = set()
    for key in keys:
        if key in visited:
            return key
        visited.add(key)
    return None


def _require_printable(content: Any) -> None:
    """Raises ValueError for control characters in texts and keys, and for very long numbers."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += value
        elif isinstance(value, str):
            reject_control_characters(value)
        elif isinstance(value, int) and value.bit_length() > _MAX_NUMBER:
            raise ValueError("it has an integer of hundreds of digits")


def reject_control_characters(text: str) -> str:
    """The same text.

    Raises ValueError where it has characters that a terminal obeys or hides.
    """
    if match := _CONTROL.search(text):
        raise ValueError(f"{quoted(text)} has the control character {match.group()!r}")
    return text


def printable(text: object) -> str:
    r"""The text with control characters escaped, as in `\x1b`, so that they cannot control a terminal."""
    return _CONTROL.sub(lambda match: ascii(match.group())[1:-1], str(text))


def reason(error: BaseException) -> str:
    """The first sentence of another library's error message, printable and short.

    Later sentences may repeat the file's content, and torch's advise to load the file without checks.
    """
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return printable(lines[0].split(". ")[0][:_MAX_REASON])


def quoted(value: object) -> str:
    """A value from a file or an option as a message shows it: escaped, texts in quotes, and at most a line long."""
    if isinstance(value, str) and len(value) > _MAX_QUOTE:
        return f"{value[:_MAX_QUOTE]!r}…"
    if isinstance(value, (str, int, float, bool, type(None))):
        return repr(value)
    return f"a {type(value).__name__}"


def is_archive(path: Path) -> bool:
    """Whether the file is a zip archive.

    Raises UserError for archives that span several disks.
    """
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(
            f"{printable(path)} is damaged ({reason(error)}): get it again", slug="archive-damaged"
        ) from None


def open_archive(path: Path) -> zipfile.ZipFile:
    """A zip archive of separate, differently named parts that does not unpack to far more than its own size.

    Raises UserError for others.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # damaged directories raise many types
        raise UserError(
            f"{printable(path)} is damaged ({reason(error)}): get it again", slug="archive-damaged"
        ) from None
    parts, size = archive.infolist(), path.stat().st_size
    unpacked = sum(part.file_size for part in parts)
    if unpacked > max(MOST_UNPACKED, MOST_RATIO * size):
        archive.close()
        raise UserError(
            f"{printable(path)} has {size:,} bytes, but would unpack to {unpacked:,}: get it again from a source you "
            "trust, or save it again without compression",
            slug="archive-too-large",
        )
    if sum(part.compress_size for part in parts) > size or len({part.filename for part in parts}) < len(parts):
        archive.close()
        raise UserError(
            f"{printable(path)} is an archive whose parts share names or bytes, which no program writes: get it again",
            slug="archive-overlapping-parts",
        )
    return archive
