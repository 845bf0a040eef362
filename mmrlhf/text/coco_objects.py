"""Find COCO's 80 objects in captions: synonyms, CHAIR's matching (Rohrbach et al. 2018), our own.

`chair_mentions` looks up singular words, which the caller provides, as CHAIR's scripts do.
`find_objects` is the project's own matching, which takes a text. No torch.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence

OBJECT_SYNONYMS = """
person: girl boy man woman kid child chef baker people adult rider children baby worker passenger sister biker
    policeman cop officer lady cowboy bride groom male female guy traveler mother father gentleman pitcher
    player skier snowboarder skater skateboarder foreigner caller offender coworker trespasser patient
    politician soldier grandchild serviceman walker drinker doctor bicyclist thief buyer teenager student
    camper driver solider hunter shopper villager
bicycle: bike unicycle minibike trike
car: automobile van minivan sedan suv hatchback cab jeep coupe taxicab limo taxi
motorcycle: scooter motor_bike motor_cycle motorbike moped
airplane: jetliner plane air_plane monoplane aircraft jet airbus biplane seaplane
bus: minibus trolley
train: locomotive tramway caboose
truck: pickup lorry hauler firetruck
boat: ship liner sailboat motorboat dinghy powerboat speedboat canoe skiff yacht kayak catamaran pontoon
    houseboat vessel rowboat trawler ferryboat watercraft tugboat schooner barge ferry sailboard paddleboat
    lifeboat freighter steamboat riverboat battleship steamship
traffic_light: street_light traffic_signal stop_light streetlight stoplight
fire_hydrant: hydrant
stop_sign:
parking_meter:
bench: pew
bird: ostrich owl seagull goose duck parakeet falcon robin pelican waterfowl heron hummingbird mallard finch
    pigeon sparrow seabird osprey blackbird fowl shorebird woodpecker egret chickadee quail bluebird
    kingfisher buzzard willet gull swan bluejay flamingo cormorant parrot loon gosling waterbird pheasant
    rooster sandpiper crow raven turkey oriole cowbird warbler magpie peacock cockatiel lorikeet puffin
    vulture condor macaw peafowl cockatoo songbird
cat: kitten feline tabby
dog: puppy beagle pup chihuahua schnauzer dachshund rottweiler canine pitbull collie pug terrier poodle
    labrador doggie doberman mutt doggy spaniel bulldog sheepdog weimaraner corgi cocker greyhound retriever
    brindle hound whippet husky
horse: colt pony racehorse stallion equine mare foal palomino mustang clydesdale bronc bronco
sheep: lamb ram goat ewe
cow: cattle oxen ox calf holstein heifer buffalo bull zebu bison
elephant:
bear: panda
zebra:
giraffe:
backpack: knapsack
umbrella:
handbag: wallet purse briefcase
tie: bow bow_tie
suitcase: suit_case luggage
frisbee:
skis: ski
snowboard:
sports_ball: ball
kite:
baseball_bat:
baseball_glove:
skateboard:
surfboard: longboard skimboard shortboard wakeboard
tennis_racket: racket
bottle:
wine_glass:
cup:
fork:
knife: pocketknife knive
spoon:
bowl: container
banana:
apple:
sandwich: burger sub cheeseburger hamburger
orange:
broccoli:
carrot:
hot_dog:
pizza:
donut: doughnut bagel
cake: cheesecake cupcake shortcake coffeecake pancake
chair: seat stool
couch: sofa recliner futon loveseat settee chesterfield
potted_plant: houseplant
bed:
dining_table: table desk
toilet: urinal commode lavatory potty
tv: monitor televison television
laptop: computer notebook netbook lenovo macbook laptop_computer
mouse:
remote:
keyboard:
cell_phone: mobile_phone phone cellphone telephone phon smartphone iphone
microwave:
oven: stovetop stove stove_top_oven
toaster:
sink:
refrigerator: fridge freezer
book:
clock:
vase:
scissors:
teddy_bear: teddybear
hair_drier: hairdryer
toothbrush:
"""
"""Each object's name and its synonyms; `_` stands for a space. The misspellings are CHAIR's."""
COCO_ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
UNMATCHED_SYNONYMS = frozenset({"motor bike", "cheesecake", "iphone", "stove top oven"})
"""Words that CHAIR's scripts list but never match: in their file two begin with a space, one has a
capital, and one has three parts.
"""


@functools.cache
def object_by_synonym() -> dict[str, str]:
    """Return the object that each word names; the words include the objects' own names."""
    names = {}
    for line in OBJECT_SYNONYMS.strip().replace("\n    ", " ").split("\n"):
        object_name, _, synonyms = line.partition(":")
        for synonym in (object_name, *synonyms.split()):
            names[synonym.replace("_", " ")] = object_name.replace("_", " ")
    return names


# ---- CHAIR's matching --------------------------------------------------------------------------


@functools.cache
def compound_names() -> dict[str, str]:
    """Return CHAIR's replacement for each pair of words.

    `baby bird` becomes bird, since it is not a person and a bird.
    """
    compounds = [word for word in object_by_synonym() if word.count(" ") == 1 and word != "dining table"]
    # The last two are not objects: they keep `plate` and `train` from being matched.
    names = {word: word for word in [*compounds, "home plate", "train track"]}
    names |= {f"{age} {animal}": animal for age in ("baby", "adult") for animal in (*COCO_ANIMALS, "animal", "cub")}
    names |= {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
    return names | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}


def merge_compounds(words: Sequence[str], compounds: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """Merge pairs of words that are keys of `compounds`; return each unit's start, end and word."""
    units, start = [], 0
    while start < len(words):
        compound = compounds.get(" ".join(words[start : start + 2]))
        end = start + (1 if compound is None else 2)
        units.append((start, end, words[start] if compound is None else compound))
        start = end
    return units


def match_objects(
    words: Sequence[str], node_by_word: Mapping[str, str], compounds: Mapping[str, str] | None = None
) -> Iterator[tuple[int, int, str, str]]:
    """Yield start, end, word and class of each object named in a caption's singular words.

    A pair of words takes precedence over its parts. A seat in a caption that names a toilet is not
    a chair.
    """
    units = merge_compounds(words, compound_names() if compounds is None else compounds)
    has_toilet = any(word == "toilet" for _, _, word in units)
    for start, end, word in units:
        if word in node_by_word and not (word == "seat" and has_toilet):
            yield start, end, word, node_by_word[word]


@functools.cache
def _matchable_synonyms() -> dict[str, str]:
    return {word: name for word, name in object_by_synonym().items() if word not in UNMATCHED_SYNONYMS}


def chair_mentions(words: Sequence[str]) -> tuple[list[tuple[str, str]], int]:
    """Return CHAIR's (word, object) mentions among singular words, and the number of words.

    A merged pair counts as one word.
    """
    mentions = [(word, name) for _, _, word, name in match_objects(words, _matchable_synonyms())]
    return mentions, len(merge_compounds(words, compound_names()))


# ---- the project's own matching ----------------------------------------------------------------

_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE_END = re.compile(r"[.!?;:\n]")
_NEGATION = re.compile(r"\b(?:no|without|not)(?: (?:a|an|any|visible|other))*$")
_MAX_NAME_WORDS = 3


def find_objects(text: str) -> list[tuple[str, str]]:
    """Return the (word, object) mentions in a text, in order.

    Unlike CHAIR, it follows the rules of English plurals, prefers the longest name, and skips
    negated objects ("no cat").
    """
    objects = []
    for sentence in _SENTENCE_END.split(text.lower()):
        words = list(_WORD.finditer(sentence))
        i = 0
        while i < len(words):
            for length in range(min(_MAX_NAME_WORDS, len(words) - i), 0, -1):
                name_words = words[i : i + length]
                surface = sentence[name_words[0].start() : name_words[-1].end()]
                # Only a space or a hyphen may separate the words of a name.
                if length > 1 and not re.fullmatch(r"[^\W\d_]+(?:[ -][^\W\d_]+)*", surface):
                    continue
                word = _lookup(" ".join(match.group() for match in name_words))
                if word is not None:
                    is_negated = _NEGATION.search(sentence[: name_words[0].start()].rstrip())
                    if word in object_by_synonym() and not is_negated:
                        objects.append((word, object_by_synonym()[word]))
                    i += length
                    break
            else:
                i += 1
    if any(word == "toilet" for word, _ in objects):
        objects = [pair for pair in objects if pair[0] != "seat"]
    return objects


@functools.lru_cache(maxsize=1 << 16)
def _lookup(words: str) -> str | None:
    """Return the listed name that the words are a singular or plural form of, or None.

    Tries all English plural endings and takes the first singular that is listed. Without a list,
    `answer_words.singularize` needs stricter rules.
    """
    head, space, last = words.rpartition(" ")
    singulars = [last]
    if last.endswith("s"):
        singulars += [last[:-1], last[:-2] if last.endswith("es") else last]
        singulars += [
            last[:-3] + replacement
            for suffix, replacements in (("ies", ("y",)), ("ves", ("f", "fe")))
            if last.endswith(suffix)
            for replacement in replacements
        ]
    if last.endswith("men"):
        singulars.append(f"{last[:-3]}man")
    singulars += {"mice": ["mouse"], "geese": ["goose"]}.get(last, [])
    for singular in singulars:
        name = f"{head}{space}{singular}"
        if name in compound_names():
            return compound_names()[name]
        if name in object_by_synonym():
            return name
    return None
