"""The plots of the story grammar: a beginning, a small trouble, a friend who helps, an ending.

Rules are written as paragraphs, wrapped at will; what they mean says ``story_grammar``.
"""

from __future__ import annotations

from dataclasses import dataclass


def paragraphs(text: str) -> tuple[str, ...]:
    """The rules of a text: what stands between empty lines, each on one line."""
    return tuple(" ".join(rule.split()) for rule in text.strip().split("\n\n"))


def names(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(" ".join(name.split()) for name in text.split(","))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """What happens. ``parts`` are a story's paragraphs; it is about one of ``things``."""

    about: str
    things: tuple[str, ...]
    parts: tuple[str, ...]
    endings: tuple[str, ...]

    def topic(self, thing: str) -> str:
        """What the story is about, in a few words."""
        return self.about.format(thing=thing)


OPENINGS = paragraphs("""
    Once upon a time, there was {a_nature_kind} named {name}, who lived {home} {region}.

    Once upon a time, {a_nature_kind} named {name} lived {home} {region}.

    Once upon a time, there lived {a_nature_kind} [named|called] {name} {region}. {He} had made
    {his} home {home}.

    Long ago, there was {a_nature_kind} [named|called] {name}, who lived {home} {region}.

    There once was {a_nature_kind} named {name}. {He} lived {home} {region}.

    {Region}, there lived {a_nature_kind} [named|called] {name}. {He} had made {his} home {home}.

    {name} was {a_nature_kind}. {He} lived {home} {region}.

    {name} the {kind} lived {home} {region}.
""")

ENDINGS = paragraphs("""
    From that day on, {name} and {friend_name} were the best of friends.

    And from that day on, {name} and {friend_name} [met every morning|shared everything|were never
    apart for long].

    That night {name} [fell asleep|went to bed] with a smile, and the [moon|stars] shone over
    {his} home.

    "[Everything|All] is easier with a friend," said {name}, and {friend_name}
    [agreed|nodded|smiled].

    And if you ever go there, you may still see {name} and {friend_name}
    [walking|sitting|laughing] together.

    {name} never forgot how {friend_name} had helped {him}.

    And so {name} learned that a [kind|good] friend is worth more than [gold|a heap of gold].
""")

SCENES = paragraphs("""
    {name} the {kind} and {friend_name} the {friend_kind} [met in the garden|sat under a tree|went
    for a walk]. "[Hello|Good morning], {friend_name}," said {name}. "[Hello|Good morning],
    {name}," said {friend_name}. {name} had {a_thing}. "What a fine {it}," said {friend_name}.
    {He} gave the {it} to {friend_name}. "Thank you, {name}," said {friend_name} the {friend_kind}.

    There was {a_nature_kind} named {name}. {name} lived {home}. Every day {name} went to see
    {friend_name} the {friend_kind}. {friend_name} lived {region}. {name} and {friend_name} were
    friends.

    Who is {name}? {name} is {a_nature_kind}. Who is {friend_name}? {friend_name} is
    {friend_a_nature_kind}. What does {name} have? {name} has {a_thing}. Where does {friend_name}
    live? {friend_name} lives {home}.
""")

LOST = Plot(
    about="a lost {thing}",
    things=names("""
        red kite, silver key, blue scarf, golden bell, wooden flute, little drum, yellow hat,
        green lantern, old map, shiny button, warm blanket
    """),
    parts=paragraphs("""
        {name} had {a_thing} that {he} loved more than anything. {He} [took it everywhere|carried
        it wherever {he} went|kept it close all day], and at night {he} put it beside {his} bed.

        [One morning|One day|One windy morning], the {it} was gone. {name} looked [under the
        bed|behind the door|in every corner], but [it was not there|{he} could not find it]. {He}
        looked [in the garden|along the path|between the stones], but there was no {it}. {name}
        sat down and [began to cry|sighed|did not know what to do].

        [Just then|At that moment|After a while], {friend_a_nature_kind} named {friend_name} came
        [by|along|down the path]. "[What is wrong|What is the matter|Why do you look so sad],
        {name}?" asked {friend_name}. "I have lost my {thing}," said {name}. "[Do not worry|Do not
        be sad]," said {friend_name}. "[We will look for it together|Four eyes see more than
        two|Let us look for it together]."

        So the two of them [walked slowly back along the path|searched the whole day|went from
        door to door]. They asked the [bees|birds|old trees], and they looked under every
        [leaf|stone|bush]. At last {friend_name} [stopped and pointed|gave a shout|laughed out
        loud]. There was the {it}, [hanging from a branch|lying in the tall grass|half hidden
        under some leaves]!
    """),
    endings=paragraphs("""
        {name} hugged the {it}, and then {he} hugged {friend_name}.

        "Thank you, thank you!" cried {name}, and {he} [danced around|jumped for joy|held the {it}
        tight].
    """),
)

BROKEN = Plot(
    about="a broken {thing}",
    things=names("""
        little boat, wooden cart, big kite, garden gate, old clock, music box, small bridge, water
        mill, stone oven
    """),
    parts=paragraphs("""
        {name} was [building|making] {a_thing}. {He} had worked on it [all week|for many
        days|since the first day of spring], and {he} was very proud of it.

        But one night [a storm came|the wind blew hard|the rain fell and fell]. In the morning,
        the {it} [was broken|lay in pieces]. "Oh no," said {name}. "[All my work was for
        nothing|Now I must start again|I can never mend this alone]."

        [Just then|At that moment|After a while], {friend_a_nature_kind} named {friend_name} came
        [by|along|down the path]. "[What is wrong|What is the matter|Why do you look so sad],
        {name}?" asked {friend_name}. {name} showed {friend_him} the broken {it}. {friend_name}
        [looked at it from all sides|walked around it twice|thought for a long time]. "[It is not
        so bad|This can be mended]," {friend_he} said. "You hold the [wood|pieces], and I will
        [bring the rope|fetch some nails|tie the knots]."

        They worked [until the sun went down|all day long|side by side]. {name} [held the
        pieces|sang a song|told funny stories], and {friend_name} [tied the knots|turned the
        screws|painted the sides]. [Step by step|Bit by bit|Little by little], the {it} became
        whole again. It was even [stronger|better|more beautiful] than before.
    """),
    endings=paragraphs("""
        {name} looked at the {it} and could hardly believe {his} eyes.

        "It is our {it} now," said {name}, "yours and mine."
    """),
)

AFRAID = Plot(
    about="somebody who was afraid of the {thing}",
    things=names("dark wood, deep river, high bridge, black cave, old tower, misty moor"),
    parts=paragraphs("""
        {name} was afraid of only one thing: the {thing}. [When others laughed about it, {he} said
        nothing|{He} had never told anybody|Just to think of it made {him} shiver].

        One evening, {name} was on {his} way home when {he} [heard somebody cry for help|heard a
        small voice]. It was {friend_name}, {friend_a_nature_kind}, who had [hurt {friend_his}
        foot|lost {friend_his} way]. "[Please help me|Please take me home]," said {friend_name}.
        But the only way home led past the {it}.

        {name} [stood still|trembled|took a deep breath]. "I am afraid of the {it}," {he} said [at
        last|very quietly]. "I am afraid, too," said {friend_name}. "[But we can be afraid
        together|Let us hold on to each other|If we sing, it will be only half as bad]."

        So they went on, [step by step|slowly and carefully|side by side], and sang [a song about
        the sun|every song they knew|as loud as they could]. [Before they knew it|Before the song
        was over|Soon], it was all behind them. {name} turned around and [looked back|laughed].
        The {it} did not look so terrible any more.
    """),
    endings=paragraphs("""
        "You are the bravest {kind} I know," said {friend_name}.

        "Being brave does not mean that you are never afraid," said {friend_name}. "It means that
        you go on."
    """),
)

WISH = Plot(
    about="somebody who wanted to learn to {thing}",
    things=names("sing, dance, swim, skate, paint, read, bake, juggle, climb, whistle"),
    parts=paragraphs("""
        More than anything else, {name} wanted to learn to {thing}. {He} watched the others
        {thing}, and it looked so easy. But when {he} tried it {himself}, [everything went
        wrong|everybody laughed|nothing worked at all].

        "[I will never learn it|I am no good at it|It is no use]," said {name}. {He} [went away
        and sat under a tree|hid behind a big stone|walked home with {his} head low].

        [Just then|At that moment|After a while], {friend_a_nature_kind} named {friend_name} came
        [by|along|down the path]. "[What is wrong|What is the matter|Why do you look so sad],
        {name}?" asked {friend_name}. "I want to {thing}, but I cannot do it," said {name}.
        {friend_name} [smiled|sat down next to {him}]. "[Nobody can do it on the first day|I fell
        down a hundred times before I could do it|I could not do it at first, either]. Come
        [tomorrow|every morning|with me], and I will help you."

        So every [morning|evening], the two friends met [by the old fence|under the big tree|at
        the water]. On the first day, {name} wanted to give up. On the second day, it went [a
        little better|not so badly]. And on the seventh day, {he} could {thing} [all by
        {himself}|as well as anybody|better than {he} had ever dreamed]!
    """),
    endings=paragraphs("""
        Everybody came to watch {him} {thing}, and {friend_name} [clapped|cheered] the loudest.

        "You did it!" cried {friend_name}. "We did it," said {name}.
    """),
)

HUNGRY = Plot(
    about="{thing} in the winter",
    things=names("bread, soup, apples, nuts, honey, berries, pancakes, cake"),
    parts=paragraphs("""
        That winter was [long|hard|very cold]. Snow lay [on every roof|on the fields|as high as
        the fence], and there was little to eat. {name} had only some {thing} left, and {he} [ate
        very little|was careful with every bite].

        One night, somebody knocked at the door. Outside in the snow stood {friend_a_nature_kind}.
        "My name is {friend_name}," {friend_he} said. "I am [so cold|so tired] and I have not
        eaten for [two days|a long time]."

        {name} thought of the {thing}. There was hardly enough for one. But then {he} [looked at
        the snow outside|saw how {friend_name} shivered] and opened the door wide. "Come in," said
        {name}. "[What is enough for one is enough for two|We will share what I have|You can sit
        by the fire]."

        They sat by the fire and shared the {thing}, and {friend_name} told stories of [far
        countries|the wide sea|the summer]. In the morning, {friend_he} said, "Now I will show you
        something." {friend_name} led {name} to [an old tree|a cave|a barn] not far away. It was
        full of [corn and nuts|good food|apples and honey], enough for the whole winter!
    """),
    endings=paragraphs("""
        "You shared the last of your {thing} with me," said {friend_name}. "Now I share this with
        you."

        They carried it home together, and nobody went hungry that winter.
    """),
)

BIRTHDAY = Plot(
    about="a birthday and {thing}",
    things=names("a cake, a song, a secret, a lantern, a present, paper boats"),
    parts=paragraphs("""
        It was {his} birthday, and {name} got up [early|before the sun]. {He} [put on {his} best
        coat|combed {his} hair|swept the floor] and waited. But nobody came. [Nobody sang a
        song|Nobody knocked at the door|Not even a letter came].

        "[Perhaps they have forgotten me|They have all forgotten]," thought {name}. {He} went to
        see {his} friend {friend_name} the {friend_kind}, but {friend_name} [had no time|hardly
        opened the door|closed the door quickly]. "I am busy," {friend_he} [called|said]. "Come
        back [tonight|when it is dark]!"

        So {name} walked around alone all day and [kicked little stones|looked at the
        clouds|counted the trees]. [It was the longest day of the year|{He} had never felt so
        lonely]. When it was dark, {he} went back to {friend_name} and knocked.

        The door flew open. "Surprise!" cried {friend_name}. [The whole room|Everything] was full
        of lights, and all {his} friends were there. They had {thing} for {him}, and they had
        worked on it [all day|for a whole week]. {name} [laughed and cried|did not know what to
        say].
    """),
    endings=paragraphs("""
        "How could you think that we had forgotten you?" asked {friend_name}.

        They [danced|sang|laughed] until the moon was high.
    """),
)

LITTLE_ONE = Plot(
    about="a {thing} that was lost",
    things=names("duckling, baby bird, little lamb, young seal, tiny mouse, small bat, kitten"),
    parts=paragraphs("""
        One [rainy|foggy|cold] morning, {name} found a {thing} [under a bush|beside the road|near
        the water]. It was [wet and cold|all alone], and it [cried|called] for its mother. "Do not
        be afraid," said {name}. "I will take you home."

        But where was its home? {name} did not know. {He} wrapped the {it} in {his} [scarf|coat]
        and [asked everybody {he} met|went from house to house]. Nobody had ever seen it before.

        At the crossroads, {name} met {friend_a_nature_kind} named {friend_name}. "[I know that
        voice|I think I can help|I have seen its mother]," said {friend_name}. "She is looking for
        her child [at the other side of the water|behind the hill|in the next valley]. Come, I
        know a short way!"

        They [ran as fast as they could|climbed over stones and roots|walked for hours].
        {friend_name} went ahead, and {name} carried the {it}. And then they heard it: somebody
        was calling. The {it} [lifted its head|answered at once], and its mother came running
        [with open arms|through the grass]. What a joy that was!
    """),
    endings=paragraphs("""
        "I will never forget what you have done," said the mother.

        The {it} waved for a long time, and {name} and {friend_name} waved back.
    """),
)

GARDEN = Plot(
    about="a garden of {thing}",
    things=names("roses, carrots, pumpkins, beans, tulips, sunflowers, strawberries, peas"),
    parts=paragraphs("""
        {name} had a small garden, and in it grew [the best|the finest|the most beautiful] {thing}
        far and wide. Every morning {he} [watered them|pulled the weeds|talked to them], and every
        evening {he} [counted them|said good night to them].

        Then came a summer without rain. The [stream|well] ran dry, and the {thing} [hung their
        heads|turned yellow|grew weak]. {name} carried water from the [river|lake] in a little
        bucket, but it was far, and [the bucket had a hole|half of it was gone when {he} came
        home].

        [Just then|At that moment|After a while], {friend_a_nature_kind} named {friend_name} came
        [by|along|down the path]. "[What is wrong|What is the matter|Why do you look so sad],
        {name}?" asked {friend_name}. "My {thing} are thirsty, and the water is so far away," said
        {name}. {friend_name} [scratched {friend_his} ear|looked at the hill]. "If we cannot bring
        the garden to the water," {friend_he} said, "we will bring the water to the garden."

        And they began to dig. They dug [day after day|from morning to evening|in the early
        light], around [stones|roots] and down the hill. On the [third|fifth|last] day,
        {friend_name} took away the last bit of earth, and the water came [running|dancing] down
        to the garden. The {thing} [drank and drank|lifted their heads again].
    """),
    endings=paragraphs("""
        That year the {thing} were the best that anybody had ever seen, and everybody got some.

        "Half of the {thing} are yours," said {name} to {friend_name}.
    """),
)

QUARREL = Plot(
    about="two friends who quarrelled about {thing}",
    things=names("a pear, a ball, a boat, a blanket, a drum, a swing, a big shell"),
    parts=paragraphs("""
        {name} had a good friend, {friend_a_nature_kind} named {friend_name}. The two [played
        together every day|did everything together|had never quarrelled].

        But one [day|morning|afternoon], they found {thing} [in the grass|beside the road|under a
        tree]. "It is mine, I saw it first!" said {name}. "No, it is mine!" said {friend_name}.
        [They shouted until they were red in the face|They pulled and pushed], and in the end they
        both went home angry.

        That night, {name} could not sleep. [The house was so quiet|The moon looked in at the
        window]. "What good is {thing}," {he} thought, "if I have nobody to share it with?" So
        {he} got up and went out [in the dark|into the cold night].

        Halfway down the path, {he} met {friend_name}, who could not sleep, either. "You can have
        it," said {name}. "No, you can have it," said {friend_name}. They looked at each other and
        [began to laugh|laughed until they cried].
    """),
    endings=paragraphs("""
        "It is ours," they both said at the same time.

        "I am sorry," said {name}. "So am I," said {friend_name}.
    """),
)

TRAVEL = Plot(
    about="a journey to the {thing}",
    things=names("high mountain, wide sea, old castle, big city, hidden lake, golden tree"),
    parts=paragraphs("""
        All {his} life {name} had dreamed of the {thing}. [The wind told {him} about it|{His}
        grandmother had told {him} about it|{He} had seen it in a book]. So one [spring|bright]
        morning, {he} packed [some bread and a blanket|a small bag] and set out.

        The way was long. {name} walked through [dark woods|wide fields], and {he} slept under the
        stars. On the third day, {he} came to a place where the path went in two directions.
        [There was no sign|The sign was broken], and {name} did not know which way to go.

        There sat {friend_a_nature_kind} [in the shade|on a stone], whose name was {friend_name}.
        "Where are you going?" asked {friend_he}. "To the {thing}," said {name}, "but I do not
        know the way." "I do not know it, either," said {friend_name}, "but I have always wanted
        to see it. [Let us look for it together|May I come with you|Two find the way better than
        one]."

        They [shared the bread and the blanket|told each other stories as they walked|laughed and
        sang], and the way did not seem so long any more. And one evening, when they came over the
        last hill, there it was: the {thing}, [shining in the light of the sun|even more beautiful
        than in their dreams].
    """),
    endings=paragraphs("""
        They sat down side by side and looked until the stars came out.

        "The best part was the way here," said {name}.
    """),
)

PLOTS = (LOST, BROKEN, AFRAID, WISH, HUNGRY, BIRTHDAY, LITTLE_ONE, GARDEN, QUARREL, TRAVEL)
