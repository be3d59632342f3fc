"""Reading files that others made: plain files of a sensible size, and values that are what they look like.

A file may be written to be read wrongly: it may never end, unpack to a thousand times its size, say a thing twice,
or hold characters that steer a terminal. What is read here is refused for that before anything is made of it.
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
"""Bytes of a file of settings (YAML); people write a few hundred."""
MOST_DESCRIPTION = 32 * 2**20
"""Bytes of a JSON file: a result with a hundred thousand classes has about as many."""
MOST_UNPACKED, MOST_RATIO = 256 * 2**20, 100
"""An archive may unpack to so many bytes, or to so many times its own size, whichever is more."""
_LONGEST_NUMBER = 1024  # bits
_LONGEST_QUOTE = 80
_LONGEST_REASON = 300
# Control characters, the marks that turn text around or break its lines, and halves of characters.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def require_plain_file(path: Path, most: int | None = None) -> None:
    """Refuse what is no plain file, which may never end or never answer, and one of more than `most` bytes.

    Raises UserError that says what it is instead.
    """
    try:
        if not path.exists():
            raise UserError(f"there is no file {printable(path)}: check its path")
        if path.is_dir():
            raise UserError(f"{printable(path)} is a folder: name the file in it")
        if not path.is_file():
            raise UserError(f"{printable(path)} is a device or a pipe: save its content as a file, and name that")
        size = path.stat().st_size
    except (OSError, ValueError) as error:  # of names that no file can have, too
        raise UserError(f"cannot read {printable(path)}: {getattr(error, 'strerror', None) or error}") from None
    if most is not None and size > most:
        raise UserError(
            f"{printable(path)} has {size:,} bytes, but such a file has at most {most:,}: name the file that is meant"
        )


def read_text(path: Path, most: int) -> str:
    """The text of a plain file of at most `most` bytes.

    Raises UserError where it cannot be read, or is no text.
    """
    require_plain_file(path, most)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise UserError(f"cannot read {printable(path)}: {reason}") from None


def parse_json(text: str) -> Any:
    """The value, when it can be read in one way only.

    Raises ValueError for what is no JSON, a key given twice, numbers that are none, text that a terminal would not
    show, and nesting or numbers beyond all sense.
    """
    try:
        content = json.loads(text, parse_constant=_no_constant, object_pairs_hook=no_duplicate_keys)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _require_seen(content)
    return content


def parse_yaml(text: str) -> Any:
    """The value, when it can be read in one way only; references (`*name`) and tags of Python are not followed.

    Raises ValueError as `parse_json` does.
    """
    try:
        content = yaml.load(text, _Settings)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # of malformed numbers and dates the library raises any type
        raise ValueError(printable(" ".join(str(error).split())[:_LONGEST_REASON])) from None
    _require_seen(content)
    return content


class _Settings(yaml.SafeLoader):
    """YAML without references, which can make a thousand lines of one, and without a key given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                None, None, f"*{event.anchor}: references are not followed; write it out", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if (twice := first_duplicate(keys)) is not None:
            raise yaml.MarkedYAMLError(None, None, f"{quoted(twice)} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def no_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError(f"{quoted(first_duplicate([key for key, _ in pairs]))} is given twice")
    return content


def first_duplicate(keys: list[str]) -> str | None:
    seen: set[str] = set()
    return next((key for key in keys if key in seen or seen.add(key)), None)  # type: ignore[func-returns-value]


def _require_seen(content: Any) -> None:
    """Raises ValueError for texts, keys included, that a terminal would obey or hide, and for endless numbers."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set)):
            waiting += value
        elif isinstance(value, str):
            reject_control_characters(value)
        elif isinstance(value, int) and value.bit_length() > _LONGEST_NUMBER:
            raise ValueError("it holds a whole number of hundreds of digits")


def reject_control_characters(text: str) -> str:
    """The text as it is.

    Raises ValueError where it holds characters that a terminal obeys or hides.
    """
    if found := _UNSEEN.search(text):
        raise ValueError(f"{quoted(text)} holds the character {found.group()!r}, which is not shown but obeyed")
    return text


def printable(text: object) -> str:
    """The text for people's eyes: what would steer a terminal is spelled out, as in \\x1b."""
    return _UNSEEN.sub(lambda found: ascii(found.group())[1:-1], str(text))


def reason(error: BaseException) -> str:
    """What another library says of a file: its first sentence, printable and not too long.

    More may repeat the file, and torch advises to load it without looking.
    """
    lines = (str(error).strip() or type(error).__name__).splitlines()
    return printable(lines[0].split(". ")[0][:_LONGEST_REASON])


def quoted(value: object) -> str:
    """A value out of a file, for a message: spelled out, in quotes where it is text, and not longer than a line."""
    if isinstance(value, str) and len(value) > _LONGEST_QUOTE:
        return f"{value[:_LONGEST_QUOTE]!r}…"
    if isinstance(value, (str, int, float, bool, type(None))):
        return repr(value)
    return f"a {type(value).__name__}"


def is_archive(path: Path) -> bool:
    """Whether the file is a zip archive.

    Raises UserError for one of several disks, which the library does not call an archive but refuses.
    """
    try:
        return zipfile.is_zipfile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{printable(path)} is damaged ({reason(error)}); get it again") from None


def open_archive(path: Path) -> zipfile.ZipFile:
    """A zip archive that is no trap: its parts do not share their bytes, have names of their own, and do not unpack
    to far more than the file.

    Raises UserError for others.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # of damaged directories the library raises many types
        raise UserError(f"{printable(path)} is damaged ({reason(error)}); get it again") from None
    parts, size = archive.infolist(), path.stat().st_size
    unpacked = sum(part.file_size for part in parts)
    if unpacked > max(MOST_UNPACKED, MOST_RATIO * size):
        archive.close()
        raise UserError(
            f"{printable(path)} has {size:,} bytes, but would unpack to {unpacked:,}; it was not read: "
            "get it again from where you trust it, or save it again without compression"
        )
    if sum(part.compress_size for part in parts) > size or len({part.filename for part in parts}) < len(parts):
        archive.close()
        raise UserError(
            f"{printable(path)} is an archive with parts of the same name or the same bytes, as no program "
            "writes them; it was not read: get it again"
        )
    return archive
