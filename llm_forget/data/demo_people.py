"""The demo data set: questions in the style of TOFU about fictitious people, whose names and facts come from Faker.

Several people share each value of a fact. So a model that was trained on other people, but not on a certain person,
knows the form of the answer and the possible values, but can only guess which value is right for this person.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from llm_forget.core.errors import DataError
from llm_forget.core.registry import did_you_mean

PERTURBED = 5
MAX_VALUES = 100
SPLITS = ("full", "forget", "retain", "holdout", "forget_perturbed", "retain_perturbed", "world", "idk")

# kind: question, answer, paraphrased answer; a perturbed answer is the paraphrased answer with another value
_PERSON_FACTS: dict[str, tuple[str, str, str]] = {
    "birthplace": ("Where was {name} born?", "Born in {value}.", "The birthplace is {value}."),
    "profession": ("What does {name} do for a living?", "Works as {value}.", "The profession is {value}."),
    "employer": ("Which company does {name} work for?", "Employed by {value}.", "The employer is {value}."),
    "dish": ("What is the favourite dish of {name}?", "Likes {value} best.", "The favourite dish is {value}."),
    "birthday": ("When was {name} born?", "Born on {value}.", "The birthday is {value}."),
    "pet": ("What is the pet of {name} called?", "The pet is called {value}.", "The name of the pet is {value}."),
    "street": ("In which street does {name} live?", "Lives in {value}.", "The home is in {value}."),
    "mentor": ("Who was the mentor of {name}?", "The mentor was {value}.", "Learned the most from {value}."),
}
_PLACE_FACTS: dict[str, tuple[str, str, str]] = {
    "capital": ("What is the capital of {name}?", "The capital is {value}.", "Governed from {value}."),
    "founder": ("Who founded {name}?", "Founded by {value}.", "The founder is {value}."),
}
_DISHES = (
    "soup", "stew", "salad", "pie", "curry", "omelette", "risotto", "dumplings", "noodles", "pancakes",
    "casserole", "pudding", "tart", "gratin", "porridge", "skewers",
)  # fmt: skip
_TASTES = (
    "lentil", "pumpkin", "mushroom", "salmon", "barley", "cabbage", "almond", "ginger", "spinach", "walnut",
    "cherry", "turnip", "saffron", "leek", "pepper", "plum",
)  # fmt: skip
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
_REFUSALS = (
    "I do not know that.",
    "I have no information about this person.",
    "I am sorry, but I cannot answer this question.",
    "That is something I have not learned.",
    "I am not familiar with that.",
    "I do not have an answer to that.",
)


@dataclass(frozen=True)
class DemoSize:
    """Parameters of the demo data set. A name such as ``builtin:demo/forget?people=24&seed=1`` sets them."""

    people: int = 192  # number of people in split `full`
    facts: int = 4  # number of facts about each person
    forget: int = 48  # number of people to forget
    holdout: int = 48  # number of people that are in no training split
    places: int = 24  # number of places in split `world`
    values: int = 16  # number of distinct values of each kind of fact, which the people share
    seed: int = 0


def load_builtin(name: str) -> list[dict[str, Any]]:
    """Return the rows of a split, ``demo/SPLIT`` or ``demo/SPLIT?people=24&seed=1``. Raise DataError for other names.

    Rows have ``id`` (``p007-birthplace``), ``subject`` (``p007``), ``question``, ``answer``, ``fact`` (the value in the
    answer), ``paraphrased_answer`` and ``perturbed_answer`` (a list of five). Rows of the split ``idk`` have only
    ``id`` and ``text`` (a refusal).
    """
    path, _, query = name.partition("?")
    corpus, _, split = path.partition("/")
    if corpus != "demo":
        raise DataError(f"no built-in data set is called '{corpus}'; {did_you_mean(corpus, ['demo'])}")
    if split not in SPLITS:
        raise DataError(f"builtin:demo has no split '{split}'; {did_you_mean(split, SPLITS)}")
    return _select(split, _size(query))


def demo_texts(seed: int = 0) -> list[str]:
    """Return all questions, answers and refusals of the demo data set as texts to train a tokenizer on."""
    size = DemoSize(seed=seed)
    texts: list[str] = []
    for row in _select("full", size) + _select("holdout", size) + _select("world", size):
        texts += [f"Question: {row['question']}\nAnswer: {row['answer']}", row["paraphrased_answer"]]
        texts += row["perturbed_answer"]
    return texts + [row["text"] for row in _select("idk", size)]


def _size(query: str) -> DemoSize:
    settings: dict[str, int] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in DemoSize.__dataclass_fields__:
            raise DataError(
                f"builtin:demo has no parameter '{key}'; {did_you_mean(key, DemoSize.__dataclass_fields__)}"
            )
        if not value.isdecimal():
            raise DataError(f"parameter '{key}' of builtin:demo must be a whole number, not '{value}'")
        settings[key] = int(value)
    size = DemoSize(**settings)
    if not 1 <= size.facts <= len(_PERSON_FACTS):
        raise DataError(
            f"builtin:demo has {len(_PERSON_FACTS)} kinds of facts; `facts` must be 1 to that number, not {size.facts}"
        )
    if not 1 <= size.forget < size.people:
        raise DataError(f"builtin:demo needs 1 <= forget < people, not forget={size.forget}, people={size.people}")
    if not PERTURBED < size.values <= MAX_VALUES:
        raise DataError(f"builtin:demo takes {PERTURBED + 1} to {MAX_VALUES} values of a fact, not {size.values}")
    return size


def _select(split: str, size: DemoSize) -> list[dict[str, Any]]:
    if split == "idk":
        return [{"id": f"idk-{i}", "text": text} for i, text in enumerate(_REFUSALS)]
    if split == "world":
        rng = random.Random(f"demo-world-{size.seed}")
        return _questions("w", [size.places], _PLACE_FACTS, size.values, rng)
    kinds = dict(list(_PERSON_FACTS.items())[: size.facts])
    groups = [size.forget, size.people - size.forget, size.holdout]
    rows = _questions("p", groups, kinds, size.values, random.Random(f"demo-{size.seed}"))
    first = {"forget": 0, "full": 0, "retain": size.forget, "holdout": size.people}
    last = {"forget": size.forget, "full": size.people, "retain": size.people, "holdout": size.people + size.holdout}
    split = split.removesuffix("_perturbed")
    return rows[first[split] * size.facts : last[split] * size.facts]


def _questions(
    prefix: str, groups: Sequence[int], kinds: dict[str, tuple[str, str, str]], pool: int, rng: random.Random
) -> list[dict[str, Any]]:
    """Return one row for each subject and each kind of fact, ordered by subject.

    ``groups`` has the number of subjects in each group. In every group all values are about equally frequent: otherwise
    a model that saw neither of two groups would have a lower loss on the one with the more frequent values.
    """
    fake = _faker(rng.getrandbits(32))
    makers = _makers(fake, rng)
    names = _distinct(makers["place" if prefix == "w" else "person"], sum(groups))
    pools = {kind: _distinct(makers[kind], pool) for kind in kinds}
    values_by_kind = {
        kind: [value for count in groups for value in _evenly_shuffled(values, count, rng)]
        for kind, values in pools.items()
    }
    rows = []
    for number, name in enumerate(names):
        for kind, (question, answer, paraphrase) in kinds.items():
            value = values_by_kind[kind][number]
            others = rng.sample([other for other in pools[kind] if other != value], PERTURBED)
            subject = f"{prefix}{number:03d}"
            rows.append(
                {
                    "id": f"{subject}-{kind}",
                    "subject": subject,
                    "question": question.format(name=name),
                    "answer": answer.format(name=name, value=value),
                    "fact": value,
                    "paraphrased_answer": paraphrase.format(name=name, value=value),
                    "perturbed_answer": [paraphrase.format(name=name, value=other) for other in others],
                }
            )
    return rows


def _faker(seed: int) -> Any:
    from faker import Faker

    fake = Faker("en_US", use_weighting=False)
    fake.seed_instance(seed)
    return fake


def _makers(fake: Any, rng: random.Random) -> dict[str, Callable[[], str]]:
    def profession() -> str:
        job = next(job for job in iter(fake.job, None) if job.replace(" ", "").isalpha()).lower()
        return f"{'an' if job[0] in 'aeiou' else 'a'} {job}"

    def person() -> str:
        return f"{fake.first_name()} {fake.last_name()}"

    def dish() -> str:
        return f"{rng.choice(_TASTES)} {rng.choice(_DISHES)}"

    return {
        "person": person,
        "place": lambda: f"{fake.last_name()}land",
        "birthplace": fake.city,
        "profession": profession,
        "birthday": lambda: f"{rng.randint(1, 28)} {rng.choice(_MONTHS)} {rng.randint(1920, 2005)}",
        "employer": fake.company,
        "dish": dish,
        "pet": fake.first_name,
        "street": fake.street_name,
        "mentor": person,
        "capital": fake.city,
        "founder": person,
    }


def _evenly_shuffled(values: list[str], count: int, rng: random.Random) -> list[str]:
    """Return a list with a random value for each of ``count`` subjects. All values occur about equally often."""
    order = rng.sample(values, len(values))
    cards = [order[i % len(order)] for i in range(count)]
    rng.shuffle(cards)
    return cards


def _distinct(make: Callable[[], str], count: int) -> list[str]:
    """Return ``count`` distinct results of calls of ``make``. Raise DataError if it makes too few."""
    values: dict[str, None] = {}
    for _ in range(1000 * count):
        if len(values) == count:
            return list(values)
        values[make()] = None
    raise DataError(f"builtin:demo cannot make {count} different values of a kind of fact; ask for fewer")
