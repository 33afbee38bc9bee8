"""The trace: one graph of whole operators, the same by either way of tracing; cuts and rewrites know no target."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from decoders import SHAPES, config, random_decoder
from torch.export import ExportedProgram

from lfm2_export.graph.cut import Call, cut
from lfm2_export.graph.export import exported
from lfm2_export.graph.interpret import interpret
from lfm2_export.graph.matrices import matrices, siblings
from lfm2_export.graph.passes import expanded, norm_before_pick, without_dead_steps
from lfm2_export.graph.steps import LENGTH, POSITION, STATE, TOKENS, Network, Step, layer_of
from lfm2_export.graph.trace import trace
from lfm2_export.model.state import empty_state, state_shapes

ATEN = {
    "aten.linear.default": "linear",
    "aten.embedding.default": "embedding",
    "aten.add.Tensor": "add",
    "aten.mul.Tensor": "mul",
    "aten.silu.default": "silu",
}


def steps_of(program: ExportedProgram, states: list[str]) -> Network:
    """The steps of a program of `torch.export`, read off its own graph."""
    signature = program.graph_signature
    weights = {spec.arg.name: spec.target for spec in signature.input_specs if spec.target}
    named = {f"state_{name}".replace(".", "_"): STATE + name for name in states}
    values: dict[Any, str] = {}
    steps: list[Step] = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = named.get(node.name, node.name)
        elif node.target is operator.getitem:
            values[node] = f"{node.args[0].name}:{node.args[1]}"
        elif node.op == "call_function":
            target = str(node.target)
            values[node] = node.name
            used = [weights[given.name] for given in node.args if getattr(given, "name", None) in weights]
            scopes = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
            path = used[0].rpartition(".")[0] if used else scopes[-1]
            given = [each for each in node.args if getattr(each, "name", None) not in weights]
            inputs = tuple("" if each is None else values[each] for each in given if each is None or each in values)
            rest = tuple(each for each in given if each is not None and each not in values)
            count = 1 + max((user.args[1] for user in node.users if user.target is operator.getitem), default=-1)
            outputs = tuple(f"{node.name}:{number}" for number in range(count)) or (node.name,)
            steps.append(Step(ATEN.get(target, target.split(".")[1]), within(path), inputs, outputs, rest))
        else:
            logits, *new = node.args[0]
    state = dict(zip(states, (values[each] for each in new), strict=True))
    return Network(tuple(steps), values[logits], state)


def within(path: str) -> str:
    return path.removeprefix("decoder").removeprefix(".")


def canonical(network: Network) -> list[Any]:
    """Steps and results with values numbered in order: equal for equal networks."""
    given = {TOKENS, POSITION, LENGTH, ""}
    numbers: dict[str, int] = {}

    def known(value: str) -> object:
        return value if value in given or value.startswith(STATE) else numbers.setdefault(value, len(numbers))

    rows = [
        (step.kind, step.path, [known(v) for v in step.inputs], [known(v) for v in step.outputs], step.arguments)
        for step in network.steps
    ]
    return [*rows, known(network.logits), {name: known(value) for name, value in network.state.items()}]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["plain", "width 5 with bias", "untied head", "two attentions in a row"])
@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "padded"])
def test_torch_export_gives_the_same_steps(shape: str, padded: bool) -> None:
    """Strict, any number of tokens: the model exports cleanly, and the tables lower what it says."""
    small = config(**SHAPES[shape])
    program = exported(small, window=32, padded=padded, limit=31)
    assert canonical(steps_of(program, list(state_shapes(small, 32)))) == canonical(trace(small, padded))


@pytest.mark.slow
def test_decomposed_it_is_aten_alone_and_computes_the_same() -> None:
    decoder = random_decoder()
    program = exported(decoder.config, window=32, padded=True, limit=31, decoder=decoder)
    tokens, position, length = torch.randint(0, 320, (1, 9)), torch.tensor([3]), torch.tensor([7])
    state = {name: torch.randn_like(tensor) for name, tensor in empty_state(decoder.config, 32).items()}
    expected, new = decoder(tokens, position, length, state)
    plain = program.run_decompositions()
    functions = [str(node.target) for node in plain.graph.nodes if node.op == "call_function"]
    assert not [name for name in functions if "lfm2_export" in name]
    for each in (program, plain):
        actual, *states = each.module()(tokens, position, length, state)
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
        for ours, theirs in zip(states, new.values(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_trace_makes_every_state_and_reads_only_what_is_made(shape: str) -> None:
    small = config(**SHAPES[shape])
    network = trace(small, padded=True)
    states = {STATE + name for name in state_shapes(small, 8)}
    known = {TOKENS, POSITION, LENGTH, "", *states}
    for step in network.steps:
        assert set(step.inputs) <= known
        assert not set(step.outputs) & known  # each value is made once
        known |= set(step.outputs)
    assert set(network.results) <= known
    assert list(network.state) == list(state_shapes(small, 8))
    assert states <= {value for step in network.steps for value in step.inputs}


def test_without_attention_no_angles_are_computed() -> None:
    network = trace(config(layer_types=("conv", "conv")), padded=False)
    assert not {"rotary", "rotate", "attention"} & set(network.kinds())
    assert "rotary" in trace(config(), padded=False).kinds()


@pytest.mark.parametrize("shape", SHAPES)
def test_every_matrix_of_the_model_is_in_the_trace_with_its_shape(shape: str) -> None:
    decoder = random_decoder(**SHAPES[shape])
    found = {each.path: each for each in matrices(decoder.config)}
    there = {path: m for path, m in decoder.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Embedding)}
    assert found.keys() == there.keys()
    assert all(found[path].shape == tuple(module.weight.shape) for path, module in there.items())
    assert found["embed_tokens"].kind == "embedding"
    assert found["lm_head"].kind == "head"
    conv = {path for path, each in found.items() if each.kind == "conv"}
    assert conv == {path for path in there if ".conv." in path}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_matrix_of_a_layer_has_its_siblings(shape: str) -> None:
    small = config(**SHAPES[shape])
    for layer in (*range(small.num_hidden_layers), None):
        groups = siblings(small, layer)
        paths = [path for group in groups for path in group.paths]
        assert sorted(paths) == sorted(
            each.path for each in matrices(small) if layer_of(each.path) == layer and each.kind != "embedding"
        )
        assert len({group.value for group in groups}) == len(groups) == (1 if layer is None else 4)


def test_a_dead_step_goes_and_what_it_alone_needed() -> None:
    steps = (
        Step("linear", "a", ("tokens",), ("a",)),
        Step("linear", "b", ("tokens",), ("b",)),
        Step("silu", "", ("b",), ("c",)),
        Step("linear", "d", ("a",), ("d",)),
    )
    network = without_dead_steps(Network(steps, "d", {}))
    assert [step.path for step in network.steps] == ["a", "d"]


def test_the_final_norm_moves_before_the_pick_and_computes_the_same_value() -> None:
    network = trace(config(), padded=True)
    moved = norm_before_pick(network)
    pick = next(moved.of_kind("last_valid"))
    norm = next(step for step in moved.of_kind("rms_norm") if step.path == "embedding_norm")
    assert pick.inputs == (norm.output, LENGTH)
    before = next(network.of_kind("last_valid"))
    assert norm.inputs == before.inputs[:1]  # the residual stream, every row of it
    assert next(step for step in moved.of_kind("linear") if step.path == "lm_head").inputs == pick.outputs
    assert norm_before_pick(moved) == moved


def test_a_rewrite_takes_the_place_of_its_step() -> None:
    network = trace(config(), padded=False)

    def halves(step: Step) -> list[Step]:
        middle = f"{step.output}/sigmoid"
        gate = Step("sigmoid", step.path, step.inputs, (middle,))
        return [gate, Step("mul", step.path, (*step.inputs, middle), step.outputs)]

    rewritten = expanded(network, {"silu": halves})
    assert "silu" not in rewritten.kinds()
    assert len(rewritten.steps) == len(network.steps) + len(list(network.of_kind("silu")))
    assert rewritten.results == network.results


HOSTED = ("embedding", "attention", "last_valid")


@pytest.mark.parametrize("shape", SHAPES)
def test_a_cut_network_can_be_computed_in_its_order_with_as_few_calls_as_can_be(shape: str) -> None:
    small = config(**SHAPES[shape])
    network = trace(small, padded=False)
    plan = cut(network, HOSTED)
    calls = [part for part in plan if isinstance(part, Call)]
    assert len(calls) == small.layer_types.count("full_attention") + 2  # before, between and behind, and the head
    known = {TOKENS, POSITION, "", *(STATE + name for name in network.state)}
    for part in plan:
        assert set(part.inputs) <= known
        known |= set(part.outputs)
    assert set(network.results) <= known
    done = [step for part in plan for step in (part.steps if isinstance(part, Call) else (part,))]
    assert sorted(done) == sorted(network.steps)
    assert all(part.kind in HOSTED for part in plan if isinstance(part, Step))


def test_a_call_returns_nothing_that_nobody_reads() -> None:
    plan = cut(trace(config(), padded=False), HOSTED)
    read = {value for part in plan for value in part.inputs}
    results = set(trace(config(), padded=False).results)
    assert all(value in read | results for part in plan if isinstance(part, Call) for value in part.outputs)


def test_a_layer_is_known_by_its_path() -> None:
    assert layer_of("layers.12.feed_forward.w1") == 12
    assert layer_of("layers.3") == 3
    assert layer_of("embed_tokens") is None


@pytest.mark.parametrize("shape", SHAPES)
def test_interpreted_step_by_step_it_is_the_model_bit_for_bit(shape: str) -> None:
    decoder = random_decoder(**SHAPES[shape])
    network = trace(decoder.config, padded=True)
    tokens, position, length = torch.randint(0, 320, (2, 9)), torch.tensor([3, 0]), torch.tensor([7, 9])
    state = {name: torch.randn_like(tensor) for name, tensor in empty_state(decoder.config, 12, batch=2).items()}
    expected, new = decoder(tokens, position, length, state)
    given = {TOKENS: tokens, POSITION: position, LENGTH: length} | {STATE + name: t for name, t in state.items()}
    found = interpret(network, decoder, given, network.results)
    assert torch.equal(found[network.logits], expected)
    assert all(torch.equal(found[value], new[name]) for name, value in network.state.items())


def test_a_value_that_is_given_is_not_computed() -> None:
    decoder = random_decoder()
    network = trace(decoder.config, padded=False)
    lookup = next(network.of_kind("embedding"))
    state = {STATE + name: tensor for name, tensor in empty_state(decoder.config, 1).items()}
    tokens = torch.tensor([[5, 6, 7]])
    given = {TOKENS: tokens, POSITION: torch.tensor([0])} | state
    plain = interpret(network, decoder, given, [network.logits])[network.logits]
    rows = decoder.embed_tokens(tokens)
    assert torch.equal(
        interpret(network, decoder, given | {lookup.output: rows}, [network.logits])[network.logits], plain
    )
    other = interpret(network, decoder, given | {lookup.output: 2 * rows}, [network.logits])[network.logits]
    assert not torch.equal(other, plain)
