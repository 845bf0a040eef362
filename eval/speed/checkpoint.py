"""Write the checkpoint that the scripts of this folder take: a published shape with random weights.

python eval/speed/checkpoint.py DIR [--shape llava-10m]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from _models import LLAVA_SHAPES, save_llava


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--shape", default="llava-10m", choices=LLAVA_SHAPES)
    args = parser.parse_args()
    torch.manual_seed(0)
    save_llava(args.shape, args.folder)


if __name__ == "__main__":
    main()
