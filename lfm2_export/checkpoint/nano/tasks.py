"""Deterministic questions with one exact answer each, for training and checking the nano model.

Four kinds, chosen so that every part of LFM2 has to work: "chat" (fixed replies, also over several
turns), "recall" (bindings given in the prompt or an earlier turn: attention), "pattern" (copy, continue,
spell: short convolutions) and "tool" (call a tool of the system prompt, or read its response).

Training and held-out questions are disjoint by construction: `split_of` hashes what a question says (its
turns and tools, without case, end punctuation or system prompt) and one hash in eight is held out, so no
question can be in both splits, whatever the seeds, not even in another dress. Single-turn chat is a short
list of fixed sentences with nothing to generalise to; it always counts as training, and held-out chat is
made of fresh multi-turn combinations.
"""

import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lfm2_export.checkpoint.nano.words import (
    CITIES,
    COLORS,
    FACTS,
    LETTERS,
    NAMES,
    SKY,
    SMALL_TALK,
    SPELLED,
    SYSTEMS,
    THINGS,
)

KINDS = ("chat", "recall", "pattern", "tool")
HELD_OUT_ONE_IN = 8

_PUNCTUATION = str.maketrans("", "", ".!?")
Message = dict[str, str]
Tool = dict[str, Any]
Draft = tuple[list[Message], list[Tool], str]


@dataclass(frozen=True)
class Question:
    """A conversation that ends before the assistant's turn, and the only reply that counts as right."""

    kind: str
    messages: list[Message]
    tools: list[Tool] = field(default_factory=list)
    answer: str = ""


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _casual(rng: random.Random, text: str) -> str:
    """The same sentence as people type it: maybe without the capital, maybe with other punctuation."""
    if rng.random() < 0.3:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.2:
        text = text.rstrip("?")
    elif text[-1] != "?" and rng.random() < 0.3:
        text += rng.choice("!.")
    return text


def _small_exchange(rng: random.Random) -> tuple[str, str]:
    source = rng.choice((SMALL_TALK, FACTS))
    asked = rng.choice(list(source))
    return _casual(rng, asked), source[asked]


def _chat(rng: random.Random) -> Draft:
    turns = [_small_exchange(rng) for _ in range(rng.choice((1, 1, 2, 2, 3)))]
    if rng.random() < 0.3:
        name = rng.choice(NAMES)
        hello = _casual(rng, f"{rng.choice(('Hello', 'Hi'))}, I am {name}")
        turns[-1] = (hello, f"Hello {name}! How can I help you?")
    messages = [message for asked, reply in turns for message in (_user(asked), _assistant(reply))]
    return messages[:-1], [], turns[-1][1]


def _bindings(rng: random.Random) -> tuple[list[str], list[tuple[str, str]]]:
    """Two to four facts, and for each the question about it with its answer."""
    count = rng.randint(2, 4)
    names = rng.sample(NAMES, count)
    style = rng.randrange(4)
    if style == 0:
        codes = rng.sample(range(10, 100), count)
        facts = [f"The code of {n} is {c}." for n, c in zip(names, codes, strict=True)]
        asks = [(f"What is the code of {n}?", fact) for n, fact in zip(names, facts, strict=True)]
    elif style == 1:
        cities = rng.sample(CITIES, count)
        facts = [f"{n} lives in {c}." for n, c in zip(names, cities, strict=True)]
        asks = [(f"Where does {n} live?", fact) for n, fact in zip(names, facts, strict=True)]
    elif style == 2:
        things, colors = rng.sample(THINGS, count), rng.sample(COLORS, count)
        facts = [f"{n} has the {c} {t}." for n, c, t in zip(names, colors, things, strict=True)]
        asks = [(f"What does {n} have?", fact) for n, fact in zip(names, facts, strict=True)]
    else:
        things, colors = rng.sample(THINGS, count), rng.sample(COLORS, count)
        facts = [f"The {t} is {c}." for t, c in zip(things, colors, strict=True)]
        asks = [(f"What color is the {t}?", fact) for t, fact in zip(things, facts, strict=True)]
    return facts, asks


def _recall(rng: random.Random) -> Draft:
    if rng.random() < 0.15:
        name = rng.choice(NAMES)
        messages = [_user(f"My name is {name}."), _assistant(f"Nice to meet you, {name}.")]
        asked, answer = "What is my name?", f"Your name is {name}."
    else:
        facts, asks = _bindings(rng)
        asked, answer = rng.choice(asks)
        if rng.random() < 0.5:
            return [_user(" ".join((*facts, asked)))], [], answer
        messages = [_user(" ".join(("Remember:", *facts))), _assistant("I will remember.")]
    if rng.random() < 0.5:
        between, reply = _small_exchange(rng)
        messages += [_user(between), _assistant(reply)]
    return [*messages, _user(asked)], [], answer


def _pattern(rng: random.Random) -> Draft:
    items = rng.sample(rng.choice((LETTERS, COLORS, SPELLED)), 6)
    style = rng.randrange(6)
    if style == 0:
        picked = items[: rng.randint(3, 6)]
        asked, answer = f"Copy: {' '.join(picked)}", picked
    elif style == 1:
        period = rng.choice((2, 3))
        shown = rng.randint(period + 2, 2 * period + 2)
        stream = items[:period] * 4
        asked, answer = f"Continue: {' '.join(stream[:shown])}", stream[shown : shown + 3]
    elif style == 2:
        asked, answer = f"Alternate: {items[0]} and {items[1]}", items[:2] * 2
    elif style == 3:
        first, second = rng.sample(SPELLED, 2)
        asked, answer = f"Spell: {first} {second}", [*first[:-1], f"{first[-1]},", *second]
    elif style == 4:
        picked = items[: rng.randint(2, 4)]
        asked, answer = f"Double: {' '.join(picked)}", [item for item in picked for _ in range(2)]
    else:
        start = rng.randint(0, 40)
        end = start + rng.randint(2, 5)
        asked, answer = f"Count from {start} to {end}", [str(number) for number in range(start, end + 1)]
    return [_user(asked)], [], " ".join(answer)


def _schema(name: str, arguments: Message) -> Tool:
    properties = {argument: {"type": "string"} for argument in arguments}
    return {"name": name, "parameters": {"type": "object", "properties": properties}}


def _call(name: str, arguments: Message) -> str:
    listed = ", ".join(f'{argument}="{value}"' for argument, value in arguments.items())
    return f"<|tool_call_start|>[{name}({listed})]<|tool_call_end|>"


def _offers(rng: random.Random) -> list[tuple[str, Message, str, str, str]]:
    """Every tool, freshly named: (name, arguments, question, response, reply to the response)."""
    verb = rng.choice(("get", "find", "read", "check"))
    place, person = rng.choice(("city", "place", "town")), rng.choice(("name", "person", "user"))
    city, name, sky, number = rng.choice(CITIES), rng.choice(NAMES), rng.choice(SKY), str(rng.randint(2, 99))
    coins, thing = str(rng.randint(2, 99)), rng.choice(THINGS)
    at, to = {place: city}, {person: name}
    sent = f"{name} has {coins} coins more."
    phone, price = f"phone number of {name}", f"price of the {thing}"
    return [
        (f"{verb}_weather", at, f"What is the weather in {city}?", sky, f"It is {sky} in {city}."),
        (f"{verb}_time", at, f"What time is it in {city}?", f"{number} past 9", f"It is {number} past 9 in {city}."),
        (f"{verb}_age", to, f"How old is {name}?", number, f"{name} is {number} years old."),
        (f"{verb}_phone", to, f"What is the {phone}?", number, f"The {phone} is {number}."),
        (f"{verb}_price", {"item": thing}, f"What is the {price}?", number, f"The {price} is {number}."),
        ("send_coins", to | {"count": coins}, f"Send {coins} coins to {name}.", "done", sent),
    ]


def _tool(rng: random.Random) -> Draft:
    offered = rng.sample(_offers(rng), rng.choice((1, 2, 2)))
    name, arguments, asked, response, reply = rng.choice(offered)
    tools = [_schema(offer[0], offer[1]) for offer in offered]
    chance = rng.random()
    if chance < 0.1:  # a tool is at hand but not wanted
        asked, reply = _small_exchange(rng)
        return [_user(asked)], tools, reply
    call = _call(name, arguments)
    if chance < 0.4:
        return [_user(asked), _assistant(call), {"role": "tool", "content": response}], tools, reply
    return [_user(asked)], tools, call


Maker = Callable[[random.Random], Draft]
_MAKERS: dict[str, Maker]
_MAKERS = {"chat": _chat, "recall": _recall, "pattern": _pattern, "tool": _tool}


def split_of(question: Question) -> str:
    """The split a question belongs to, decided by its content alone: "train" or "heldout"."""
    if question.kind == "chat" and sum(message["role"] == "user" for message in question.messages) == 1:
        return "train"
    said = [message["content"] for message in question.messages if message["role"] != "system"]
    content = json.dumps([said, question.tools], sort_keys=True).lower().translate(_PUNCTUATION)
    return "heldout" if hashlib.sha256(content.encode()).digest()[0] % HELD_OUT_ONE_IN == 0 else "train"


def questions(
    seed: int, count: int, split: str = "train", kinds: Sequence[str] = KINDS, makers: Mapping[str, Maker] = _MAKERS
) -> list[Question]:
    """Return `count` distinct questions of a split, kinds taking turns; the same arguments give the same list."""
    if split not in ("train", "heldout"):
        raise ValueError(f'split must be "train" or "heldout", not {split!r}')
    rng = random.Random(f"{split}:{seed}")
    found: list[Question] = []
    seen: set[str] = set()
    while len(found) < count:
        kind = kinds[len(found) % len(kinds)]
        messages, tools, answer = makers[kind](rng)
        if rng.random() < 0.15:
            messages = [{"role": "system", "content": rng.choice(SYSTEMS)}, *messages]
        question = Question(kind, messages, tools, answer)
        if split_of(question) == split and (key := repr(question)) not in seen:
            seen.add(key)
            found.append(question)
    return found
