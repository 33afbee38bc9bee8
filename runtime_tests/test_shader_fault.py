"""The fault of Chromium's shader compiler that docs/webgpu-attention-bug.md tells of, and the code shown for it."""

from __future__ import annotations

import re
from pathlib import Path

import javascript

FORGETFUL = """@group(0) @binding(0) var<storage, read_write> output: array<f32>;
@compute @workgroup_size(1)
fn main() {
  for (var i = 0u; i < 4u; i++) {
    var x: f32;
    x += 1.0;
    output[i] = x;
  }
}"""


def test_the_documents_show_the_code_that_is_tested():
    code = (javascript.WEB / "pages" / "short_calls.mjs").read_text()
    function = code[code.index("export ") :].removeprefix("export ")
    docs = Path(__file__).parent.parent / "docs"
    assert function in (docs / "onnx.md").read_text()
    shader = re.search(r"```wgsl\n(.*?)```", (docs / "webgpu-attention-bug.md").read_text(), re.DOTALL)
    assert shader.group(1).split() == FORGETFUL.split()


def test_the_shader_compilers_fault_is_still_there():
    """When this fails, Chromium's release has mended it: say so in docs/webgpu-attention-bug.md."""
    shaders = {"seen": FORGETFUL, "spelled out": FORGETFUL.replace("x: f32;", "x: f32 = 0.0;")}
    found = javascript.run("wgsl.mjs", {"shaders": shaders, "words": 4})
    assert found["seen"] == [1, 2, 3, 4]
    assert found["spelled out"] == [1, 1, 1, 1]
