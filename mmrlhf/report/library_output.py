"""What libraries and the engine print in a process of a command."""

from __future__ import annotations

import logging
import sys
import warnings


def silence_libraries() -> None:
    """Keep advice of libraries that the user cannot follow out of the output.

    Other warnings, and errors, stay.
    """
    # PEFT imports bitsandbytes, which advises on an optional kernel.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # An adapter records its base as a path, which a run may spell differently.
    warnings.filterwarnings("ignore", "The PEFT config's `base_model_name_or_path` was renamed", UserWarning)
    # PEFT uses a name deprecated by transformers, which the user cannot change.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def print_engine_notes() -> None:
    """Print the engine's decisions, such as whether it shares prefixes."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    logger = logging.getLogger("mmrlhf")
    logger.setLevel(logging.INFO)
    logger.handlers = [handler]  # not a second one, if it is called again


def prints_engine_notes() -> bool:
    """Return whether this process prints the engine's decisions."""
    return logging.getLogger("mmrlhf").isEnabledFor(logging.INFO)
