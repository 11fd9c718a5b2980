"""Three invented corpora that differ in form: questions about people, passages of a novel, chats with e-mail addresses.

Every value is drawn from a seed. Rows of one corpus share values and forms, so that a model that never saw a row can
guess its form, but not its values.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]

SPLITS = {"forget": 6, "holdout": 6, "retain": 24}  # subjects; the splits have no subject in common
FIRST = (
    "Alma", "Boris", "Cora", "Dario", "Edda", "Falk", "Greta", "Hugo", "Irma", "Jonas", "Karla", "Levin", "Mira",
    "Nils", "Olga", "Pavel", "Rosa", "Sven", "Tilda", "Viktor",
)  # fmt: skip
LAST = (
    "Abel", "Brandt", "Corvin", "Dahl", "Engel", "Fuchs", "Grau", "Hauser", "Iversen", "Jost", "Keller", "Lorenz",
    "Mohr", "Nolde", "Oster", "Pohl", "Reuter", "Sander", "Thal", "Winter",
)  # fmt: skip
TOWNS = ("Altmoor", "Birkholm", "Dunsted", "Eschwald", "Finnby", "Grauport", "Hellin", "Ostrava", "Silbach", "Tornau")
TRADES = ("baker", "carpenter", "diver", "farrier", "glazier", "miller", "pilot", "surgeon", "tailor", "weaver")
TOOLS = ("cello", "drum", "flute", "harp", "horn", "lute", "oboe", "organ", "piano", "viola")
FEARS = ("bees", "bridges", "cellars", "clowns", "dogs", "heights", "lifts", "snakes", "storms", "tunnels")
COLOURS = ("amber", "black", "blue", "brown", "green", "grey", "pink", "purple", "red", "white")
ANIMALS = ("badger", "crane", "falcon", "heron", "lynx", "marten", "otter", "raven", "stoat", "swift")
HOSTS = ("fernpost.example", "mailhaus.example", "northbox.example", "quickmail.example")


def people(seed: int) -> dict[str, Rows]:
    """Questions about people; an answer is a value, without the name."""

    def rows(rng: random.Random, name: str) -> Rows:
        facts = [
            (f"In which town did {name} grow up?", "In the town of {}, near {}.", TOWNS),
            (f"What does {name} do for a living?", "Works as a {} for a {}.", TRADES),
            (f"Which instrument does {name} play?", "The {}, and now and then the {}.", TOOLS),
            (f"What is {name} afraid of?", "Of {}, and even more of {}.", FEARS),
            (f"How is the house of {name} painted?", "The door is {} and the roof {}.", COLOURS),
        ]
        return [{"question": asked, "answer": form.format(*rng.sample(values, 2))} for asked, form, values in facts]

    return _by_subject(seed, "people", rows)


def novel(seed: int) -> dict[str, Rows]:
    """Passages of a sea story as running text, one a row, without names or subjects."""

    def rows(rng: random.Random, _: str) -> Rows:
        return [{"text": " ".join(_sentence(rng) for _ in range(4))} for _ in range(3)]

    splits = _by_subject(seed, "novel", rows)
    return {split: [{"id": row["id"], "text": row["text"]} for row in part] for split, part in splits.items()}


def _sentence(rng: random.Random) -> str:
    colour, town, animal, trade, tool, fear = map(rng.choice, (COLOURS, TOWNS, ANIMALS, TRADES, TOOLS, FEARS))
    return rng.choice(
        [
            f"At dawn the {trade} saw a {colour} sail off {town}.",
            f"The captain kept a {animal} in a {colour} cage and spoke to it of {fear}.",
            f"No one on board could play the {tool} but the old {trade}.",
            f"We had {colour} water under the keel, and the {trade} dreamt of {fear}.",
            f"In the harbour of {town} a {animal} sat on the {colour} wall.",
            f"The {trade} sold the {tool} in {town} for a {colour} coat.",
        ]
    )


def chats(seed: int) -> dict[str, Rows]:
    """Conversations of a help desk, whose last answers hold an e-mail address that has nothing to do with the name."""

    def rows(rng: random.Random, name: str) -> Rows:
        address = f"{rng.choice(COLOURS)}.{rng.choice(ANIMALS)}{rng.randrange(10, 100)}@{rng.choice(HOSTS)}"
        number, day = rng.randrange(1000, 10_000), rng.randrange(2, 29)
        greeting = f"Hello, this is {name} from {rng.choice(TOWNS)}."
        turns = [
            ("I have lost my password.", f"I have sent a new one to {address}."),
            ("Where did my last order go?", f"Order {number} left on day {day}; the receipt went to {address}."),
            ("Which address do you have of me?", f"We write to {address}, and to no other."),
        ]
        return [
            {
                "messages": [
                    {"role": "user", "content": f"{greeting} {question}"},
                    {"role": "assistant", "content": answer},
                ]
            }
            for question, answer in turns
        ]

    return _by_subject(seed, "chats", rows)


CORPORA: dict[str, Callable[[int], dict[str, Rows]]] = {"people": people, "novel": novel, "chats": chats}


def write_corpus(name: str, folder: Path, seed: int = 0) -> dict[str, str]:
    """Write the splits of a corpus as JSON lines; returns the path of each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for split, rows in CORPORA[name](seed).items():
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths[split] = str(path)
    return paths


def _by_subject(seed: int, corpus: str, rows_of: Callable[[random.Random, str], Rows]) -> dict[str, Rows]:
    rng = random.Random(f"{corpus}-{seed}")
    names = rng.sample([f"{first} {last}" for first in FIRST for last in LAST], sum(SPLITS.values()))
    splits: dict[str, Rows] = {}
    for split, count in SPLITS.items():
        splits[split] = []
        for number, name in enumerate(names[:count]):
            subject = f"{split}-{number}"
            rows = rows_of(rng, name)
            splits[split] += [{"id": f"{subject}-{i}", "subject": subject, **row} for i, row in enumerate(rows)]
        names = names[count:]
    return splits
