"""Disks that fill up, folders that may not be written to or are gone, and files that cannot be opened."""

from __future__ import annotations

import functools
import os
import resource
import time

from fault_commands import COMMAND, TRAINING, begun, ended, require_refusal, require_tidy, require_trained
from fault_injections import bound_by_permissions, deleted_at, small_disk, small_files
from fault_scene import FILES, Scene

from robustbench_local.engine.journal import journal_path
from robustbench_local.engine.ledger import record_path

NO_ROOM = "make room there"


def file_limit(scene: Scene) -> None:
    limit = scene.moments.choice([scene.moments.randrange(400, 3000), scene.moments.randrange(3000, 20000)])
    command = scene.run(prepare=[functools.partial(small_files, limit)])
    if command.process.exitcode:
        scene.require_refused(command, "File too large", NO_ROOM)
        assert not scene.output.exists()
        assert set(scene.folder.iterdir()) <= {journal_path(scene.output)}
    scene.require_resumed()


def full_disk(scene: Scene) -> None:
    command = scene.run(prepare=[functools.partial(small_disk, scene.folder, 4 * scene.moments.randint(1, 18))])
    if command.process.exitcode:
        scene.require_refused(command, "No space left on device", NO_ROOM)
        assert not any((scene.folder / name).exists() for name in FILES), "both or neither"
    scene.require_resumed()


def full_disk_over_an_old_result(scene: Scene) -> None:
    """The old result and its record stay a pair."""
    old = ended(scene.folder, *COMMAND, "--seed", 1, "--output", "r.json")
    assert old.process.exitcode == 0, old.err
    before = [(scene.folder / name).read_bytes() for name in FILES]
    room = sum(-(-len(each) // 4096) * 4 for each in before) + 4 * scene.moments.randint(1, 14)
    command = scene.run(prepare=[functools.partial(small_disk, scene.folder, room)])
    if command.process.exitcode:
        scene.require_refused(command, "No space left on device", NO_ROOM)
        assert [(scene.folder / name).read_bytes() for name in FILES] == before
    if journal_path(scene.output).exists():
        scene.require_resumed()
    else:
        assert scene.run().process.exitcode == 0
        scene.require_whole()


def full_disk_in_training(scene: Scene) -> None:
    room = 4 * scene.moments.randint(1, 450)
    command = ended(scene.folder, *TRAINING, prepare=[functools.partial(small_disk, scene.folder, room)])
    if command.process.exitcode:
        require_refusal(command, "No space left on device", NO_ROOM)
        require_tidy(scene.folder)
        command = ended(scene.folder, *TRAINING, "--resume")
    assert command.process.exitcode == 0, command.err
    require_trained(scene.folder, scene.trained)


def read_only_folder(scene: Scene) -> None:
    scene.folder.chmod(0o555)
    try:
        for arguments in ([*COMMAND, "--output", "r.json"], COMMAND, TRAINING):
            command = ended(scene.folder, *arguments, prepare=[bound_by_permissions])
            require_refusal(command, "Permission denied", "--output", "[cannot-write]")
            assert list(scene.folder.iterdir()) == []
    finally:
        scene.folder.chmod(0o755)


def folder_becomes_read_only(scene: Scene) -> None:
    command = scene.started_then(prepare=[bound_by_permissions])
    scene.folder.chmod(0o555)
    try:
        command.wait()
    finally:
        scene.folder.chmod(0o755)
    if command.process.exitcode:
        scene.require_refused(command, "Permission denied")
    scene.require_resumed()


def folder_is_deleted(scene: Scene) -> None:
    command = ended(
        scene.folder,
        *COMMAND,
        "--output",
        "o/r.json",
        prepare=[functools.partial(deleted_at, scene.folder / "o", scene.moments.randint(1, 12))],
    )
    assert command.process.exitcode == 0, command.err
    for path in (scene.folder / "o").iterdir():
        path.rename(scene.folder / path.name)
    (scene.folder / "o").rmdir()
    scene.require_whole()


def record_in_the_way(scene: Scene) -> None:
    kinds = {"loop": lambda path: path.symlink_to(path.name), "folder": lambda path: path.mkdir(), "pipe": os.mkfifo}
    words = {"loop": "symbolic links", "folder": "it is a directory", "pipe": "a device or a pipe"}
    for path in (scene.output, record_path(scene.output), journal_path(scene.output)):
        for kind, make in kinds.items():
            make(path)
            scene.require_refused(scene.run(), words[kind], "--output")
            assert list(scene.folder.iterdir()) == [path], "found before the run"
            path.rmdir() if kind == "folder" else path.unlink()


def no_handles(scene: Scene) -> None:
    command = scene.start()
    if scene.moments.random() < 0.7:
        begun(scene.output)
    time.sleep(scene.moments.uniform(0, 0.2))
    if command.process.is_alive():
        resource.prlimit(command.process.pid, resource.RLIMIT_NOFILE, (3, 3))
    if command.wait() != 0:
        scene.require_refused(command, "Too many open files")
    scene.require_resumed()


FAULTS = {
    "a file size limit": file_limit,
    "the output directory is read-only": read_only_folder,
    "the output directory becomes read-only during the run": folder_becomes_read_only,
    "the output directory is deleted during the run": folder_is_deleted,
    "the output path is a link to itself, a directory or a pipe": record_in_the_way,
    "no file handles are left": no_handles,
}
MOUNTED = {
    "the disk is full during an evaluation": full_disk,
    "the disk is full and there is an older result": full_disk_over_an_old_result,
    "the disk is full during a training": full_disk_in_training,
}
"""These make disks of their own, which not everybody may."""
