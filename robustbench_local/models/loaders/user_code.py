"""Models from the user's own code: `package.module:factory` and `path/file.py:factory`."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import importlib.util
import io
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from robustbench_local.errors import UserError, nearest
from robustbench_local.models.loaders.global_state import restored_globals


def call_factory(spec: str) -> tuple[nn.Module, list[str]]:
    """(the module that the named function returns when it is called without arguments, notes for the user).

    The file's directory (for a package: the current one) can be imported from while this runs, and not afterwards. The
    code sees a `sys.argv` without arguments, and what it changes globally (default dtype and device, random states,
    threads, warning filters, …) is restored. A module whose parameters are all float64, float16 or bfloat16 is
    converted to float32. Raises UserError when the code is not found, fails, or returns something else.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name.isidentifier():
        raise UserError(
            f"{spec!r} names no factory; write path/file.py:FACTORY or package.module:FACTORY, where "
            "FACTORY is a function that is called without arguments and returns a torch.nn.Module",
            slug="factory-spec",
        )
    is_file = where.endswith(".py")
    folder = Path(where).expanduser().resolve().parent if is_file else Path.cwd()
    with restored_globals(argv=[where]), _importable(folder):
        code = _run_file(Path(where).expanduser(), spec) if is_file else _import(where, spec)
        module = _call(code, name, spec)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{spec} returned a {type(module).__name__}; it must return a torch.nn.Module", slug="factory-result"
        )
    return _in_float32(module, spec)


def _call(code: ModuleType, name: str, spec: str) -> object:
    try:
        factory = getattr(code, name)
    except AttributeError:
        where = spec.rpartition(":")[0]
        raise UserError(f"{where} has no {name!r}.{nearest(name, _names(code))}", slug="factory-not-found") from None
    except (Exception, SystemExit) as error:
        raise UserError(_failure(spec, error), slug="factory-failed") from error
    if isinstance(factory, nn.Module):
        # The user's own module, which loading would freeze.
        return copy.deepcopy(factory)
    if not callable(factory):
        raise UserError(
            f"{spec} is a {type(factory).__name__}; it must be a function that is called without "
            "arguments and returns a torch.nn.Module",
            slug="factory-result",
        )
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise UserError(_failure(spec, error), slug="factory-failed") from error


def _in_float32(module: nn.Module, spec: str) -> tuple[nn.Module, list[str]]:
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    if len(dtypes) != 1 or torch.float32 in dtypes:
        return module, []
    return module.float(), [f"{spec}: its {str(dtypes.pop()).removeprefix('torch.')} weights were converted to float32"]


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Put the directory first on the import path inside the block."""
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


def _run_file(path: Path, spec: str) -> ModuleType:
    if not path.is_file():
        raise UserError(
            f"there is no file {path}; the model {spec!r} is written path/file.py:FACTORY", slug="no-such-file"
        )
    # The whole path in the name: two files called models.py must not be confused.
    unique = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    name = f"_robust_model_{path.stem}_{unique}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"{path} cannot be imported as Python code", slug="code-not-importable")
    code = importlib.util.module_from_spec(module_spec)
    # Dataclasses and pickles look their module up by name, so it has to be there while it runs.
    sys.modules[name] = code
    try:
        with _exit_explained(str(path)):
            module_spec.loader.exec_module(code)
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, UserError):
            raise
        raise UserError(_failure(str(path), error), slug="code-failed") from error
    return code


def _import(name: str, spec: str) -> ModuleType:
    try:
        with _exit_explained(name):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"there is no Python package {error.name!r}, which {spec!r} names; install it, run in the "
                "directory that holds it, or write path/file.py:NAME",
                slug="package-not-found",
            ) from None
        raise UserError(_failure(name, error), slug="code-failed") from error
    except UserError:
        raise
    except Exception as error:
        raise UserError(_failure(name, error), slug="code-failed") from error


@contextlib.contextmanager
def _exit_explained(what: str) -> Iterator[None]:
    """Turn `sys.exit()` during an import, as of argparse, into a UserError; what it printed becomes the reason."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as error:
        lines = [line.strip() for line in printed.getvalue().splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {error.code}"
        raise UserError(
            f"{what} ends the program when it is imported ({reason}): move what parses arguments or calls sys.exit() "
            "under if __name__ == '__main__'",
            slug="code-exits",
        ) from None
    sys.stderr.write(printed.getvalue())


def _failure(what: str, error: BaseException) -> str:
    """Where the user's code failed, in one sentence: the traceback would be mostly ours."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename != __file__ and not frame.filename.startswith("<frozen")]
    place = f", {inside[-1].filename} line {inside[-1].lineno}" if inside else ""
    message = (str(error).strip() or "no message").splitlines()[0]
    if isinstance(error, SyntaxError):
        message, place = error.msg, f", {error.filename} line {error.lineno}"
    hint = "; a factory is called without arguments" if isinstance(error, (TypeError, SystemExit)) else ""
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
        raise UserError(f"there is no file {path}, which {spec!r} names", slug="no-such-file")
    folder = path.resolve().parent if is_file else Path.cwd()
    with restored_globals(argv=[where]), _importable(folder):
        code = _run_file(path, spec) if is_file else _import(where, spec)
        function = getattr(code, name, None)
    if function is None:
        raise UserError(f"{where} has no {name!r}.{nearest(name, _names(code))}", slug="function-not-found")
    if isinstance(function, type) or not callable(function):
        kind = "a class" if isinstance(function, type) else f"of type {type(function).__name__}"
        raise UserError(f"{spec} is {kind}, but must be a function", slug="not-a-function")
    return function  # type: ignore[no-any-return]  # any callable is taken
