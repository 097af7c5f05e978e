"""The pool of a job that trials share, imgtool's own, whose trials are those of the stand-in."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from commands.main import main
from imgtool.sweep import jobs
from tests.fake_lsf.plans import TRAINER

jobs.program = lambda: TRAINER
main()
