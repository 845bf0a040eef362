"""Sentences as people and models write them, by what is hard about them, with their right claims.

The notation is that of `test_extraction.py`. A wrong sign or a wrong number would make a true
sentence contradicted.
"""

import pytest

from mmrlhf.claims import extract_claims
from mmrlhf.records import Fact
from mmrlhf.verifiers import verify_against_facts
from tests.claims.test_extraction import claim_fields, expected_claims

DENIALS = {
    # a denial ends with its clause
    "There is no dog, but there is a cat.": {"!dog", "cat"},
    "No cars are visible, but there seems to be a bus.": {"!car", "?bus"},
    "Although there is no dog, there is a cat on the bed.": {"!dog", "cat", "cat>on>bed", "bed"},
    "There are no people here, and there is a dog.": {"!person", "dog"},
    "No dogs are visible, with a cat lying on the bed.": {"!dog", "cat", "cat>on>bed", "bed"},
    "There is no sofa, only two chairs.": {"!couch", "chair", "chair#2"},
    "The man is not wearing a hat and holds an umbrella.": {"man", "!hat", "umbrella"},
    "There is no table in the room; instead, there is a bench.": {"!table", "!table>in>room", "room", "bench"},
    # no others: these are there
    "A man rides a bicycle, with no other people visible.": {"man", "bicycle"},
    "There are no other animals or vehicles in the scene.": set(),
    "Nobody else is in the room.": {"room"},
    "There are no more chairs in the room.": {"room"},
    "With no one else around, the man reads a book.": {"man", "book"},
    "Without any other people, the street is quiet.": {"street", "street=quiet"},
    "No people other than the man are visible.": {"man"},
    "There are no animals besides the dog.": {"dog"},
    # a denied judgement, manner or glance
    "It is not common to see a cat inside a toilet.": {"cat", "cat>inside>toilet", "toilet"},
    "It is not every day that one sees a cow in a kitchen.": {"cow", "cow>in>kitchen", "kitchen"},
    "You don't often see a horse on a balcony.": {"horse", "horse>on>balcony", "balcony"},
    "The dog is not the only animal in the room.": {"dog", "animal", "animal>in>room", "room"},
    "There is not just a dog but also a cat.": {"dog", "cat"},
    "There are no fewer than three dogs.": {"dog", "?dog#3"},
    "The man does not notice the dog behind him.": {"man", "dog", "dog>behind>man"},
    "You can't miss the red car in the street.": {"car", "car=red", "street"},
    "It would not be complete without the red car.": {"car", "car=red"},
    "It isn't certain that the man holds a cup.": {"man", "?cup"},
    # a clause begins before its verb is near
    "The kettle isn't giving off heat, and a child is resting.": {"kettle", "child"},
    "There's no computer, and the chair in the back is empty.": {"!computer", "chair", "chair=empty"},
    "A sink without a faucet, an old fridge and a lamp.": {"sink", "!faucet", "refrigerator", "refrigerator=old", "lamp"},
    "It is sunny, and none of the people wear hats.": {"person", "!hat"},
    "Nobody is throwing a coin.": {"!person"},
    "No one rides the bicycle leaning against the wall.": {"!person", "bicycle", "bicycle>against>wall", "wall"},
    "What I don't see: a dog, any cars, or other boats.": {"!dog", "!car"},
    "Not many people are on the beach.": {"person", "person>on>beach", "beach"},
    # present, there, here
    "A dog is not present in the image.": {"!dog"},
    "The dog isn't present, but a cat is.": {"!dog", "cat"},
    "Dogs are not present.": {"!dog"},
    "The dog is not there, and a cat isn't here.": {"!dog", "!cat"},
    "There is no dog present.": {"!dog"},
    "There is a clock present on the wall.": {"clock", "clock>on>wall", "wall"},
    "A dog isn't in the scene.": {"!dog"},
    "The girl opens a present.": {"girl"},
    # no longer, false, unlikely, fails to
    "There is no longer a car in the driveway.": {"!car", "!car>in>driveway", "driveway"},
    "The dog is no longer on the couch.": {"dog", "!dog>on>couch", "couch"},
    "It is false that there is a dog.": {"!dog"},
    "It is not true that there is a dog, but there is a cat.": {"!dog", "cat"},
    "It is not true that a woman is holding an umbrella.": {"?woman", "?umbrella"},
    "The claim that a man holds a dog is not true.": {"?man", "?dog"},
    "The idea that a dog lies on the sofa is not entirely wrong.": {"dog", "dog>on>couch", "couch"},
    "A car that is no longer new is parked next to a tree.": {"car", "car=new", "car>next to>tree", "tree"},
    "A bench no longer in use stands under a tree.": {"bench", "bench>under>tree", "tree"},
    "A woman who no longer dances wears a red dress.": {"woman", "dress", "dress=red"},
    "The man was once seen holding a dog.": {"man", "dog"},
    "The dog was once more on the sofa.": {"dog", "dog>on>couch", "couch"},
    "There is a baby shower present on the table.": {"table"},
    "The dog is not here and a cat sleeps on the sofa.": {"!dog", "cat", "cat>on>couch", "couch"},
    "It is not the case that there is a dog.": {"!dog"},
    "The claim that there is a dog is false.": {"!dog"},
    "The claim that there is a dog is true.": {"dog"},
    "It is unlikely that a dog is in the image.": {"?dog"},
    "It is impossible to see a dog here.": {"?dog"},
    "I doubt that there is a dog.": {"?dog"},
    "I don't doubt that there is a dog.": {"dog"},
    "There is barely a cloud.": {"?cloud"},
    "The man refuses to wear a helmet.": {"man", "!helmet"},
    # the last of several
    "No dogs, cats or birds are visible.": {"!dog", "!cat", "!bird"},
    "No dogs or cats are present in the image.": {"!dog", "!cat"},
    "No dog is on the couch, and cats are on the bed.": {"!dog", "!dog>on>couch", "couch", "cat", "cat>on>bed", "bed"},
}  # fmt: skip
NUMBERS = {
    # both A and B
    "Both men and women are riding along the beach.": {"man", "man>along>beach", "woman", "woman>along>beach", "beach"},
    "Both red and green apples lie here.": {"apple", "apple=red", "apple=green"},
    "Both boys wear hats.": {"boy", "boy#2", "hat"},
    # ages, models, sizes, names
    "A 12-year-old boy and a 12 year old girl.": {"boy", "girl", "girl=old"},
    "A Boeing 747 plane stands on the runway.": {"airplane", "airplane>on>runway", "runway"},
    "The screen shows a Samsung Galaxy S4 phone.": {"screen", "phone"},
    "Two 3D printers and a 4K TV.": {"printer", "printer#2", "tv"},
    "A man wears a number 7 jersey.": {"man", "jersey"},
    "A 27-inch screen and two 12 inch plates.": {"screen", "plate", "plate#2"},
    "A Formula 1 car is parked by a Type 2 van.": {"car", "car>by>van", "van"},
    "Bus 42 stops at platform 3.": {"bus", "bus>at>platform", "platform"},
    "A 2-seat sofa and a 3-tier cake.": {"couch", "couch=2-seat", "cake", "cake=3-tier"},
    "A 6 foot tall man.": {"man", "man=tall"},
    # counts after their noun
    "dog (2), cat (1), red ball": {"dog", "dog#2", "cat", "cat#1", "ball", "ball=red"},
    "The man (1) stands next to the woman (2).": {"man", "man>next to>woman", "woman"},
    "Dog x2, cat × 3, there are two (2) cups": {"dog", "dog#2", "cat", "cat#3", "cup", "cup#2"},
    "- Dogs – 2\n- Cups: 3": {"dog", "dog#2", "cup", "cup#3"},
    "| Object | Count | Color |\n|---|---|---|\n| Cup | 3 | white |": {"cup", "cup#3", "cup=white"},
    "| Object | Year |\n|---|---|\n| Car | 12 |": {"car"},
    "Cup | 3": {"cup", "cup#3"},
    "- Chairs (4) - black\n- Table - wooden, round\n- Sofa: dark and soft": {
        "chair", "chair#4", "chair=black", "table", "table=wooden", "table=round", "couch", "couch=dark", "couch=soft",
    },
    # the number of
    "The number of dogs is two.": {"dog", "dog#2"},
    "The number of dogs is unknown, but the cats are two.": {"dog", "cat"},
    "The number of people is 3 or 4.": {"person"},
    "The number of people might be 3.": {"person"},
    # little
    "Little girl holding an umbrella.": {"girl", "girl=little", "umbrella"},
    "The girl's little dog sits.": {"girl", "dog", "dog=little"},
    "Little snow lies on the road.": {"snow", "snow>on>road", "road"},
    # zero
    "There are zero dogs and two cats.": {"!dog", "cat", "cat#2"},
    "0 dogs, 2 cats.": {"!dog", "cat", "cat#2"},
    "There are 0 people on the street.": {"!person", "!person>on>street", "street"},
    "The number of dogs is zero.": {"!dog"},
    "The number of apples on the table is four.": {"apple", "apple#4", "apple>on>table", "table"},
    # parts of a number
    "A player kicks the ball. Two players run.": {"player", "ball"},
    "There is a cat. There are two cats.": {"cat", "cat#2"},
    "Apples x 4, and 2 x 4 boards": {"apple", "apple#4", "board"},
    "Player number 5 kicks the ball.": {"player", "ball"},
    # pairs, ranges and bounds
    "Three pairs of shoes stand here.": {"shoe"},
    "There are between five and seven birds.": {"bird", "?bird#7"},
    "There are 5-7 dogs and two to three cats.": {"dog", "?dog#7", "cat", "?cat#3"},
    "There is more than one dog.": {"dog"},
    "A couple of dozen eggs and half a dozen pans.": {"egg", "?egg#24", "pan", "pan#6"},
    "One dog is brown and one is black.": {"dog", "dog=brown"},
}  # fmt: skip
WORDS = {
    # seen, not spotted
    "Various cups can be spotted scattered around the room.": {"cup", "cup>around>room", "room"},
    "A plane is spotted flying above the houses.": {"airplane", "airplane>above>house", "house"},
    # names of things
    "There are paint cans and paint brushes.": {"paint can", "paint brush"},
    "These are the tools professionals use.": {"tool"},
    "The red color makes the scene stand out.": set(),
    "Two checkboxes and a lunchbox.": {"checkbox", "checkbox#2", "lunchbox"},
    # places
    "A vanity with a countertop and a mirror above it.": {"vanity", "countertop", "mirror", "mirror>above>countertop"},
    "Children listen to the man in the rocking chair.": {"child", "man", "man>in>rocking chair", "rocking chair"},
    "To her left, there is a wall. A man has a ring on his left hand.": {"wall", "man", "ring", "ring>on>hand", "hand", "hand=left"},
    "A cyclist rides. To her left, there is a wall.": {"cyclist", "wall", "wall>left of>cyclist"},
    "On the table are a cup, a jar, and a plate.": {
        "table", "cup", "cup>on>table", "jar", "jar>on>table", "plate", "plate>on>table",
    },
    "Between the man and the dog there's a cooler.": {"man", "dog", "cooler", "cooler>between>man", "cooler>between>dog"},
    "A man and a woman walk. In front of them, a dog runs.": {"man", "woman", "dog", "dog>in front of>man", "dog>in front of>woman"},
    "A girl looks at a boy. A bicycle stands behind her.": {"girl", "boy", "bicycle", "bicycle>behind>girl"},
    # items and headings
    "- Laptop (1): silver, open, placed on the desk": {
        "laptop", "laptop#1", "laptop=silver", "laptop=open", "laptop>on>desk", "desk",
    },
    "Adults: No adults can be seen.": {"!adult"},
    "A metal toolbox (open)": {"toolbox", "toolbox=metal", "toolbox=open"},
    # doubt, advice, names, text
    "The water may be held back, such as in a river or a lake.": {
        "water", "?water>in>river", "?water>in>lake", "?river", "?lake",
    },
    "Consider adding a lamp to the left of the sofa.": set(),
    "You could add a yellow bow to the dog.": set(),
    "To make it look better, place a vase on the table.": set(),
    "Tip: a helmet should sit level.": set(),
    "The sea is blue, but beginners should take a lesson.": {"sea", "sea=blue"},
    "If you take your dog out, a boat is nice.": set(),
    "HOME OFFICE CELL": set(),
    "The sign reads Main Street and is green.": {"sign", "sign=green"},
    "The text says: Welcome to the zoo, lions live here.": set(),
    "The actor Joe Smith stands next to Anna Meyer.": {"actor"},
    "The picture shows South Korea and Japan on a map.": {"map"},
    "Joe Smith looks at the Eiffel Tower.": {"eiffel tower"},
    "# Hash tagit": set(),
}  # fmt: skip


@pytest.mark.parametrize("text", DENIALS | NUMBERS | WORDS)
def test_extract_claims_of_real_sentences(text):
    assert claim_fields(text) == expected_claims(*(DENIALS | NUMBERS | WORDS)[text])


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("No sofa is in the room, but there is a cat on the bed.", ["cat", "1 bed"]),
        ("A man rides a bicycle, with no other people visible.", ["1 person", "bicycle"]),
        ("Both men and women ride along the beach.", ["5 men", "4 women"]),
        ("A 12-year-old boy sits on a bench.", ["1 boy", "1 bench"]),
        ("Various cups can be spotted scattered around the room.", ["3 cups", "white cup"]),
        ("Nobody looks at the camera, and the man has no hat.", ["1 man"]),
        ("There are no people inside the cafe.", ["1 person", "1 cafe"]),
        ("A player in blue kicks a ball. Two players run.", ["3 players"]),
        ("At least two dogs and between two and four cats.", ["5 dogs", "3 cats"]),
    ],
)
def test_true_sentences_are_not_contradicted(text, facts):
    typed = [Fact("count" if fact[0].isdecimal() else "object", fact) for fact in facts]
    assert [v.claim for v in verify_against_facts(extract_claims(text), typed) if v.value == "contradicted"] == []


CLAUSES = {
    # a verb before its subject
    "A dog barks, and on the hill stands a man.": {"dog", "hill", "man", "man>on>hill"},
    "On the shelf sits a cat, and beneath it lies a rug.": {"shelf", "cat", "cat>on>shelf", "rug", "rug>beneath>cat"},
    "Below the clock, on a low cabinet, are a printer and two cups.": {
        "clock", "cabinet", "cabinet=low", "printer", "cup", "cup#2",
        "printer>below>clock", "cup>on>cabinet", "printer>on>cabinet",
    },
    "Next to the stove: a kettle, two pans and a bowl of lemons.": {
        "stove", "kettle", "pan", "pan#2", "bowl", "lemon", "kettle>next to>stove", "pan>next to>stove", "bowl>next to>stove",
    },
    "On the wall: a map, a clock without hands, and a shelf.": {
        "wall", "map", "clock", "!hand", "shelf", "map>on>wall", "clock>on>wall", "shelf>on>wall",
    },
    # clauses about a thing, its part or its place
    "A child, whose coat is blue, stands near a gate.": {"child", "coat", "coat=blue", "gate", "child>near>gate"},
    "A sofa on which three dolls are sitting.": {"couch", "doll", "doll#3", "doll>on>couch"},
    "A window through which a tree can be seen.": {"window", "tree", "tree>through>window"},
    "A barber trims the beard of a customer, who sits in a chair.": {"barber", "beard", "customer", "chair", "customer>in>chair"},
    "A woman waves, and a second guest, an old man, stands behind her.": {
        "woman", "guest", "man", "man=old", "guest>behind>woman", "man>behind>woman",
    },
    "Two boys kneel by a net, as well as a man in a chair.": {
        "boy", "boy#2", "net", "boy>by>net", "man", "chair", "man>in>chair",
    },
    "On the table are a cup and a knife on a plate.": {
        "table", "cup", "cup>on>table", "knife", "knife>on>table", "plate", "knife>on>plate",
    },
    # who it, he and they are
    "A box stands on a table, with a pile of bags to its left.": {"box", "table", "box>on>table", "bag", "bag>left of>box"},
    "A nurse treats a small boy. He sits on a bed.": {"nurse", "boy", "boy=small", "bed", "boy>on>bed"},
    "Apart from the lamp, the room is dark.": {"lamp", "room", "room=dark"},
    # fastened and hanging
    "Several kites are tied to a fence.": {"kite", "fence", "kite>to>fence"},
    "A map is pinned to the wall.": {"map", "wall", "map>to>wall"},
    "A string of garlic lies on a table.": {"garlic", "table", "garlic>on>table"},
    # looks without a verb of their own
    "The bench is green, the lamp black.": {"bench", "bench=green", "lamp", "lamp=black"},
    "The walls are white, the seat brown leather.": {"wall", "wall=white", "seat", "seat=brown", "seat=leather"},
    "A rug, red for the most part, lies here.": {"rug", "rug=red"},
    "The ball — white with pink stars — lies here.": {"ball", "ball=white", "star", "star=pink"},
    "The blanket is red-and-white.": {"blanket", "blanket=red", "blanket=white"},
    # verbs and nouns that look alike
    "The oldest, a girl, guides the hands of a boy.": {"girl", "hand", "boy"},
    "An elderly couple stand near a car.": {"couple", "couple=elderly", "car", "couple>near>car"},
    "A wall with paper garlands on it.": {"wall", "garland", "garland=paper", "garland>on>wall"},
    "Two grandchildren and a schoolgirl.": {"grandchild", "grandchild#2", "schoolgirl"},
    # two nouns with one article
    "A fork and knife lie on the table.": {"fork", "fork>on>table", "knife", "knife>on>table", "table"},
    "A red apple and green pear lie on a plate.": {
        "apple", "apple=red", "apple>on>plate", "pear", "pear=green", "pear>on>plate", "plate",
    },
    "The bride and groom stand under a tree.": {"bride", "bride>under>tree", "groom", "groom>under>tree", "tree"},
    "A cat and dog play.": {"cat", "dog"},
    "A black and white dog barks.": {"dog", "dog=black", "dog=white"},
    # times, and little of something
    "It is 3 o'clock.": set(),
    "There were once two horses here.": {"!horse", "!horse#2"},
    "Little snow lies on the ground.": {"snow", "snow>on>ground", "ground"},
    "A little dog sits here.": {"dog", "dog=little"},
    "One red and two green apples lie in a bowl.": {"apple", "apple=green", "apple>in>bowl", "bowl"},
    # numbers
    "A dozen or so cookies lie here.": {"cookie", "?cookie#12"},
    "1. **Players**: Four players are on the court.": {"player", "player#4", "court", "player>on>court"},
    "A single orchid. One of the men sits.": {"orchid", "orchid#1", "man"},
}  # fmt: skip
SIGNS = {
    "**What I don't see**\n- A plate\n- Mirrors\n- Any sign of rust\n\nThere is a dog.": {"!plate", "!mirror", "!rust", "dog"},
    "**Missing items**\n1. A helmet\n2. Gloves": {"!helmet", "!glove"},
    "Things that are not in the picture:\n- no cats\n- There is no dog.": {"!cat", "!dog"},
    "**Not in the image:** a bicycle, any cars, or a fountain.": {"!bicycle", "!car", "!fountain"},
    "What's missing: a lid and a spoon.": {"!lid", "!spoon"},
    "Not visible: no cats. There is a dog.": {"!cat", "dog"},
    "The dog is not in the picture\n- A cat sits here": {"!dog", "cat"},
    "- People: none visible\n- Cars: 0": {"!person", "!car"},
    "Two of its bulbs are missing.": {"bulb"},
    "Two of the buttons are missing.": {"button"},
    "The handle is missing.": {"!handle"},
    "A bicycle is missing a wheel.": {"bicycle", "!wheel"},
    "What is missing is a dog.": {"!dog"},
    "There used to be a tree here.": {"!tree"},
    "There are chairs, none of which is taken, and a lamp on a table.": {"chair", "lamp", "table", "lamp>on>table"},
    "There are no chairs, just cushions.": {"!chair", "cushion"},
    "Nobody's coat is red.": {"coat", "!coat=red"},
    "Note: there is no dog.": {"!dog"},
}


MENTIONS = {
    # what a text is about, what is compared and what is imagined are not in the image
    "A woman on a bench reads a book about cats and dogs.": {"woman", "bench", "woman>on>bench", "book"},
    "A poster about a lion hangs on the wall.": {"poster", "wall", "poster>on>wall"},
    "Two men talk about a horse.": {"man", "man#2"},
    "The boy is curious about the frog, which is green.": {"boy", "frog", "frog=green"},
    "Toys are scattered about a room.": {"toy", "room"},
    "There are about twenty cows.": {"cow", "?cow#20"},
    "Unlike the dog, the cat is black.": {"dog", "cat", "cat=black"},
    "In contrast to the red car, the bus is blue.": {"car", "car=red", "bus", "bus=blue"},
    "Unlike most dogs, this dog is green.": {"dog", "dog=green"},
    "A man stands here, and one can easily imagine a dog beside him.": {"man"},
    "Imagine a long hallway in a school.": {"hallway", "hallway=long", "school", "hallway>in>school"},
    "The man is excited about a cake on the table.": {"man", "cake", "table", "cake>on>table"},
    "As you can imagine, the dog is happy.": {"dog", "dog=happy"},
    "The children imagine a castle, and a dog sits near a tree.": {
        "child",
        "castle",
        "dog",
        "tree",
        "dog>near>tree",
    },
    "Unlike the man in the hat, the woman wears a coat.": {"man", "hat", "woman", "coat"},
    "The man wears a hat unlike the woman beside him.": {"man", "hat", "woman", "woman>beside>man"},
    "Unlike dogs, cats are small.": {"cat", "cat=small"},
    # a relative clause without a pronoun
    "The horse the woman rides is brown.": {"horse", "horse=brown", "woman"},
    "In the room the dog toys are red.": {"room", "dog toy", "dog toy=red", "dog toy>in>room"},
    "Office people sit at desks.": {"office person", "desk", "office person>at>desk"},
    "The shirt the man wears is red.": {"shirt", "shirt=red", "man"},
    "The dog the woman is holding is white.": {"dog", "dog=white", "woman"},
    "The bench the boy sits on is green.": {"bench", "bench=green", "boy"},
    "The food people eat is on a table.": {"food", "food>on>table", "table"},
    "On the table the cat sleeps.": {"table", "cat", "cat>on>table"},
    "A cake with a Thomas the Train theme is on a table.": {"cake", "table", "cake>on>table"},
    # a number that is a name
    "A 747 stands on the runway.": {"runway"},
    "A 3 dogs are here.": {"dog", "dog#3"},
    "A 2019 Honda stands on the road.": {"honda", "road", "honda>on>road"},
}


@pytest.mark.parametrize("text", MENTIONS)
def test_a_sentence_that_is_cut_off_is_read(text):
    words = text.rstrip(".").split()
    assert all(len(extract_claims(" ".join(words[:count]))) <= len(words) for count in range(len(words) + 1))


@pytest.mark.parametrize("text", CLAUSES | SIGNS | MENTIONS)
def test_extract_claims_of_clauses_signs_and_mentions(text):
    assert claim_fields(text) == expected_claims(*(CLAUSES | SIGNS | MENTIONS)[text])


ACTIONS = {
    "A man rides a bicycle on the street.": {"man@ride@bicycle"},
    "A woman holds an umbrella and a bag.": {"woman@hold@umbrella", "woman@hold@bag"},
    "A boy wearing a red hat is eating a sandwich.": {"boy@wear@hat", "boy@eat@sandwich"},
    "Two girls are playing with a dog in the park.": {"girl@play with@dog"},
    "A man is looking at a woman.": {"man@look at@woman"},
    "A horse ridden by a man crosses the river.": {"man@ride@horse", "horse@cross@river"},
    "The motorcycle is parked by the curb.": set(),
    "Someone left a bicycle against the fence.": {"person@leave@bicycle"},
    "The man no longer holds the umbrella.": {"!man@hold@umbrella"},
    "The boy failed to catch the ball.": {"!boy@catch@ball"},
    "The girl does not fail to catch the ball.": {"girl@catch@ball"},
    "The boy is not wearing shoes.": {"!boy@wear@shoe"},
    "Nobody is riding the horse.": {"!person@ride@horse"},
    "The man might be holding a cup.": {"?man@hold@cup"},
    "The man is about to throw a ball.": {"?man@throw@ball"},
    "A man with a backpack holding an umbrella.": {"man@hold@umbrella"},
    "A man dressed in a suit talks on a phone.": {"man@wear@suit", "man@talk on@phone"},
    "The dog chases a cat, and the cat chases a mouse.": {"dog@chase@cat", "cat@chase@mouse"},
    "A cup and a truck that tows a car.": {"truck@tow@car"},
    "The children watch the man in the chair read a book.": {"child@watch@man", "man@read@book"},
    "A player slides into the base as the catcher reaches for the ball.": {"catcher@reach for@ball"},
    "A boy plays tennis and takes a picture of a church.": {"boy@play@tennis"},
    "The tray holds three muffins, and the room has a lamp.": set(),
    "A man is riding on a skateboard.": {"man@ride@skateboard"},
    "A dog sits on a couch next to a lamp.": set(),
    "The dog is chewing on a bone.": {"dog@chew on@bone"},
    "The man wears a shirt but no hat.": {"man@wear@shirt", "!man@wear@hat"},
    "Neither of the workers is wearing gloves.": {"!worker@wear@glove"},
    "A woman in a white coat examining a puppy.": {"woman@examine@puppy"},
    "A woman pushing a stroller, and two children wearing jackets.": {"woman@push@stroller", "child@wear@jacket"},
    "A man and a woman sit. Both of them are wearing suits.": {"man@wear@suit", "woman@wear@suit"},
    "Three people are here: one is pushing a sled.": {"person@push@sled"},
    "The room looks tidy.": set(),
    # particles, double objects, things that act, people by their work
    "A girl is blowing out the candles.": {"girl@blow out@candle"},
    "A woman takes off her coat and picks up a bag.": {"woman@take off@coat", "woman@pick up@bag"},
    "The man hands her a towel, and a girl gives the dog a bone.": {"man@hand@towel", "girl@give@bone"},
    "Sawdust covers the floor, and a billboard hides the door.": {"sawdust@cover@floor", "billboard@hide@door"},
    "A fishmonger lifts a tuna, and a zookeeper is feeding a giraffe.": {"fishmonger@lift@tuna", "zookeeper@feed@giraffe"},
    "The saws and chisels are neatly arranged, the largest saw on top.": set(),
    "The tree has lost its leaves.": set(),
    "There is a lake. A bridge crosses it.": {"bridge@cross@lake"},
    "A band has five drummers and a singer, all dressed in uniforms.": {"drummer@wear@uniform", "singer@wear@uniform"},
    "A monkey peels a banana. The couple holds hands. They look at a map.": {
        "monkey@peel@banana", "couple@hold@hand", "couple@look at@map",
    },
    "A shy boy is pulling a cart and a man, who is tall, pushes it.": {"boy@pull@cart", "man@push@cart"},
}  # fmt: skip


@pytest.mark.parametrize("text", ACTIONS)
def test_extract_claims_of_actions(text):
    assert {fields for fields in claim_fields(text, with_actions=True) if fields[0] == "action"} == expected_claims(
        *ACTIONS[text]
    )
