"""Trains or evaluates one step of the roadmap: python run_step.py kernel_7 --profile digits_noisy."""

from __future__ import annotations

import sys

from roadmap.cli.options import main_of
from roadmap.cli.run import parser, run

if __name__ == "__main__":
    sys.exit(main_of(parser(), run))
