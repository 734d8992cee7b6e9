"""The part of a configuration that describes the network, in orthogonal axes."""

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


Kernel = Annotated[Count, AfterValidator(_odd), Field(json_schema_extra={"not": {"multipleOf": 2}})]


def _distinct(places: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(places)) < len(places):
        raise ValueError(f"a place is named twice in [{', '.join(places)}]")
    return places


class Spec(BaseModel):
    """Base of all configuration sections: immutable, strictly typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class SpatialSpec(Spec):
    """The layer of a block that mixes positions: a convolution, or what replaces it."""

    kind: Annotated[str, _kind("spatial"), _names("spatial")] = Field(
        description=(
            "Dense `conv`, or `depthwise`: k x k; `decomposed`: 5 x k plus k x 5; `multiscale`: 3x3, k x k,"
            " and dilated by 3; `inception`: 3x3, 1 x k, k x 1, and none. `pooling` is the mean minus the"
            " input, `identity` mixes nothing, `window_attention` attends within k x k."
        )
    )
    kernel: Kernel = Field(description="Side k of the kernel or the window in positions, an odd number.")


class NormSpec(Spec):
    """The normalization and the convolutions that it follows."""

    kind: Annotated[str, _kind("norm"), _names("norm")] = Field(
        description=(
            "`bn` is batch normalization, `ln` LayerNorm over the channels at each position, `rms` the same"
            " without mean and shift. All norms of the network are of this kind."
        )
    )
    after: Annotated[tuple[Conv, ...], AfterValidator(_distinct)] = Field(
        description="The block's convolutions that a norm follows."
    )


class ActSpec(Spec):
    """The activation and what it follows."""

    kind: Annotated[str, _kind("act"), _names("act")] = Field(
        description=(
            "timm's name for the activation of the blocks and of a `resnet` stem; `gelu` is exact, with the"
            " error function."
        )
    )
    after: Annotated[tuple[Place, ...], AfterValidator(_distinct)] = Field(
        description="What an activation follows: convolutions of the block, or `sum`, the residual addition."
    )


class BlockSpec(Spec):
    """A residual block: the order of its three convolutions, their channels, and what follows each."""

    order: tuple[Conv, Conv, Conv] = Field(
        description=(
            "Order of the block's convolutions: `pw1` and `pw2` are 1x1, `spatial` is the spatial mixer."
            " `pw1` comes before `pw2`."
        )
    )
    hidden: Count = Field(description="Channels of the output of `pw1`, in stage widths.")
    out: Count = Field(description="Channels of the output of `pw2` and of the block, in stage widths.")
    spatial: SpatialSpec = Field(description="The block's spatial mixer.")
    norm: NormSpec = Field(description="The normalization, and where it is in the block.")
    act: ActSpec = Field(description="The activation, and where it is in the block.")
    gate: bool = Field(
        description=(
            "Whether `pw1` makes two tensors of 2/3 of the hidden channels, so that parameters stay, and the"
            " first one, after an activation on `pw1`, multiplies the second; `silu` makes it SwiGLU."
        )
    )
    grn: bool = Field(
        description=(
            "Whether global response normalization, as in ConvNeXt V2, follows `pw1`, its activation and"
            " gate."
        )
    )
    squeeze_excite: Annotated[float, Field(gt=0, le=1)] | None = Field(
        description=(
            "Channels between the two layers of squeeze-and-excitation, as a fraction; it follows the spatial"
            " mixer, its norm and activation. null is none."
        )
    )
    layer_scale: Annotated[float, Field(gt=0)] | None = Field(
        description=(
            "Initial value of a learnable factor per channel at the end of the block's body; null is none."
        )
    )

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if sorted(self.order) != ["pw1", "pw2", "spatial"]:
            raise ValueError(f"order must hold pw1, spatial and pw2 once each, not {', '.join(self.order)}")
        if self.order.index("pw1") > self.order.index("pw2"):
            raise ValueError("pw1 sets the hidden channels and pw2 the output's, so pw1 must come before pw2")
        return self


class StemSpec(Spec):
    """The layers before the first stage."""

    kind: Literal["resnet", "patchify", "overlapping"] = Field(
        description=(
            "`resnet` is a 7x7 convolution, activation and max pool; `patchify` is one convolution without"
            " overlap; `overlapping` is a 3x3 convolution of stride 2 for each factor 2 of the stride."
        )
    )
    stride: Annotated[int, Field(ge=2)] = Field(
        description=(
            "Factor by which the stem reduces the image, and the side of a `patchify` patch in pixels. It is"
            " even for `resnet`, whose max pool halves the image, and a power of two for `overlapping`."
        )
    )
    norm: bool = Field(description="Whether a norm follows the stem's convolution.")

    @model_validator(mode="after")
    def _check_stride(self) -> Self:
        if self.kind == "resnet" and self.stride % 2:
            raise ValueError(
                "the max pool of a resnet stem halves the image, so the stem's stride must be even, not"
                f" {self.stride}"
            )
        if self.kind == "overlapping" and self.stride & (self.stride - 1):
            raise ValueError(
                "each convolution of an overlapping stem halves the image, so the stem's stride must be a"
                f" power of two, not {self.stride}"
            )
        return self


class ModelSpec(Spec):
    """A network for square images."""

    in_chans: Count = Field(description="Channels of an image: 3 for RGB, 1 for gray.")
    num_classes: Count = Field(description="Number of classes, which is the classifier's number of outputs.")
    depths: Annotated[tuple[Count, ...], Field(min_length=1)] = Field(
        description="Number of blocks in each stage."
    )
    width: Count = Field(
        description=(
            "Stage width of the first stage in channels, before `width_mult`; stage i has `width *"
            " width_mult * 2**i` channels."
        )
    )
    width_mult: Annotated[float, Field(gt=0, le=64)] = Field(
        description="Factor on the width of every stage, for narrower or wider networks."
    )
    drop_path: Rate = Field(
        description="Stochastic depth rate of the last block; it rises linearly from 0 at the first block."
    )
    init: Literal["kaiming_fan_out", "default", "trunc_normal"] = Field(
        description=(
            "Initial weights. `kaiming_fan_out` is torchvision's ResNet, `trunc_normal` is ConvNeXt's (std"
            " 0.02), `default` is PyTorch's for convolutions and a truncated normal of std 0.02 for the"
            " classifier."
        )
    )
    stem: StemSpec = Field(description="The first layers.")
    block: BlockSpec = Field(
        description="The residual block, which is the same in all stages but for its width."
    )
    downsample: Literal["block", "separate"] = Field(
        description=(
            "What halves the image between stages: `block`, the spatial convolution of the next stage's"
            " first block, or `separate`, an additional 2x2 convolution."
        )
    )
    downsample_norm: bool = Field(
        description=(
            "Whether a norm precedes the convolution of `separate` downsampling; it is true with `block`,"
            " which has no such norm."
        )
    )
    head_norm: bool = Field(description="Whether a norm follows the global average pool.")

    @model_validator(mode="after")
    def _check_width(self) -> Self:
        if self.stage_width(0) < 4:
            raise ValueError(
                f"width {self.width} x {self.width_mult} is {self.stage_width(0)} channels; at least 4 are"
                " needed"
            )
        return self

    @model_validator(mode="after")
    def _check_downsample(self) -> Self:
        if not self.downsample_norm and self.downsample == "block":
            raise ValueError(
                "downsample_norm false needs downsample separate; downsample block has no norm between stages"
            )
        return self

    def stage_width(self, stage: int) -> int:
        """The width of a stage in channels."""
        return round(self.width * self.width_mult) << stage
