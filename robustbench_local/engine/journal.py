"""The journal of a run: every event is appended at the moment it happens, so a killed run can go on."""

from __future__ import annotations

import contextlib
import glob
import os
import zlib
from io import FileIO
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from robustbench_local.engine.events import CleanEvent, SearchEvent
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
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["header"] = "header"
    schema_: Literal["robustbench-local/journal/1"] = Field(default="robustbench-local/journal/1", alias="schema")
    binding: RunFingerprint


_LINE: TypeAdapter[Header | CleanEvent | SearchEvent] = TypeAdapter(
    Annotated[Header | CleanEvent | SearchEvent, Field(discriminator="kind")]
)


def journal_path(output: Path, rank: int = 0) -> Path:
    """`runs/x.json` -> `runs/x.samples.jsonl.partial`; every further process has its own, `….partial.1` and on."""
    path = record_path(output)
    return path.with_name(f"{path.name}.partial{f'.{rank}' if rank else ''}")


def journals(output: Path) -> list[Path]:
    """The journals that an interrupted run has left, whatever the number of its processes."""
    first = journal_path(output)
    others = (path for path in first.parent.glob(f"{glob.escape(first.name)}.*") if path.suffix[1:].isdecimal())
    return ([first] if first.is_file() else []) + sorted(others)


class Journal:
    """Events of this run, those read back first. Without an output nothing is written."""

    def __init__(self, output: Path | None, binding: RunFingerprint, *, resume: bool = False, rank: int = 0):
        """Raises UserError where the output cannot be written, or what is to be resumed belongs to another run."""
        self.clean: list[CleanEvent] = []
        self.searches: list[SearchEvent] = []
        self._file: FileIO | None = None
        self._settled: set[tuple[int, int, int]] = set()
        self._output, self._path = output, None if output is None else journal_path(output, rank)
        if output is None or self._path is None:
            return
        length, refusal = 0, None
        try:
            length = self._look(output, self._path, binding, resume)
        except UserError as error:
            refusal = error
        try:
            raise_on_all_ranks(refusal)  # before anybody changes a file
            if rank == 0 and not resume:
                _remove_others(output)
            self._begin(self._path, binding, length)
            self._share()
        except UserError:
            self.close()
            raise

    def _look(self, output: Path, path: Path, binding: RunFingerprint, resume: bool) -> int:
        """Take the journal for this run alone, and read this process's share of what there is; return how much of its
        own journal is to stay.
        """
        rank, world = rank_and_world()
        for each in (output, record_path(output), path):
            check_writable(each)
        self._file = _open_locked(path)
        if not resume:
            if rank == 0:
                _require_nothing_found(output)
            return 0
        lengths = {each: self._read_back(each, binding) for each in journals(output) if _rank_of(each) % world == rank}
        return lengths[path]

    def _begin(self, path: Path, binding: RunFingerprint, length: int) -> None:
        """Go on after so much of the journal, or afresh where nothing of it is to stay."""
        assert self._file is not None
        with writable(path):
            self._file.truncate(length)
        if length:
            return
        try:
            self._write(Header(binding=binding))
        except UserError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def _share(self) -> None:
        """Let every process know what each of them has read, because nobody can go on before all know all of it."""
        mine: list[CleanEvent | SearchEvent] = [*self.clean, *self.searches]
        events = [event for theirs in gather(mine) for event in theirs]
        self.clean, self.searches, self._settled = [], [], set()
        for event in events:
            self._keep_once(event)

    def _read_back(self, path: Path, binding: RunFingerprint) -> int:
        """Take in the events of a file; return how many of its bytes are whole lines."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            event = _parsed(line)
            if event is None or (number == 1 and not isinstance(event, Header)):
                rest = (
                    "the file to start afresh"
                    if number == 1
                    else ("that line to go on with the others, or the file to start afresh")
                )
                raise UserError(f"{path}, line {number} is damaged: delete {rest}")
            if isinstance(event, Header):  # a second one is of a run that began at the same moment
                _require_same(event.binding, binding, path)
            else:
                self._keep_once(event)
        return len(whole)

    def _keep_once(self, event: CleanEvent | SearchEvent) -> None:
        """Take the event in, unless it speaks of samples that another one has settled.

        Lines are there twice where two runs wrote a journal that could not be locked, or somebody copied one. What else
        such an event says is forgotten with it, and will be found again.
        """
        stage, run = (event.stage, event.run) if isinstance(event, SearchEvent) else (-1, -1)
        settled = {(stage, run, position) for position in event.positions}
        if self._settled.isdisjoint(settled):
            self._settled |= settled
            self.remember(event)

    def remember(self, event: CleanEvent | SearchEvent) -> None:
        """Take an event in that is on a disk already."""
        if isinstance(event, CleanEvent):
            self.clean.append(event)
        else:
            self.searches.append(event)

    def add(self, event: CleanEvent | SearchEvent) -> None:
        """Append one event; it is on its way to the disk when this returns."""
        self.remember(event)
        self._write(event)

    def of_stage(self, stage: int) -> list[SearchEvent]:
        return [event for event in self.searches if event.stage == stage]

    def _write(self, line: Header | CleanEvent | SearchEvent) -> None:
        if self._file is not None and self._path is not None:
            rest = memoryview(_line(line))
            with writable(self._path):
                while rest:  # a disk that is almost full takes a part first
                    rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Leave the journal as it is: an interrupted run goes on from there."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def discard(self) -> None:
        """The run is complete, or has not found out anything yet: the journal has served."""
        if os.name == "nt":  # Windows does not remove open files
            self.close()
        if self._output is not None:
            for path in journals(self._output):
                with writable(path):
                    path.unlink(missing_ok=True)
        # Not before: a run that has waited for the lock must not find the journal that is about to go.
        self.close()


def _rank_of(path: Path) -> int:
    return int(path.suffix[1:]) if path.suffix[1:].isdecimal() else 0


def _open_locked(path: Path) -> FileIO:
    """The journal opened, and locked against other runs. Raises UserError where one of them is writing it."""
    while True:
        with writable(path):
            file = path.open("ab", buffering=0)
        if not lock(file.fileno()):
            file.close()
            raise UserError(f"another run is writing {path}: wait for it, or name another --output")
        # The run that held it may have ended, and removed it, since it was opened.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def _require_nothing_found(output: Path) -> None:
    """Raises UserError where an interrupted run would be lost by starting afresh."""
    for path in journals(output):
        with writable(path):
            content = path.read_bytes()
        if b'"kind":"search"' in content:
            raise UserError(
                f"{path} holds what an interrupted run has found: give --resume to go on with it, or delete it to "
                "start afresh"
            )


def _remove_others(output: Path) -> None:
    """Remove what processes have left that this run does not have, and who had found nothing."""
    _, world = rank_and_world()
    for path in journals(output):
        if _rank_of(path) >= world:
            with writable(path):
                path.unlink()


def _line(event: Header | CleanEvent | SearchEvent) -> bytes:
    """The event as a line of the journal, its checksum first."""
    content = event.model_dump_json(by_alias=True).encode()
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _parsed(line: bytes) -> Header | CleanEvent | SearchEvent | None:
    """What a line says; None where it is not what was written."""
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

    What the earlier run did not record is not compared. None stands for a fingerprint that cannot be read.
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
