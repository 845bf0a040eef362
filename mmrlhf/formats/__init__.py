"""What rows mean: the formats of preferences, prompts and conversations, read into records and written from them.

A row is judged by its own fields, so a format is declared nowhere:

    LLaVA             conversations
    LLaVA-RLHF        conversations with output_1, output_2, preference; with captions, caption_type or length_bonus a prompt for PPO
    VLFeedback        prompt, completions: answers with annotations; as JSON, or as the Hub's table has it
    rankings          prompt, answers, and ranks or ratings
    RLHF-V            text: question, chosen and rejected as an object or as JSON
    TRL               messages; prompt with completion, or alone; prompt with chosen and rejected
    RLAIF-V, MM-RLHF  TRL's pairs with question, and with is_tie, ls_factor and reasons

Turns carry text alone: where an image stood among them is not kept. Each module imports only those before it: `turns`,
`pictures`, `preferences`, `examples`, `reading`, `writing`.
"""

from mmrlhf.formats.examples import example_of, layout_of
from mmrlhf.formats.pictures import beside_of
from mmrlhf.formats.preferences import is_preference, preference_of
from mmrlhf.formats.reading import Records, holds_preferences, read_examples, read_preferences
from mmrlhf.formats.writing import FORMATS, pairs_of

__all__ = [
    "FORMATS", "Records", "beside_of", "example_of", "holds_preferences", "is_preference", "layout_of", "pairs_of",
    "preference_of", "read_examples", "read_preferences",
]  # fmt: skip
