"""What a network is made of, in orthogonal axes: the part of a configuration that describes the model."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from blocks.layers import kinds, one_of

Conv = Literal["pw1", "spatial", "pw2"]
Place = Literal["pw1", "spatial", "pw2", "sum"]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]


def _kind(role: str) -> AfterValidator:
    return AfterValidator(lambda value: one_of(f"{role} kind", value, kinds(role)))


def _names(role: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": list(kinds(role))})


def _odd(value: int) -> int:
    if value % 2 == 0:
        raise ValueError(f"a kernel must be odd to keep its output centered, not {value}")
    return value


def _distinct(places: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(places)) < len(places):
        raise ValueError(f"a place is named twice in [{', '.join(places)}]")
    return places


class Spec(BaseModel):
    """Base of all configuration sections: immutable, strictly typed, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class SpatialSpec(Spec):
    """The block's spatial mixer; `kernel` is its side in pixels."""

    kind: Annotated[str, _kind("spatial"), _names("spatial")]
    kernel: Annotated[Count, AfterValidator(_odd), Field(json_schema_extra={"not": {"multipleOf": 2}})]


class NormSpec(Spec):
    """The normalization and the convolutions that it follows."""

    kind: Annotated[str, _kind("norm"), _names("norm")]
    after: Annotated[tuple[Conv, ...], AfterValidator(_distinct)]


class ActSpec(Spec):
    """The activation and the places that it follows; `sum` is the residual addition."""

    kind: Annotated[str, _kind("act"), _names("act")]
    after: Annotated[tuple[Place, ...], AfterValidator(_distinct)]


class BlockSpec(Spec):
    """A residual block: the order of its three convolutions, their channels in stage widths, and what follows
    each.
    """

    order: tuple[Conv, Conv, Conv]
    hidden: Count
    out: Count
    spatial: SpatialSpec
    norm: NormSpec
    act: ActSpec
    layer_scale: Annotated[float, Field(gt=0)] | None

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if sorted(self.order) != ["pw1", "pw2", "spatial"]:
            raise ValueError(f"order must hold pw1, spatial and pw2 once each, not {', '.join(self.order)}")
        if self.order.index("pw1") > self.order.index("pw2"):
            raise ValueError("pw1 sets the hidden channels and pw2 the output's, so pw1 must come before pw2")
        return self


class StemSpec(Spec):
    """The first layers: `resnet` is convolution, activation and max pool; `patchify` one convolution without
    overlap.
    """

    kind: Literal["resnet", "patchify"]
    stride: Annotated[int, Field(ge=2)]
    norm: bool

    @model_validator(mode="after")
    def _check_stride(self) -> Self:
        if self.kind == "resnet" and self.stride % 2:
            raise ValueError(
                "the max pool of a resnet stem halves the image, so its stride must be even, not"
                f" {self.stride}"
            )
        return self


class ModelSpec(Spec):
    """A whole network for square images of `in_chans` channels; stage i has `width * width_mult * 2**i`
    channels.
    """

    in_chans: Count
    num_classes: Count
    depths: Annotated[tuple[Count, ...], Field(min_length=1)]
    width: Count
    width_mult: Annotated[float, Field(gt=0, le=64)]
    drop_path: Rate
    init: Literal["kaiming_fan_out", "default", "trunc_normal"]
    stem: StemSpec
    block: BlockSpec
    downsample: Literal["block", "separate"]
    downsample_norm: bool
    head_norm: bool

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.stage_width(0) < 4:
            raise ValueError(
                f"width {self.width} x {self.width_mult} leaves {self.stage_width(0)} channels; 4 are the"
                " least"
            )
        return self

    @model_validator(mode="after")
    def _check_downsample(self) -> Self:
        if not self.downsample_norm and self.downsample == "block":
            raise ValueError(
                "downsample_norm false has no meaning while downsample is block, which has no norm of its own"
                " between stages"
            )
        return self

    def stage_width(self, stage: int) -> int:
        """The width of a stage in channels."""
        return round(self.width * self.width_mult) << stage
