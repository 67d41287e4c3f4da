"""Short questions of four skills, in blocks whose four questions share their four answers.

Each answer of a block is the right one of one of its questions, and every question is there in two wordings: by the
first it is chosen, by the second it is measured. All are our own, and as easy as small models need them.
"""

from dataclasses import dataclass

SIZE = 4  # questions of a block, and answers
CHOSEN_BY, MEASURED_BY = 0, 1  # the wordings


@dataclass(frozen=True)
class Topic:
    """Four questions, `wordings` with each `slot` put in, and the answer to each."""

    skill: str
    topic: str
    wordings: tuple[str, str]
    pairs: tuple[tuple[str, str], ...]

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(answer for _, answer in self.pairs)

    def questions(self, wording: int) -> list[str]:
        """Return the four questions in one of the two wordings."""
        return [self.wordings[wording].format(slot) for slot, _ in self.pairs]


WORK_OUT = ("What is {}?", "Work out {}. Reply with the number only.")
CAPITALS = ("What is the capital of {}?", "Which city is the seat of the government of {}?")
OPPOSITES = ("What is the opposite of {}?", "Which word means the reverse of {}? Reply with one word.")
_TABLE = {
    "math": {
        "sums": (WORK_OUT, {"3 + 4": "7", "2 + 6": "8", "4 + 5": "9", "3 + 3": "6"}),
        "sums over ten": (WORK_OUT, {"8 + 5": "13", "9 + 8": "17", "6 + 5": "11", "7 + 8": "15"}),
        "tens": (WORK_OUT, {"20 + 30": "50", "40 + 30": "70", "50 + 10": "60", "60 + 30": "90"}),
        "differences": (WORK_OUT, {"9 - 4": "5", "8 - 6": "2", "10 - 7": "3", "12 - 8": "4"}),
        "products": (WORK_OUT, {"3 * 4": "12", "5 * 3": "15", "4 * 5": "20", "2 * 9": "18"}),
        "halves": (
            ("What is half of {}?", "Divide {} by two. What do you get?"),
            {"8": "4", "10": "5", "12": "6", "14": "7"},
        ),
        "rows": (
            ("Which number comes next: {}?", "Continue the row with one number: {}."),
            {"2, 4, 6": "8", "1, 2, 3": "4", "3, 6, 9": "12", "5, 10, 15": "20"},
        ),
        "apples": (
            ("Tom has {} more. How many apples has he now?", "Mia owns {} more. How many does she hold in all?"),
            {
                "3 apples and buys 2": "5",
                "6 apples and buys 2": "8",
                "1 apple and buys 2": "3",
                "5 apples and buys 1": "6",
            },
        ),
    },
    "language": {
        "opposites": (OPPOSITES, {"hot": "cold", "big": "small", "fast": "slow", "old": "young"}),
        "more opposites": (OPPOSITES, {"up": "down", "left": "right", "day": "night", "first": "last"}),
        "plurals": (
            ("What is the plural of {}?", "There is one {}, then another comes. Two of what are there?"),
            {"mouse": "mice", "child": "children", "foot": "feet", "man": "men"},
        ),
        "past": (
            ("What is the past tense of {}?", "Today they {}. Which verb says that they did it yesterday?"),
            {"go": "went", "eat": "ate", "see": "saw", "take": "took"},
        ),
        "kinds": (
            ("What kind of thing is {}?", "Name in one word the class of things to which {} belongs."),
            {"an apple": "fruit", "a dog": "animal", "a hammer": "tool", "a rose": "flower"},
        ),
        "synonyms": (
            ("Which word means the same as {}?", "Give one word that has nearly the meaning of {}."),
            {"begin": "start", "large": "big", "glad": "happy", "quick": "fast"},
        ),
        "pairs": (
            ("What is the female form of {}?", "The male is called {}. What is the female called?"),
            {"king": "queen", "man": "woman", "father": "mother", "brother": "sister"},
        ),
        "analogies": (
            ("Glove is to hand as {} is to what?", "On which part of the body does one wear a {}?"),
            {"shoe": "foot", "hat": "head", "ring": "finger", "scarf": "neck"},
        ),
    },
    "logic": {
        "tallest": (
            ("{}. Who is the tallest?", "Read this: {}. Name the tallest of them."),
            {
                "Ana is taller than Ben, and Ben is taller than Carl": "Ana",
                "Ben is taller than Dora, and Dora is taller than Carl": "Ben",
                "Carl is taller than Dora, and Dora is taller than Ana": "Carl",
                "Dora is taller than Ana, and Ana is taller than Ben": "Dora",
            },
        ),
        "youngest": (
            ("{}. Who is the youngest?", "Read this: {}. Name the youngest of them."),
            {
                "Tom is older than Mia, and Mia is older than Sam": "Sam",
                "Sam is older than Eve, and Eve is older than Tom": "Tom",
                "Eve is older than Sam, and Sam is older than Mia": "Mia",
                "Mia is older than Tom, and Tom is older than Eve": "Eve",
            },
        ),
        "what is left": (
            (
                "The ball is red, blue, green or white. It is not {}. What colour is it?",
                "Of red, blue, green and white, the ball has one colour, but not {}. Which one has it?",
            ),
            {
                "blue, not green and not white": "red",
                "red, not green and not white": "blue",
                "red, not blue and not white": "green",
                "red, not blue and not green": "white",
            },
        ),
        "all are": (
            (
                "All birds here are yellow, all fish are orange, all cats are black and all mice are brown. "
                "Kiki is a {}. What colour is Kiki?",
                "Kiki is a {}. The cats are all black, the mice are all brown, the birds are all yellow and the fish "
                "are all orange. Which colour has Kiki?",
            ),
            {"bird": "yellow", "fish": "orange", "cat": "black", "mouse": "brown"},
        ),
        "if then": (
            (
                "If it rains, Tom takes the bus. If it snows, he takes the train. If it is warm, he takes the bike. If "
                "it is windy, he takes the car. Today it {}. What does he take?",
                "Today it {}. Tom takes the car if it is windy, the bike if it is warm, the train if it snows and the "
                "bus if it rains. What does he take?",
            ),
            {"rains": "bus", "snows": "train", "is warm": "bike", "is windy": "car"},
        ),
        "inside": (
            (
                "The key is in the box, and the box is in the {}. Where is the key?",
                "A box stands in the {}. In that box lies the key. In which place is the key?",
            ),
            {"kitchen": "kitchen", "garden": "garden", "cellar": "cellar", "attic": "attic"},
        ),
        "first in line": (
            ("They stand in this order: {}. Who is first?", "From front to back they are {}. Who stands in front?"),
            {
                "Lena, Paul, Nina, Max": "Lena",
                "Paul, Nina, Max, Lena": "Paul",
                "Nina, Max, Lena, Paul": "Nina",
                "Max, Lena, Paul, Nina": "Max",
            },
        ),
        "all but one": (
            (
                "Ann, Bob, Cleo and Dan were here. All but {} have left. Who is still here?",
                "Everybody of Dan, Cleo, Bob and Ann went home except {}. Who stayed?",
            ),
            {"Ann": "Ann", "Bob": "Bob", "Cleo": "Cleo", "Dan": "Dan"},
        ),
    },
    "factual": {
        "capitals": (CAPITALS, {"France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Spain": "Madrid"}),
        "more capitals": (CAPITALS, {"Japan": "Tokyo", "China": "Beijing", "Russia": "Moscow", "Egypt": "Cairo"}),
        "continents": (
            ("On which continent is {}?", "To which part of the world does the country {} belong?"),
            {"Kenya": "Africa", "India": "Asia", "Poland": "Europe", "Canada": "America"},
        ),
        "young": (
            ("What is a young {} called?", "How does one call the baby of a {}?"),
            {"dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb"},
        ),
        "symbols": (
            ("What is the chemical symbol of {}?", "By which letter do chemists write {}?"),
            {"oxygen": "O", "hydrogen": "H", "carbon": "C", "nitrogen": "N"},
        ),
        "authors": (
            ("Who wrote {}?", "Name the author of the work {}."),
            {
                "Hamlet": "Shakespeare",
                "War and Peace": "Tolstoy",
                "Don Quixote": "Cervantes",
                "Oliver Twist": "Dickens",
            },
        ),
        "languages": (
            ("Which language do people speak in {}?", "Name the main language of {}."),
            {"Brazil": "Portuguese", "Mexico": "Spanish", "Austria": "German", "Egypt": "Arabic"},
        ),
        "colours": (
            ("What colour is {}?", "Name the usual colour of {}."),
            {"a banana": "yellow", "grass": "green", "snow": "white", "coal": "black"},
        ),
    },
}
BLOCKS = tuple(
    Topic(skill, topic, wordings, tuple(pairs.items()))
    for skill, topics in _TABLE.items()
    for topic, (wordings, pairs) in topics.items()
)
SKILLS = tuple(_TABLE)
