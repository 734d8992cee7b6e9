"""Fine-tunes a UPerNet on any step's backbone for semantic segmentation, as the paper does on ADE20K.

    python examples/segmentation.py train DATA --backbone roadmap_gelu --init-from WEIGHTS --out DIR
    python examples/segmentation.py predict DIR IMAGES MASKS
    python examples/segmentation.py parameters

DATA has images in train/images and val/images, and a mask for each in train/masks and val/masks, whose one
channel holds class indices. The same command resumes a run that was stopped. This file has the
options; the network, its data, and its training are in upernet.py.
"""

from __future__ import annotations

import argparse
import sys

from pydantic import Field

from blocks.spec import Count
from roadmap.cli.options import Parser, main_of
from roadmap.config import NonNegative
from roadmap.downstream_options import FineTuning, add_options, add_prediction_options


class Segmentation(FineTuning):
    """How a UPerNet is trained; the defaults are the paper's for ConvNeXt-T on ADE20K."""

    image_size: Count = Field(
        512, multiple_of=32, title="PX", description="pixels of an image's shorter side, a multiple of 32"
    )
    channels: Count = Field(512, title="CHANNELS", description="channels of the decoder")
    auxiliary: NonNegative = Field(0.4, title="WEIGHT", description="weight of the auxiliary head's loss")
    ignore: int = Field(
        255, ge=0, title="INDEX", description="value of pixels without a class; for ADE20K's masks 0"
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = Parser(description="Semantic segmentation with a UPerNet on any step's backbone.")
    commands = options.add_subparsers(dest="command", required=True, metavar="COMMAND")
    training = commands.add_parser("train", help="train, or resume, and print the IoU of each class")
    add_options(training, Segmentation)
    prediction = commands.add_parser("predict", help="write a mask for each image in a folder")
    add_prediction_options(prediction, "masks")
    commands.add_parser("parameters", help="print the parameters of the paper's UPerNets")
    return options


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from upernet import COMMANDS  # with PyTorch, which --help does not need

    return COMMANDS[arguments.command](arguments, Segmentation)


if __name__ == "__main__":
    sys.exit(main_of(parser(), run))
