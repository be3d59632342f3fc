"""Journals that were cut off, garbled, copied together or are another run's."""

from __future__ import annotations

import re

from fault_scene import Scene

from robustbench_local.engine.journal import journal_path


def cut_off(scene: Scene) -> None:
    scene.interrupted()
    path = journal_path(scene.output)
    content = path.read_bytes()
    path.write_bytes(content[: scene.moments.randrange(len(content) + 1)])
    scene.require_resumed()


def doubled_lines(scene: Scene) -> None:
    scene.interrupted()
    path = journal_path(scene.output)
    lines = path.read_bytes().splitlines(keepends=True)
    copied = scene.moments.choice([lines[-1:], lines, scene.moments.choices(lines, k=3)])
    path.write_bytes(b"".join([*lines, *copied]))
    scene.require_resumed()


def garbled(scene: Scene) -> None:
    scene.interrupted()
    path = journal_path(scene.output)
    content = bytearray(path.read_bytes())
    # A digit for another one: the line is JSON as before, and of the right form.
    place = scene.moments.choice([match.start() for match in re.finditer(rb"\d", content)])
    content[place] = ord("0") + (content[place] - ord("0") + scene.moments.randint(1, 9)) % 10
    path.write_bytes(content)
    number = content[:place].count(b"\n") + 1
    command = scene.run("--resume")
    scene.require_refused(command, f"line {number} is damaged: delete")
    assert path.read_bytes() == content
    assert not scene.output.exists()
    if "that line" in command.err:
        lines = content.splitlines(keepends=True)
        path.write_bytes(b"".join([*lines[: number - 1], *lines[number:]]))
    else:
        path.unlink()
    scene.require_resumed()


def foreign(scene: Scene) -> None:
    scene.interrupted("--seed", 1)
    content = journal_path(scene.output).read_bytes()
    scene.require_refused(scene.run("--resume"), "another seed", "delete the file")
    scene.require_refused(scene.run(), "the results of an interrupted run", "--resume")
    assert journal_path(scene.output).read_bytes() == content
    journal_path(scene.output).unlink()
    assert scene.run().process.exitcode == 0
    scene.require_whole()


def found_by_another_worker(scene: Scene) -> None:
    """Starting afresh does not throw away what any process of an interrupted run has found."""
    scene.interrupted()
    journal_path(scene.output).rename(journal_path(scene.output, 1))
    content = journal_path(scene.output, 1).read_bytes()
    scene.require_refused(scene.run(), "the results of an interrupted run")
    assert journal_path(scene.output, 1).read_bytes() == content
    scene.require_resumed()


FAULTS = {
    "a truncated journal": cut_off,
    "a journal with duplicate lines": doubled_lines,
    "a corrupt journal": garbled,
    "a journal of another run": foreign,
    "a journal of another process of the run": found_by_another_worker,
}
