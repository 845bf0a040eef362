"""`python -m mmrlhf`, and with several processes `torchrun -m mmrlhf`."""

import sys

from mmrlhf.cli import main

sys.exit(main())
