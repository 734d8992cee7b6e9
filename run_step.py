"""Trains or evaluates one step of the roadmap: python run_step.py kernel_7 --profile digits_noisy."""

from __future__ import annotations

import sys

from roadmap.cli.run import parser, run
from roadmap.options import main_of

if __name__ == "__main__":
    sys.exit(main_of(parser(), run))
