"""What an answer says about the picture: visual claims with their places in the text.

Each module imports only those before it: `grammar`, `lexicon`, `chair` (CHAIR's own matching, on the same lexicon), `tagging`, `choosing`, `phrases`, `made`,
`predicates`, `places`, `extraction`.
"""

from mmrlhf.claims.chair import Mention, find_mentions, load_synonyms
from mmrlhf.claims.extraction import extract_claims
from mmrlhf.claims.lexicon import Lexicon, load_lexicon

VERSION = 1
"""Of what is extracted: a file of claims that another version began is not continued."""

__all__ = ["VERSION", "Lexicon", "Mention", "extract_claims", "find_mentions", "load_lexicon", "load_synonyms"]
