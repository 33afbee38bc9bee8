"""Tasks whose replies copy much of what was asked, each with one exact answer: the text that lookup's drafts are for.

Six kinds: "repeat" a note, "rewrite" it with another name, "extract" lines of a form, "answer" in a text's own words,
write or change "json", and call a "tool" with what was said. They are made of nano's words and split as its questions
are (`lfm2_export.checkpoint.nano.tasks`); `training/nano.py --lesson copying` teaches them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence

from lfm2_export.checkpoint.nano.tasks import Draft, Question, Tool, questions
from lfm2_export.checkpoint.nano.words import CITIES, COLORS, NAMES, SKY, THINGS

_FIELDS = {
    "name": NAMES,
    "city": CITIES,
    "item": THINGS,
    "color": COLORS,
    "code": [str(number) for number in range(10, 100)],
    "age": [str(number) for number in range(2, 100)],
}


def _number(rng: random.Random) -> int:
    return rng.randint(2, 99)


_SENTENCES: tuple[Callable[[random.Random, str], str], ...] = (
    lambda rng, name: f"{name} lives in {rng.choice(CITIES)}.",
    lambda rng, name: f"{name} has the {rng.choice(COLORS)} {rng.choice(THINGS)}.",
    lambda rng, name: f"{name} is {_number(rng)} years old.",
    lambda rng, name: f"{name} has {_number(rng)} coins.",
    lambda rng, name: f"The code of {name} is {_number(rng)}.",
    lambda rng, name: f"The phone number of {name} is {_number(rng)}.",
    lambda rng, name: f"The {rng.choice(THINGS)} is {rng.choice(COLORS)}.",
    lambda rng, name: f"The price of the {rng.choice(THINGS)} is {_number(rng)}.",
    lambda rng, name: f"It is {rng.choice(SKY)} in {rng.choice(CITIES)}.",
)


def _sentences(rng: random.Random, least: int, most: int, names: Sequence[str] = NAMES) -> list[str]:
    return [rng.choice(_SENTENCES)(rng, rng.choice(names)) for _ in range(rng.randint(least, most))]


def _asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _repeat(rng: random.Random) -> Draft:
    note = " ".join(_sentences(rng, 3, 9))
    before = rng.choice(("Repeat this note: ", "Say it again: ", "Copy: "))
    return _asked(before + note), [], note


def _rewrite(rng: random.Random) -> Draft:
    old, new, other = rng.sample(NAMES, 3)
    while old not in (text := " ".join(_sentences(rng, 3, 8, (old, old, other)))):
        pass
    asked = rng.choice((f"Write {new} for {old}: {text}", f"Replace {old} by {new}: {text}"))
    return _asked(asked), [], text.replace(old, new)


def _record(rng: random.Random, fields: Sequence[str]) -> dict[str, str]:
    return {field: rng.choice(_FIELDS[field]) for field in fields}


def _extract(rng: random.Random) -> Draft:
    fields = rng.sample(list(_FIELDS), rng.randint(3, 6))
    form = _record(rng, fields) | {"note": " ".join(_sentences(rng, 1, 3))}
    order = list(form)
    rng.shuffle(order)
    lines = {field: f"{field}: {form[field]}" for field in order}
    wanted = rng.sample(order, rng.randint(2, 4))
    asked = f"Give {', '.join(wanted)}:\n" + "\n".join(lines.values())
    return _asked(asked), [], "\n".join(lines[field] for field in wanted)


def _answer(rng: random.Random) -> Draft:
    names = rng.sample(NAMES, rng.randint(3, 5))
    facts: list[tuple[str, str]] = []
    for name in names:
        number = _number(rng)
        facts += rng.sample(
            [
                (f"Where does {name} live?", f"{name} lives in {rng.choice(CITIES)}."),
                (f"What does {name} have?", f"{name} has the {rng.choice(COLORS)} {rng.choice(THINGS)}."),
                (f"How old is {name}?", f"{name} is {number} years old."),
                (f"What is the code of {name}?", f"The code of {name} is {number}."),
                (f"What is the phone number of {name}?", f"The phone number of {name} is {number}."),
            ],
            rng.randint(1, 2),
        )
    rng.shuffle(facts)
    wanted = rng.sample(facts, rng.randint(1, 3))
    text = " ".join(fact for _, fact in facts)
    asked = " ".join(question for question, _ in wanted)
    return _asked(f"{text} {asked}"), [], " ".join(fact for _, fact in wanted)


def _json(rng: random.Random) -> Draft:
    fields = ["name", *rng.sample([field for field in _FIELDS if field != "name"], rng.randint(1, 3))]
    names = rng.sample(NAMES, rng.randint(2, 4))
    records = [{**_record(rng, fields), "name": name} for name in names]
    if rng.random() < 0.5:
        rows = "\n".join(", ".join(record.values()) for record in records)
        return _asked(f"Write as JSON with {', '.join(fields)}:\n{rows}"), [], json.dumps(records)
    before = json.dumps(records)
    changed, field = rng.choice(records), rng.choice(fields[1:])
    changed[field] = rng.choice(_FIELDS[field])
    return _asked(f"Set {field} of {changed['name']} to {changed[field]}:\n{before}"), [], json.dumps(records)


def _offer(name: str, fields: Sequence[str]) -> Tool:
    properties = {field: {"type": "string"} for field in fields}
    return {"name": name, "parameters": {"type": "object", "properties": properties}}


def _call(name: str, arguments: dict[str, str]) -> str:
    listed = ", ".join(f'{field}="{value}"' for field, value in arguments.items())
    return f"{name}({listed})"


def _tool(rng: random.Random) -> Draft:
    fields = rng.sample(list(_FIELDS), rng.randint(2, 4))
    verb = rng.choice(("get", "find", "read", "check"))
    offers = [_offer("send_note", ("name", "note")), _offer(f"{verb}_item", fields)]
    if rng.random() < 0.5:
        name, note = rng.choice(NAMES), " ".join(_sentences(rng, 1, 4))
        asked = f"Send this note to {name}: {note}"
        calls = [_call("send_note", {"name": name, "note": note})]
    else:
        records = [_record(rng, fields) for _ in range(rng.randint(1, 3))]
        said = "\n".join(", ".join(f"{field} {value}" for field, value in record.items()) for record in records)
        asked = f"Find each item:\n{said}"
        calls = [_call(f"{verb}_item", record) for record in records]
    rng.shuffle(offers)
    return _asked(asked), offers, f"<|tool_call_start|>[{', '.join(calls)}]<|tool_call_end|>"


MAKERS = {
    "repeat": _repeat,
    "rewrite": _rewrite,
    "extract": _extract,
    "answer": _answer,
    "json": _json,
    "tool": _tool,
}
KINDS = tuple(MAKERS)


def copying(seed: int, count: int, split: str = "train", kinds: Sequence[str] = KINDS) -> list[Question]:
    """Return `count` distinct tasks of a split, kinds taking turns; the same arguments give the same list."""
    return questions(seed, count, split, kinds, MAKERS)
