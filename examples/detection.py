"""Fine-tunes a Mask R-CNN on any step's backbone for object detection and instance segmentation.

    python examples/detection.py train DATA --backbone roadmap_family_convnext_t --init-from WEIGHTS --out DIR
    python examples/detection.py predict DIR IMAGES OBJECTS
    python examples/detection.py coco instances_train2017.json DATA train

DATA has images in train/images and val/images, and a mask for each in train/masks and val/masks, a PNG of 8
or 16 bits. A pixel of an object is 1000 x its class + its number, as in Cityscapes' instance masks, and 0 is
background: 1001 and 1002 are two objects of class 1. Data of one class, class 0, has objects 1, 2, 3, and so
on. `coco` writes such masks from annotations in COCO's format. The same command of `train` resumes a run.
This file has the options; the network, its data, and its training are in mask_rcnn.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import Field

from blocks.spec import Count
from roadmap.cli.options import Parser, main_of
from roadmap.downstream_options import (
    Epochs,
    FineTuning,
    LayerDecay,
    LayerDecayBy,
    add_options,
    add_prediction_options,
)


class Detection(FineTuning):
    """How a Mask R-CNN is trained; the defaults are the paper's for T, but for the image size."""

    layer_decay: LayerDecay = 0.95
    layer_decay_by: LayerDecayBy = "layer"
    epochs: Epochs = 36
    channels: Count = Field(
        256, title="CHANNELS", description="channels of the feature pyramid and the mask head"
    )
    regions: Count = Field(512, title="REGIONS", description="regions of an image from which the heads learn")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = Parser(
        description="Object detection and instance segmentation with a Mask R-CNN on any step's backbone."
    )
    commands = options.add_subparsers(dest="command", required=True, metavar="COMMAND")
    training = commands.add_parser(
        "train", help="train, or resume, and print recall and mask IoU of each class"
    )
    add_options(training, Detection)
    prediction = commands.add_parser("predict", help="write the objects in each image of a folder")
    add_prediction_options(prediction, "objects")
    conversion = commands.add_parser("coco", help="write the masks of annotations in COCO's format")
    conversion.add_argument("annotations", type=Path, metavar="FILE", help="such as instances_train2017.json")
    conversion.add_argument("data", type=Path, metavar="DATA", help="folder for SPLIT/masks and classes.txt")
    conversion.add_argument("split", choices=("train", "val"), metavar="SPLIT", help="train or val")
    for command in (training, prediction):
        command.add_argument(
            "--score",
            type=float,
            default=0.5,
            metavar="SCORE",
            help="least score of a detection (default: 0.5)",
        )
    return options


def run(arguments: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from mask_rcnn import COMMANDS  # with PyTorch, which --help does not need

    return COMMANDS[arguments.command](arguments, Detection)


if __name__ == "__main__":
    sys.exit(main_of(parser(), run))
