"""A grammar of small stories about animals and other folk: what the storyteller learns from.

A rule is text with choices in brackets, ``[one|another]``, which may be nested, and fields in
braces, ``{hero}``, which the cast of the story fills in. The same seed makes the same stories.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from story_plots import ENDINGS, LOST, OPENINGS, PLOTS, SCENES, Plot, names

CHOICE = re.compile(r"\[([^\[\]]*)\]")

COMMON_KINDS = names("""
    hedgehog, fox, mouse, rabbit, owl, otter, badger, squirrel, duck, frog, bear, mole, hare,
    goose, deer, beaver, sparrow, turtle, cat, dog
""")
RARE_KINDS = names("""
    lamb, goat, pony, crow, robin, heron, swan, toad, newt, weasel, marten, lynx, wolf, boar,
    moose, elk, seal, penguin, puffin, gull, crab, snail, beetle, cricket, ladybird, moth, dragon,
    griffin, unicorn, troll, elephant, lion, tiger, monkey, zebra, giraffe, camel, llama, panda,
    koala, kangaroo, wombat, platypus, parrot, pelican, raven, magpie, falcon, stork, crane,
    donkey, horse, cow, pig, hen, rooster, sheep, kitten, puppy, hamster, ferret, rat, bat,
    lizard, gecko, iguana, whale, dolphin, walrus, octopus, robot, wizard, pirate, ghost,
    knight, fairy, giant, dwarf, elf, gnome, alien, clown
""")
SHE = names("""
    Ruby, Lily, Nell, Hazel, Poppy, Wren, Daisy, Mina, Tilly, Fern, Ivy, Rosie, Clover, Willow,
    Juniper, Pearl, Bonnie, Maple, Luna, Olive
""")
HE = names("""
    Pip, Otto, Max, Finn, Toby, Bruno, Moss, Rusty, Jasper, Milo, Oscar, Barney, Hugo, Sam, Teddy,
    Basil, Ned, Alfie, Rowan, Bertie
""")
NATURES = names("""
    small, young, kind, clever, brave, shy, quiet, cheerful, curious, gentle, little, merry,
    careful, sleepy, patient, friendly
""")
HOMES = names("""
    in a small house with a round door, in a warm burrow, in a hollow tree, in a tiny cottage with
    a blue roof, in a nest of soft moss, under the roots of an old oak, in a red barn, in a house
    made of stones, in a cosy cabin, in an old boat
""")
REGIONS = names("""
    in a green valley, at the edge of a deep forest, by a quiet lake, near the sea, on a windy
    hill, beside a slow river, in a sunny meadow, at the foot of a tall mountain, behind an old
    mill, on a small island, in a snowy wood, not far from a little village
""")
REQUESTS = (
    "[Tell me|Please tell me|Can you tell me|Write|Please write|I would like|Give me] "
    "[a story|a short story|a little story|a tale] about {topic}{mark}",
    "[A story|A tale] about {topic}, please.",
    "[Do you know|Could you tell me] a story about {topic}?",
    "{Topic}",
)
SMALL_TALK = (
    (
        "[Hello|Hi|Hello!|Hi there|Good morning|Hey]",
        "Hello! [Would you like to hear a story?|I know many stories. Whom shall I tell you "
        "about?|Shall I tell you a story?]",
    ),
    (
        "[Who are you?|What are you?|What can you do?|Can you help me?]",
        "I am a small model that tells stories about animals and their friends. Ask me for a "
        "story about a fox or an owl.",
    ),
    (
        "[Thank you|Thanks|Thank you!|That was nice]",
        "You are welcome! [Come back for another story soon.|I have many more stories to tell.]",
    ),
    (
        "[How are you?|How are you today?]",
        "I am well, thank you. [Would you like to hear a story?|Shall I tell you a story?]",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Character:
    """Somebody in a story."""

    name: str
    kind: str
    nature: str
    is_she: bool

    def fields(self, prefix: str = "") -> dict[str, str]:
        """What rules say of this character: its names, and the pronouns that fit."""
        he, him, his = ("she", "her", "her") if self.is_she else ("he", "him", "his")
        values = {
            "name": self.name, "kind": self.kind, "a_kind": with_article(self.kind),
            "a_nature_kind": with_article(f"{self.nature} {self.kind}"),
            "he": he, "him": him, "his": his, "himself": f"{him}self",
        }  # fmt: skip
        values |= {
            key.capitalize(): capitalize(values[key]) for key in ("he", "his", "a_nature_kind")
        }
        return {prefix + key: value for key, value in values.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """What a story is made of; ``fields`` is what rules may say of it."""

    hero: Character
    friend: Character
    plot: Plot
    thing: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """A whole story and what somebody who asked for it would say that it is about."""

    text: str
    topics: tuple[str, ...]


def make_story(rng: random.Random) -> Story:
    """One story from beginning to end."""
    cast = make_cast(rng, rng.choice(PLOTS))
    hero, friend, plot = cast.hero, cast.friend, cast.plot
    ending = f"{rng.choice(plot.endings)} {rng.choice(ENDINGS)}"
    rules = (rng.choice(OPENINGS), *plot.parts, ending)
    a_kind = with_article(hero.kind)
    topics = (
        f"{hero.name} the {hero.kind}",
        f"{hero.name} and {friend.name}",
        f"{a_kind} and {with_article(friend.kind)}",
        with_article(f"{hero.nature} {hero.kind}"),
        plot.topic(cast.thing),
        a_kind,
        a_kind,
    )
    text = "\n\n".join(expand(rng, rule, cast.fields) for rule in rules)
    return Story(text=text, topics=topics)


def make_scene(rng: random.Random) -> str:
    """A few sentences in which who is who, and who has what, is all there is to know."""
    cast = make_cast(rng, LOST)
    return " ".join(expand(rng, rule, cast.fields) for rule in rng.sample(SCENES, 2))


def make_request(rng: random.Random, story: Story) -> str:
    """What somebody might say who wants to hear this story, or any."""
    if rng.random() < 0.08:
        return rng.choice(
            ("Tell me a story.", "Tell me a story", "A story, please.", "Another one!")
        )
    topic = rng.choice(story.topics)
    fields = {"topic": topic, "Topic": capitalize(topic), "mark": rng.choice((".", "", "!", "."))}
    return expand(rng, rng.choice(REQUESTS), fields)


def make_small_talk(rng: random.Random) -> tuple[str, str]:
    """Something said that asks for no story, and the answer."""
    question, answer = rng.choice(SMALL_TALK)
    return expand(rng, question, {}), expand(rng, answer, {})


def make_cast(rng: random.Random, plot: Plot) -> Cast:
    """Who is in a story, where, and what it is about."""
    hero = make_character(rng)
    friend = make_character(rng, other_than=hero)
    thing = rng.choice(plot.things)
    region = rng.choice(REGIONS)
    places = {"home": rng.choice(HOMES), "region": region, "Region": capitalize(region)}
    fields = {**hero.fields(), **friend.fields("friend_"), **thing_fields(thing), **places}
    return Cast(hero=hero, friend=friend, plot=plot, thing=thing, fields=fields)


def stories(seed: int) -> Iterator[Story]:
    """Endlessly many stories; the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield make_story(rng)


def make_character(rng: random.Random, other_than: Character | None = None) -> Character:
    """Somebody; not of the name nor the kind of ``other_than``."""
    is_she = rng.random() < 0.5
    name = invent_name(rng) if rng.random() < 0.15 else rng.choice(SHE if is_she else HE)
    kind = rng.choice(COMMON_KINDS if rng.random() < 0.7 else RARE_KINDS)
    if other_than is not None and (name == other_than.name or kind == other_than.kind):
        return make_character(rng, other_than)
    return Character(name=name, kind=kind, nature=rng.choice(NATURES), is_she=is_she)


def invent_name(rng: random.Random) -> str:
    """A name that nobody has: two or three syllables."""
    syllables = (
        rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3)))
    )
    return "".join(syllables).capitalize() + rng.choice(("", "", "n", "l", "s"))


def thing_fields(thing: str) -> Mapping[str, str]:
    """``thing`` is written as in "red kite"; its last word stands for it later."""
    return {"a_thing": with_article(thing), "thing": thing, "it": thing.split()[-1]}


def expand(rng: random.Random, rule: str, fields: Mapping[str, str]) -> str:
    """A rule's text: every choice made, inner ones first, every field filled in."""
    while match := CHOICE.search(rule):
        chosen = rng.choice(match.group(1).split("|"))
        rule = rule[: match.start()] + chosen + rule[match.end() :]
    return rule.format_map(fields)


def with_article(words: str) -> str:
    """``words`` with the article that its sound wants."""
    return f"{'an' if words[0] in 'aeio' or words.startswith(('ugly', 'umb')) else 'a'} {words}"


def capitalize(text: str) -> str:
    """``text`` with its first letter large and all others as they are."""
    return text[:1].upper() + text[1:]
