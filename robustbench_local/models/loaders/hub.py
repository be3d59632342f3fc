"""Models of public collections by name: `torchvision/NAME` and `timm/NAME`."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from typing import Any

import torchvision
from torch import nn
from torchvision.models import WeightsEnum

from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError, nearest
from robustbench_local.models.loaders.checkpoint import Checkpoint
from robustbench_local.models.loaders.loaded_model import LoadedModel, LoadOptions
from robustbench_local.models.loaders.state_dict import infer_size
from robustbench_local.models.loaders.torchvision_files import published_weights, set_input_transform
from robustbench_local.numbers import parse_count
from robustbench_local.specs import parse_spec

IMAGENET_CLASSES = 1000


def torchvision_names() -> list[str]:
    """Names of torchvision's classifiers."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def load_torchvision(spec: str, options: LoadOptions, checkpoint: Checkpoint | None) -> LoadedModel:
    """`NAME[:weights=ENUM,num_classes=K]`; with a checkpoint, its number of classes, its weights not loaded yet.

    Without a checkpoint come the published weights: torchvision's DEFAULT, those named, or none. Normalization, sizes
    and class names are the weights'. A checkpoint gets those of the weights named beside it, else of the published
    weights that it is, else of DEFAULT if it has ImageNet's 1000 classes.
    """
    name, settings = parse_spec(spec)
    where = f"torchvision/{name}"
    _require_torchvision(name)
    named, classes = _parse_settings(settings, where, options.num_classes)
    weights = None if named == "none" else _weights(name, named, where)
    if checkpoint is not None:
        classes = classes or _classes_of(checkpoint, lambda count: _untrained(name, count), options.key)
        loaded = LoadedModel(_untrained(name, classes))
        assert options.checkpoint is not None
        published = published_weights(name, options.checkpoint) if named is None else None
        implied = published if named is None else weights
        set_input_transform(loaded, name, options.checkpoint, weights=implied, named=named is not None)
        weights = published or weights
    elif weights is None:
        return LoadedModel(_untrained(name, classes or IMAGENET_CLASSES))
    else:
        known_classes = len(weights.meta["categories"])
        if classes not in (None, known_classes):
            raise _other_classes(f"weights {weights.name}", known_classes, classes, where)
        classes = known_classes
        loaded = LoadedModel(_download(name, weights, where))
    if weights is not None and classes == len(weights.meta["categories"]):
        _apply_metadata(loaded, weights)
    return loaded


def _classes_of(checkpoint: Checkpoint, build: Callable[[int], nn.Module], key: str | None) -> int:
    return infer_size(checkpoint, build, (IMAGENET_CLASSES, IMAGENET_CLASSES + 1), key) or IMAGENET_CLASSES


def _other_classes(weights: str, available: int, classes: int | None, where: str) -> UserError:
    return UserError(
        f"{where}: the {weights} have {available} classes, not {classes}; give weights for {classes} classes with "
        f"--checkpoint, or {where}:weights=none for random ones",
        slug="weights-have-other-classes",
    )


def published_resize(arch: str) -> Resize | None:
    """How image files are resized for the published weights of `torchvision/NAME` or `timm/NAME`.

    An architecture without weights gets images as its default weights do. Downloads nothing. Raises UserError for an
    unknown name.
    """
    collection, _, spec = arch.partition("/")
    name, settings = parse_spec(spec)
    named, _ = _parse_settings(settings, arch, None)
    if collection == "torchvision":
        _require_torchvision(name)
        return _torchvision_resize(_weights(name, None if named == "none" else named, f"torchvision/{name}"))
    timm = _require_timm(name)
    try:
        published = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(f"timm/{name}: {error}".rstrip("."), slug="unknown-model") from None
    return _timm_resize(timm.data.resolve_data_config(pretrained_cfg=published.to_dict())) if published else None


def untrained(arch: str, num_classes: int) -> nn.Module:
    """The network `torchvision/NAME` or `timm/NAME` with random weights from torch's global generator."""
    collection, _, spec = arch.partition("/")
    options = LoadOptions(num_classes=num_classes)
    return COLLECTIONS[collection](f"{spec.partition(':')[0]}:weights=none", options, None).module


def _parse_settings(settings: dict[str, str], where: str, num_classes: int | None) -> tuple[str | None, int | None]:
    """(name of the weights, number of classes), each None when not given."""
    for key in settings:
        if key not in ("weights", "num_classes"):
            raise UserError(
                f"{where} takes weights and num_classes, not {key!r}.{nearest(key, ('weights', 'num_classes'))}",
                slug="unknown-model-setting",
            )
    if "num_classes" in settings:
        try:
            num_classes = parse_count(settings["num_classes"], least=1)
        except ValueError as error:
            raise UserError(f"{where}: num_classes: {error}", slug="num-classes-invalid") from None
    named = settings.get("weights")
    return ("none" if named is not None and named.lower() == "none" else named), num_classes


def _weights(name: str, named: str | None, where: str) -> WeightsEnum:
    """Torchvision's entry for the named weights, or its DEFAULT."""
    published = torchvision.models.get_model_weights(name)
    if named is None:
        return published.DEFAULT
    if named not in published.__members__:
        names = ", ".join([*published.__members__, "none"])
        raise UserError(
            f"{where} has no weights {named!r}; there are {names}.{nearest(named, [*published.__members__, 'none'])}",
            slug="unknown-weights",
        )
    return published[named]


def _require_torchvision(name: str) -> None:
    if name not in torchvision_names():
        raise UserError(
            f"torchvision has no classifier {name!r}.{nearest(name, torchvision_names())} "
            "'robust list models' shows them all",
            slug="unknown-model",
        )


def _untrained(name: str, num_classes: int) -> nn.Module:
    # Their own initialization takes a minute, and its result is replaced; naming the option avoids a warning.
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    module: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    return module


def _download(name: str, weights: WeightsEnum, where: str) -> nn.Module:
    try:
        module: nn.Module = torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise _unreachable(f"{weights.name} of {where}", f" from {weights.url}", error, where) from None
    return module


def _apply_metadata(loaded: LoadedModel, weights: WeightsEnum) -> None:
    """Set normalization, sizes and class names as the weights state them."""
    transform = weights.transforms()
    loaded.normalization = (tuple(transform.mean), tuple(transform.std))
    loaded.resize = _torchvision_resize(weights)
    loaded.input_shape = (3, transform.crop_size[0], transform.crop_size[0])
    loaded.class_names = list(weights.meta["categories"])


def _torchvision_resize(weights: WeightsEnum) -> Resize:
    transform = weights.transforms()
    return Resize(transform.resize_size[0], transform.crop_size[0], transform.interpolation.value)


def load_timm(spec: str, options: LoadOptions, checkpoint: Checkpoint | None) -> LoadedModel:
    """`NAME[:weights=none,num_classes=K]`; pretrained unless a checkpoint is given."""
    name, settings = parse_spec(spec)
    where = f"timm/{name}"
    timm = _require_timm(name)
    named, classes = _parse_settings(settings, where, options.num_classes)
    if named not in (None, "none"):
        raise UserError(
            f"{where}: weights= takes only none; timm names its weights after a dot, as timm/resnet50.a1_in1k",
            slug="unknown-weights",
        )

    def build(count: int) -> nn.Module:
        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=count)
        return module

    if checkpoint is not None:
        classes = classes or _classes_of(checkpoint, build, options.key)
        module = build(classes)
    elif named == "none":
        return LoadedModel(build(classes or IMAGENET_CLASSES))
    else:
        module = _timm_pretrained(timm.create_model, name, where)
    published: int = module.pretrained_cfg.get("num_classes", IMAGENET_CLASSES)  # type: ignore[operator, union-attr]  # timm's own
    if checkpoint is None and classes not in (None, published):
        raise _other_classes("published weights", published, classes, where)
    loaded = LoadedModel(module)
    if classes in (None, published):
        config = timm.data.resolve_model_data_config(module)
        loaded.normalization = (tuple(config["mean"]), tuple(config["std"]))
        loaded.input_shape = tuple(config["input_size"])
        loaded.resize = _timm_resize(config)
    return loaded


def _require_timm(name: str) -> Any:
    """The package. Raises UserError where it is not installed or has no model of that name."""
    try:
        import timm
    except ImportError:
        raise UserError(
            f"timm/{name} needs the timm package: pip install 'robustbench-local[timm]'", slug="missing-extra"
        ) from None
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}.{nearest(name, timm.list_models())}", slug="unknown-model")
    return timm


def _timm_resize(config: dict[str, Any]) -> Resize:
    crop = config["input_size"][-1]
    return Resize(int(crop / config["crop_pct"]), crop, config["interpolation"])


def _timm_pretrained(create: Callable[..., nn.Module], name: str, where: str) -> nn.Module:
    try:
        return create(name, pretrained=True)
    except Exception as error:  # the hub's client raises types of four libraries when the network fails
        raise _unreachable(f"of {where}", "", error, where) from None


def _unreachable(weights: str, source: str, error: BaseException, where: str) -> UserError:
    """What to do without a network, when evaluating and when training."""
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    return UserError(
        f"the weights {weights} could not be fetched{source} ({type(error).__name__}: {reason}); fetch "
        f"the file elsewhere and give it with --checkpoint FILE, or take random weights: {where}"
        ":weights=none, or defend's --arch without --pretrained",
        slug="weights-unreachable",
    )


COLLECTIONS: dict[str, Callable[[str, LoadOptions, Checkpoint | None], LoadedModel]] = {
    "torchvision": load_torchvision,
    "timm": load_timm,
}
