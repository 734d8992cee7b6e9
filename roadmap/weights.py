"""Weights under our names and those of others: read from a file or address, and loaded into a network."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from roadmap.errors import ConfigError, config_error, relative
from roadmap.weight_files import class_map_beside, located, name_of, read_class_map, scheme_of

Kind = Literal["raw", "ema"]
State = TypeVar("State", bound=Mapping[str, Tensor])
ABSENT: dict[Kind, str] = {
    "raw": "has only an EMA; --ema selects it",
    "ema": "has no EMA; --raw selects its weights",
}
TAKEN: dict[Kind, str] = {
    "raw": "the weights; its EMA is available with --ema",
    "ema": "the EMA; its weights are available with --raw",
}

# Keys under which files keep their tensors, and the prefixes that DDP and torch.compile add to names.
EMA_KEYS, KEYS = ("model_ema", "state_dict_ema", "ema"), ("engine", "model", "state_dict", "module")
PREFIXES = r"^((module|_orig_mod)\.)+"
# bytes, by safetensors' rule; the first bytes of a zip file or a pickle, read as a length, are far more
LONGEST_HEADER = 100_000_000

# Dialects as pairs of words: a pattern in our names, and its replacement in theirs.
ORIGINAL_BLOCK = r"""
    \.body\.pw1_grn\.weight$ .grn.gamma  \.body\.pw1_grn\.bias$ .grn.beta
    \.body\.spatial\.     .dwconv.  \.body\.spatial_norm\. .norm.  \.body\.pw(\d)\.    .pwconv\1.
    \.body\.gamma\.gamma$ .gamma    ^head_norm\.norm\.     norm.   ^head\.classifier\. head."""
TIMM_CONVNEXT = r"""
    ^stem\.conv\.         stem.0.    \.downsample\.norm\.   .downsample.0.  ^head_norm\.norm\.  head.norm.
    \.body\.pw1_grn\.     .mlp.grn.  \.downsample\.conv\.   .downsample.1.  ^head\.classifier\. head.fc.
    \.body\.spatial\.     .conv_dw.  \.body\.spatial_norm\. .norm.          \.body\.pw(\d)\.    .mlp.fc\1.
    \.body\.gamma\.gamma$ .gamma"""
TABLES = {
    "ours": "",
    "timm_convnext": r"^stem\.norm\. stem.1." + TIMM_CONVNEXT,
    "timm_convnext_ols": r"^stem\.conv2\. stem.1. ^stem\.norm\. stem.2." + TIMM_CONVNEXT,
    "timm_resnet": (
        r"""
    ^stem\.conv\.        conv1.   ^stem\.norm\.          bn1.            ^head\.classifier\.  fc.
    ^stages\.0\.blocks\. layer1.  ^stages\.1\.blocks\.   layer2.         ^stages\.2\.blocks\. layer3.
    ^stages\.3\.blocks\. layer4.  \.shortcut\.conv\.     .downsample.0.  \.shortcut\.norm\.   .downsample.1.
    \.body\.pw1\.        .conv1.  \.body\.spatial\.      .conv2.         \.body\.pw2\.        .conv3.
    \.body\.pw1_norm\.   .bn1.    \.body\.spatial_norm\. .bn2.           \.body\.pw2_norm\.   .bn3."""
    ),
    "original_convnext": r"""
    ^stem\.conv\. downsample_layers.0.0.  ^stages\.(\d+)\.downsample\.norm\. downsample_layers.\1.0.
    ^stem\.norm\. downsample_layers.0.1.  ^stages\.(\d+)\.downsample\.conv\. downsample_layers.\1.1.
    ^(stages\.\d+)\.blocks\. \1."""
    + ORIGINAL_BLOCK,
    "original_isotropic": r"^stem\.conv\. stem.  ^stages\.0\.blocks\. blocks." + ORIGINAL_BLOCK,
}


@dataclass(frozen=True)
class Dialect:
    """A way to name tensors: `pairs` of pattern and replacement convert our names, in this order."""

    name: str
    pairs: tuple[tuple[str, str], ...]

    def rename(self, name: str) -> str:
        """This dialect's name for our `name`."""
        for pattern, replacement in self.pairs:
            name = re.sub(pattern, replacement, name)
        return name


DIALECTS = {
    name: Dialect(name, tuple(zip(table.split()[::2], table.split()[1::2], strict=True)))
    for name, table in TABLES.items()
}


def read_state_dict(source: str | Path, *, ema: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint, `source` as in `located`: the weights as they were trained, or their EMA.

    No code in the file is run. ConfigError if it cannot be read, or does not hold these.
    """
    return select(read_state_dicts(source), "ema" if ema else "raw", name_of(source))


def select(states: Mapping[Kind, State], kind: Kind, where: str) -> State:
    """One kind of the weights at `where`; ConfigError with the option for the other if only that is there."""
    if kind not in states:
        raise config_error(where, ABSENT[kind])
    return states[kind]


def read_state_dicts(source: str | Path) -> dict[Kind, dict[str, Tensor]]:
    """The `raw` weights in a checkpoint and their `ema`: at least one of them."""
    return read_weights(source).states


@dataclass(frozen=True)
class Weights:
    """The content of a checkpoint: `raw` weights, their `ema`, or both; and the classes of the outputs."""

    states: dict[Kind, dict[str, Tensor]]
    classes: list[str] | None


def read_weights(source: str | Path, classes: list[str] | None = None) -> Weights:
    """The content of a checkpoint, `source` as in `located`.

    `classes`, if not given, are from it or its class map. ConfigError if it cannot be read, holds no tensors,
    or its class map has other classes.
    """
    path, where = located(source), name_of(source)
    try:
        content, written = _read(path, where)
    except ConfigError:
        # the next call downloads again what may have been another file
        if scheme_of(source).startswith("http"):
            path.unlink(missing_ok=True)
        raise
    raw, average = _unwrapped(content, KEYS), _unwrapped(content, (*EMA_KEYS, *KEYS))
    found: dict[Kind, dict[str, Tensor]] = {
        "raw": _tensors(raw),
        "ema": {} if average is raw else _tensors(average),
    }
    states = {kind: tensors for kind, tensors in found.items() if tensors}
    if not states:
        raise config_error(where, "holds no tensors with names")
    return Weights(states, classes or _classes(content, written, path, where))


def _classes(content: Mapping[str, Any], written: str | None, path: Path, where: str) -> list[str] | None:
    """The names of the classes: in a run's checkpoint, in the metadata of safetensors, `written`, or in the
    class map.
    """
    data = content.get("data")
    inside = data.get("classes") if isinstance(data, Mapping) else _parsed_names(written)
    beside = class_map_beside(path)
    if not beside.is_file():
        return inside
    names = read_class_map(beside)
    if inside is not None and names != inside:
        message = f"differs from the classes of {where}; move it away, or choose one with --class-map"
        raise config_error(relative(beside), message)
    return names


def _unwrapped(content: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any]:
    """The innermost of the mappings under `keys`."""
    for _ in range(4):  # deeper than any file is nested; one that contains itself ends, too
        content = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
    return content


def _tensors(content: Mapping[str, Any]) -> dict[str, Tensor]:
    return {
        re.sub(PREFIXES, "", str(name)): value.detach()
        for name, value in content.items()
        if isinstance(value, Tensor)
    }


def _parsed_names(text: str | None) -> list[str] | None:
    """The names in a JSON list of strings; None for anything else, which other programs may put there."""
    try:
        names = json.loads(text or "")
    except ValueError:
        return None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _read(path: Path, where: str) -> tuple[Mapping[str, Any], str | None]:
    """The content of a file, and for safetensors the classes in the metadata, as JSON."""
    try:
        with path.open("rb") as file:
            head = file.read(256)
    except OSError as error:
        raise config_error(where, f"cannot be read: {error.strerror}") from error
    if not head or re.match(rb"\s*<(!doctype|html)", head, re.IGNORECASE):
        raise config_error(where, "is a web page, not a checkpoint" if head else "is empty")
    is_safetensors = head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= LONGEST_HEADER
    # PyTorch reads zip files and pickles
    if not is_safetensors and not head.startswith((b"PK", b"\x80")):
        raise config_error(
            where, "is not a checkpoint: it begins neither as PyTorch's files do nor as safetensors"
        )
    try:
        if is_safetensors:  # by content, because a blob in the Hub's cache has no suffix
            with safetensors.safe_open(path, framework="pt") as opened:
                return safetensors.torch.load_file(path), (opened.metadata() or {}).get("classes")
        # a checkpoint of the original repository holds an argparse.Namespace; for a path, PyTorch would obey
        # the suffix
        with torch.serialization.safe_globals([argparse.Namespace]), path.open("rb") as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a truncated file can raise anything
        if code := re.search(r"GLOBAL ([\w.]+)|(TorchScript) archive", str(error)):
            raise config_error(
                where,
                f"is refused: it holds {code[1] or code[2]}, and loading anything but weights could run code",
            ) from error
        raise config_error(where, "is truncated, or not a checkpoint: PyTorch cannot read it") from error
    return content if isinstance(content, Mapping) else {}, None


def _fits(theirs: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether a tensor's shape is ours, a linear layer in place of a 1x1 convolution or the reverse, or
    (1, 1, 1, C) for (C,), as for networks whose channels are the last axis.
    """
    return theirs in (ours, (*ours, 1, 1), (1, 1, 1, *ours)) or (*theirs, 1, 1) == ours


@dataclass(frozen=True)
class LoadReport:
    """How a file's tensors fit a network: `missing` are our names, and `unexpected` are the file's.

    `misshaped` are our names with the shape there and the shape here.
    """

    source: str
    dialect: str
    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def fits(self) -> bool:
        """Whether the names and shapes of all tensors match."""
        return not (self.missing or self.unexpected or self.misshaped)

    def __str__(self) -> str:
        wanted = self.loaded + len(self.missing) + len(self.misshaped)
        shapes = [f"{name} is {list(there)} there, {list(here)} here" for name, there, here in self.misshaped]
        lines = [
            f"{self.source} {'fits' if self.fits else 'does not fit'}: {self.loaded} of {wanted} tensors,"
            f" dialect {self.dialect}"
        ]
        for what, names in {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "mis-shaped": shapes,
        }.items():
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            lines += [f"  {what}: {', '.join(names[:5])}{more}"] if names else []
        if not self.loaded:
            lines.append("  no tensor fits: these are the weights of another kind of network")
        return "\n".join(lines)


def load_weights(
    network: nn.Module, source: str | Path, *, ema: bool = False, strict: bool = True
) -> LoadReport:
    """Copies a checkpoint of any dialect into `network`; `source` and `ema` as in `read_state_dict`.

    If not all tensors fit, ConfigError has the report and nothing is copied; unless `strict`, the rest is.
    """
    return copy_weights(network, read_state_dict(source, ema=ema), str(source), strict=strict)


def copy_weights(
    network: nn.Module,
    there: Mapping[str, Tensor],
    source: str,
    *,
    strict: bool = True,
    may_differ: Collection[str] = (),
) -> LoadReport:
    """Copies the tensors `there` into `network`.

    Those in `may_differ`, by our names, are kept if their shapes differ or the file has none of them.
    """
    here = network.state_dict()
    dialect = max(DIALECTS.values(), key=lambda dialect: sum(dialect.rename(name) in there for name in here))
    names = {name: dialect.rename(name) for name in here}
    found = {name: there[theirs] for name, theirs in names.items() if theirs in there}
    pairs = {name: (tuple(tensor.shape), tuple(here[name].shape)) for name, tensor in found.items()}
    misshaped = tuple((name, a, b) for name, (a, b) in pairs.items() if not _fits(a, b))
    fitting = found.keys() - {name for name, *_ in misshaped}
    missing = tuple(name for name in here if name not in found and not name.endswith("num_batches_tracked"))
    unexpected = tuple(name for name in there if name not in names.values())
    report = LoadReport(source, dialect.name, len(fitting), missing, unexpected, misshaped)
    grave = replace(report, misshaped=tuple(entry for entry in misshaped if entry[0] not in may_differ))
    if not any(name in found for name in may_differ):
        grave = replace(grave, missing=tuple(name for name in missing if name not in may_differ))
    if strict and not grave.fits:
        raise config_error("", str(report))
    with torch.no_grad():
        for name in fitting:
            here[name].copy_(found[name].reshape(here[name].shape))
    return report
