"""Weights from elsewhere come in whole or with a clear refusal, and ours go out as others read them."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from blocks import ModelSpec, build_model
from roadmap import ROOT
from roadmap.config import RunConfig
from roadmap.errors import ConfigError
from roadmap.export import export
from roadmap.records import RunDir, prepare
from roadmap.steps import load_roadmap, resolve
from roadmap.strict_yaml import show
from roadmap.train import train
from roadmap.training.initial_weights import check_init, with_init_digest
from roadmap.weight_files import digest_of
from roadmap.weights import load_weights, read_state_dict, read_state_dicts
from tests.helpers import commands
from tests.test_timm_parity import assert_same_logits, images, randomize


def spec_of(**model: Any) -> ModelSpec:
    """A small ConvNeXt."""
    small = {"model.depths": [1, 2, 2, 1], "model.width": 16, "model.num_classes": 7}
    overrides = small | {f"model.{key.replace('__', '.')}": value for key, value in model.items()}
    return resolve(load_roadmap(), "separate_downsampling", overrides=overrides).ours


def copy_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def refusal(source: str | Path) -> str:
    with pytest.raises(ConfigError) as refused:
        read_state_dict(source)
    assert len(refused.value.problems) == 1
    return str(refused.value)


# The original repository's networks, by its names: facebookresearch/ConvNeXt, models/convnext.py and
# convnext_isotropic.py.


class ChannelsFirst(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = super().forward(x.permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


class Block(nn.Module):
    def __init__(self, dim: int, scaled: bool) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.ones(dim)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.pwconv2(nn.functional.gelu(self.pwconv1(y)))
        y = y if self.gamma is None else self.gamma * y
        return x + y.permute(0, 3, 1, 2)


class Original(nn.Module):
    def __init__(self, depths: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        dims = [width << stage for stage in range(len(depths))]
        stem = nn.Sequential(nn.Conv2d(3, width, 4, 4), ChannelsFirst(width, eps=1e-6))
        between = [
            nn.Sequential(ChannelsFirst(dim, eps=1e-6), nn.Conv2d(dim, 2 * dim, 2, 2)) for dim in dims[:-1]
        ]
        self.downsample_layers = nn.ModuleList([stem, *between])
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, scaled=True) for _ in range(depth)))
            for dim, depth in zip(dims, depths, strict=True)
        )
        self.norm, self.head = nn.LayerNorm(dims[-1], eps=1e-6), nn.Linear(dims[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
        logits: Tensor = self.head(self.norm(x.mean((-2, -1))))
        return logits


class Isotropic(nn.Module):
    def __init__(self, depth: int, dim: int, classes: int, scaled: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 16, 16)
        self.blocks = nn.Sequential(*(Block(dim, scaled) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim, eps=1e-6), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(self.stem(x)).mean((-2, -1))))
        return logits


ISOTROPIC = {"depths": [3], "width": 24, "stem__stride": 16, "stem__norm": False}
ORIGINALS: dict[str, tuple[ModelSpec, Callable[[], nn.Module]]] = {
    "original_convnext": (spec_of(), lambda: Original((1, 2, 2, 1), 16, 7)),
    "original_isotropic": (
        spec_of(**ISOTROPIC, block__layer_scale=None),
        lambda: Isotropic(3, 24, 7, scaled=False),
    ),
    "original_isotropic with layer scale": (spec_of(**ISOTROPIC), lambda: Isotropic(3, 24, 7, scaled=True)),
}


@pytest.mark.parametrize("kind", ORIGINALS)
@pytest.mark.parametrize("size", [64, 97])
def test_the_original_repositorys_released_files_load(kind: str, size: int, tmp_path: Path) -> None:
    spec, build = ORIGINALS[kind]
    theirs, ours = build(), build_model(spec)
    randomize(theirs)
    torch.save({"model": theirs.state_dict()}, tmp_path / "released.pth")
    report = load_weights(ours, tmp_path / "released.pth")
    assert (report.dialect, report.loaded, report.fits) == (kind.split()[0], len(theirs.state_dict()), True)
    assert_same_logits(ours, theirs, images(2, 3, size), kind)


def test_the_original_repositorys_training_checkpoint_loads_with_its_arguments_beside(tmp_path: Path) -> None:
    spec, build = ORIGINALS["original_convnext"]
    average, model, ours = build(), build(), build_model(spec)
    randomize(average)
    optimizer = torch.optim.AdamW(model.parameters())
    saved = {
        "model": model.state_dict(),
        "model_ema": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
    }
    torch.save(
        saved | {"args": argparse.Namespace(lr=4e-3, model="convnext_tiny")}, tmp_path / "checkpoint-3.pth"
    )
    load_weights(ours, tmp_path / "checkpoint-3.pth", ema=True)
    assert_same_logits(ours, average, images(2, 3, 64), "a training checkpoint's average")
    load_weights(ours, tmp_path / "checkpoint-3.pth")
    with torch.no_grad():
        assert torch.allclose(ours(images(2, 3, 64)), model(images(2, 3, 64)), atol=1e-5)


# What tensors are wrapped in.

MODEL, AVERAGE = {"w": torch.ones(2)}, {"w": torch.zeros(2)}


@pytest.mark.parametrize(
    "content",
    [
        {"model": MODEL, "model_ema": AVERAGE},
        {"state_dict": MODEL, "state_dict_ema": AVERAGE, "arch": "convnext_tiny"},
        {
            "engine": {
                "iteration": 7,
                "model": MODEL,
                "ema": AVERAGE,
                "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
            },
            "epoch": 1,
        },
        {"model": MODEL, "model_ema": {"module.w": torch.zeros(2)}},
        {
            "model_ema": {"module": {"module.w": torch.zeros(2)}},
            "model": {"_orig_mod.module.w": torch.ones(2)},
        },
    ],
)
def test_the_weights_are_read_unless_their_ema_is_asked_for(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "wrapped.pth")
    assert_equal(read_state_dict(tmp_path / "wrapped.pth"), MODEL)
    assert_equal(read_state_dict(tmp_path / "wrapped.pth", ema=True), AVERAGE)


@pytest.mark.parametrize(
    "content",
    [
        MODEL,
        {"module": MODEL},
        {"state_dict": {"module._orig_mod.w": torch.ones(2)}},
        {"model": MODEL, "model_ema": None},
        {"engine": {"model": MODEL, "ema": None}},
        {
            "w": nn.Parameter(torch.ones(2)),
            "epoch": 3,
            "name": "tiny",
            "nested": {"x": torch.ones(1)},
            "list": [torch.ones(1)],
        },
    ],
)
def test_tensors_are_found_where_there_is_no_average(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "wrapped.pth")
    found = read_state_dict(tmp_path / "wrapped.pth")
    assert_equal(found, MODEL)
    assert not found["w"].requires_grad
    with pytest.raises(ConfigError, match=r"wrapped\.pth has no EMA; --raw selects its weights$"):
        read_state_dict(tmp_path / "wrapped.pth", ema=True)


def test_the_weights_that_a_file_holds_are_recognized(tmp_path: Path) -> None:
    contents: dict[str, Any] = {
        "raw": MODEL,
        "raw ema": {"engine": {"model": MODEL, "ema": AVERAGE}, "epoch": 1},
        "ema": {"model_ema": AVERAGE, "epoch": 1},
    }
    for kinds, content in contents.items():
        torch.save(content, tmp_path / "x.pth")
        found = read_state_dicts(tmp_path / "x.pth")
        assert list(found) == kinds.split()
        for kind, tensors in found.items():
            assert_equal(tensors, MODEL if kind == "raw" else AVERAGE)
    with pytest.raises(ConfigError, match=r"x\.pth has only an EMA; --ema selects it$"):
        read_state_dict(tmp_path / "x.pth")


def test_a_file_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "knot.pth")
    assert refusal(tmp_path / "knot.pth").endswith("holds no tensors with names")


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors.torch.save_file({"module.w": torch.ones(2)}, tmp_path / "x.safetensors")
    assert_equal(read_state_dict(tmp_path / "x.safetensors"), MODEL)
    assert_equal(read_state_dict(str(tmp_path / "x.safetensors")), MODEL)


@pytest.mark.parametrize("name", ["5f2c8b", "x.pth", "x.safetensors", "x.bin", "x.pt"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_is_read_by_its_content_whatever_it_is_called(kind: str, name: str, tmp_path: Path) -> None:
    """A blob in the Hub's cache is called by its hash."""
    path, there = tmp_path / name, {"w": torch.arange(4.0)}
    if kind == "safetensors":
        path.write_bytes(safetensors.torch.save(there))
    else:
        torch.save(there, path, _use_new_zipfile_serialization=kind == "zip")
    assert_equal(read_state_dict(path), there)


@pytest.mark.parametrize(("beginning", "length"), [(b"\x80\x02", 0x280), (b"PK", 0x4B50)])
def test_safetensors_that_begin_as_a_pickle_or_a_zip_file_are_read(
    beginning: bytes, length: int, tmp_path: Path
) -> None:
    """They begin with the length of their header, in which the tensors' names are."""
    files = (safetensors.torch.save({"w" * letters: torch.ones(1)}) for letters in range(length, 0, -1))
    (tmp_path / "x").write_bytes(next(content for content in files if content.startswith(beginning)))
    assert len(read_state_dict(tmp_path / "x")) == 1


def test_tensors_of_a_gpu_come_to_the_cpu(tmp_path: Path) -> None:
    torch.save(MODEL, tmp_path / "cpu.pth")
    with zipfile.ZipFile(tmp_path / "cpu.pth") as saved, zipfile.ZipFile(tmp_path / "gpu.pth", "w") as moved:
        for name in saved.namelist():  # the pickle says where each tensor was: a string, its length before it
            moved.writestr(name, saved.read(name).replace(b"\x03\0\0\0cpu", b"\x06\0\0\0cuda:7"))
    assert b"cuda:7" in (tmp_path / "gpu.pth").read_bytes()
    assert_equal(read_state_dict(tmp_path / "gpu.pth"), MODEL)


# Bad files.


def checkpoint_bytes(path: Path, **options: Any) -> bytes:
    torch.save({"w": torch.zeros(1000)}, path, **options)
    return path.read_bytes()


NEITHER = "is not a checkpoint: it begins neither as PyTorch's files do nor as safetensors"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "is a web page, not a checkpoint"),
        (b"<HTML>404", "is a web page, not a checkpoint"),
        (b"hello world", NEITHER),
        # which as a pickle would hold lass, of the module of line 2
        (b"class,name,images\n0,tench,50\n", NEITHER),
        (bytes(range(256)) * 9, NEITHER),
        (b"\x80" * 99, "is truncated, or not a checkpoint: PyTorch cannot read it"),
        (b"12345678{}", NEITHER),  # a header of 4 EB
        (b"\2\0\0\0\0\0\0\0{]", "is truncated, or not a checkpoint: PyTorch cannot read it"),
    ],
)
def test_what_is_no_checkpoint_is_refused(content: bytes, message: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    assert refusal(path) == f"{path} {message}"


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_truncated_file_is_refused(kind: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / ("torn.safetensors" if kind == "safetensors" else "torn.pth")
    if kind == "safetensors":
        content = safetensors.torch.save({"w": torch.zeros(1000)})
    else:
        content = checkpoint_bytes(path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(content)
    assert read_state_dict(path)["w"].shape == (1000,)
    path.write_bytes(content[: int(len(content) * kept)])
    assert refusal(path) == f"{path} is truncated, or not a checkpoint: PyTorch cannot read it"


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    assert (
        refusal(tmp_path / "none.pth") == f"{tmp_path / 'none.pth'} cannot be read: No such file or directory"
    )
    assert refusal(tmp_path) == f"{tmp_path} cannot be read: Is a directory"
    assert (
        refusal("s3://bucket/a.pth")
        == "s3://bucket/a.pth cannot be read: its scheme 's3' is not one of http, https, file"
    )


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.ones(2)], torch.ones(2), {"model": {}}, "text"])
def test_a_file_without_named_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "none.pth")
    assert refusal(tmp_path / "none.pth") == f"{tmp_path / 'none.pth'} holds no tensors with names"


class Intruder:
    """Makes a folder when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_file_that_would_run_code_is_refused(kind: str, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "evil.pth"
    content = {"model": {"w": torch.ones(2), "x": Intruder(mark)}}
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"x": Intruder(mark)}, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    said = refusal(path)
    assert said == f"{path} is refused: it holds posix.mkdir, and loading anything but weights could run code"
    assert not mark.exists()
    if kind == "zip":  # the same file does harm where code is allowed to run
        torch.load(path, weights_only=False)
        assert mark.exists()


def test_a_pickled_network_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "network.pth")
    assert "it holds torch.nn.modules.linear.Linear" in refusal(tmp_path / "network.pth")


# Addresses.


class Server(ThreadingHTTPServer):
    """Serves `files`: a status, a body, and how many bytes it announces; `asked` are the paths that were
    asked for.
    """

    def __init__(self) -> None:
        self.files: dict[str, tuple[int, bytes, int | None]] = {}
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, body, announced = self.server.files.get(self.path, (404, b"no such file", 12))
        if self.headers["User-Agent"].startswith("Python-urllib"):  # as many a host does
            status = 403
        self.send_response(status)
        if announced is not None:
            self.send_header("Content-Length", str(announced))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's cache for this test."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "torch"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_an_address_is_fetched_once(hub: Path, server: Server, tmp_path: Path) -> None:
    body = checkpoint_bytes(tmp_path / "x.pth")
    server.files["/convnext/x.pth"] = (200, body, len(body))
    for _ in range(2):
        assert read_state_dict(f"{server.address}/convnext/x.pth")["w"].shape == (1000,)
    assert server.asked == ["/convnext/x.pth"]
    assert [path.read_bytes() for path in files_in(hub)] == [body]
    assert read_state_dict(server.address.replace("http", "HTTP") + "/convnext/x.pth")["w"].shape == (1000,)


def test_weights_at_an_address_are_identified_by_their_bytes(
    hub: Path, server: Server, tmp_path: Path
) -> None:
    body = checkpoint_bytes(tmp_path / "x.pth")
    server.files["/x.pth"] = (200, body, len(body))
    assert (
        digest_of(f"{server.address}/x.pth") == digest_of(tmp_path / "x.pth") == sha256(body).hexdigest()[:16]
    )
    config = resolve(load_roadmap(), "gelu", overrides={"system.init_from": f"{server.address}/x.pth"})
    assert with_init_digest(config).recipe.init_digest == digest_of(tmp_path / "x.pth")
    check_init(with_init_digest(config))
    assert server.asked == ["/x.pth"]
    with pytest.raises(ConfigError, match=r"/y\.pth cannot be downloaded: HTTP Error 404"):
        digest_of(f"{server.address}/y.pth")


def test_an_address_of_a_file_is_read_in_place(hub: Path, tmp_path: Path) -> None:
    checkpoint_bytes(tmp_path / "a file.pth")
    address = (tmp_path / "a file.pth").as_uri()
    assert "a%20file.pth" in address
    for spelling in (address, address.replace("file://", "FILE://localhost")):
        assert read_state_dict(spelling)["w"].shape == (1000,)
    assert files_in(hub) == []


def test_files_of_one_name_at_two_addresses_are_two_files(hub: Path, server: Server) -> None:
    for name, value in {
        "/a/w.safetensors?x=1": 1.0,
        "/b/w.safetensors?x=1": 2.0,
        "/b/w.safetensors?x=2": 3.0,
    }.items():
        body = safetensors.torch.save({"w": torch.full((2,), value)})
        server.files[name] = (200, body, len(body))
        assert read_state_dict(server.address + name)["w"].tolist() == [value, value]


@pytest.mark.parametrize(
    ("status", "share", "announces", "message"),
    [
        (200, 0.5, True, "cannot be downloaded: the connection broke after"),
        (200, 0.0, True, "cannot be downloaded: the connection broke after 0 of"),
        (200, 0.5, False, "is truncated, or not a checkpoint"),
        (200, 0.0, False, "is empty"),
        (404, 1.0, True, "cannot be downloaded: HTTP Error 404: Not Found"),
        (503, 1.0, True, "cannot be downloaded: HTTP Error 503: Service Unavailable"),
    ],
)
def test_a_failed_download_leaves_nothing_behind(
    status: int, share: float, announces: bool, message: str, hub: Path, server: Server, tmp_path: Path
) -> None:
    body = checkpoint_bytes(tmp_path / "x.pth")
    server.files["/x.pth"] = (status, body[: int(len(body) * share)], len(body) if announces else None)
    said = refusal(f"{server.address}/x.pth")
    assert said.startswith(f"{server.address}/x.pth {message}")
    assert "<" not in said
    assert files_in(hub) == []
    server.files["/x.pth"] = (200, body, len(body))
    assert read_state_dict(f"{server.address}/x.pth")["w"].shape == (1000,)


def test_a_page_instead_of_a_file_is_asked_for_again(hub: Path, server: Server, tmp_path: Path) -> None:
    page, body = b"<!doctype html>maintenance", checkpoint_bytes(tmp_path / "x.pth")
    server.files["/x.pth"] = (200, page, len(page))
    assert refusal(f"{server.address}/x.pth") == f"{server.address}/x.pth is a web page, not a checkpoint"
    server.files["/x.pth"] = (200, body, len(body))
    assert read_state_dict(f"{server.address}/x.pth")["w"].shape == (1000,)


def test_an_address_that_does_not_answer_is_refused(hub: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        said = refusal(f"http://127.0.0.1:{deaf.getsockname()[1]}/x.pth")
    assert re.search(r"/x\.pth cannot be downloaded: urlopen error \[Errno \d+\] Connection refused$", said)
    assert refusal("http://[/x.pth").startswith("http://[/x.pth cannot be downloaded: ")
    assert files_in(hub) == []


# Reports.


@pytest.fixture
def misfit(tmp_path: Path) -> Path:
    """A file of the small network with 7 classes where two tensors are missing, two are new, and the
    classifier has 9.
    """
    network = build_model(spec_of())
    randomize(network)
    state = copy_of(network)
    del state["stem.norm.bias"], state["stem.norm.weight"]
    state |= {
        "head.classifier.weight": torch.zeros(9, 128),
        "head.classifier.bias": torch.zeros(9),
        "extra": torch.ones(1),
    }
    torch.save(state | {"stages.0.blocks.9.body.pw1.bias": torch.ones(1)}, tmp_path / "misfit.pth")
    return tmp_path / "misfit.pth"


def test_a_misfit_is_reported_and_changes_nothing(misfit: Path) -> None:
    network = build_model(spec_of())
    before = copy_of(network)
    with pytest.raises(ConfigError) as refused:
        load_weights(network, misfit)
    assert str(refused.value).splitlines() == [
        f"{misfit} does not fit: {len(before) - 4} of {len(before)} tensors, dialect ours",
        "  missing: stem.norm.weight, stem.norm.bias",
        "  unexpected: extra, stages.0.blocks.9.body.pw1.bias",
        (
            "  mis-shaped: head.classifier.weight is [9, 128] there, [7, 128] here, head.classifier.bias is"
            " [9] there, [7] here"
        ),
    ]
    assert_equal(network.state_dict(), before)


def test_what_fits_can_be_loaded_alone(misfit: Path) -> None:
    network = build_model(spec_of())
    before, there = copy_of(network), read_state_dict(misfit)
    report = load_weights(network, misfit, strict=False)
    assert (report.dialect, report.loaded, report.fits) == ("ours", len(before) - 4, False)
    assert report.missing == ("stem.norm.weight", "stem.norm.bias")
    assert report.unexpected == ("extra", "stages.0.blocks.9.body.pw1.bias")
    assert report.misshaped == (
        ("head.classifier.weight", (9, 128), (7, 128)),
        ("head.classifier.bias", (9,), (7,)),
    )
    left = {*report.missing, *(name for name, *_ in report.misshaped)}
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name] if name in left else there[name]) for name in after)


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    torch.save({f"w{index}": torch.ones(1) for index in range(8)}, tmp_path / "other.pth")
    network = build_model(spec_of())
    report = load_weights(network, tmp_path / "other.pth", strict=False)
    assert report.loaded == 0
    head, missing, unexpected, hint = str(report).splitlines()
    assert head.startswith(f"{tmp_path / 'other.pth'} does not fit: 0 of {len(network.state_dict())} tensors")
    assert missing.endswith(f" and {len(network.state_dict()) - 5} more")
    assert unexpected == "  unexpected: w0, w1, w2, w3, w4 and 3 more"
    assert hint == "  no tensor fits: these are the weights of another kind of network"


def test_a_fit_is_one_line(tmp_path: Path) -> None:
    network = build_model(spec_of())
    torch.save(network.state_dict(), tmp_path / "ours.pth")
    count = len(network.state_dict())
    assert (
        str(load_weights(network, tmp_path / "ours.pth"))
        == f"{tmp_path / 'ours.pth'} fits: {count} of {count} tensors, dialect ours"
    )


@pytest.mark.parametrize(
    ("name", "reshape", "is_harmless"),
    [
        ("stages.0.blocks.0.body.pw1.weight", lambda w: w.flatten(1), True),
        ("stages.0.blocks.0.body.gamma.gamma", lambda w: w[:, None, None], True),
        ("stages.0.blocks.0.body.gamma.gamma", lambda w: w[None, None, None], True),
        ("head.classifier.weight", lambda w: w[:, :, None, None], True),
        ("stages.0.blocks.0.body.pw1.weight", lambda w: w.flatten(1).T, False),
        ("stages.0.blocks.0.body.pw1.weight", lambda w: w.flatten(), False),
        ("stages.0.blocks.0.body.spatial.weight", lambda w: w.flatten(2), False),
        ("stages.0.blocks.0.body.spatial.weight", lambda w: w.transpose(0, 1), False),
        ("stem.norm.weight", lambda w: w[None], False),
        ("stem.norm.weight", lambda w: w[:, None], False),
    ],
)
def test_only_a_1x1_at_the_end_may_differ(name: str, reshape: Any, is_harmless: bool, tmp_path: Path) -> None:
    ours = build_model(spec_of())
    randomize(ours)
    torch.save(ours.state_dict() | {name: reshape(ours.state_dict()[name])}, tmp_path / "x.pth")
    other = build_model(spec_of())
    report = load_weights(other, tmp_path / "x.pth", strict=False)
    assert [entry[0] for entry in report.misshaped] == ([] if is_harmless else [name])
    assert torch.equal(other.state_dict()[name], ours.state_dict()[name]) == is_harmless


def test_counts_of_batches_may_be_absent_but_statistics_may_not(tmp_path: Path) -> None:
    network = build_model(
        resolve(load_roadmap(), "resnet50", overrides={"model.width": 8, "model.depths": [1, 1, 1, 1]}).ours
    )
    counts = {name for name in network.state_dict() if name.endswith("num_batches_tracked")}
    assert counts
    torch.save(
        {name: value for name, value in network.state_dict().items() if name not in counts},
        tmp_path / "old.pth",
    )
    assert load_weights(network, tmp_path / "old.pth").fits
    torch.save(
        {name: value for name, value in network.state_dict().items() if name != "stem.norm.running_var"},
        tmp_path / "lame.pth",
    )
    assert load_weights(network, tmp_path / "lame.pth", strict=False).missing == ("stem.norm.running_var",)


def test_values_of_another_precision_are_converted(tmp_path: Path) -> None:
    ours, other = build_model(spec_of()), build_model(spec_of())
    torch.save({name: value.half() for name, value in ours.state_dict().items()}, tmp_path / "half.pth")
    assert load_weights(other, tmp_path / "half.pth").fits
    assert_equal(
        other.state_dict(), {name: value.half().float() for name, value in ours.state_dict().items()}
    )


# Export.

TINY = {
    "data.copies": 1,
    "recipe.epochs": 2,
    "recipe.ema": 0.9,
    "model.depths": [1, 1, 2, 1],
    "model.stem.stride": 4,
    "data.image_size": 32,
    "model.block.layer_scale": 0.5,
}


def train_tiny(runs: Path, step: str, overrides: dict[str, Any]) -> tuple[RunConfig, RunDir]:
    config = resolve(load_roadmap(), step, profile="digits", overrides=TINY | overrides)
    run = prepare(runs, config)
    assert train(config, run.path).status == "done"
    return config, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, RunDir]:
    return train_tiny(tmp_path_factory.mktemp("runs"), "separate_downsampling", {})


def newest(run: RunDir) -> Path:
    return max(run.checkpoints.glob("*.pt"))


def ours_of(config: RunConfig, run: RunDir, part: str) -> nn.Module:
    network = build_model(config.ours)
    network.load_state_dict(torch.load(newest(run), weights_only=True)["engine"][part])
    return network


def made_by_timm(sentence: str) -> nn.Module:
    """What the call in an export's sentence makes."""
    call = re.search(r"timm\.create_model\(.*\)", sentence)
    assert call
    network: nn.Module = eval(call[0], {"timm": timm})
    return network


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("part", ["model", "ema"])
def test_timm_makes_the_exported_network(
    suffix: str, part: str, trained: tuple[RunConfig, RunDir], tmp_path: Path
) -> None:
    config, run = trained
    out = tmp_path / f"out{suffix}"
    out.write_bytes(b"what was there before")
    sentence = export(run.path, out, ema=part == "ema")
    size = "depths=(1, 1, 2, 1), dims=(12, 24, 48, 96), in_chans=1, num_classes=10, ls_init_value=0.5"
    assert (
        sentence == f"{out} holds the {'EMA' if part == 'ema' else 'weights'} of iteration 36; its"
        f" {'weights are available with --raw' if part == 'ema' else 'EMA is available with --ema'};"
        f" timm.create_model('convnext_tiny', {size}, checkpoint_path='{out}') loads it;"
        f" {tmp_path / 'out.classes.txt'} names its 10 classes in the order of its outputs, for timm's"
        " --class-map and for --init-from"
    )
    assert_same_logits(
        ours_of(config, run, part), made_by_timm(sentence), images(3, 1, 32), f"export of {part}"
    )
    assert sorted(tmp_path.iterdir()) == sorted([out, tmp_path / "out.classes.txt"])


def test_an_export_comes_back(trained: tuple[RunConfig, RunDir], tmp_path: Path) -> None:
    config, run = trained
    expected = ours_of(config, run, "model").state_dict()
    export(run.path, tmp_path / "ours.safetensors", names="ours")
    assert_equal(
        dict(sorted(read_state_dict(tmp_path / "ours.safetensors").items())), dict(sorted(expected.items()))
    )
    export(run.path, tmp_path / "timm.pth")
    network = build_model(config.ours)
    assert load_weights(network, tmp_path / "timm.pth").dialect == "timm_convnext"
    assert_equal(network.state_dict(), expected)
    assert load_weights(network, newest(run), ema=True).fits
    assert_equal(network.state_dict(), ours_of(config, run, "ema").state_dict())
    load_weights(network, run.path)
    assert_equal(network.state_dict(), ours_of(config, run, "model").state_dict())


def test_the_newest_intact_checkpoint_is_exported(trained: tuple[RunConfig, RunDir], tmp_path: Path) -> None:
    run = RunDir(Path(shutil.copytree(trained[1].path, tmp_path / trained[1].path.name)))
    newest(run).write_bytes(newest(run).read_bytes()[:-1000])
    assert "of iteration 18;" in export(run.path, tmp_path / "out.pth")
    for path in run.checkpoints.iterdir():
        path.write_bytes(b"")
    refused(run.path, tmp_path / "again.pth", f"{run.path} has no intact checkpoint; train it first")


def refused(run: Path, out: Path, message: str, **options: Any) -> None:
    with pytest.raises(ConfigError) as error:
        export(run, out, **options)
    assert str(error.value) == message
    assert not out.is_file()


def test_an_export_that_cannot_be_is_refused(trained: tuple[RunConfig, RunDir], tmp_path: Path) -> None:
    run = trained[1].path
    refused(run, tmp_path / "x.onnx", f"{tmp_path / 'x.onnx'} must end in .safetensors, .pth or .pt")
    refused(
        run,
        tmp_path / "none" / "x.pth",
        f"{tmp_path / 'none' / 'x.pth'} cannot be written: its folder does not exist",
    )
    (tmp_path / "folder.pth").mkdir()
    refused(run, tmp_path / "folder.pth", f"{tmp_path / 'folder.pth'} cannot be written: Is a directory")
    none = "is not a run's folder, such as runs/convnext_t/imagenet/gelu/seed0-0123abcd: no config.yaml"
    refused(tmp_path / "run", tmp_path / "x.pth", f"{tmp_path / 'run'} {none}")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pth"]


def test_a_step_that_timm_does_not_have_goes_out_under_our_names_only(tmp_path: Path) -> None:
    config, run = train_tiny(tmp_path, "layer_norm", {"recipe.epochs": 1, "recipe.ema": None})
    obstacles = [
        "model.stem.norm is false; timm's ConvNeXt has true",
        "model.downsample is block; timm's ConvNeXt has separate",
        "model.head_norm is false; timm's ConvNeXt has true",
        "--names ours writes the weights under this project's names, without timm's",
    ]
    refused(run.path, tmp_path / "x.pth", "\n".join(obstacles))
    refused(
        run.path,
        tmp_path / "x.pth",
        f"{run.path} has no EMA of its weights: its recipe.ema is null",
        ema=True,
        names="ours",
    )
    sentence = export(run.path, tmp_path / "x.pth", names="ours")
    assert f"; roadmap.weights.load_weights(network, '{tmp_path / 'x.pth'}') loads it; " in sentence
    network = build_model(config.ours)
    assert load_weights(network, tmp_path / "x.pth").dialect == "ours"
    assert_equal(network.state_dict(), ours_of(config, run, "model").state_dict())


def test_a_run_that_was_not_trained_has_nothing_to_export(tmp_path: Path) -> None:
    run = prepare(tmp_path, resolve(load_roadmap(), "resnet50"))
    refused(run.path, tmp_path / "x.pth", f"{run.path} has no intact checkpoint; train it first")


def roadmap_command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "roadmap", *map(str, words)]
    return commands.run(command, cwd=ROOT)


def test_the_command_lines_write_a_run_and_report_whether_a_file_fits(
    trained: tuple[RunConfig, RunDir], tmp_path: Path
) -> None:
    config, run = trained
    exported = tmp_path / "tiny.pth"
    done = roadmap_command("export", run.path, exported)
    assert (done.returncode, done.stderr) == (0, "")
    assert "timm.create_model('convnext_tiny'" in done.stdout
    model = config.ours
    values: dict[str, Any] = {"depths": model.depths, "width": model.width, "width_mult": model.width_mult}
    values |= {"stem.stride": model.stem.stride, "block.layer_scale": model.block.layer_scale}
    like = [
        "--profile",
        "digits",
        "--set=data.image_size=32",
        *(f"--set=model.{path}={show(value)}" for path, value in values.items()),
    ]
    fits = roadmap_command("weights", "separate_downsampling", exported, *like)
    assert (fits.returncode, fits.stderr) == (0, ""), fits.stdout + fits.stderr
    assert fits.stdout.startswith(f"{exported} fits: ")
    for words, taken in (([], "the weights; its EMA"), (["--ema"], "the EMA; its weights")):
        both = roadmap_command("weights", "separate_downsampling", run.path, *like, *words)
        assert (both.returncode, both.stderr) == (0, "")
        assert f"inspected: {taken}" in both.stdout
    no_ema = roadmap_command("weights", "separate_downsampling", exported, *like, "--ema")
    assert (no_ema.returncode, no_ema.stderr) == (2, f"{exported} has no EMA; --raw selects its weights\n")
    other = roadmap_command("weights", "gelu", exported)
    assert other.returncode == 1
    assert "does not fit" in other.stdout
