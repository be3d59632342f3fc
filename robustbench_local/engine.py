"""The evaluation engine: keeps the batch full, drops what is decided, and believes nothing it has not verified."""
from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_local.attacks.attack import Attack, State, keys_of, settings, spec
from robustbench_local.attacks.norms import NORMS, wide
from robustbench_local.attacks.threat_model import ThreatModel
from robustbench_local.data.dataset import Dataset
from robustbench_local.errors import UserError
from robustbench_local.metering import Meter, Metered
from robustbench_local.record import Ledger
from robustbench_local.result import AttackReport

ROUNDING = 1e-6
"""How far outside the ball a point may lie, in pixel units. Projections land inside; this is for a sum's own error."""


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """float32 with gradients, whatever mode the caller is in: no TF32, no autocast, no inference mode."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@dataclass(frozen=True)
class Job:
    """What stays the same for every attack of a run."""

    model: Metered
    dataset: Dataset
    threat_model: ThreatModel
    ledger: Ledger
    seed: int
    batch_size: int
    classes: int
    device: torch.device
    advanced: Callable[[int, int], None]
    """Called with how many samples have just finished an attack and how many stand."""

    def load(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        # Float files may leave the box by a rounding error, which a projection would add to the perturbation.
        images = self.dataset.images(positions).to(self.device).clamp(*self.threat_model.box)
        return images, self.dataset.labels[positions].to(self.device)


@torch.no_grad()
def clean_pass(job: Job, digest: Callable[[Tensor], str]) -> None:
    """Predictions for the images as they are."""
    for positions in torch.arange(len(job.dataset)).split(job.batch_size):
        images, labels = job.load(positions)
        logits = job.model(images)
        if not torch.isfinite(logits).all():
            sample = int(job.dataset.indices[positions[(~torch.isfinite(logits)).any(1).cpu()][0]])
            raise UserError(
                f"{job.model.model.name} gives NaN or infinite logits for sample {sample} of {job.dataset.name}: leave "
                "that sample out, or mend the model"
            )
        margins = job.threat_model.margin(logits, labels)
        hashes = [digest(image) for image in images.cpu()]
        job.ledger.enter_clean(positions, hashes, logits.argmax(1).cpu(), margins.cpu())
        job.advanced(len(positions), int(job.ledger.standing.sum()))


def run_attack(job: Job, attack: Attack, *, last: bool) -> AttackReport:
    """One attack with all its restarts on whatever stands. last: what stands after it is decided to stand."""
    meter = Meter(job.model)
    attacked = int(job.ledger.standing.sum())
    unconfirmed = 0
    for restart in range(attack.restarts):
        final = last and restart == attack.restarts - 1
        for finished in _full_batches(_search(job, attack, restart), job.batch_size):
            unconfirmed += _verify(job, attack, restart, finished, final=final)
            job.advanced(len(finished["position"]), int(job.ledger.standing.sum()))
    standing = int(job.ledger.standing.sum())
    return AttackReport(
        name=spec(attack),
        parameters=settings(attack),
        restarts=attack.restarts,
        attacked=attacked,
        fooled=attacked - standing,
        unconfirmed=unconfirmed,
        robust_accuracy_after=standing / len(job.dataset),
        forward_passes=meter.forward_passes,
        backward_passes=meter.backward_passes,
        seconds=meter.seconds,
    )


def _search(job: Job, attack: Attack, restart: int) -> Iterator[State]:
    """Advance a full batch of standing samples; yield rows as they finish: fooled, or at the attack's last step.

    A finished row leaves at once and a waiting sample takes its place. The point of a fooled row is the one that
    fooled; that of any other row is where it ended, which the model has not seen yet.
    """
    waiting = job.ledger.standing.nonzero().squeeze(1)
    state: State | None = None
    while True:
        room = job.batch_size - (len(state["step"]) if state else 0)
        if room and len(waiting):
            fresh = _start(job, attack, restart, waiting[:room])
            waiting = waiting[room:]
            state = fresh if state is None else {key: torch.cat([state[key], fresh[key]]) for key in state}
        if state is None or not len(state["step"]):
            return
        state = attack.step(job.model, job.threat_model, state)
        fooled = state["best_margin"] < 0
        done = fooled | (state["step"] >= attack.steps)
        if done.any():
            rows = {key: value[done] for key, value in state.items()}
            rows["fooled"] = fooled[done]
            rows["points"][rows["fooled"]] = rows["best_points"][rows["fooled"]]
            yield rows
            state = {key: value[~done] for key, value in state.items()}


def _start(job: Job, attack: Attack, restart: int, positions: Tensor) -> State:
    images, labels = job.load(positions)
    keys = keys_of(attack, job.seed, job.dataset.indices[positions], restart).to(job.device)
    state = attack.start(job.threat_model, images, labels, keys)
    return {**state, "position": positions.to(job.device)}


def _full_batches(parts: Iterator[State], batch_size: int) -> Iterator[State]:
    """The same rows, gathered until there are enough for a full batch; the rest at the end."""
    wanted = ("position", "images", "labels", "points", "step", "best_margin", "fooled")
    held: list[State] = []
    for part in parts:
        held.append({key: part[key] for key in wanted})
        if sum(len(rows["step"]) for rows in held) >= batch_size:
            yield {key: torch.cat([rows[key] for rows in held]) for key in wanted}
            held = []
    if held:
        yield {key: torch.cat([rows[key] for rows in held]) for key in wanted}


@torch.no_grad()
def _verify(job: Job, attack: Attack, restart: int, finished: State, *, final: bool) -> int:
    """Ask the untouched float32 model about every point: in the ball, in the box, misclassified.

    Writes what was found into the ledger and returns how many claims of success were not confirmed.
    """
    ledger, threat_model = job.ledger, job.threat_model
    images, points = finished["images"], finished["points"]
    logits = torch.cat([job.model(part) for part in points.split(job.batch_size)])
    margins = threat_model.margin(logits, finished["labels"])
    lengths = {name: norm.distance(wide(points) - wide(images)) for name, norm in NORMS.items()}
    low, high = threat_model.box
    inside = lengths[threat_model.norm] <= threat_model.eps + ROUNDING
    inside &= ((points >= low) & (points <= high)).flatten(1).all(1)
    broken = (margins < 0) & inside
    positions = finished["position"].cpu()
    # What the search claims to have fooled is not believed here, nor is a point outside.
    seen = torch.minimum(margins, finished["best_margin"].to(margins.dtype))
    seen = torch.where(finished["fooled"] | ~inside, torch.inf, seen)
    ledger.margin[positions] = torch.minimum(ledger.margin[positions], seen.cpu().double())
    ledger.not_numbers += int(logits.isnan().any(1).sum())
    predictions, steps = logits.argmax(1).tolist(), finished["step"].tolist()
    distances = {name: length.tolist() for name, length in lengths.items()}
    for row, (position, won) in enumerate(zip(positions.tolist(), broken.tolist(), strict=True)):
        if won:
            ledger.enter_broken(
                position, attack=spec(attack), restart=restart, step=steps[row], prediction=predictions[row],
                margin=float(margins[row]), distance={name: values[row] for name, values in distances.items()},
            )
        elif final:
            ledger.enter_survived(position)
    return int((finished["fooled"] & ~broken).sum())
