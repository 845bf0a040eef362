"""Visual claims of an answer about its image, with their spans in the text.

Modules in the order of their imports:

- words: `grammar` (word lists), `tags` (the tag set), `lexicon`, `chair` (CHAIR's matching)
- one tag per word: `markup` (what is not prose), `tagging`, `verb_forms`, `word_context`,
  `tag_rules`, `verb_or_other`, `content_words`, `disambiguation`
- claims of a sentence: `noun_phrases`, `builder`, `actions`, `predicates`, `place_rules`,
  `image_places`, `relations`, `phrase_roles`, `pronouns`, `list_items`, `connectives`, `extraction`
- an answer without one claim: `tagged_text`, `removal`
"""

from mmrlhf.claims.chair import Mention, find_mentions, load_synonyms
from mmrlhf.claims.extraction import extract_claims
from mmrlhf.claims.lexicon import Lexicon, load_lexicon

VERSION = 5
"""Version of the rules. A claims file begun by another version cannot be resumed."""

__all__ = ["VERSION", "Lexicon", "Mention", "extract_claims", "find_mentions", "load_lexicon", "load_synonyms"]
