"""Every parser, fed with inputs that are nearly right. Whatever it raises other than UserError is a bug.

python tests/hostile/fuzz.py TARGET --runs 10000                 # mutations at random
python tests/hostile/fuzz.py TARGET --runs 10000 --guided DIR    # those that reach new code go on (needs atheris)
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import valid_files as valid
from mutations import Mutation, bytes_of, header_of, json_of, lines_of, one_of, summed_of, words_of, zip_of

CORPUS = Path(__file__).with_name("corpus")
INSTRUMENTED = [
    f"robustbench_local.{name}"
    for name in (
        "reading",
        "result",
        "journal",
        "record",
        "numbers",
        "options",
        "recipes",
        "gate_file",
        "gate",
        "checkpoint",
        "training_state",
        "cli.options",
        "data.npz",
        "data.folder",
        "models.checkpoint",
        "models.state_dict",
        "models.exported",
        "models.programs",
        "models.shipped",
    )
] + ["yaml"]


@dataclass(frozen=True)
class Target:
    """suffix: of the file that the parser is given. seeds: valid contents."""

    suffix: str
    seeds: list[bytes]
    mutate: Mutation
    read: Callable[[Path], object]


@functools.cache
def target(name: str) -> Target:
    """Made when asked for, because coverage is measured of modules that are imported after it is set up."""
    suffix, seeds, mutate, read = TARGETS[name]
    return Target(suffix, seeds(), mutate, read)


def _result(path: Path) -> object:
    from robustbench_local.results.reading import read_result

    return read_result(path)


def _samples(path: Path) -> object:
    from robustbench_local.results.reading import read_samples
    from robustbench_local.results.schema import Result

    result = Result.model_validate({**valid.result(), "samples_file": path.name})
    return read_samples(result, path.with_name("result.json"))


def _binding() -> Any:
    from robustbench_local.engine.journal import RunFingerprint

    return RunFingerprint(model="a", samples="b", threat_model="c", protocol="d", seed=0, arithmetic="e")


def _journal_seed() -> bytes:
    """As the journal itself writes it."""
    from robustbench_local.engine.events import AdversarialExample, CleanEvent, SearchEvent
    from robustbench_local.engine.journal import Journal, journal_path
    from robustbench_local.results.schema import Distance

    told = {"rank": 0, "forward": 3, "backward": 3, "seconds": 0.1}
    found = AdversarialExample(
        position=1, step=3, prediction=2, margin=-0.5, distance=Distance(linf=0.1, l2=0.2, l1=0.3)
    )
    with scratch() as folder:
        journal = Journal(folder / "journal.json", _binding())
        journal.add(
            CleanEvent(
                positions=[0, 1, 2],
                hashes=["x", "y", "z"],
                predictions=[0, 1, 2],
                margins=[1.0, 0.5, 2.0],
                rivals=[[1], [2], [0]],
                **told,
            )
        )
        journal.add(
            SearchEvent(
                positions=[0, 1],
                stage=0,
                run=0,
                margins=[0.2, None],
                breaks=[found],
                unconfirmed=0,
                low_precision_unconfirmed=0,
                not_numbers=0,
                **told,
            )
        )
        journal.close()
        return journal_path(folder / "journal.json").read_bytes()


def _journal(path: Path) -> object:
    from robustbench_local.engine.journal import Journal, journal_path

    output = path.with_name("journal.json")
    path.rename(journal_path(output))
    journal = Journal(output, _binding(), resume=True)
    journal.close()
    return journal


def _config(path: Path) -> object:
    from robustbench_local.cli.attack import attack_command
    from robustbench_local.cli.options import read_options

    return read_options(attack_command, path)


def _recipe(path: Path) -> object:
    from robustbench_local.training.recipe import resolve_recipe

    recipe = resolve_recipe(str(path), {})
    return recipe.objective(), recipe.add_ons(), recipe.threat_model()


def _gate(path: Path) -> object:
    from robustbench_local.gates.config import read_gate

    return read_gate(str(path))


def _options(path: Path) -> object:
    from robustbench_local.attacks import PGD
    from robustbench_local.data.resize import Resize
    from robustbench_local.errors import UserError
    from robustbench_local.models.normalization import parse_normalization
    from robustbench_local.numbers import parse_number
    from robustbench_local.specs import build, parse_spec

    text = path.read_text(encoding="utf-8", errors="replace")
    with contextlib.suppress(ValueError):
        parse_number(text)
    for parse in (Resize.parse, parse_normalization):
        with contextlib.suppress(UserError):
            parse(text)
    return build(PGD, parse_spec(text)[1], "--attack pgd")


def _card_seed() -> bytes:
    from robustbench_local.models.catalog import bundled_directory

    return (bundled_directory() / "digits-cnn.json").read_bytes()


def _card(path: Path) -> object:
    from robustbench_local.errors import UserError
    from robustbench_local.models.loaders.bundled import apply_metadata, description_beside
    from robustbench_local.models.loaders.loaded_model import LoadedModel
    from robustbench_local.training.model_card import read_card

    with contextlib.suppress(UserError):
        read_card(path.read_bytes())
    described = description_beside(path.with_suffix(".safetensors"))
    return described and apply_metadata(LoadedModel(valid.network()), described)


def _checkpoint(path: Path) -> object:
    from robustbench_local.models.loaders.checkpoint_file import read_checkpoint
    from robustbench_local.models.loaders.state_dict import load_weights

    return load_weights(valid.network(), read_checkpoint(path))


def _snapshot(path: Path) -> object:
    from robustbench_local.training.snapshot import TrainingState

    return TrainingState.read(path)


def _npz(path: Path) -> object:
    from robustbench_local.data import load_dataset

    data = load_dataset(f"npz:{path}")
    return data.images([0])


def _exported(path: Path) -> object:
    from robustbench_local.models.loaders.torch_export import load_exported

    return load_exported(path)


def _onnx(path: Path) -> object:
    from robustbench_local.models.loaders.onnx_graph import load_onnx

    return load_onnx(path)


def _image(path: Path) -> object:
    import torch

    from robustbench_local.data.imagefolder import Decoding, FolderDataset
    from robustbench_local.data.resize import Resize

    return FolderDataset([path], torch.zeros(1, dtype=torch.int64), name="it", decoding=Decoding(Resize(8, 8))).images(
        [0]
    )


ARCHIVE = one_of(zip_of(bytes_of), bytes_of)
TEXT = one_of(words_of, bytes_of)
PICTURES = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
TARGETS: dict[str, tuple[str, Callable[[], list[bytes]], Mutation, Callable[[Path], object]]] = {
    "result": (".json", lambda: [json.dumps(valid.result()).encode()], one_of(json_of, bytes_of), _result),
    "samples": (".jsonl", lambda: [valid.samples().encode()], one_of(lines_of(json_of), bytes_of), _samples),
    "journal": (".partial", lambda: [_journal_seed()], one_of(lines_of(summed_of), bytes_of), _journal),
    "config": (".yaml", lambda: [valid.CONFIG.encode()], TEXT, _config),
    "recipe": (".yaml", lambda: [valid.RECIPE.encode()], TEXT, _recipe),
    "gate": (".yaml", lambda: [valid.GATE.encode()], TEXT, _gate),
    "options": (".txt", lambda: [b"pgd:steps=50,step-size=2/255,loss=ce", b"256:224", b"1e-3"], TEXT, _options),
    "model-json": (
        ".json",
        lambda: [json.dumps(valid.card()).encode(), _card_seed()],
        one_of(json_of, bytes_of),
        _card,
    ),
    "checkpoint-pt": (
        ".pt",
        lambda: [valid.torch_zip(), valid.torch_zip({"model": valid.state(), "epoch": 3})],
        ARCHIVE,
        _checkpoint,
    ),
    "checkpoint-legacy": (".pt", lambda: [valid.torch_legacy()], bytes_of, _checkpoint),
    "checkpoint-safetensors": (
        ".safetensors",
        lambda: [valid.safetensors_file()],
        one_of(header_of, bytes_of),
        _checkpoint,
    ),
    "snapshot": (".safetensors", lambda: [valid.snapshot()], one_of(header_of, bytes_of), _snapshot),
    "npz": (".npz", lambda: [valid.npz(), valid.npz(groups=[0, 0, 1])], ARCHIVE, _npz),
    "image": (".png", lambda: [valid.picture(kind) for kind in PICTURES], bytes_of, _image),
    "exported": (".pt2", lambda: [valid.exported()], ARCHIVE, _exported),
    "onnx": (".onnx", lambda: [valid.onnx_graph()], bytes_of, _onnx),
}


def feed(parser: Target, content: bytes, folder: Path) -> bool:
    """Whether the parser took the input; False where it refused it with a sentence. Raises what it should not."""
    from robustbench_local.errors import UserError

    for left in folder.iterdir():
        left.unlink()
    path = folder / f"input{parser.suffix}"
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parser.read(path)
    except UserError as error:
        if not str(error).strip() or "Traceback" in str(error):
            raise AssertionError(f"no sentence: {error!r}") from error
        str(error).encode()
        return False
    return True


def corpus(name: str) -> list[bytes]:
    """The inputs kept of earlier runs: each reached code that the others did not."""
    folder = CORPUS / name
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder.is_dir() else []


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


def run(name: str, *, runs: int, seconds: float = float("inf"), seed: int = 0) -> tuple[int, int]:
    """(inputs, of which taken). Inputs are mutated from seeds and corpus, several times over now and then."""
    parser, random = target(name), Random(seed)
    pool, taken, done, until = [*parser.seeds, *corpus(name)], 0, 0, time.monotonic() + seconds
    with scratch() as folder:
        for content in pool:
            feed(parser, content, folder)
        while done < runs and time.monotonic() < until:
            content = random.choice(pool)
            for _ in range(random.choice((1, 1, 2, 3))):
                content = parser.mutate(content, random)
            try:
                taken += feed(parser, content, folder)
            except Exception as error:
                raise AssertionError(f"{name}, seed {seed}, input {done}: {content[:3000]!r}") from error
            done += 1
    return done, taken


def guided(name: str, runs: int, kept: Path) -> None:
    """The same inside atheris, which keeps the inputs that reach new code. Never returns."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        for module in INSTRUMENTED:
            importlib.import_module(module)
    parser = target(name)
    places = [kept, *([CORPUS / name] if (CORPUS / name).is_dir() else [])]
    for number, content in enumerate(parser.seeds):
        (kept / f"seed{number}").write_bytes(content)
    counts = {"inputs": 0, "taken": 0}
    folder = Path(tempfile.mkdtemp(dir=kept.parent))

    def test(content: bytes) -> None:
        counts["inputs"] += 1
        try:
            counts["taken"] += feed(parser, content, folder)
        except BaseException:
            traceback.print_exc()
            print(f"{name}: input {counts['inputs']} is {content[:3000]!r}", file=sys.stderr, flush=True)
            os._exit(77)
        if counts["inputs"] >= runs:
            print(json.dumps({"target": name, **counts}), flush=True)
            os._exit(0)

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.2:
            return atheris.Mutate(content, most)
        # Left to itself, the search prefers rubbish that is new to valid files that are nearly right.
        start = random.choice(parser.seeds) if random.random() < 0.5 else content
        return parser.mutate(start, random)[:most]

    limits = ["-seed=1", f"-runs={2 * runs}", "-max_len=65536", "-timeout=60", "-rss_limit_mb=8192"]
    atheris.Setup([sys.argv[0], *limits, *map(str, places)], test, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("target", choices=TARGETS)
    options.add_argument("--runs", type=int, default=10_000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--guided", type=Path, help="folder for the inputs that reach new code")
    asked = options.parse_args()
    if asked.guided is not None:
        asked.guided.mkdir(parents=True, exist_ok=True)
        guided(asked.target, asked.runs, asked.guided)
    inputs, taken = run(asked.target, runs=asked.runs, seed=asked.seed)
    print(json.dumps({"target": asked.target, "inputs": inputs, "taken": taken}))


if __name__ == "__main__":
    main()
