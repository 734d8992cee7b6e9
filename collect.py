"""Makes tables, figures and a page from finished runs: python collect.py runs --out reports/mine."""

from __future__ import annotations

import sys

from roadmap.cli.collect import parser, run
from roadmap.cli.options import main_of

if __name__ == "__main__":
    sys.exit(main_of(parser(), run))
