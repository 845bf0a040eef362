"""The command line and the loop over seeds of benchmarks that keep a file per seed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmrlhf.files.atomic import write_atomic


def parse_args(description: str | None, defaults: Mapping[str, int]) -> argparse.Namespace:
    """Parse --shape, --out and the integer flags in `defaults`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llava-10m")
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", metavar="DIR", help="save each seed's results there, and skip seeds that have some")
    return parser.parse_args()


def measure_seeds(
    name: str, args: argparse.Namespace, measure: Callable[[argparse.Namespace, int], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return what `measure` returns for each of `args.seeds` seeds; kept ones of the same sizes are
    read instead."""
    sizes = {key: value for key, value in vars(args).items() if key not in ("out", "seeds")}
    results = []
    for seed in range(args.seeds):
        path = Path(args.out) / f"{name}-{args.shape.replace('/', '_')}-{seed}.json" if args.out else None
        if path is not None and path.exists() and (kept := json.loads(path.read_text())).get("sizes") == sizes:
            results.append(kept)
            continue
        results.append({**measure(args, seed), "sizes": sizes})
        if path is not None:
            write_atomic(path, json.dumps(results[-1]))
    return results
