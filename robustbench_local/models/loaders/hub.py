"""Models of other people's collections by name: `torchvision/NAME` and `timm/NAME`."""

from __future__ import annotations

import http.client
import warnings
from collections.abc import Callable
from typing import Any

import torchvision  # type: ignore[import-untyped]
from torch import nn

from robustbench_local.data.resize import Resize
from robustbench_local.errors import UserError, nearest
from robustbench_local.models.loaders.loaded_model import LoadedModel
from robustbench_local.models.loaders.state_dict import State, infer_size
from robustbench_local.specs import parse_spec

IMAGENET_CLASSES = 1000


def torchvision_names() -> list[str]:
    """Torchvision's classifiers."""
    return torchvision.models.list_models(module=torchvision.models)


def load_torchvision(spec: str, state: State | None, num_classes: int | None) -> LoadedModel:
    """`NAME[:weights=ENUM,num_classes=K]`; with a checkpoint's `state`, its class count, the weights not loaded yet.

    Without a checkpoint come the published weights: torchvision's DEFAULT, those named, or none. Preprocessing and
    class names are the weights'; a checkpoint takes over those of the weights named beside it, or of DEFAULT if it has
    ImageNet's 1000 classes.
    """
    name, options = parse_spec(spec)
    where = f"torchvision/{name}"
    _require_torchvision(name)
    named, classes = _options(options, where, num_classes)
    weights = None if named == "none" else _weights(name, named, where)

    def build(count: int) -> nn.Module:
        return _untrained(name, count)

    if state is not None:
        classes = classes or infer_size(state, build, IMAGENET_CLASSES, IMAGENET_CLASSES + 1) or IMAGENET_CLASSES
        loaded = LoadedModel(build(classes))
        if named is not None and hasattr(loaded.module, "transform_input"):
            # torchvision's Inception and GoogLeNet rescale their input inside when they carry published weights.
            loaded.module.transform_input = weights is not None  # type: ignore[assignment]
    elif weights is None:
        return LoadedModel(build(classes or IMAGENET_CLASSES))
    else:
        known = len(weights.meta["categories"])
        if classes not in (None, known):
            raise UserError(
                f"{where}: the weights {weights.name} know {known} classes, not {classes}; give weights "
                f"for {classes} classes with --checkpoint, or {where}:weights=none for random ones"
            )
        classes = known
        loaded = LoadedModel(_download(name, weights, where))
    if weights is not None and classes == len(weights.meta["categories"]):
        _apply_metadata(loaded, weights)
    return loaded


def published_resize(arch: str) -> Resize | None:
    """How the weights that `torchvision/NAME` or `timm/NAME` stands for want image files resized.

    Without weights of its own, an architecture is given images as its default weights are. Fetches nothing. Raises
    UserError for an unknown name.
    """
    collection, _, spec = arch.partition("/")
    name, options = parse_spec(spec)
    named, _ = _options(options, arch, None)
    if collection == "torchvision":
        _require_torchvision(name)
        return _torchvision_resize(_weights(name, None if named == "none" else named, f"torchvision/{name}"))
    timm = _require_timm(name)
    try:
        published = timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(f"timm/{name}: {error}".rstrip(".")) from None
    return _timm_resize(timm.data.resolve_data_config(pretrained_cfg=published.to_dict())) if published else None


def untrained(arch: str, num_classes: int) -> nn.Module:
    """The network that `torchvision/NAME` or `timm/NAME` names, its weights from torch's global generator."""
    collection, _, spec = arch.partition("/")
    return COLLECTIONS[collection](f"{spec.partition(':')[0]}:weights=none", None, num_classes).module


def _options(options: dict[str, str], where: str, num_classes: int | None) -> tuple[str | None, int | None]:
    """(name of the weights, number of classes) as asked for, each None when not."""
    for key in options:
        if key not in ("weights", "num_classes"):
            raise UserError(
                f"{where} takes weights and num_classes, not {key!r}.{nearest(key, ('weights', 'num_classes'))}"
            )
    if "num_classes" in options:
        text = options["num_classes"]
        if not text.isdigit() or int(text) < 1:
            raise UserError(f"{where}: num_classes is {text!r}, but must be a whole number above 0")
        num_classes = int(text)
    named = options.get("weights")
    return ("none" if named is not None and named.lower() == "none" else named), num_classes


def _weights(name: str, named: str | None, where: str) -> Any:
    """Torchvision's entry for the weights named, or its DEFAULT."""
    known = torchvision.models.get_model_weights(name)
    if named is None:
        return known.DEFAULT  # type: ignore[attr-defined]
    if named not in known.__members__:
        names = ", ".join([*known.__members__, "none"])
        raise UserError(
            f"{where} has no weights {named!r}; there are {names}.{nearest(named, [*known.__members__, 'none'])}"
        )
    return known[named]


def _require_torchvision(name: str) -> None:
    if name not in torchvision_names():
        raise UserError(
            f"torchvision has no classifier {name!r}.{nearest(name, torchvision_names())} "
            "'robust list models' shows them all"
        )


def _untrained(name: str, num_classes: int) -> nn.Module:
    # Their own initialisation takes a minute and is about to be replaced; said aloud, it warns of nothing.
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)


def _download(name: str, weights: Any, where: str) -> nn.Module:
    try:
        return torchvision.models.get_model(name, weights=weights)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise _unreachable(f"{weights.name} of {where}", f" from {weights.url}", error, where) from None


def _apply_metadata(loaded: LoadedModel, weights: Any) -> None:
    """Normalisation, sizes and class names as the weights state them."""
    transform = weights.transforms()
    loaded.normalization = (tuple(transform.mean), tuple(transform.std))
    loaded.resize = _torchvision_resize(weights)
    loaded.input_shape = (3, transform.crop_size[0], transform.crop_size[0])
    loaded.class_names = list(weights.meta["categories"])


def _torchvision_resize(weights: Any) -> Resize:
    transform = weights.transforms()
    return Resize(transform.resize_size[0], transform.crop_size[0], transform.interpolation.value)


def load_timm(spec: str, state: State | None, num_classes: int | None) -> LoadedModel:
    """`NAME[:weights=none,num_classes=K]`; pretrained unless a checkpoint's `state` is given."""
    name, options = parse_spec(spec)
    where = f"timm/{name}"
    timm = _require_timm(name)
    named, classes = _options(options, where, num_classes)
    if named not in (None, "none"):
        raise UserError(
            f"{where}: weights= takes only none; timm names its weights after a dot, as timm/resnet50.a1_in1k"
        )

    def build(count: int) -> nn.Module:
        return timm.create_model(name, pretrained=False, num_classes=count)

    if state is not None:
        classes = classes or infer_size(state, build, IMAGENET_CLASSES, IMAGENET_CLASSES + 1) or IMAGENET_CLASSES
        module = build(classes)
    elif named == "none":
        return LoadedModel(build(classes or IMAGENET_CLASSES))
    else:
        module = _timm_pretrained(timm.create_model, name, where)
    published = module.pretrained_cfg.get(  # type: ignore[operator, union-attr]
        "num_classes", IMAGENET_CLASSES
    )
    if state is None and classes not in (None, published):
        raise UserError(
            f"{where}: the published weights know {published} classes, not {classes}; give weights for "
            f"{classes} classes with --checkpoint, or {where}:weights=none for random ones"
        )
    loaded = LoadedModel(module)
    if classes in (None, published):
        config = timm.data.resolve_model_data_config(module)
        loaded.normalization = (tuple(config["mean"]), tuple(config["std"]))
        loaded.input_shape = tuple(config["input_size"])
        loaded.resize = _timm_resize(config)
    return loaded


def _require_timm(name: str) -> Any:
    """The package, which has a model of that name."""
    try:
        import timm
    except ImportError:
        raise UserError(f"timm/{name} needs the timm package: pip install 'robustbench-local[timm]'") from None
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}.{nearest(name, timm.list_models())}")
    return timm


def _timm_resize(config: dict[str, Any]) -> Resize:
    crop = config["input_size"][-1]
    return Resize(int(crop / config["crop_pct"]), crop, config["interpolation"])


def _timm_pretrained(create: Callable[..., nn.Module], name: str, where: str) -> nn.Module:
    try:
        with warnings.catch_warnings():
            # The hub's advice on tokens and caches is not about the model.
            warnings.filterwarnings("ignore", module="huggingface_hub")
            return create(name, pretrained=True)
    except Exception as error:  # the hub's client raises types of four libraries for one broken line
        raise _unreachable(f"of {where}", "", error, where) from None


def _unreachable(weights: str, source: str, error: BaseException, where: str) -> UserError:
    """What to do without a network, for those who evaluate and for those who train."""
    reason = (str(error).strip() or "no reason given").splitlines()[0]
    return UserError(
        f"the weights {weights} could not be fetched{source} ({type(error).__name__}: {reason}); fetch "
        f"the file elsewhere and give it with --checkpoint FILE, or take random weights: {where}"
        ":weights=none, or defend's --arch without --pretrained"
    )


COLLECTIONS: dict[str, Callable[[str, State | None, int | None], LoadedModel]] = {
    "torchvision": load_torchvision,
    "timm": load_timm,
}
