"""Adversarial attacks, one file each. Import this package as `robustbench_local.attacks`."""

if __name__ != "robustbench_local.attacks":
    raise ImportError(
        f"this directory is the package 'robustbench_local.attacks', not {__name__!r}: write "
        "'from robustbench_local.attacks import pgd', and do not start Python inside this checkout's directories"
    )

# The import registers an attack in ATTACKS: a new one needs its file and one line here.
from robustbench_local.attacks.apgd import APGD, apgd
from robustbench_local.attacks.attack import ATTACKS, Attack, run
from robustbench_local.attacks.bpda import BPDA
from robustbench_local.attacks.descent import Descent
from robustbench_local.attacks.eot import EOT
from robustbench_local.attacks.fab import FAB, fab
from robustbench_local.attacks.fgsm import FGSM, fgsm
from robustbench_local.attacks.function_form import attack_function
from robustbench_local.attacks.noise import Noise
from robustbench_local.attacks.pgd import PGD, pgd
from robustbench_local.attacks.quantized import Quantized
from robustbench_local.attacks.square import Square, square
from robustbench_local.attacks.threat_model import ThreatModel

__all__ = [
    "APGD",
    "ATTACKS",
    "BPDA",
    "EOT",
    "FAB",
    "FGSM",
    "PGD",
    "Attack",
    "Descent",
    "Noise",
    "Quantized",
    "Square",
    "ThreatModel",
    "apgd",
    "attack_function",
    "fab",
    "fgsm",
    "pgd",
    "run",
    "square",
]
