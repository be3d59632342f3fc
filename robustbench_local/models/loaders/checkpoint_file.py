"""Reading a checkpoint file into tensors without running any code in it.

Everything goes through torch's restricted unpickler (`weights_only=True`) or safetensors. What neither reads is
refused with the reason; most often it is a web page or a git-lfs pointer saved as `.pt`, or a whole pickled model.
"""

from __future__ import annotations

import argparse
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import is_archive, open_archive, printable, reason, require_plain_file
from robustbench_local.models.loaders.checkpoint import Checkpoint

RESAVE = (
    "save its weights alone where it was made, torch.save(model.state_dict(), FILE) or "
    "safetensors.torch.save_file(model.state_dict(), FILE), and give that file"
)

_SEARCHED = 2**20  # bytes of a refused file that are searched for what it would call

# Inert values that training scripts store beside the weights: numpy's scalars (a best accuracy) and parsed arguments.
_HARMLESS: list[Any] = [
    argparse.Namespace,
    numpy.dtype,
    *(type(numpy.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")),
    (numpy.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (numpy.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Every mapping of names to tensors in a checkpoint file; optimizer states and the like are left out.

    Raises UserError for a file that is missing, empty, cut off, no checkpoint, or would have to be unpickled.
    """
    path = Path(path).expanduser()
    check_file(path)
    content = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path)
    return Checkpoint.from_content(content, str(path))


def check_file(path: Path) -> None:
    """Raise UserError for what is no model file, such as an empty file, a directory or a web page.

    The message says what the file is instead.
    """
    if path.is_dir():
        raise UserError(f"{path} is a directory, not a checkpoint; name the file in it", slug="file-is-directory")
    require_plain_file(path)
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; make it readable or name another file", slug="file-unreadable"
        ) from None
    if what := _mistaken_for_checkpoint(head):
        raise UserError(f"{path} {what}", slug="not-a-checkpoint")
    if is_archive(path):
        open_archive(path).close()


def _mistaken_for_checkpoint(head: bytes) -> str | None:
    """What a file is whose first bytes show that it is no checkpoint, with the fix."""
    if not head:
        return "is empty: the download or copy failed; get the file again"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"<" and re.match(rb"<(!doctype|\?xml|html|head|body|!--|[a-z]+[ >])", text, re.IGNORECASE):
        return (
            "is a web page, not a checkpoint: the download was a login, virus-scan or error page saved under the "
            "checkpoint's name; download it again, in a browser or with a tool that follows the confirmation"
        )
    if text.startswith(b"version https://git-lfs.github.com/spec"):
        return (
            "is a git-lfs pointer, not a checkpoint: the weights were not fetched; run 'git lfs pull' in that "
            "repository, or download the file itself"
        )
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return "is a compressed or tar archive, not a checkpoint; unpack it and name the file in it"
    if len(text) > 3 and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in text):
        shown = text[:60].decode().splitlines()[0]
        return f"is a text file, not a checkpoint: it begins {shown!r}; get the file itself"
    return None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # the library raises others of types that torch does not have
        raise UserError(
            f"{path} is not a readable safetensors file ({reason(error)}): it is truncated or of "
            "another kind; get it again, or rename it with the right suffix",
            slug="checkpoint-damaged",
        ) from None


def _read_torch(path: Path) -> object:
    """What `torch.save` wrote, read by the restricted unpickler."""
    if zipfile.is_zipfile(path):
        _check_zip(path)
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            # torch warns of pickle protocols that it may not read in full. Where it cannot, it raises.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, str(error)), slug="checkpoint-not-plain") from None
    except Exception as error:  # the restricted unpickler calls torch's constructors with whatever the file says
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason(error)}): it is truncated, damaged or of "
            "another kind; get it again and compare its size with the original's",
            slug="checkpoint-damaged",
        ) from None


def _check_zip(path: Path) -> None:
    """Raise UserError for zip files that hold something other than a checkpoint."""
    with open_archive(path) as archive:
        names = archive.namelist()
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:
        raise UserError(
            f"{path} is a TorchScript program, which brings its own architecture; give it as MODEL itself, "
            "without --arch and not as --checkpoint",
            slug="checkpoint-is-program",
        )
    if "archive_format" in inner:
        raise UserError(
            f"{path} is an exported program (torch.export), which brings its own architecture; give it as "
            "MODEL itself, without --arch and not as --checkpoint",
            slug="checkpoint-is-program",
        )
    if "data.pkl" not in inner:
        raise UserError(
            f"{path} is a zip archive (it holds {names[0] if names else 'nothing'!r}), not a checkpoint; "
            "unpack it and name the file in it",
            slug="not-a-checkpoint",
        )
    # torch has a reader of its own. Bytes before or after the archive could make it see other parts than those checked
    # here, and torch.save writes none.
    if archive.comment or min(part.header_offset for part in archive.infolist()) != 0:
        raise UserError(
            f"{path} has bytes before or after its archive, which torch.save does not write; it was not "
            "read: get it again",
            slug="checkpoint-damaged",
        )


def _refusal(path: Path, message: str) -> str:
    """Why a file was not unpickled, with the class or function that it would call."""
    match = re.search(r"(?:GLOBAL|global:?|function:?|class:?)\s+([A-Za-z_][\w]*(?:\.[\w<>]+)+)", message)
    if match:
        return (
            f"{path} was not loaded: it holds a pickled {match.group(1)}, and unpickling that could run any code; "
            f"{RESAVE}"
        )
    if zipfile.is_zipfile(path):
        return f"{path} was not loaded: it holds pickled objects other than plain weights ({_cause(message)}); {RESAVE}"
    with path.open("rb") as file:
        content = file.read(_SEARCHED)
    if content[:1] == b"\x80" and content[1:2] <= b"\x05":  # the opcode that opens a pickle, and its protocol
        first = next(map(printable, _globals_of(content)), None)
        naming = f" that names {first}" if first else ""
        return f"{path} was not loaded: it is a plain Python pickle{naming}, and could run any code; {RESAVE}"
    return f"{path} is not a checkpoint: its content is not what torch.save writes; get the file again, or {RESAVE}"


def _cause(message: str) -> str:
    """The line of torch's long message that gives the reason."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    cause = next((line for line in lines if line.startswith("Unsupported")), lines[0] if lines else "no reason given")
    return printable(cause)


def _globals_of(content: bytes) -> Iterator[str]:
    """The classes and functions that a plain pickle names, read from its opcodes without running any."""
    strings: list[str] = []
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "GLOBAL":
                yield str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                yield ".".join(strings[-2:])
            elif isinstance(argument, str):
                strings.append(argument)
    except Exception:  # for damaged arguments the library raises any type
        return
