"""The mathematics of finding adversarial examples: one attack, one file. Imported as `robustbench_local.attacks`."""
if __name__ != "robustbench_local.attacks":
    raise ImportError(
        f"this folder is the package 'robustbench_local.attacks', not {__name__!r}: "
        "use 'from robustbench_local.attacks import pgd', started from anywhere but inside this checkout's folders"
    )

from robustbench_local.attacks.apgd import APGD, apgd
from robustbench_local.attacks.attack import Attack, run
from robustbench_local.attacks.fgsm import FGSM, fgsm
from robustbench_local.attacks.pgd import PGD, pgd
from robustbench_local.attacks.threat_model import ThreatModel

ATTACKS: dict[str, type[Attack]] = {FGSM.name: FGSM, PGD.name: PGD, APGD.name: APGD}

__all__ = ["APGD", "ATTACKS", "FGSM", "PGD", "Attack", "ThreatModel", "apgd", "fgsm", "pgd", "run"]
