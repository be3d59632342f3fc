"""The mathematics of training robust classifiers: one method, one file. Imported as `robustbench_local.defenses`."""
if __name__ != "robustbench_local.defenses":
    raise ImportError(
        f"this folder is the package 'robustbench_local.defenses', not {__name__!r}: "
        "use 'from robustbench_local.defenses import PGDAT', started from anywhere but inside this checkout's folders"
    )

from robustbench_local.defenses.objective import Objective
from robustbench_local.defenses.pgd_at import PGDAT
from robustbench_local.defenses.standard import Standard

OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in (Standard, PGDAT)}

__all__ = ["OBJECTIVES", "PGDAT", "Objective", "Standard"]
