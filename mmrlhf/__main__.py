"""Run `python -m mmrlhf`, or `torchrun -m mmrlhf` for several processes."""

import sys

from mmrlhf.cli import main

sys.exit(main())
