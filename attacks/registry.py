"""Registries: from names, as on the command line, to dataclasses of settings."""

from __future__ import annotations

from typing import TypeVar

T = TypeVar("T")
K = TypeVar("K")


class Registry(dict[str, type[T]]):
    """Classes by their `name`, in the order of registration.

    `@REGISTRY.register` above `@dataclass(frozen=True, kw_only=True)` adds a class. Together with one import of its
    module in the package's `__init__`, that makes it known to the command line, its help and listing, and the tests.
    """

    def register(self, kind: type[K]) -> type[K]:
        """Add a class under its `name`. Its fields are its settings, its docstring's first line its description.

        Raises TypeError for a class that is not a frozen dataclass or has no docstring, ValueError for a name that is
        already taken.
        """
        parameters = getattr(kind, "__dataclass_params__", None)
        if parameters is None or not parameters.frozen or "__dataclass_fields__" not in vars(kind):
            raise TypeError(f"{kind.__name__} is not a frozen dataclass: write @dataclass(frozen=True, kw_only=True)")
        if summary(kind).startswith(f"{kind.__name__}("):  # what `dataclass` writes where there is none
            raise TypeError(f"{kind.__name__} has no docstring: its first line is the description in listings")
        name = str(kind.name)  # type: ignore[attr-defined]  # a dataclass without a name raises AttributeError
        if name in self:
            raise ValueError(f"{kind.__name__} and {self[name].__name__} are both named {name!r}")
        self[name] = kind  # type: ignore[assignment]  # the registry's annotation says what it holds
        return kind

    def describe(self) -> dict[str, str]:
        """The one-line description of every name."""
        return {name: summary(kind) for name, kind in self.items()}


def summary(kind: type) -> str:
    """The first line of a class's docstring."""
    return (kind.__doc__ or "").strip().partition("\n")[0]
