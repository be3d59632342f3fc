"""Training methods for robust classifiers, one file each. Import this package as `robustbench_local.defenses`."""

if __name__ != "robustbench_local.defenses":
    raise ImportError(
        f"this directory is the package 'robustbench_local.defenses', not {__name__!r}: write "
        "'from robustbench_local.defenses import PGDAT', and do not start Python inside this checkout's directories"
    )

# The import registers a method in OBJECTIVES or an add-on in ADD_ONS: a new one needs its file and one line here.
from robustbench_local.defenses.add_on import ADD_ONS, AddOn
from robustbench_local.defenses.awp import AWP
from robustbench_local.defenses.distillation import RSLAD, DefensiveDistillation
from robustbench_local.defenses.hat import HAT
from robustbench_local.defenses.mart import MART
from robustbench_local.defenses.objective import OBJECTIVES, Examples, Objective, TrainingContext
from robustbench_local.defenses.pgd_at import PGDAT
from robustbench_local.defenses.single_step import FGSMRS, NFGSM, FreeAT
from robustbench_local.defenses.smoothing import Gaussian, SmoothAdv
from robustbench_local.defenses.standard import Standard
from robustbench_local.defenses.trades import TRADES

__all__ = [
    "ADD_ONS",
    "AWP",
    "FGSMRS",
    "HAT",
    "MART",
    "NFGSM",
    "OBJECTIVES",
    "PGDAT",
    "RSLAD",
    "TRADES",
    "AddOn",
    "DefensiveDistillation",
    "Examples",
    "FreeAT",
    "Gaussian",
    "Objective",
    "SmoothAdv",
    "Standard",
    "TrainingContext",
]
