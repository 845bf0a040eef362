"""Dataset formats: parse rows of preferences, prompts and conversations into records, and back.

A row's format is not declared, but recognised by its fields:

    LLaVA             conversations
    LLaVA-RLHF        conversations with output_1, output_2, preference; a prompt for PPO has
                      captions, caption_type or length_bonus instead
    VLFeedback        prompt, completions: answers with annotations; as JSON, or as the Hub's table
    rankings          prompt, answers, and ranks or ratings
    RLHF-V            text: question, chosen and rejected as an object or as JSON
    LLaMA-Factory     conversations (or messages), with chosen and rejected as turns
    ms-swift          messages with rejected_response or rejected_messages; or query and response
    TRL               messages; prompt with completion, or alone; prompt with chosen and rejected
    RLAIF-V, MM-RLHF  TRL's pairs with question, and with is_tie, ls_factor and reasons

Each module imports only those before it: `conversations`, `image_fields`, `llamafactory_swift`,
`preferences`, `examples`, `load`, `write`, `write_examples`.
"""

from mmrlhf.datasets.examples import detect_format, parse_example
from mmrlhf.datasets.image_fields import row_context
from mmrlhf.datasets.load import (
    Records,
    has_preferences,
    have_facts,
    read_answers,
    read_examples,
    read_preferences,
    read_records,
    subset,
)
from mmrlhf.datasets.preferences import is_preference, parse_preference
from mmrlhf.datasets.write import FORMATS, to_pairs
from mmrlhf.datasets.write_examples import EXAMPLE_FORMATS

__all__ = [
    "EXAMPLE_FORMATS",
    "FORMATS",
    "Records",
    "detect_format",
    "has_preferences",
    "have_facts",
    "is_preference",
    "parse_example",
    "parse_preference",
    "read_answers",
    "read_examples",
    "read_preferences",
    "read_records",
    "row_context",
    "subset",
    "to_pairs",
]
