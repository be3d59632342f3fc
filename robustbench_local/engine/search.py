"""Run one attack over many samples: keep the batch full, drop fooled rows at once, verify every claimed success.

Points are projected by the attack itself (`ThreatModel.project`); successes are verified by `engine/verify.py`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from robustbench_local.attacks.attack import Attack, Rows, random_keys, spec_text, target_for_run, top_wrong_classes
from robustbench_local.data.dataset import sample_sha256
from robustbench_local.engine.batch import ActiveRows, RunContext, WaitingRows, join_rows, positions_in_order
from robustbench_local.engine.events import AdversarialExample, CleanEvent, SearchEvent
from robustbench_local.engine.precision import SearchModel
from robustbench_local.engine.verify import Verification, verify
from robustbench_local.errors import UserError
from robustbench_local.models.metered import Metered, Passes
from robustbench_local.results.schema import Distance
from robustbench_local.runtime.device import BatchSize, is_out_of_memory
from robustbench_local.runtime.resources import seconds_since

GPU_STEPS_PER_CHECK = 4
"""Steps between two checks for fooled rows on a GPU; each check waits for it."""
LOW_PRECISION_SHARE = 0.8
"""The share of an attack's steps taken in low precision, where it is enabled; float32 takes the rest."""
MIN_LOW_PRECISION_STEPS = 5
"""Attacks of fewer steps run in float32 only."""
Finish = Callable[[ActiveRows, Verification], None]


@torch.no_grad()
def clean_pass(context: RunContext, positions: Tensor, number_of_targets: int) -> Iterator[CleanEvent]:
    """Classify the unperturbed images.

    number_of_targets: how many of the top wrong classes to keep for targeted attacks.
    Raises UserError where the model's logits are not finite.
    """
    for part in positions.split(context.batch_size.value) if len(positions) else ():
        started = time.perf_counter()
        images, labels = context.load(part)
        logits = context.logits(images)
        if not torch.isfinite(logits).all():
            sample = int(context.dataset.indices[part[(~torch.isfinite(logits)).any(1).cpu()][0]])
            raise UserError(
                f"{context.model.model.name} gives NaN or infinite logits for sample {sample} of "
                f"{context.dataset.name}: leave that sample out, or fix the model",
                slug="clean-logits-not-finite",
            )
        yield CleanEvent(
            positions=part.tolist(),
            hashes=[sample_sha256(image) for image in images.cpu()],
            predictions=logits.argmax(1).tolist(),
            margins=context.threat_model.margin(logits, labels).tolist(),
            rivals=top_wrong_classes(logits, labels, context.threat_model)[:, :number_of_targets].tolist(),
            forward=len(part),
            backward=0,
            seconds=seconds_since(started),
        )


def run_attack(
    context: RunContext, attack: Attack, stage: int, run: int, positions: Tensor, emit: Callable[[SearchEvent], None]
) -> None:
    """One run of an attack on some samples, in the order of positions. emit: receives an event about once per batch.

    Where there is a low-precision model, it takes the first steps. Its claimed successes are verified, and float32
    continues with the other rows from their best points.
    Raises UserError where a step of the attack fails, or where not even one image fits into memory.
    """
    context = dataclasses.replace(context, batch_size=_batch_size_for(attack, context.batch_size))
    next_positions = positions_in_order(positions)

    def load_more(room: int) -> ActiveRows | None:
        batch = next_positions(room)
        return None if batch is None else _start(context, attack, run, batch)

    started = time.perf_counter()

    def finish(batch: ActiveRows, verification: Verification) -> None:
        nonlocal started
        seconds, started = seconds_since(started), time.perf_counter()
        emit(_event(batch, verification, stage, run, seconds))

    waiting = WaitingRows(load_more)
    low_precision = context.search_models.low_precision
    if low_precision is not None and attack.steps >= MIN_LOW_PRECISION_STEPS:
        steps = int(LOW_PRECISION_SHARE * attack.steps)
        remaining = _verify_low_precision(context, _advance(context, attack, low_precision, waiting, steps), finish)
        waiting = WaitingRows(lambda room: next(remaining, None))  # noqa: ARG005
    while _search_float32(context, attack, waiting, finish):
        pass


def _search_float32(context: RunContext, attack: Attack, waiting: WaitingRows, finish: Finish) -> bool:
    """Search all waiting rows to their end; whether refuted rows were put back to be searched on."""
    put_back = False
    batches = _advance(context, attack, context.search_models.float32, waiting, attack.steps)
    for batch in _rebatch(batches, context.batch_size):
        verification = verify(context, batch)
        batch.host["refuted"] += verification.refuted
        continues = verification.refuted & (batch.host["step"] < attack.steps)
        if continues.any():
            put_back = True
            waiting.put_back(batch.take(continues).without_best())
        ended = verification.refuted & ~continues
        if ended.any():  # the claim was wrong, but the model has not evaluated the last point yet
            last = batch.take(ended).without_best()
            finish(last, verify(context, last))
        done = ~verification.refuted
        if done.any():
            finish(batch.take(done), verification.take(done))
    return put_back


def _batch_size_for(attack: Attack, batch_size: BatchSize) -> BatchSize:
    """The run's batch size, or a smaller one for an attack that takes its rows one after the other anyway."""
    at_a_time = getattr(attack, "at_a_time", batch_size.value)
    return BatchSize(at_a_time) if at_a_time < batch_size.value else batch_size


def _start(context: RunContext, attack: Attack, run: int, positions: Tensor) -> ActiveRows:
    images, labels = context.load(positions)
    keys = random_keys(attack, context.seed, context.dataset.indices[positions], run).to(context.device)
    targets = labels
    if attack.targets:
        rivals = [context.states.rivals[position] for position in positions.tolist()]
        targets = target_for_run(attack, run, torch.tensor(rivals, device=context.device))
    state = attack.start(context.threat_model, Rows(images, labels, keys, targets))
    zero = torch.zeros_like(positions)
    host = {name: zero.clone() for name in ("step", "forward", "backward", "refuted", "low_precision_refuted")}
    return ActiveRows(state, {"position": positions, **host})


def _advance(
    context: RunContext, attack: Attack, search_model: SearchModel, waiting: WaitingRows, until: int
) -> Iterator[ActiveRows]:
    """Advance a full batch; yield rows when they are done: fooled, or at step `until`.

    A row that is done leaves at once and a waiting one takes its place. Where memory runs out, half of the rows wait.
    """
    model = Metered(search_model.model, context.model.passes)
    steps_per_check = 1 if context.device.type == "cpu" else GPU_STEPS_PER_CHECK
    batch: ActiveRows | None = None
    while (batch := waiting.fill(batch, context.batch_size.value)) is not None:
        steps = min(steps_per_check, until - int(batch.host["step"].max()))
        passes, state = context.model.passes.copy(), batch.state
        try:
            with search_model.arithmetic():
                for _ in range(steps):
                    state = attack.step(model, context.threat_model, state)
        except UserError:
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise _step_failure(attack, context, error) from error
            state = {}
        if not state:
            context.batch_size.halve(context.device)
            batch, rest = batch.split(context.batch_size.value)
            if rest.rows:
                waiting.put_back(rest)
            continue
        batch = ActiveRows(state, _charge(batch.host, steps, context.model.passes.since(passes)))
        fooled = (state["best_margin"] < -search_model.margin_tolerance).cpu()  # the only place that waits for a GPU
        done = fooled | (batch.host["step"] >= until)
        if done.any():
            yield batch.take(done)
            batch = None if done.all() else batch.take(~done)


def _step_failure(attack: Attack, context: RunContext, error: Exception) -> UserError:
    reason = (str(error).strip() or "no message").splitlines()[0]
    return UserError(
        f"attack {spec_text(attack)} failed on {context.model.model.name}: {type(error).__name__}: {reason}; "
        "fix the model's forward or backward pass, or leave this attack out",
        slug="attack-step-failed",
    )


def _charge(host: dict[str, Tensor], steps: int, passes: Passes) -> dict[str, Tensor]:
    """The rows' account after some more steps; the first row pays the remainder of the division."""
    host = {**host, "step": host["step"] + steps}
    for name, total in (("forward", passes.forward), ("backward", passes.backward)):
        share, remainder = divmod(total, len(host["step"]))
        host[name] = host[name] + share
        host[name][0] += remainder
    return host


def _verify_low_precision(context: RunContext, batches: Iterator[ActiveRows], finish: Finish) -> Iterator[ActiveRows]:
    """Verify the successes that low precision claims; yield the rows with which float32 continues."""
    for batch in _rebatch(batches, context.batch_size):
        rows, claimed = batch, (batch.state["best_margin"] < 0).cpu()
        if claimed.any():
            claims = batch.take(claimed)
            verification = verify(context, claims)
            if verification.success.any():
                finish(claims.take(verification.success), verification.take(verification.success))
            claims.host["low_precision_refuted"] += 1
            rows = join_rows([batch.take(~claimed), claims.take(~verification.success)])
        if rows.rows:
            # A margin measured in low precision does not count in float32.
            rows.state["points"] = rows.state["best_points"]
            yield rows.without_best()


def _rebatch(batches: Iterator[ActiveRows], size: BatchSize) -> Iterator[ActiveRows]:
    """The same rows, collected into full batches; the rest at the end."""
    collected: list[ActiveRows] = []
    for batch in batches:
        collected.append(batch)
        if sum(part.rows for part in collected) >= size.value:
            yield join_rows(collected)
            collected = []
    if collected:
        yield join_rows(collected)


def _event(batch: ActiveRows, verification: Verification, stage: int, run: int, seconds: float) -> SearchEvent:
    host, margins = batch.host, verification.smallest_margin.tolist()
    successes = [
        AdversarialExample(
            position=int(host["position"][row]),
            step=int(host["step"][row]),
            prediction=int(verification.prediction[row]),
            margin=float(verification.margin[row]),
            distance=Distance(**{name: float(length[row]) for name, length in verification.distance.items()}),
        )
        for row in verification.success.nonzero().flatten().tolist()
    ]
    return SearchEvent(
        positions=host["position"].tolist(),
        stage=stage,
        run=run,
        breaks=successes,
        margins=[None if math.isinf(margin) else margin for margin in margins],
        forward=int(host["forward"].sum()),
        backward=int(host["backward"].sum()),
        seconds=seconds,
        unconfirmed=int(host["refuted"].sum()),
        low_precision_unconfirmed=int(host["low_precision_refuted"].sum()),
        not_numbers=int(verification.nan_logits.sum()),
        outside=int(verification.outside.sum()),
    )
