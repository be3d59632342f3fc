"""Models from the user's own code: `package.module:factory` and `path/file.py:factory`."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from robustbench_local.errors import UserError, nearest


def call_factory(spec: str) -> nn.Module:
    """The module that the named function returns when it is called without arguments.

    The file's folder (for a package: the working folder) can be imported from while this runs, and not afterwards.
    Raises UserError when the code is not found, fails, or returns something else.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name.isidentifier():
        raise UserError(
            f"{spec!r} names no factory; write path/file.py:FACTORY or package.module:FACTORY, where "
            "FACTORY is a function that is called without arguments and returns a torch.nn.Module"
        )
    is_file = where.endswith(".py")
    folder = Path(where).expanduser().resolve().parent if is_file else Path.cwd()
    with _importable(folder):
        code = _run_file(Path(where).expanduser(), spec) if is_file else _import(where, spec)
        try:
            factory = getattr(code, name)
        except AttributeError:
            raise UserError(f"{where} has no {name!r}.{nearest(name, _names(code))}") from None
        except (Exception, SystemExit) as error:
            raise UserError(_failure(spec, error)) from error
        if isinstance(factory, nn.Module):
            # Theirs, and about to be frozen.
            return copy.deepcopy(factory)
        if not callable(factory):
            raise UserError(
                f"{spec} is a {type(factory).__name__}; it must be a function that is called without "
                "arguments and returns a torch.nn.Module"
            )
        try:
            module = factory()
        except (Exception, SystemExit) as error:
            raise UserError(_failure(spec, error)) from error
    if not isinstance(module, nn.Module):
        raise UserError(f"{spec} returned a {type(module).__name__}; it must return a torch.nn.Module")
    return module


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """The folder first on the import path, for the length of the block only."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _run_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise UserError(f"there is no file {path}; the model {spec!r} is written path/file.py:FACTORY")
    # The whole path in the name: two files called models.py must not be taken for one another.
    unique = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"_robust_model_{path.stem}_{unique}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise UserError(f"{path} cannot be imported as Python code")
    code = importlib.util.module_from_spec(found)
    # Dataclasses and pickles look their module up by name, so it has to be there while it runs.
    sys.modules[name] = code
    try:
        found.loader.exec_module(code)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(_failure(str(path), error)) from error
    return code


def _import(name: str, spec: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"there is no Python package {error.name!r}, which {spec!r} names; install it, run in the "
                "folder that holds it, or write path/file.py:FACTORY"
            ) from None
        raise UserError(_failure(name, error)) from error
    except (Exception, SystemExit) as error:
        raise UserError(_failure(name, error)) from error


def _failure(what: str, error: BaseException) -> str:
    """Where the user's code failed, in one sentence: the traceback would be mostly ours."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<frozen")]
    place = f", {inside[-1].filename} line {inside[-1].lineno}" if inside else ""
    if isinstance(error, SyntaxError):
        place = f", {error.filename} line {error.lineno}"
    message = (str(error).strip() or "no message").splitlines()[0]
    hint = "; a factory is called without arguments" if isinstance(error, TypeError) else ""
    return f"{what} failed: {type(error).__name__}: {message}{place}{hint}"


def _names(code: ModuleType) -> list[str]:
    """What the module offers: its names, and the keys of its registries, which `__getattr__` often serves."""
    public = {
        name: value
        for name, value in vars(code).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    registered = [key for value in public.values() if isinstance(value, dict) for key in value if isinstance(key, str)]
    return [*public, *registered]


def load_function(where: str, name: str) -> Callable[..., Any]:
    """The function of that name in the user's code. where: `path/file.py` or `package.module`.

    Raises UserError when the code is not found, fails, or the name is no function.
    """
    spec, path = f"{where}:{name}", Path(where).expanduser()
    is_file = where.endswith(".py")
    if is_file and not path.is_file():
        raise UserError(f"there is no file {path}, which {spec!r} names", slug="file-not-found")
    with _importable(path.resolve().parent if is_file else Path.cwd()):
        code = _run_file(path, spec) if is_file else _import(where, spec)
        function = getattr(code, name, None)
    if function is None:
        raise UserError(f"{where} has no {name!r}.{nearest(name, _names(code))}", slug="function-not-found")
    if not callable(function):
        raise UserError(f"{spec} is a {type(function).__name__}, but must be a function", slug="not-a-function")
    return function  # type: ignore[no-any-return]  # any callable is taken
