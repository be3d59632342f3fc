"""Changes to valid files: of their bytes, and of what the bytes mean, which get far deeper."""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random
from typing import Any

Mutation = Callable[[bytes, Random], bytes]

VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    255,
    2**31,
    2**63,
    -(2**63),
    10**30,
    0.0,
    -0.0,
    0.5,
    1.0,
    1e308,
    -1e-308,
    "",
    "a",
    "0",
    "linf",
    "nan",
    "1/0",
    "1e99999",
    "../x",
    "/dev/zero",
    "\x00",
    "\x1b[2J",
    "\ud800",
    "ü" * 50,
    [],
    {},
    [[]],
    [0],
    {"": 0},
    ["a", 1, None],
    {"a": {"b": []}},
)
TOKENS = (
    b"NaN",
    b"Infinity",
    b"-",
    b"1e999",
    b"9" * 400,
    b"null",
    b"true",
    b"[",
    b"]",
    b"{",
    b"}",
    b'"',
    b"'",
    b":",
    b",",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!int ",
    b"!!python/name:os.system ",
    b"? ",
    b"- ",
    b"|",
    b">",
    b"%",
    b"@",
    b"\\u0000",
    b"\\ud800",
    b"\n",
    b"\t",
    b" ",
    b"#",
    b"---\n",
    b"2001-01-01",
    b"0x",
    b"1:2:3",
    b"~",
    b"\xff",
    b"\xef\xbb\xbf",
)


def bytes_of(content: bytes, random: Random) -> bytes:
    """A few bytes flipped, cut, doubled, moved or replaced."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        at, width = random.randrange(len(data) + 1), random.choice((1, 1, 2, 4, 8, 64))
        kind = random.randrange(7)
        if kind == 0 and data:
            data[at - 1] ^= 1 << random.randrange(8)
        elif kind == 1 and data:
            data[at - 1] = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
        elif kind == 2:
            del data[at : at + width]
        elif kind == 3:
            data[at:at] = random.choice(TOKENS)
        elif kind == 4:
            other = random.randrange(len(data) + 1)
            data[at:at] = data[other : other + width]
        elif kind == 5:
            data[at : at + 8] = struct.pack("<q", random.choice((0, -1, 2**31, 2**62, -(2**63), 1)))
        elif random.random() < 0.2:
            del data[at:]
    return bytes(data)


def _places(value: Any, into: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) in a value of JSON."""
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            into.append((value, key))
            _places(value[key], into)
    return into


def value_of(value: Any, random: Random) -> Any:
    """The value of JSON with some of its parts replaced, left out, renamed or put in another's place. Changes it."""
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        places = _places(value, [])
        if not places:
            return random.choice(VALUES)
        where, key = random.choice(places)
        kind = random.randrange(5)
        if kind == 0:
            del where[key]
        elif kind == 1:
            other, name = random.choice(places)
            where[key] = json.loads(json.dumps(other[name])) if _holds(other, name) else None
        elif kind == 2 and isinstance(where, dict):
            where[random.choice([text for text in VALUES if isinstance(text, str)])] = where.pop(key)
        else:
            where[key] = json.loads(json.dumps(random.choice(VALUES)))
    return value


def _holds(where: Any, key: Any) -> bool:
    return key in where if isinstance(where, dict) else key < len(where)


def json_of(content: bytes, random: Random) -> bytes:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return bytes_of(content, random)
    return json.dumps(value_of(value, random)).encode()


def lines_of(inner: Mutation) -> Mutation:
    """One line of the text mutated, doubled or left out."""

    def mutate(content: bytes, random: Random) -> bytes:
        lines = content.splitlines(keepends=True) or [b""]
        at = random.randrange(len(lines))
        kind = random.randrange(6)
        if kind == 0:
            del lines[at]
        elif kind == 1:
            lines[at:at] = lines[at : at + 1]
        else:
            lines[at] = inner(lines[at], random) + (b"\n" if lines[at].endswith(b"\n") else b"")
        return b"".join(lines)

    return mutate


def summed_of(line: bytes, random: Random) -> bytes:
    """A line of a journal with other content, and mostly the sum that belongs to it."""
    _, _, content = line.partition(b" ")
    changed = json_of(content, random)
    return b"%08x %s" % (zlib.crc32(changed) if random.random() < 0.9 else 0, changed)


def words_of(content: bytes, random: Random) -> bytes:
    """Text in which a word becomes another, one of the text's own or a token that means something in YAML."""
    words = re.split(rb"(\W+)", content)
    for _ in range(random.choice((1, 1, 2, 4))):
        words[random.randrange(len(words))] = random.choice((random.choice(words), random.choice(TOKENS), b""))
    return b"".join(words)


def zip_of(inner: Mutation) -> Mutation:
    """An archive in which one part is mutated, renamed or left out, with sums that agree."""

    def mutate(content: bytes, random: Random) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as old:
                parts = [(info.filename, info.compress_type, old.read(info)) for info in old.infolist()]
        except Exception:  # what was mutated before is no archive any more
            return bytes_of(content, random)
        if not parts:
            return bytes_of(content, random)
        at, kind = random.randrange(len(parts)), random.randrange(10)
        name, compression, body = parts[at]
        if kind == 0:
            del parts[at]
        elif kind == 1:
            renamed = bytes_of(name.encode(), random).decode(errors="replace").partition("\0")[0]
            parts[at] = (renamed or "x", compression, body)
        else:
            parts[at] = (name, compression, (json_of if name.endswith(".json") else inner)(body, random))
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as new:
            for name, compression, body in {part[0]: part for part in parts}.values():
                known = compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                new.writestr(name[:1000], body, compress_type=compression if known else zipfile.ZIP_STORED)
        return buffer.getvalue()

    return mutate


def header_of(content: bytes, random: Random) -> bytes:
    """A safetensors file with another description of its tensors, of the right length, or training's facts in it."""
    try:
        size = struct.unpack("<Q", content[:8])[0]
        described = json.loads(content[8 : 8 + size])
        facts = described.get("__metadata__", {}).get("training")
        if facts is not None and random.random() < 0.5:
            described["__metadata__"]["training"] = json.dumps(value_of(json.loads(facts), random))
        else:
            described = value_of(described, random)
        text = json.dumps(described).encode()
    except (ValueError, AttributeError, TypeError, struct.error, RecursionError):
        return bytes_of(content, random)
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def one_of(*mutations: Mutation) -> Mutation:
    """The first mostly, the others now and then."""

    def mutate(content: bytes, random: Random) -> bytes:
        chosen = mutations[0] if random.random() < 0.6 else random.choice(mutations)
        return chosen(content, random)

    return mutate
