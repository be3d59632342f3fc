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
"""Most characters in a line of the per-sample record; a real line has about 400."""


def read_result(path: Path) -> Result:
    """Read a result file.

    Raises UserError where the file is missing, is not JSON, or does not match the schema.
    """
    text = read_text(path, MOST_DESCRIPTION)
    try:
        content = parse_json(text)
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}): give the result file that 'robust attack' wrote", slug="result-not-json"
        ) from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        schema = content.get("schema") if isinstance(content, dict) else None
        raise UserError(
            f"{path} is not a result file: its schema is {quoted(schema)}, expected {SCHEMA!r}",
            slug="not-a-result-file",
        )
    try:
        return Result.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{path} is not a valid result file: {field + ': ' if field else ''}{message}", slug="invalid-result"
        ) from None


def samples_path(result: Result, path: Path) -> Path:
    """The per-sample record of the result file at `path`, which must be in the same directory.

    Raises UserError where the result names no record, or one outside its own directory.
    """
    name = result.samples_file
    record = path.parent / (name or ".")
    if name is None or record.resolve().parent != path.parent.resolve():
        raise UserError(
            f"{path} names no per-sample record in its own directory (samples_file: {quoted(name)})",
            slug="samples-outside-directory",
        )
    return record


def read_samples(result: Result, path: Path) -> list[SampleRecord]:
    """Read the per-sample record of the result file at `path`.

    Raises UserError where the record is missing, damaged, outside the directory of the result, or of another run.
    """
    record = samples_path(result, path)
    if not record.exists():
        raise UserError(
            f"there is no {record}, the per-sample record of {path}: put it there, or evaluate again",
            slug="samples-missing",
        )
    samples: list[SampleRecord] = []
    for number, line in enumerate(_lines(record), start=1):
        samples.append(_sample(line, f"{record}, line {number}"))
        if number > result.data.n:
            raise UserError(
                f"{record} has more lines than the {result.data.n} samples of {path}", slug="samples-do-not-match"
            )
    if len({sample.index for sample in samples}) != result.data.n or len(samples) != result.data.n:
        raise UserError(
            f"{record} has {len(samples)} lines, but {path} has {result.data.n} different samples",
            slug="samples-do-not-match",
        )
    robust = sum(sample.robust for sample in samples)
    if robust != result.robust_accuracy.correct:
        raise UserError(
            f"{record} has {robust} robust samples, but {path} has {result.robust_accuracy.correct}: they belong to "
            "two runs",
            slug="samples-do-not-match",
        )
    return samples


def _sample(line: str, where: str) -> SampleRecord:
    try:
        sample = SampleRecord.model_validate_json(line)
        reject_control_characters(sample.broken_by or "")
    except ValidationError as error:
        first = error.errors()[0]
        message = printable(f"{'.'.join(map(str, first['loc']))} {first['msg']}")
        raise UserError(f"{where} is not a sample record: {message}", slug="invalid-sample-record") from None
    except ValueError as error:
        raise UserError(f"{where} is not a sample record: broken_by: {error}", slug="invalid-sample-record") from None
    return sample


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file; a line longer than LONGEST_LINE is refused before it is read whole."""
    require_plain_file(path)
    try:
        with path.open(encoding="utf-8") as file:
            while line := file.readline(LONGEST_LINE + 1):
                if len(line) > LONGEST_LINE:
                    raise UserError(
                        f"{path} has a line of more than {LONGEST_LINE:,} characters: it is not the record "
                        "that 'robust attack' wrote",
                        slug="invalid-sample-record",
                    )
                yield line.rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise UserError(f"cannot read {path}: {reason}", slug="cannot-read-file") from None
