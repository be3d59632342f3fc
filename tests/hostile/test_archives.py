"""Checkpoints, programs and arrays that were made to run code, reach for files, or fill the memory."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import valid_files
from torch import nn

from robustbench_local.data import load_dataset
from robustbench_local.errors import UserError
from robustbench_local.io.safe_read import MOST_UNPACKED, printable
from robustbench_local.models import load_classifier
from robustbench_local.models.loaders.checkpoint import Checkpoint
from robustbench_local.models.loaders.checkpoint_file import read_checkpoint
from robustbench_local.models.loaders.state_dict import infer_size, load_weights
from robustbench_local.models.loaders.tensors import LONGEST_NAME, MOST_CLASSES
from robustbench_local.models.loaders.torch_export import load_exported
from robustbench_local.models.loaders.torchscript import load_torchscript
from robustbench_local.training.snapshot import TrainingState

ZEROS = MOST_UNPACKED + 2**20


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def refused(read, path, said) -> str:
    with pytest.raises(UserError, match=said) as caught:
        read(path)
    told = str(caught.value)
    assert len(told) < 2000
    assert told == printable(told)
    return told


def refusal(read, path) -> str | None:
    """The message, where the file is refused."""
    try:
        read(path)
    except UserError as error:
        return str(error)
    return None


def put(path, content: bytes):
    path.write_bytes(content)
    return path


def deflated_zeros(parts: dict[str, int], more: dict[str, bytes] | None = None) -> bytes:
    """A zip archive whose parts unpack to so many zeros, a thousandth of it large."""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (more or {}).items():
            archive.writestr(name, content)
        for name, size in parts.items():
            with archive.open(name, "w", force_zip64=True) as part:
                for _ in range(size >> 20):
                    part.write(bytes(2**20))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def bomb() -> bytes:
    marks = {"m/data.pkl": b"x", "m/archive_format": b"pt2", "m/constants.pkl": b"x"}
    return deflated_zeros({"m/data/0": ZEROS}, marks)


@pytest.mark.parametrize("name", ["w.pt", "w.pt2", "w.npz"])
def test_zip_bombs(tmp_path, bomb, name):
    path = put(tmp_path / name, bomb)
    assert len(bomb) < ZEROS / 500
    read = {
        ".npz": lambda path: load_dataset(f"npz:{path}"),
        ".pt": read_checkpoint,
        ".pt2": lambda path: load_classifier(str(path)),
    }[path.suffix]
    refused(read, path, "would unpack to 269,")
    if name == "w.pt":
        refused(lambda path: load_classifier(str(path)), path, "would unpack to 269,")


@pytest.mark.parametrize(
    ("read", "suffix"), [(read_checkpoint, ".pt"), (lambda path: load_dataset(f"npz:{path}"), ".npz")]
)
def test_parts_that_share_their_name_or_their_bytes(tmp_path, read, suffix):
    body = os.urandom(2000)
    with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "names.zip", "w") as archive:
        warnings.simplefilter("ignore")
        for content in (b"x", b"y"):
            archive.writestr("m/data.pkl", content)
    with zipfile.ZipFile(tmp_path / "bytes.zip", "w") as archive:
        archive.writestr("m/data.pkl", body)
        first = archive.infolist()[0]
        for i in range(50):
            other = zipfile.ZipInfo(f"m/data/{i:02}")
            other.header_offset, other.file_size, other.compress_size, other.CRC = 0, 2000, 2000, first.CRC
            archive.filelist.append(other)
    for kind in ("names", "bytes"):
        path = (tmp_path / f"{kind}.zip").rename(tmp_path / f"{kind}{suffix}")
        refused(read, path, "share names or bytes")


def test_an_archive_that_torch_would_read_differently(tmp_path):
    """Two directories of parts in one file: Python's reader takes the last, torch's the one that the end points to."""
    whole = valid_files.torch_zip()
    refused(read_checkpoint, put(tmp_path / "before.pt", os.urandom(64) + whole), "before or after its archive")
    with zipfile.ZipFile(path := put(tmp_path / "after.pt", whole), "a") as archive:
        archive.comment = b"another directory"
    refused(read_checkpoint, path, "before or after its archive")


def stretched(*shape: int) -> torch.Tensor:
    """A tensor of one value that claims a shape."""
    return torch.zeros(1).expand(*shape)


def doubled(levels: int):
    """A mapping that stands in itself many times at every level."""
    content = {"weight": torch.zeros(2)}
    for _ in range(levels):
        content = {f"key{i}": content for i in range(200)}
    return content


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"weight": stretched(10**6, 10**6)}, "claims 1,000,000,000,000 values"),
        ({f"w{i}": stretched(2**24) for i in range(9)}, "far more than the file holds"),
        ({"weight": torch.zeros(2, 2).to_sparse()}, "tensor of another kind"),
        ({"weight": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)}, "tensor of another kind"),
        ({"weight": torch.zeros(2, device="meta")}, "tensor of another kind"),
        ({"w" * (LONGEST_NAME + 1): torch.zeros(2)}, "name has 1,001 characters"),
        ({"\x1b[2J": {1, 2}, "w": torch.zeros(2)}, r"'\\x1b\[2J' is a set"),
        ({"\x1b[2J" * 10**5: 1}, r"a dict of '\\x1b\[2J"),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("write", [valid_files.torch_zip, valid_files.torch_legacy])
def test_tensors_that_claim_more_than_there_is(tmp_path, content, said, write):
    refused(
        lambda path: load_weights(valid_files.network(), read_checkpoint(path)),
        put(tmp_path / "w.pt", write(content)),
        said,
    )


def test_a_mapping_within_itself_is_looked_at_once(tmp_path):
    path = put(tmp_path / "w.pt", valid_files.torch_zip(doubled(5)))
    (mapping,) = read_checkpoint(path).mappings
    assert list(mapping.state) == ["weight"]


def test_sizes_beyond_sense_build_no_network():
    for size in (0, MOST_CLASSES + 1):
        shape = Checkpoint.from_content({"3.weight": torch.empty(size, 8, device="meta")}, "w.pt")
        with pytest.raises(UserError, match="1 to 100,000 are allowed"):
            infer_size(shape, lambda count: nn.Sequential(*valid_files.network()[:3], nn.Linear(8, count)), (10, 11))


def test_legacy_files_that_claim_storages_of_terabytes(tmp_path):
    whole = valid_files.torch_legacy({"weight": torch.zeros(1000)})
    claimed = whole.replace(b"M\xe8\x03", b"\x8a\x06\x00\x00\x00\x00\x00\x40")
    assert claimed != whole
    refused(read_checkpoint, put(tmp_path / "w.pt", claimed), "cannot be read as a checkpoint")


@pytest.mark.parametrize("write", [pickle.dumps, lambda evil: pickle.dumps(evil, 2), valid_files.torch_legacy])
def test_a_large_refused_file_is_not_read_whole(tmp_path, write):
    target = tmp_path / "executed"
    path = put(tmp_path / "w.pt", write({"a": Evil(target)}))
    with path.open("r+b") as file:
        file.truncate(2**36)
    refused(read_checkpoint, path, "was not loaded")
    assert not target.exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"weights": Evil(Path("executed"))},
        lambda: collections.defaultdict(os.getcwd),
        lambda: np.array([None]),
        lambda: np.zeros(3, [("a", "O")])[0],
        lambda: torch.load,
        lambda: os.system,
    ],
)
def test_pickles_that_call(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    for write in (valid_files.torch_zip, valid_files.torch_legacy, pickle.dumps):
        refused(read_checkpoint, put(tmp_path / "w.pt", write(make())), "was not loaded|holds no weights")
    npz = valid_files.npz()
    inner = {"images.npy": pickle.dumps(make()), "labels.npy": pickle.dumps(make())}
    with zipfile.ZipFile(put(tmp_path / "a.npz", npz), "a") as archive:
        for name, content in inner.items():
            archive.writestr(f"{name}/x", content)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        for name, content in inner.items():
            archive.writestr(name, content)
    refused(lambda path: load_dataset(f"npz:{path}"), tmp_path / "b.npz", "is not a numpy array")
    assert not (tmp_path / "executed").exists()


def header(length: int, **tensors) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", length or len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        header(2**60),
        header(2**26),
        b"\xff" * 8,
        header(0, w={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}),
        header(0, w={"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 0]}),
        header(0, w={"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}) + bytes(4),
        header(0, w={"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}),
        header(0, __metadata__={"a": 1}),
        struct.pack("<Q", 10**5) + b"[" * 10**5,
    ],
    ids=range(9),
)
def test_safetensors_headers(tmp_path, content):
    path = put(tmp_path / "w.safetensors", content)
    refused(read_checkpoint, path, "is not a readable safetensors file|holds no weights")
    refused(TrainingState.read, path, "is not the state of a training")


def member(shape: str, descr: str = "'|u1'", body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text + body


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (member("(1000000, 1000, 1000, 3)"), "claims 3,000,000,000,000 bytes"),
        (member("(9223372036854775807, 9223372036854775807, 9)"), "claims|is not a plain array"),
        (member("(2, 4, 4, 3)", body=bytes(95)), "claims 96 bytes .* but has 95"),
        (member("(-2, 4, -4, 3)", body=bytes(96)), "claims 96 bytes"),
        (member("(2, 4, 4, 3)", "'|O'", bytes(96)), "pickled objects are never loaded"),
        (member("(" * 3000 + ")" * 3000), "the header of `images` .* is damaged"),
        (member("-" * 9000 + "1"), "the header of `images` .* is damaged"),
        (member("(1,)", "'" + "x" * 20_000 + "'"), "the header of `images` .* is damaged"),
        (member("(1,", "'|u1'"), "the header of `images` .* is damaged"),
        (member("__import__('os').system('touch executed')"), "the header of `images` .* is damaged"),
        (member("(2, 4, 4, 3)", body=bytes(96), version=b"\x09\x00"), "cannot be read|not a plain"),
        (b"\x93NUMPY", "cannot be read"),
        (b"", "is not a numpy array"),
    ],
    ids=range(13),
)
def test_headers_of_arrays(tmp_path, content, said):
    for name in ("images", "groups"):
        path = tmp_path / "a.npz"
        with zipfile.ZipFile(io.BytesIO(valid_files.npz())) as old, zipfile.ZipFile(path, "w") as new:
            parts = {part: old.read(part) for part in old.namelist()} | {f"{name}.npy": content}
            for part, body in parts.items():
                new.writestr(part, body)
        refused(lambda path: load_dataset(f"npz:{path}"), path, said.replace("images", name))


@pytest.mark.parametrize("name", ["w.pt", "w.npz", "w.pt2"])
def test_archives_of_several_disks(tmp_path, name):
    """Python's library raises where it is asked whether that is an archive."""
    whole = valid_files.torch_zip()
    end = whole.rindex(b"PK\x05\x06")
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 1, 0, 7)
    path = put(tmp_path / name, whole[:end] + locator + whole[end:])
    read = (lambda path: load_dataset(f"npz:{path}")) if name == "w.npz" else (lambda path: load_classifier(str(path)))
    refused(read, path, "is damaged .*multiple disks")


def test_names_of_arrays_do_not_reach_the_terminal(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("\x1b[2J.npy", b"x")
    refused(lambda path: load_dataset(f"npz:{path}"), tmp_path / "a.npz", r"\\x1b\[2J")


@pytest.mark.parametrize(("field", "value"), [(8, 99), (6, 1), (4, 255)])
def test_archives_of_unknown_compression_encryption_and_version(tmp_path, field, value):
    """Bytes of the central directory: compression 99, the flag for encryption, a version that is not there yet."""
    for name, content in (("w.pt", valid_files.torch_zip()), ("w.npz", valid_files.npz()), ("w.pt2", b"")):
        changed = bytearray(content or valid_files.exported())
        for found in re.finditer(rb"PK\x01\x02", bytes(changed)):
            changed[found.start() + 2 + field] = value
        path = put(tmp_path / name, bytes(changed))
        readers = {"w.npz": lambda path: load_dataset(f"npz:{path}"), "w.pt": read_checkpoint, "w.pt2": load_exported}
        message = refusal(readers[name], path)
        assert message is None or str(path) in message


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pt2", ".onnx", ".npz"])
def test_files_that_never_end_or_never_answer(tmp_path, kind, suffix):
    path = tmp_path / f"w{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(2**36)
    if suffix == ".npz":
        refused(lambda path: load_dataset(f"npz:{path}"), path, "does not exist|is not a numpy archive")
    elif suffix == ".onnx" and kind == "sparse":
        pytest.importorskip("onnx", reason="the onnx extra is not installed")
        refused(lambda path: load_classifier(str(path)), path, "has 68,719,476,736 bytes")
    else:
        refused(lambda path: load_classifier(str(path)), path, "a device or a pipe|not a|cannot be read")


def exported_with(change) -> bytes:
    def changed(content: bytes) -> bytes:
        model = json.loads(content)
        change(model)
        return json.dumps(model).encode()

    return valid_files.rezipped(valid_files.exported(), {"models/model.json": changed})


HIDDEN = "w\", None) or exec(\"import builtins;(open)(chr(46)+'executed','w')\") or getattr(self, \"w"


def name_as_code(model):
    model["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = HIDDEN


def operator(name):
    def change(model):
        model["graph_module"]["graph"]["nodes"][0].update(
            target=name, inputs=[{"name": "command", "arg": {"as_string": "touch executed"}, "kind": 1}]
        )

    return change


def tree_of(kind):
    def change(model):
        spec = json.dumps([1, {"type": kind, "context": "null", "children_spec": []}])
        model["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = spec

    return change


@pytest.mark.parametrize(
    "change",
    [
        name_as_code,
        *(
            operator(name)
            for name in (
                "torch.os.system",
                "torch.load",
                "torch.hub.load",
                "_operator.call",
                "_operator.methodcaller",
                "torch.ops.aten.from_file.default",
                "torch.ops.aten.save",
                "torch.ops.image.write_file.default",
                "torch.ops.debugprims.load_tensor.default",
                "torch.ops.higher_order.triton_kernel_wrapper_mutation",
                "torch.utils.cpp_extension.load_inline",
                "math.__loader__.load_module",
                "#python.evil",
            )
        ),
        tree_of("collections.defaultdict"),
        tree_of("collections.namedtuple"),
    ],
)
def test_exported_programs_that_call_more_than_operators(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    refused(load_exported, put(tmp_path / "m.pt2", exported_with(change)), "was not loaded: its")
    assert not list(tmp_path.glob("*executed"))


def test_the_key_of_a_weight_is_no_code_either(tmp_path):
    hidden = json.dumps(HIDDEN).encode()
    evil = valid_files.rezipped(
        valid_files.exported(),
        {"data/weights/model_weights_config.json": lambda content: content.replace(b'"0.weight"', hidden)},
    )
    refused(load_exported, put(tmp_path / "m.pt2", evil), "was not loaded: its 'key'")


def two_directories(shown: bytes, hidden: bytes) -> bytes:
    """One archive for readers that look just before the end (Python), another for those that follow its offset."""
    end = hidden.rindex(b"PK\x05\x06")
    return hidden[:end] + shown[: shown.rindex(b"PK\x05\x06")] + patched_end(hidden, shown)


def patched_end(hidden: bytes, shown: bytes) -> bytes:
    """The record at the end: the size of the shown directory, the offset of the hidden one."""
    *_, count, size, _, _ = struct.unpack("<4s4H2LH", shown[shown.rindex(b"PK\x05\x06") :][:22])
    offset = struct.unpack("<L", hidden[hidden.rindex(b"PK\x05\x06") + 16 :][:4])[0]
    return struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size, offset, 0)


def test_torch_reads_what_was_checked_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = put(tmp_path / "m.pt2", two_directories(valid_files.exported(), exported_with(operator("torch.os.system"))))
    message = refusal(load_exported, path)
    assert message is None or "damaged" in message
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"models/model.json": b"[" * 10**6},
        {"models/model.json": b"{}"},
        {"models/model.json": b"\xff"},
        {"models/model.json": b"null"},
        {"data/weights/model_weights_config.json": b"{}"},
        {"data/weights/model_weights_config.json": b'{"config": {"0.weight": {"path_name": 7}}}'},
        {"data/weights/model_weights_config.json": b'{"config": {"0.weight": []}}'},
        {"data/weights/weight_0": b""},
        {"../x": b""},
        {"/etc/passwd": b""},
        {"data/aotinductor/x.so": b"\x7fELF"},
    ],
    ids=range(11),
)
def test_parts_of_exported_programs(tmp_path, change):
    with pytest.raises(UserError):
        load_exported(put(tmp_path / "m.pt2", valid_files.rezipped(valid_files.exported(), change)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt2"]


class Writes(nn.Module):
    def forward(self, images):
        torch.save(images, "executed")
        return images.flatten(1)


class Reads(nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3] + torch.from_file("secret", size=3)


class Hides(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict({"a-b": nn.Flatten()})

    def forward(self, images):
        return self.layers["a-b"](images)


def scripted(module: nn.Module) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module), buffer := io.BytesIO())
    return buffer.getvalue()


@pytest.mark.parametrize(("module", "said"), [(Writes(), "'save'"), (Reads(), "'from_file'")])
def test_torchscript_that_reaches_for_files(tmp_path, monkeypatch, module, said):
    monkeypatch.chdir(tmp_path)
    refused(load_torchscript, put(tmp_path / "m.pt", scripted(module)), f"was not loaded.*{said}")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('x = ops.image.write_file("executed", images)', "ops.image|write_file"),
        ('x = ops . image.anything("executed")', "ops . image"),
        ('t = torch\n    t.save(images, "executed")', "'save'"),
        ('x = getattr(torch, "sa\\x76e")', "getattr"),
        ('x = getattr(torch, """rest""")', "getattr"),
        ('x = rpc_sync("host", images)', "rpc_sync"),
    ],
)
def test_torchscript_in_other_words(tmp_path, line, said):
    evil = valid_files.rezipped(
        scripted(nn.Flatten()),
        {"code/__torch__/torch/nn/modules/flatten.py": lambda code: code + f"    {line}\n".encode()},
    )
    refused(load_torchscript, put(tmp_path / "m.pt", evil), f"was not loaded: its code .*({said})")


def test_ordinary_torchscript_is_read(tmp_path):
    for module in (valid_files.network(), Hides()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loaded = load_torchscript(put(tmp_path / "m.pt", scripted(module)))
        assert loaded.module(torch.rand(2, 1, 4, 4)).shape[0] == 2


def external(tmp_path, location: str, length: int | None, inside: str):
    """A graph with one weight, whose values are said to be in another file."""
    onnx = pytest.importorskip("onnx", reason="the onnx extra is not installed")
    pytest.importorskip("onnx2torch", reason="the onnx extra is not installed")
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 16], bytes(192), raw=True)
    weight.data_location = TensorProto.EXTERNAL
    weight.ClearField("raw_data")
    for key, value in {"location": location, "offset": 0, "length": length}.items():
        if value is not None:
            entry = weight.external_data.add()
            entry.key, entry.value = key, str(value)
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"], transB=1)]
    if inside == "node":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [weight] if inside == "graph" else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    folder = tmp_path / "model"
    folder.mkdir(exist_ok=True)
    path = put(folder / "m.onnx", model.SerializeToString())
    for place in (tmp_path, folder):
        put(place / "weights.bin", torch.ones(48).numpy().tobytes())
    (folder / "link.bin").unlink(missing_ok=True)
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    assert onnx
    return path


@pytest.mark.parametrize("inside", ["graph", "node"])
def test_onnx_weights_come_from_beside_the_model_only(tmp_path, inside):
    for location in ("../weights.bin", str(tmp_path / "weights.bin"), "link.bin", "/dev/zero", ".", "", "absent"):
        path = external(tmp_path, location, 192, inside)
        refused(lambda path: load_classifier(str(path)), path, "no plain file in its")
    refused(lambda path: load_classifier(str(path)), external(tmp_path, "weights.bin", 2**40, inside), "has fewer")
    classifier = load_classifier(str(external(tmp_path, "weights.bin", 192, inside)))
    assert torch.allclose(classifier(torch.ones(2, 1, 4, 4)), torch.full((2, 3), 16.0))


def test_compressed_files_of_sensible_size_are_read(tmp_path):
    """Some keep their checkpoints compressed, and black pictures take little room: no attack."""
    archive = put(tmp_path / "a.npz", valid_files.npz(images=np.zeros((90, 64, 64, 3), np.uint8), labels=[0] * 90))
    assert archive.stat().st_size * 100 < 90 * 64 * 64 * 3
    assert len(load_dataset(f"npz:{archive}")) == 90
    deflated = valid_files.rezipped(valid_files.torch_zip(), {}, compression=zipfile.ZIP_DEFLATED)
    (mapping,) = read_checkpoint(put(tmp_path / "w.pt", deflated)).mappings
    assert mapping.state.keys() == valid_files.state().keys()
