"""The journal of a run: every event is appended at the moment it happens, so a killed run can go on."""
from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Literal, TextIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from robustbench_local.errors import UserError
from robustbench_local.files import writable
from robustbench_local.processes import gather, rank_and_world
from robustbench_local.record import CleanEvent, SearchEvent, record_path


class Binding(BaseModel):
    """What a journal belongs to. Every field must be equal for a run to go on with it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    samples: str
    threat_model: str
    protocol: str
    seed: int
    arithmetic: str


class Header(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["header"] = "header"
    schema_: Literal["robustbench-local/journal/1"] = Field(default="robustbench-local/journal/1", alias="schema")
    binding: Binding


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
    others = (path for path in first.parent.glob(f"{_literal(first.name)}.*") if path.suffix[1:].isdecimal())
    return ([first] if first.is_file() else []) + sorted(others)


def _literal(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


class Journal:
    """Events of this run, those read back first. Without an output nothing is written."""

    def __init__(self, output: Path | None, binding: Binding, *, resume: bool, rank: int = 0):
        """Raises UserError where the output cannot be written, or what is to be resumed belongs to another run."""
        self.clean: list[CleanEvent] = []
        self.searches: list[SearchEvent] = []
        self._file: TextIO | None = None
        self._output, self._path = output, None if output is None else journal_path(output, rank)
        if output is None or self._path is None:
            return
        try:
            self._take(resume)
            self._gather(output, binding, resume, rank)
        except UserError:
            self.close()
            raise

    def _gather(self, output: Path, binding: Binding, resume: bool, rank: int) -> None:
        """Read back what there is, and let every process know all of it."""
        mine, (_, world) = 0, rank_and_world()
        for path in journals(output):
            number = int(path.suffix[1:]) if path.suffix[1:].isdecimal() else 0
            if resume and number % world == rank:
                length = self._read_back(path, binding)
                mine = length if path == self._path else mine
            elif not resume and rank == 0 and path != self._path:
                path.unlink()
        # Each process reads some of the journals, and nobody goes on before all know all that is in them.
        events = [event for theirs in gather([*self.clean, *self.searches]) for event in theirs]
        self.clean = [event for event in events if isinstance(event, CleanEvent)]
        self.searches = [event for event in events if isinstance(event, SearchEvent)]
        assert self._path is not None and self._file is not None
        with writable(self._path):
            self._file.truncate(mine)
        if not mine:
            self._write(Header(binding=binding))

    def _take(self, resume: bool) -> None:
        """Open the journal for this run alone.

        Raises UserError where another run is writing it, or an interrupted one would be lost by starting afresh.
        """
        assert self._path is not None
        with writable(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", newline="\n", buffering=1)
        with contextlib.suppress(ImportError):  # Windows opens files for one writer anyway
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"another run is writing {self._path}: wait for it, or name another --output") from None
        if not resume and b'"kind":"search"' in self._path.read_bytes():
            raise UserError(
                f"{self._path} holds what an interrupted run has found: give --resume to go on with it, or delete it "
                "to start afresh"
            )

    def _read_back(self, path: Path, binding: Binding) -> int:
        """Take in the events of a file; return how many of its bytes are whole lines."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                event = _LINE.validate_json(line)
            except ValidationError:
                event = None
            if event is None or isinstance(event, Header) != (number == 1):
                raise UserError(f"{path}, line {number} is damaged: delete the file to start afresh")
            if isinstance(event, Header):
                _require_same(event.binding, binding, path)
            else:
                self.keep(event)
        return len(whole)

    def keep(self, event: CleanEvent | SearchEvent) -> None:
        """Take an event in that is on a disk already."""
        if isinstance(event, CleanEvent):
            self.clean.append(event)
        else:
            self.searches.append(event)

    def add(self, event: CleanEvent | SearchEvent) -> None:
        """Append one event; it is on its way to the disk when this returns."""
        self.keep(event)
        self._write(event)

    def of_stage(self, stage: int) -> list[SearchEvent]:
        return [event for event in self.searches if event.stage == stage]

    def _write(self, line: Header | CleanEvent | SearchEvent) -> None:
        if self._file is not None and self._path is not None:
            with writable(self._path):
                self._file.write(line.model_dump_json(by_alias=True) + "\n")
                self._file.flush()

    def close(self) -> None:
        """Leave the journal as it is: an interrupted run goes on from there."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()

    def discard(self) -> None:
        """The run is complete, or has not found out anything yet: the journal has served."""
        self.close()
        if self._output is not None:
            for path in journals(self._output):
                path.unlink(missing_ok=True)


def _require_same(theirs: Binding, ours: Binding, path: Path) -> None:
    told = {"model": "model", "samples": "set of samples", "threat_model": "threat model", "protocol": "set of attacks",
            "seed": "seed", "arithmetic": "arithmetic"}
    for name, word in told.items():
        if getattr(theirs, name) != getattr(ours, name):
            raise UserError(
                f"{path} is of a run with another {word}: --resume only continues the same run; leave it out to start "
                "afresh, or name another --output"
            )
