"""The tasks that drafts are measured on have one right answer each, and it copies."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.copying import KINDS, copying
from lfm2_export.chat.drafts import Lookup
from lfm2_export.checkpoint.nano import PATH
from lfm2_export.checkpoint.nano.tasks import Question, split_of
from lfm2_export.checkpoint.tokenizer import ChatTokenizer
from lfm2_export.model.load import open_checkpoint

ROOT = Path(__file__).parents[1]
TASKS = copying(3, 240)
BY_KIND = {kind: [task for task in TASKS if task.kind == kind] for kind in KINDS}


def asked(task: Question) -> str:
    return task.messages[-1]["content"]


def test_the_same_arguments_give_the_same_tasks_and_splits_are_apart() -> None:
    assert copying(3, 240) == TASKS
    held_out = copying(3, 60, "heldout")
    assert {split_of(task) for task in held_out} == {"heldout"}
    assert {split_of(task) for task in TASKS} == {"train"}


def test_an_answer_follows_from_what_was_asked() -> None:
    for task in BY_KIND["repeat"]:
        assert asked(task).endswith(f": {task.answer}")
    for task in BY_KIND["rewrite"]:
        found = re.fullmatch(
            r"(?:Write (?P<n>\w+) for (?P<o>\w+)|Replace (?P<o2>\w+) by (?P<n2>\w+)): (?P<text>.+)", asked(task)
        )
        assert found is not None
        old, new = found["o"] or found["o2"], found["n"] or found["n2"]
        assert task.answer == re.sub(rf"\b{old}\b", new, found["text"])
        assert task.answer != found["text"]
    for task in BY_KIND["extract"]:
        first, *lines = asked(task).split("\n")
        wanted = first.removeprefix("Give ").removesuffix(":").split(", ")
        form = {line.partition(": ")[0]: line for line in lines}
        assert task.answer == "\n".join(form[field] for field in wanted)
    for task in BY_KIND["answer"]:
        assert task.answer.count(".") == asked(task).count("?")
        assert all(f"{said.strip()}." in asked(task) for said in task.answer.split(".")[:-1])


def test_json_is_what_was_listed_or_changed() -> None:
    for task in BY_KIND["json"]:
        first, _, rest = asked(task).partition("\n")
        records = json.loads(task.answer)
        if first.startswith("Write"):
            assert rest.split("\n") == [", ".join(record.values()) for record in records]
            assert first == f"Write as JSON with {', '.join(records[0])}:"
        else:
            found = re.fullmatch(r"Set (\w+) of (\w+) to (\w+):", first)
            assert found is not None
            field, name, value = found.groups()
            before = json.loads(rest)
            next(record for record in before if record["name"] == name)[field] = value
            assert before == records


def test_a_call_is_of_an_offered_tool_with_what_was_said() -> None:
    for task in BY_KIND["tool"]:
        listed = task.answer.removeprefix("<|tool_call_start|>").removesuffix("<|tool_call_end|>")
        calls = ast.parse(listed, mode="eval").body
        assert isinstance(calls, ast.List)
        offered = {tool["name"]: list(tool["parameters"]["properties"]) for tool in task.tools}
        for call in calls.elts:
            assert isinstance(call, ast.Call)
            assert isinstance(call.func, ast.Name)
            assert [argument.arg for argument in call.keywords] == offered[call.func.id]
            assert all(ast.literal_eval(argument.value) in asked(task) for argument in call.keywords)


@pytest.mark.parametrize("kind", KINDS)
def test_much_of_a_reply_can_be_looked_up(kind: str) -> None:
    """Over a right reply, token by token: how often lookup has the next one."""
    nano = open_checkpoint("nano")
    tokenizer = ChatTokenizer.load(nano.folder, nano.config)
    assert tokenizer is not None
    right = tokens = 0
    for task in BY_KIND[kind]:
        said = tokenizer.encode(tokenizer.render(task.messages, tools=task.tools or None))
        lookup = Lookup()
        for token in tokenizer.encode(task.answer):
            right += lookup(said, 1) == [token]
            tokens += 1
            said.append(token)
    assert right > tokens / 3


def test_the_training_script_teaches_them(tmp_path: Path) -> None:
    few = ["--lesson", "copying", "--start", str(PATH), "--steps", "10", "--batch", "4", "--asked", "10"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "training" / "nano.py"), *few, "--threads", "1", "--out", str(tmp_path / "out")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(loss) for loss in re.findall(r"^step \d+ loss ([\d.]+): repeat ", done.stdout, re.MULTILINE)]
    assert len(losses) == 10
    assert losses[-1] < losses[0]
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (PATH / "tokenizer.json").read_bytes()
