"""Read result files and their per-sample records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import (
    MOST_DESCRIPTION,
    parse_json,
    printable,
    quoted,
    read_text,
    reject_control_characters,
    require_plain_file,
)
from robustbench_local.results.schema import SCHEMA, Result, SampleRecord

LONGEST_LINE = 16_384
"""Characters of a line of the per-sample record, which has about 400."""


def read_result(path: Path) -> Result:
    """A result file as a typed value.

    Raises UserError when it is missing, is no JSON, or departs from the schema.
    """
    text = read_text(path, MOST_DESCRIPTION)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): give the result file that 'robust attack' wrote") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        found = content.get("schema") if isinstance(content, dict) else None
        raise UserError(f"{path} is not a result file: its schema is {quoted(found)}, expected {SCHEMA!r}")
    try:
        return Result.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        told = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path} is not a valid result file: {where + ': ' if where else ''}{told}") from None


def read_samples(result: Result, path: Path) -> list[SampleRecord]:
    """The per-sample record that lies beside a result file.

    Raises UserError when it is missing, damaged, or outside the result's own folder.
    """
    name = result.samples_file
    record = path.parent / (name or ".")
    if name is None or record.resolve().parent != path.parent.resolve():
        raise UserError(f"{path} names no per-sample record in its own folder (samples_file: {quoted(name)})")
    if not record.exists():
        raise UserError(f"there is no {record}, the per-sample record of {path}: put it there, or evaluate again")
    samples = []
    for number, line in enumerate(_lines(record), start=1):
        try:
            samples.append(SampleRecord.model_validate_json(line))
            reject_control_characters(samples[-1].broken_by or "")
        except ValidationError as error:
            first = error.errors()[0]
            told = printable(f"{'.'.join(map(str, first['loc']))} {first['msg']}")
            raise UserError(f"{record}, line {number} is not a sample record: {told}") from None
        except ValueError as error:
            raise UserError(f"{record}, line {number} is not a sample record: broken_by: {error}") from None
        if number > result.data.n:
            raise UserError(f"{record} has more lines than the {result.data.n} samples that {path} speaks of")
    robust = sum(sample.robust for sample in samples)
    if len({sample.index for sample in samples}) != result.data.n or len(samples) != result.data.n:
        raise UserError(f"{record} has {len(samples)} lines, but {path} speaks of {result.data.n} different samples")
    if robust != result.robust_accuracy.correct:
        raise UserError(
            f"{record} has {robust} robust samples and {path} {result.robust_accuracy.correct}: they are of two runs"
        )
    return samples


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file, one at a time and none without end."""
    require_plain_file(path)
    try:
        with path.open(encoding="utf-8") as file:
            while line := file.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    raise UserError(
                        f"{path} has a line of more than {LONGEST_LINE:,} characters: it is not the record "
                        "that 'robust attack' wrote"
                    )
                yield line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise UserError(f"cannot read {path}: {reason}") from None
