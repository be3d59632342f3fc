"""The journal of a run: every event is appended when it happens, so a killed run can continue."""

from __future__ import annotations

import contextlib
import glob
import os
import zlib
from io import FileIO
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from robustbench_local.engine.events import DIAGNOSTIC_STAGES, STAGES_PER_BLOCK, CleanEvent, SearchEvent
from robustbench_local.engine.ledger import record_path
from robustbench_local.errors import UserError
from robustbench_local.io.atomic_write import check_writable, lock, writable
from robustbench_local.runtime.distributed import gather, raise_on_all_ranks, rank_and_world


class RunFingerprint(BaseModel):
    """What a journal belongs to. Every field must be equal for a run to continue it.

    Journals of earlier versions record neither `diagnostics` nor `stopping_rule`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    samples: str
    threat_model: str
    protocol: str
    seed: int
    arithmetic: str
    diagnostics: bool = True
    stopping_rule: str | None = None


class Header(BaseModel):
    """The first line of a journal: the run that it belongs to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["header"] = "header"
    schema_: Literal["robustbench-local/journal/1"] = Field(default="robustbench-local/journal/1", alias="schema")
    binding: RunFingerprint


_LINE: TypeAdapter[Header | CleanEvent | SearchEvent] = TypeAdapter(
    Annotated[Header | CleanEvent | SearchEvent, Field(discriminator="kind")]
)


def journal_path(output: Path, rank: int = 0) -> Path:
    """`runs/x.json` -> `runs/x.samples.jsonl.partial`; each further process has its own, `….partial.1` etc."""
    path = record_path(output)
    return path.with_name(f"{path.name}.partial{f'.{rank}' if rank else ''}")


def journals(output: Path) -> list[Path]:
    """The journals that an interrupted run left, one for each of its processes."""
    first = journal_path(output)
    others = (path for path in first.parent.glob(f"{glob.escape(first.name)}.*") if path.suffix[1:].isdecimal())
    return ([first] if first.is_file() else []) + sorted(others)


class Journal:
    """The events of this run, those of an interrupted session first. Without an output nothing is written."""

    def __init__(
        self, output: Path | None, fingerprint: RunFingerprint, *, resume: bool = False, rank: int = 0
    ) -> None:
        """Raises UserError where the output cannot be written, or the journal to resume belongs to another run."""
        self.clean: list[CleanEvent] = []
        self.searches: list[SearchEvent] = []
        self._file: FileIO | None = None
        self._finished: set[tuple[int, int, int]] = set()
        self._output, self._path = output, None if output is None else journal_path(output, rank)
        if output is None or self._path is None:
            return
        length = 0
        refusal: UserError | None = None
        try:
            length = self._open(output, self._path, fingerprint, resume)
        except UserError as error:
            refusal = error
        try:
            raise_on_all_ranks(refusal)  # before any process changes a file
            if rank == 0 and not resume:
                _remove_others(output)
            self._begin(self._path, fingerprint, length)
            self._exchange()
        except UserError:
            self.close()
            raise

    def _open(self, output: Path, path: Path, fingerprint: RunFingerprint, resume: bool) -> int:
        """Lock the journal and read this process's share of the journals; return how many bytes of its own to keep."""
        rank, world = rank_and_world()
        for each in (output, record_path(output), path):
            check_writable(each)
        self._file = _open_locked(path)
        if not resume:
            if rank == 0:
                _require_no_results(output)
            return 0
        mine = [each for each in journals(output) if _rank_of(each) % world == rank]
        lengths = {each: self._read(each, fingerprint) for each in mine}
        return lengths[path]

    def _begin(self, path: Path, fingerprint: RunFingerprint, length: int) -> None:
        """Continue after the kept bytes of the journal, or start again if none are kept."""
        assert self._file is not None
        with writable(path):
            self._file.truncate(length)
        if length:
            return
        try:
            self._write(Header(binding=fingerprint))
        except UserError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def _exchange(self) -> None:
        """Share the events that each process has read: no process can continue before it has all of them."""
        mine: list[CleanEvent | SearchEvent] = [*self.clean, *self.searches]
        events = [event for theirs in gather(mine) for event in theirs]
        self.clean, self.searches, self._finished = [], [], set()
        for event in events:
            self._remember_once(event)

    def _read(self, path: Path, fingerprint: RunFingerprint) -> int:
        """Remember the events of a file; return how many of its bytes are whole lines."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}", slug="journal-unreadable") from None
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            event = _parse(line)
            if event is None or (number == 1 and not isinstance(event, Header)):
                fix = "the file to start again" if number == 1 else "that line to continue with the others, or the file"
                raise UserError(f"{path}, line {number} is damaged: delete {fix}", slug="journal-damaged")
            if isinstance(event, Header):  # a second header belongs to a run that started at the same moment
                _require_same(event.binding, fingerprint, path)
                continue
            if isinstance(event, SearchEvent) and event.stage % STAGES_PER_BLOCK >= DIAGNOSTIC_STAGES:
                # Journals of earlier versions record what diagnostics found, but not that they were switched on.
                _require_same(fingerprint.model_copy(update={"diagnostics": True}), fingerprint, path)
            self._remember_once(event)
        return len(whole)

    def _remember_once(self, event: CleanEvent | SearchEvent) -> None:
        """Remember the event, unless another one contains one of its samples.

        Lines occur twice where two runs wrote a journal that could not be locked, or where someone copied one. The
        other samples of such an event are evaluated again.
        """
        stage, run = (event.stage, event.run) if isinstance(event, SearchEvent) else (-1, -1)
        finished = {(stage, run, position) for position in event.positions}
        if self._finished.isdisjoint(finished):
            self._finished |= finished
            self.remember(event)

    def remember(self, event: CleanEvent | SearchEvent) -> None:
        """Keep an event that is on a disk already."""
        if isinstance(event, CleanEvent):
            self.clean.append(event)
        else:
            self.searches.append(event)

    def add(self, event: CleanEvent | SearchEvent) -> None:
        """Append one event; the operating system has it when this returns."""
        self.remember(event)
        self._write(event)

    def of_stage(self, stage: int) -> list[SearchEvent]:
        """The events of the stage with that number."""
        return [event for event in self.searches if event.stage == stage]

    def _write(self, line: Header | CleanEvent | SearchEvent) -> None:
        if self._file is not None and self._path is not None:
            rest = memoryview(_line(line))
            with writable(self._path):
                while rest:  # a disk that is almost full accepts only a part at first
                    rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Leave the journal as it is: an interrupted run continues from there."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def discard(self) -> None:
        """Remove the journal: the run is complete, or has found nothing yet."""
        if os.name == "nt":  # Windows does not remove open files
            self.close()
        if self._output is not None:
            for path in journals(self._output):
                with writable(path):
                    path.unlink(missing_ok=True)
        # Closed last: a run that waits for the lock must not find the journal before it is removed.
        self.close()


def _rank_of(path: Path) -> int:
    return int(path.suffix[1:]) if path.suffix[1:].isdecimal() else 0


def _open_locked(path: Path) -> FileIO:
    """Open the journal and lock it. Raises UserError where another run holds the lock."""
    while True:
        with writable(path):
            file = path.open("ab", buffering=0)
        if not lock(file.fileno()):
            file.close()
            raise UserError(
                f"another run is writing {path}: wait for it, or choose another --output", slug="journal-locked"
            )
        # The run that held the lock may have ended and removed the file since it was opened.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _require_no_results(output: Path) -> None:
    """Raises UserError where starting again would lose what an interrupted run found."""
    for path in journals(output):
        with writable(path):
            content = path.read_bytes()
        if b'"kind":"search"' in content:
            raise UserError(
                f"{path} holds the results of an interrupted run: use --resume to continue it, or delete it to start "
                "again",
                slug="journal-has-results",
            )


def _remove_others(output: Path) -> None:
    """Remove the journals of processes that this run does not have; they hold no results."""
    _, world = rank_and_world()
    for path in journals(output):
        if _rank_of(path) >= world:
            with writable(path):
                path.unlink()


def _line(event: Header | CleanEvent | SearchEvent) -> bytes:
    """The event as a line of the journal, its checksum first."""
    content = event.model_dump_json(by_alias=True).encode()
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _parse(line: bytes) -> Header | CleanEvent | SearchEvent | None:
    """The record in a line; None where the line is not what was written."""
    checksum, _, content = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(content):
        return None
    try:
        return _LINE.validate_json(content)
    except ValidationError:
        return None


_DIFFERENCES = {
    "seed": "another seed",
    "stopping_rule": "another stopping rule",
    "diagnostics": "other diagnostics",
    "samples": "another set of samples",
    "threat_model": "another threat model",
    "protocol": "another set of attacks",
    "arithmetic": "another arithmetic",
    # Last, because it depends on the samples: it contains the model's answers for some of them.
    "model": "another model",
}


def difference(earlier: RunFingerprint | None, current: RunFingerprint) -> str | None:
    """Return in words what sets an earlier run apart from this one; None where nothing does.

    What the earlier run did not record is not compared. None: a fingerprint that cannot be read.
    """
    if earlier is None:
        return "settings that cannot be read"
    for name, words in _DIFFERENCES.items():
        theirs, ours = getattr(earlier, name), getattr(current, name)
        if name not in earlier.model_fields_set or theirs == ours:
            continue
        if name == "diagnostics":
            return "diagnostics switched on" if theirs else "diagnostics switched off"
        return words
    return None


def _require_same(earlier: RunFingerprint, current: RunFingerprint, path: Path) -> None:
    reason = difference(earlier, current)
    if reason is not None:
        raise UserError(
            f"{path} belongs to a run with {reason}: --resume continues the same run only; choose another --output, "
            "or delete the file to start again",
            slug="resume-other-run",
        )
