"""Word lists of the grammar: function words with their tags, and words that decide the role of the
phrases around them.
"""

from __future__ import annotations

from mmrlhf.text import words
from mmrlhf.text.coco_objects import COCO_ANIMALS
from mmrlhf.text.words import BASIC_COLOURS, word_set

PARTICIPLES = word_set(
    "hanging standing sitting lying leaning working leading facing holding wearing filling flying walking "
    "running looking playing riding reading covering featuring showing having being making taking giving getting "
    "leaving carrying eating waiting talking smiling casting overlapping browsing"
)
"""Words that the dictionary lists as nouns but captions use as verbs."""
POSITION_WORDS = word_set("left right center top bottom middle upper lower side hand most mid front back rear")
"""Parts of hyphenated words that only give a position: left-hand."""
CLITIC_TAGS = {"s": "S", "re": "B", "m": "B", "ve": "H", "ll": "M", "d": "M"}
"""Tag of each clitic, without its apostrophe."""
PERSON_PRONOUNS = dict.fromkeys(word_set("someone somebody anyone anybody everyone everybody nobody"), "person")
"""Pronouns that name a person."""
NEGATIVE_PRONOUNS = frozenset(("nobody", "no one", "none", "nothing"))
"""Pronouns that negate."""
SEEM_FORMS = word_set("appear appears seem seems")
COMMON_VERBS = word_set(
    "stand sit lie walk ride hold hang look watch play fly run lead rest lean wait carry wear show feature hit "
    "swing catch throw jump swim face cross cover surround fill contain read pull push serve stare drive eat "
    "drink cook cut talk smile pose rise climb dance sleep sell capture bend graze float perch stop reach line "
    "drip grow shine sway glow stretch rise lay rust gather guard spell bend hide board fish paddle soar face "
    "arch slice spray surround walk tow chase hug pet kick brush feed kiss lick grab pick touch point wave pour stir mix wash clean "
    "toss pose lift drag hand"
)
"""Words that are more likely verbs than nouns if both fit."""
VERBS_BY_PARTICLE = {
    "up": word_set("hold pick put set lift throw show pull give warm raise wash dress open blow hang"),
    "on": word_set("put try turn switch carry"),
    "off": word_set("take turn show cut switch set give pull"),
    "down": word_set("put set lay cut take turn"),
    "over": word_set("take turn hand"),
    "in": word_set("take plug"),
}
"""Verbs after which a preposition is a particle and gives no place: she puts *on* a hat."""
PARTICLE_PREPOSITIONS = word_set("up down over off around by past in out on through along")
"""Prepositions of place that can be a verb's particle."""
NUMBER_APPROXIMATORS = word_set("about around over nearly almost")
"""Words that make a number after them approximate."""
NUMBER_BOUNDS = frozenset((
    "at least", "at most", "more than", "less than", "fewer than", "up to", "no more than", "no less than", "no fewer than",
    "not more than", "not less than", "not fewer than",
))  # fmt: skip
"""Bounds of a number: the number itself is not claimed."""
DESIGNATORS = word_set(
    "number no type model size version route gate platform room pier formula level grade channel highway interstate area figure "
    "page chapter section lane track terminal unit exit class series generation phase stage bus line"
)
"""Words followed by a number that is a name: *number* 7, *platform* 3."""
COUNTED_PARTS = word_set(
    "seat seater wheel wheeler wheeled wheels tier tiered layer layered door piece legged sided drawer burner lane panel masted story "
    "storey level armed pointed bladed engine"
)
"""Parts that a number counts in a description: 3-*tier*."""
UNIT_WORDS = word_set(
    "year years month months week weeks day days hour hours minute minutes second seconds inch inches foot feet meter meters metre "
    "metres mile miles pound pounds kilo kilos kg g gram grams liter liters litre litres cm mm km m ft lb lbs oz ounce ounces star "
    "percent degree degrees dollar dollars cent cents euro euros mph k d p am pm st nd rd th s speed megapixel gallon story storey"
)
"""Units of measurement: a number before one counts no object."""
INVARIANT_NOUNS = word_set(
    "sheep fish deer aircraft moose bison salmon trout series species cattle police offspring broccoli swine"
)
"""Nouns that have the same form in the plural."""
VAGUE_QUALIFIERS = NUMBER_BOUNDS | {"approximately", "roughly", "looks like", "look like"}
"""Words that always make a number approximate or a statement vague."""
HEDGING_MODALS = word_set("could may might would")
AMBIGUOUS_COLOUR_MODIFIERS = word_set("neon navy olive sky royal lime hot baby forest mint off")
"""Words that modify a colour after them and have other uses: navy blue, navy."""
AMBIGUOUS_FUNCTION_WORDS = (
    AMBIGUOUS_COLOUR_MODIFIERS
    | PARTICLE_PREPOSITIONS
    | NUMBER_APPROXIMATORS
    | VAGUE_QUALIFIERS
    | HEDGING_MODALS
    | word_set("yes that her one no 's can only between there here")
)
"""Words with a fixed tag that some contexts change."""
COLOUR_WORDS = frozenset(BASIC_COLOURS) | {"violet", "gray", "grey", "beige", "tan", "black", "white", "gold", "silver"}
COLOUR_NOUNS = word_set("cream orange peach olive mint gold silver")
"""Colours that are objects as well."""
SHADED_COLOURS = (frozenset(BASIC_COLOURS) - {"black", "white"}) | {"violet", "gray", "beige", "tan"}
"""Colours that light, dark and other shades modify."""
NUMBER_VALUES = (
    words.NUMBER_VALUES
    | {f"{ten}-{one}": value + words.NUMBER_VALUES[one] for ten, value in words.TENS.items() for one in words.NUMBER_WORDS[1:10]}
    | {"hundred": 100, "dozen": 12, "half a dozen": 6, "half-dozen": 6}
)
"""Value of each number word, with compounds such as twenty-one."""
CLOSED_CLASS_TAGS: dict[str, str] = {}
"""Tag of each function word, which does not depend on the context."""
for _tag, _words in {
    "D": "a an the this these those his her its their my your our whose each every another any some both all several "
    "many few much various numerous multiple more most fewer less",
    "Z": "no",
    "J": "other same such nowhere",
    "X": "others none nothing something anything everything",
    "Q": "it he she they him them i you we me us himself herself itself themselves each-other one-another his/her "
    "theirs mine hers",
    "T": "there",
    "W": "which who whom that where what",
    "F": "of",
    "A": "with for from to-wards than like as during per via without including despite except featuring since "
    "regarding concerning about until till before after besides lacks lacking",
    "C": "and or & nor/or plus",
    "L": "neither nor",
    "Y": "but while although though because when whereas if unless so yet however whether once",
    "O": "not never cannot",
    "B": "is are was were be been being am",
    "H": "has have had having",
    "M": "can could may might must will would shall should do does did ca wo sha ai",
    "I": "to",
    "P": "off on in inside within under underneath beneath below above over beside behind between among amongst near "
    "by at against around along across through throughout onto into atop past opposite outside down up toward "
    "towards alongside beyond amid amidst aboard upon",
    "?": "possibly probably perhaps maybe likely presumably apparently potentially seemingly supposedly conceivably",
    "R": "also just only very quite rather too still together here then now often always usually even almost nearly "
    "completely fully partially partly slightly mostly mainly clearly closely directly not-only additionally "
    "furthermore moreover apart away ahead overall meanwhile elsewhere nearby well again else forth out aside o'clock",
}.items():
    CLOSED_CLASS_TAGS |= dict.fromkeys(_words.split(), _tag)
MULTIWORD_TERMS: dict[str, tuple[str, str]] = {}
"""Tag and name of each term of several words; a name after a colon replaces the term."""
for _tag, _phrases in {
    "P": "ahead of;in front of;on top of;next to;close to;adjacent to;left of;right of;out of;on either side of;on each side of:on either side of;to either side of:on either side of;"
    "on the other side of;on the opposite side of;on the far side of;across from;surrounded by;"
    "hanging from;hangs from:hanging from;hung from:hanging from;hang from:hanging from;in between;inside of;"
    "outside of;off of;on to;up to;opposite to;on both sides of;near to;in back of;"
    "on opposite sides of:on both sides of;at the foot of:at;at the base of:at;all over:over;all around:around",
    "A": "along with;together with;as well as;such as;in addition to;because of;due to;according to;away from;"
    "far from;in case of;as part of;instead of;rather than;free of;free from;devoid of;lack of;absence of;"
    "void of;empty of;other than;apart from;aside from;except for;based on;compared to;similar to;belonging to;"
    "focused on;focus on;focuses on;engaged in;participating in;dressed in;clad in;covered in;interested in;"
    "involved in;participate in;known as;working on;relying on;for example;for instance;at least;at most;"
    "more than;less than;fewer than;up to;ready to;prior to;thanks to;related to",
    "O": "no longer",
    "R": "at night;in general;of course;at all;no doubt;for now;in use;on display;in motion;in mid-air;"
    "in action;by hand;in order;on the other hand;in place;at work;a bit;a little bit;side by side;hand in hand;"
    "not just:not only;not merely:not only;not simply:not only;not solely:not only;not necessarily:not only;"
    "up close;as if;as though;face to face;on foot;at a time;in total;in particular;one by one;to and fro;"
    "back and forth;up and down;face down;face up;upside down;not only",
    "C": "as well as",
    "?": "looks like;look like;looking like;looked like;hardly any;barely any;scarcely any;hardly a;barely a;"
    "scarcely a;hardly an;barely an;scarcely an;it is possible that;it's possible that;it is likely that;it seems that;"
    "no more than;no less than;no fewer than;not more than;not less than;not fewer than;"
    "it appears that;as if;as though;i think;i believe;i guess;can be inferred;what looks like;what appears to be",
    "J": "or so;or more",
    "N": "no one:nobody;none of the above:nothing",
    "#": "half a dozen;half dozen:half a dozen",
    "Q": "each other;one another;none of them:none;all of them:they;some of them:they;most of them:they;"
    "one of them:they;each of them:they;both of them:they;none of which:none;none of whom:none;one of which:they;"
    "one of whom:they;some of which:they;some of whom:they;all of which:they;all of whom:they;both of which:they;"
    "both of whom:they;most of which:they;most of whom:they;each of which:they;each of whom:they",
}.items():
    for _phrase in _phrases.split(";"):
        _words_of, _, _name = _phrase.partition(":")
        MULTIWORD_TERMS[_words_of] = (_tag, _name or _words_of)
SIDE_PREPOSITIONS: dict[str, str] = {}
"""`left of` or `right of` for each way to say it, `left side of` for `on the left side of`."""
for _side in ("left", "right"):
    for _start in ("to the ", "to the immediate ", "to the far "):
        SIDE_PREPOSITIONS |= dict.fromkeys((f"{_start}{_side} of", f"{_start}{_side} side of"), f"{_side} of")
    for _start in ("on the ", "just to the ", "slightly to the ", "directly to the ", ""):
        SIDE_PREPOSITIONS[f"{_start}{_side} of"] = f"{_side} of"
    for _start in ("on the ", "at the "):
        SIDE_PREPOSITIONS[f"{_start}{_side} side of"] = f"{_side} side of"
MULTIWORD_TERMS |= {phrase: ("P", name) for phrase, name in SIDE_PREPOSITIONS.items()}
SIDES_OF_PRONOUNS: dict[str, tuple[str, str]] = {}
"""Relation and pronoun of each term such as `left of her`, for: *to her left*."""
for _side in ("left", "right"):
    for _possessive, _pronoun in {"his": "him", "her": "her", "its": "it", "their": "them"}.items():
        SIDES_OF_PRONOUNS[f"{_side} of {_pronoun}"] = (f"{_side} of", _pronoun)
        for _start in ("to", "on"):
            MULTIWORD_TERMS[f"{_start} {_possessive} {_side}"] = ("P", f"{_side} of {_pronoun}")
MULTIWORD_TERMS_BY_PREFIX: dict[tuple[str, str], list[list[str]]] = {}
"""Terms of several words by their first two, the longest first."""
for _phrase in sorted(MULTIWORD_TERMS, key=lambda p: -p.count(" ")):
    _first, _second = _phrase.split(" ")[:2]
    MULTIWORD_TERMS_BY_PREFIX.setdefault((_first, _second), []).append(_phrase.split(" "))
UNDENYING_WORDS = word_set(
    "often always usually typically normally commonly frequently everyday every all many much everyone only just merely simply quite"
)
"""Words after `not` with which it denies no object: not *often*, not *only*, not *all*."""
DOUBT_ADJECTIVES = word_set("sure certain clear evident obvious known confirmed possible")
"""Adjectives that, denied, leave a statement open: it is not *clear* that ..."""
DOUBTFUL_ADJECTIVES = word_set("doubtful unlikely improbable questionable uncertain unclear impossible")
"""Adjectives that leave a statement open: it is *unlikely* that ..."""
FALSE_ADJECTIVES = word_set("false untrue incorrect wrong inaccurate")
TRUE_WORDS = word_set("true correct right accurate case")
"""Words that deny a statement if they are denied: it is not *true* that ..."""
NO_LONGER = "no longer"
MASS_NOUNS = word_set(
    "snow water hair traffic light sunlight shade grass food space room ice rain sand smoke foliage vegetation detail furniture"
)
"""Nouns before which *little* is an amount, not a size."""
STATEMENT_NOUNS = word_set("claim statement idea assertion suggestion notion belief assumption")
"""Nouns before a statement: the *claim* that ... is false."""
DENYING_VERBS = word_set("fail refuse decline neglect")
"""Verbs before `to` and an action that does not happen: *fails* to catch the ball."""
UNDENIED_OBJECT_VERBS = word_set(
    "notice see mind care watch look face realize realise acknowledge react bother disturb touch reach block obstruct interact "
    "interfere overlap distract detract affect miss ignore overlook forget doubt deny know pay seem approach"
)
"""Verbs whose object is there although they are denied: he does not *notice* the dog."""
CLAUSE_CONJUNCTIONS = word_set("as until before after since")
"""Prepositions that also begin clauses: *as* the catcher reaches for it."""
FEMALE_NOUNS = word_set(
    "woman girl lady mother mom grandmother daughter sister wife bride bridesmaid waitress actress queen princess nun aunt niece "
    "girlfriend policewoman businesswoman stewardess hostess maid grandma granny cow hen mare"
)
MALE_NOUNS = word_set(
    "man boy guy gentleman father dad grandfather son brother husband groom waiter actor king prince monk priest uncle nephew "
    "boyfriend policeman businessman fireman cowboy mailman postman grandpa fisherman bull rooster"
)
"""Nouns that `he` cannot refer to, and those that `she` cannot."""
DENYING_QUANTIFIERS = word_set("none neither")
"""Words before `of` that deny the following phrase: *none* of the people wear hats."""
SPEAKERS = word_set("i we you one")
"""Subjects that see the image itself: things that *we* do not see are absent."""
IMAGINING_VERBS = word_set("imagine envision visualize visualise")
BEFORE_IMAGINING = word_set("can could might to let's us easily almost even")
"""Words before a verb about something absent: one *can* imagine a dog. An imperative describes."""
ADVICE_VERBS = word_set(
    "consider add try place put use choose ensure avoid remember opt incorporate arrange install keep move replace remove include "
    "hang paint bring make set start invest introduce create swap switch position organize organise suppose pretend"
)
"""Imperatives, or verbs after `you could`, about something absent: *add* a lamp, *suppose* ..."""
ADVICE_HEADINGS = word_set("tip tips advice suggestion suggestions recommendation recommendations warning reminder")
"""Words before a colon and advice: *tip*: wear a helmet."""
ADVISING_MODALS = word_set("could can might may should would must")
ADVICE_MARKERS = ADVICE_VERBS | IMAGINING_VERBS | ADVICE_HEADINGS | word_set("you should must recommend suggest advise sure")
"""A text without one of these gives no advice."""
TRACE_NOUNS = word_set("sign trace")
"""Nouns that name no object when negated: no *sign* of a dog."""
OCCUPIED_OBJECTS = word_set("swing")
"""Nouns that name an object if somebody is on it: on a *swing*."""
POSSESSIVES = word_set("his her its their")
"""Possessive determiners."""
COLOURED_MARKS = word_set("line stripe mark spot letter")
"""Nouns that name an object if a colour describes them: yellow *stripes*."""
NEGATIVE_PREPOSITIONS = word_set("without lacks lacking") | frozenset(
    ("free of", "free from", "devoid of", "void of", "lack of", "absence of", "instead of", "rather than", "empty of")
)
"""Prepositions whose object is absent."""
EXCEPTIVE_PREPOSITIONS = frozenset(("except", "except for", "besides", "apart from", "aside from", "other than"))
"""Prepositions whose object is present although the sentence is negated."""
CONTRASTS = frozenset(("in contrast to", "in contrast with", "as opposed to"))
"""Words before what something differs from."""
TEXT_NOUNS = word_set("book story sign poster magazine article film movie song report documentary lecture message")
SPEAKING_VERBS = word_set("talk speak chat read write think dream joke sing")
"""Words before `about` and something that is not in the image: a *book* about cats."""
DEFINITE_DETERMINERS = word_set("the this these those his her its their my your our whose both")
"""Determiners of phrases that refer to something already known."""
MEASURE_NOUNS = word_set(
    "flock herd crowd pack team school swarm pride head loaf sheet ear stick bale clove sprig stalk body roll bundle gang army "
    "strip scoop splash sea clump patch ball cloud dollop drop touch tangle jumble string wedge pinch wisp tuft flurry horde gaggle "
    "troop colony swathe cluster mound heap"
)
"""Nouns that only measure what follows `of`: a *herd* of cows is cows."""
PART_NOUNS = word_set(
    "slice piece corner side edge top bottom end scene surface group pile row stack half section part bunch view pattern"
)
"""Last words of compounds whose first word is the object: pizza *slices* are pizza."""
DEPICTIONS = word_set("statue painting picture drawing portrait sculpture mural figurine sketch poster bust")
"""Depictions: the object after `of` is not in the image itself, as in a *statue* of a lion."""
PAIRED_NOUNS = word_set("shoe boot sock glove mitten earring sandal slipper sneaker chopstick eye hand leg ear foot headlight")
"""Objects that come in pairs; `a pair of` and `both` do not count them."""
PLURAL_MODIFIERS = word_set(
    "sports clothes glasses goods arms news games sales arts savings systems parks electronics women men ladies"
)
"""Plurals that begin compounds: *sports* car."""
LATERAL_BODY_PARTS = word_set("hand arm foot leg eye ear paw wing shoulder knee ankle wrist elbow cheek")
"""Body parts that are either left or right."""
MODIFIABLE_COLOURS = SHADED_COLOURS | {"teal", "turquoise", "white", "wood", "wooden", "blonde"}
"""Words that shades and other colour modifiers modify."""
PEER_RELATIONS = frozenset((
    "next to", "beside", "near", "behind", "in front of", "left of", "right of", "above", "below", "under", "close to", "between",
    "over", "underneath", "beneath", "alongside", "across from", "adjacent to", "opposite", "by", "around", "in between", "among",
    "amongst",
))  # fmt: skip
"""Relations between equals: in `a cat on a bed next to a laptop` the cat, not the bed, is next to
the laptop.
"""
EXISTENCE_VERBS = word_set(
    "has have had having with shows show features feature includes include contains contain sees see find finds depicts "
    "depict captures displays showing featuring displaying containing including is are was were be 's 're been"
)
"""Verbs whose object is located by a place that follows; other verbs' places locate the actor."""
POSSESSION_VERBS = word_set("has have had having contains contain features feature includes include including")
"""Verbs after which a place locates only the last object."""
LOCATION_PREPOSITIONS = word_set("in on inside along down through across up atop") | {"on top of"}
"""Prepositions that say where an action happens."""
DIRECTED_ACTIONS = word_set(
    "looking looks look looked staring stares stare stared smiling smiles smile gazing gazes pointing points "
    "aiming aims glancing glances laughing waving waves focused focusing peering peers barking barks growling "
    "yelling shouting"
)
"""Actions directed at something from elsewhere: *looking* at a dog."""
DIRECTED_VERBS = word_set(
    "look stare gaze point aim glance peer bark growl yell shout listen talk speak wave watch observe face smile laugh"
)
"""Verbs whose object may be elsewhere: listen to the man in the *chair*."""
STATIVE_PARTICIPLES = word_set(
    "parked seated positioned located placed situated standing sitting lying perched docked moored gathered "
    "mounted hung displayed arranged stacked piled set tied leaned stopped anchored stationed scattered"
)
"""Participles after which `by` gives a place."""
FASTENED = word_set(
    "attached tied pinned strapped fastened taped nailed chained glued bolted moored hitched clipped fixed stuck screwed tethered secured"
)
"""Participles after which `to` gives a place: pinned *to* a board."""
CLOTHES = word_set(
    "shirt t-shirt jacket coat suit dress uniform hat cap helmet shorts pants jeans skirt sweater hoodie vest "
    "outfit costume glasses sunglasses glove boot shoe robe apron gown tie scarf wetsuit raincoat poncho blouse "
    "clothing clothes attire gear jersey swimsuit bikini tuxedo overalls pajamas tutu kimono sweatshirt hood "
    "trunks cardigan sari leggings tights turban bandana mask wig cape veil sock heel armor goggles"
) | {"tank top"}
"""Things to wear, after which `in` gives no place: a man in a *hat*."""
NON_LOCATIVE_VERBS = word_set(
    "dressed covered wrapped clad engaged interested involved participating focused focus focuses based working engages competing"
)
"""Words after which `in` and `on` give no place."""
BODY_PARTS = word_set(
    "hand arm mouth head neck back shoulder lap face wrist finger leg foot ear nose beak paw waist hair chest body eye"
)
"""Body parts that carry something: he holds it in his *hand*."""
ROOMS = word_set("room bathroom bedroom kitchen office classroom restaurant store shop hall forest library gym garage")
"""Places that include their sides: an object on the left side of a *room* is in it."""
COPULAS = word_set("is are was were be been 's 're")
"""Verbs that connect a subject and its attributes."""
BALL_SPORTS = word_set(
    "baseball basketball football volleyball softball rugby handball dodgeball racquetball badminton paintball"
)
"""Sports with the name of their ball."""
AIMING_VERBS = word_set("spray hit throw swing aim kick toss shoot point direct")
"""Actions on one object at another: throws a ball at a wall."""
ADDITIVE_WORDS = word_set("other another second more additional further extra else")
"""Words that leave the total open: two *more* dogs."""
VERTICAL_RELATIONS = word_set("above below over under beneath underneath")
MAX_CONJUNCTS = 15
"""Maximum number of phrases joined by `and` that share a relation."""
APPROXIMATE_NUMBER_WORDS = NUMBER_APPROXIMATORS | NUMBER_BOUNDS | {"approximately", "roughly", "between"}
"""All words that make a number approximate."""
PICTURE_NOUNS = word_set("picture photo photograph")
"""Nouns for the image itself, or for an object if the sentence has one of `WALL_ART_WORDS`."""
IMAGE_NOUNS = PICTURE_NOUNS | {"image", "frame", "shot", "view", "scene"}
"""Nouns for the image itself: an object that is not in the *image* is absent."""
WALL_ART_WORDS = word_set("hang hangs hanging hung framed wall walls")
CAN_MODIFIERS = word_set("trash garbage soda beer tin watering spray oil paint aluminum metal coke recycling rubbish gas jerry")
"""Words before a can that is an object."""
CLAIM_ORDER = {"object": 0, "count": 1, "attribute": 2, "relation": 3, "action": 4}
"""Order of a phrase's claims."""
POSSESSION_ACTIONS = word_set("wear hold carry contain use serve sell eat drink")
"""Actions whose denied object is taken to be absent: he *wears* no hat."""
OPENNESS_ADJECTIVES = word_set("open closed shut")
"""States that follow what somebody has: with his mouth *open*."""
ABSENCE_WORDS = word_set("absent missing nowhere")
"""Predicates that say that the subject is absent."""
PRESENCE_WORDS = word_set("visible present seen shown depicted pictured there here found captured observed")
"""Predicates that only say that the subject is present."""
ANIMATE_ACTIONS = word_set(
    "sitting standing walking riding lying running eating looking holding wearing playing skiing surfing jumping "
    "posing waiting laying sleeping swimming skateboarding snowboarding talking crossing drinking resting "
    "kneeling leaning smiling watching"
)
"""Actions of living beings: in `a man with a bag walking` the man walks."""
ANIMATE_CLASSES = frozenset(("person", *COCO_ANIMALS))
"""COCO's classes of living beings."""
OTHER_ANIMALS = word_set(
    "animal pet monkey ape gorilla chimpanzee orangutan lion lioness tiger leopard cheetah panther fox wolf deer stag moose elk reindeer "
    "antelope rabbit hare squirrel chipmunk rat hamster beaver otter raccoon hedgehog pig piglet boar hippo rhino camel llama alpaca "
    "donkey mule kangaroo koala panda seal walrus dolphin whale shark fish turtle tortoise frog toad lizard snake crocodile alligator "
    "iguana crab lobster octopus bee butterfly spider robot badger sloth lynx yak ferret mole"
)
"""Further animals, and what moves like one."""
MOTION_VERBS = word_set(
    "walking walks walk running runs run heading heads driving drives moving moves riding rides flying flies "
    "swimming jumping going goes coming sailing crawling climbing rolling skiing skating jogging marching"
)
"""Verbs after which `towards` gives a place."""
CLUTTER_PARTICIPLES = word_set("cluttered crowded packed littered overgrown")
"""Participles that describe a place by its contents."""
CONTENTS_WORDS = word_set("with filled topped covered loaded decorated packed stacked piled")
"""Words before contents, which share the place of their container: *filled* with."""
BARE_INFINITIVE_VERBS = word_set("watch watches watching see sees seeing let lets help helps helping make makes")
"""Verbs with a bare infinitive: *watching* the boy play."""
COLOUR_MODIFIERS = AMBIGUOUS_COLOUR_MODIFIERS | frozenset(words.COLOUR_SHADES)
"""Words that modify a colour after them: light blue."""
PAINT_PARTICIPLES = word_set("painted colored coloured dyed tinted")
"""Participles that a colour can follow."""
