"""The mathematics of training robust classifiers: a method, a screenful. Imported as `robustbench_local.defenses`."""

if __name__ != "robustbench_local.defenses":
    raise ImportError(
        f"this folder is the package 'robustbench_local.defenses', not {__name__!r}: "
        "use 'from robustbench_local.defenses import PGDAT', started from anywhere but inside this checkout's folders"
    )

from robustbench_local.defenses.awp import AWP
from robustbench_local.defenses.distillation import RSLAD, DefensiveDistillation
from robustbench_local.defenses.hat import HAT
from robustbench_local.defenses.mart import MART
from robustbench_local.defenses.objective import Examples, Objective, TrainingContext
from robustbench_local.defenses.pgd_at import PGDAT
from robustbench_local.defenses.single_step import FGSMRS, NFGSM, FreeAT
from robustbench_local.defenses.smoothing import Gaussian, SmoothAdv
from robustbench_local.defenses.standard import Standard
from robustbench_local.defenses.trades import TRADES

OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective
    for objective in (
        Standard,
        PGDAT,
        TRADES,
        MART,
        HAT,
        FGSMRS,
        NFGSM,
        FreeAT,
        RSLAD,
        DefensiveDistillation,
        Gaussian,
        SmoothAdv,
    )
}

__all__ = [
    "AWP",
    "FGSMRS",
    "HAT",
    "MART",
    "NFGSM",
    "OBJECTIVES",
    "PGDAT",
    "RSLAD",
    "TRADES",
    "DefensiveDistillation",
    "Examples",
    "FreeAT",
    "Gaussian",
    "Objective",
    "SmoothAdv",
    "Standard",
    "TrainingContext",
]
