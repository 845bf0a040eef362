"""The words by which captions name COCO's 80 objects, and how CHAIR finds them (Rohrbach et al. 2018). No torch.

`mentions` looks words up the way CHAIR's scripts do, from tokens that the caller has brought to their singular; `read` is the project's own
reading, which needs nothing but the text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

OBJECT_SYNONYMS = """
person: girl boy man woman kid child chef baker people adult rider children baby worker passenger sister biker policeman cop officer lady
    cowboy bride groom male female guy traveler mother father gentleman pitcher player skier snowboarder skater skateboarder foreigner
    caller offender coworker trespasser patient politician soldier grandchild serviceman walker drinker doctor bicyclist thief buyer
    teenager student camper driver solider hunter shopper villager
bicycle: bike unicycle minibike trike
car: automobile van minivan sedan suv hatchback cab jeep coupe taxicab limo taxi
motorcycle: scooter motor_bike motor_cycle motorbike moped
airplane: jetliner plane air_plane monoplane aircraft jet airbus biplane seaplane
bus: minibus trolley
train: locomotive tramway caboose
truck: pickup lorry hauler firetruck
boat: ship liner sailboat motorboat dinghy powerboat speedboat canoe skiff yacht kayak catamaran pontoon houseboat vessel rowboat trawler
    ferryboat watercraft tugboat schooner barge ferry sailboard paddleboat lifeboat freighter steamboat riverboat battleship steamship
traffic_light: street_light traffic_signal stop_light streetlight stoplight
fire_hydrant: hydrant
stop_sign:
parking_meter:
bench: pew
bird: ostrich owl seagull goose duck parakeet falcon robin pelican waterfowl heron hummingbird mallard finch pigeon sparrow seabird osprey
    blackbird fowl shorebird woodpecker egret chickadee quail bluebird kingfisher buzzard willet gull swan bluejay flamingo cormorant
    parrot loon gosling waterbird pheasant rooster sandpiper crow raven turkey oriole cowbird warbler magpie peacock cockatiel lorikeet
    puffin vulture condor macaw peafowl cockatoo songbird
cat: kitten feline tabby
dog: puppy beagle pup chihuahua schnauzer dachshund rottweiler canine pitbull collie pug terrier poodle labrador doggie doberman mutt
    doggy spaniel bulldog sheepdog weimaraner corgi cocker greyhound retriever brindle hound whippet husky
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
"""Each object's own word, and others for it; `_` is a blank. The misspellings are CHAIR's."""
ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]
UNMATCHED_SYNONYMS = frozenset({"motor bike", "cheesecake", "iphone", "stove top oven"})
"""Words that CHAIR's scripts list and never find: two begin with a blank, one with a capital, one has three parts."""


@functools.cache
def object_by_synonym() -> dict[str, str]:
    """Every word and the object that it names."""
    names = {}
    for line in OBJECT_SYNONYMS.strip().replace("\n    ", " ").split("\n"):
        object_name, _, synonyms = line.partition(":")
        for synonym in (object_name, *synonyms.split()):
            names[synonym.replace("_", " ")] = object_name.replace("_", " ")
    return names


@functools.cache
def compound_names() -> dict[str, str]:
    """Two words that are one, and the word that they are: `baby bird` is a bird, not a person and a bird."""
    compounds = [word for word in object_by_synonym() if word.count(" ") == 1 and word not in ("dining table",)] + [
        "home plate",
        "train track",
    ]
    names = {word: word for word in compounds}
    names |= {f"{young} {animal}": animal for young in ("baby", "adult") for animal in ANIMALS}
    names |= {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
    return names | {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}


def chair_mentions(words: Sequence[str]) -> tuple[list[tuple[str, str]], int]:
    """Words of a caption that name an object, each with the object, as CHAIR's scripts find them; and how many words it has when pairs are one."""
    merged = []
    i = 0
    while i < len(words):
        pair = " ".join(words[i : i + 2])
        merged.append(compound_names().get(pair, words[i]))
        i += 2 if pair in compound_names() else 1
    candidates = [word for word in merged if word != "seat"] if "toilet" in merged and "seat" in merged else merged
    return [
        (word, object_by_synonym()[word]) for word in candidates if word in object_by_synonym() and word not in UNMATCHED_SYNONYMS
    ], len(merged)


# ---- the project's own reading ---------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE_END = re.compile(r"[.!?;:\n]")
_NEGATION = re.compile(r"\b(?:no|without|not)(?: (?:a|an|any|visible|other))*$")
_MAX_NAME_WORDS = 3


def find_objects(text: str) -> list[tuple[str, str]]:
    """Words that name an object, each with the object: plurals as English has them, longest names first, and not what is denied ("no cat")."""
    objects = []
    for sentence in _SENTENCE_END.split(text.lower()):
        words = list(_WORD.finditer(sentence))
        i = 0
        while i < len(words):
            for length in range(min(_MAX_NAME_WORDS, len(words) - i), 0, -1):
                name_words = words[i : i + length]
                surface = sentence[name_words[0].start() : name_words[-1].end()]
                if length > 1 and not re.fullmatch(r"[^\W\d_]+(?:[ -][^\W\d_]+)*", surface):
                    continue
                word = _lookup(" ".join(match.group() for match in name_words))
                if word is not None:
                    if word in object_by_synonym() and not _NEGATION.search(sentence[: name_words[0].start()].rstrip()):
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
    """A name that is listed, from itself or its plural."""
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
