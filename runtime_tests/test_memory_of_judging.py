"""What a model is judged on may be any amount of text: memory does not grow with it, at a vocabulary of 65,536.

A row of logits has 262 kB there, so that keeping them for 4,000 tokens instead of 500 would add a gigabyte.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

TRIES = 3  # the C library places the same blocks otherwise now and then

PEAK = """
import re, sys
from pathlib import Path
from lfm2_export.artifact.folder import open_artifact
from lfm2_export.evaluate.text import random_ids
from lfm2_export.evaluate.origin import checkpoint_of
folder, source, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
artifact = open_artifact(folder)
checkpoint = checkpoint_of(artifact, source)
{work}
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()).group(1))
"""

PROOF = """
from lfm2_export.parity.detail import Detail
from lfm2_export.parity.effort import Effort
from lfm2_export.parity.prove import prove
from lfm2_export.report import outputs
effort = Effort(quality_tokens=count, law_tokens=24, whole=False)
report = prove(artifact, checkpoint, effort=effort, detail=Detail(drift_steps=40, drift_samples=4))
assert report.passed
outputs.write(report, [folder.with_name(f"{count}.json"), folder.with_name(f"{count}.md")], force=True)
"""

TUNE = """
from dataclasses import replace
from lfm2_export.model.load import load_decoder, open_checkpoint
from lfm2_export.model.random_init import init_checkpoint
from lfm2_export.quantize.freed_memory import return_at_once
from lfm2_export.tune.choices import units
from lfm2_export.tune.sensitivity import sensitivities, whole_cost
config = replace(checkpoint.config, layer_types=("conv",) * 40)  # its streams are 21 kB a token
deep = folder.with_name(f"deep-{count}")
if not deep.exists():
    init_checkpoint(config, deep)
return_at_once()
windows = [random_ids(config, 100, seed) for seed in range(count // 100)]
exact, (first,) = load_decoder(open_checkpoint(str(deep))), units(config, "xnnpack")[1:2]
sensitivities(exact, [first._replace(options=())], windows)  # the streams; the divergence, which takes long, once
whole_cost(exact, [first], first.options[:1], windows)
"""

SCORE = """
from lfm2_export import runtimes
from lfm2_export.evaluate.harness import ArtifactLM
session = runtimes.find("executorch").open_session(folder, artifact.manifest)
asked = [random_ids(checkpoint.config, 500, seed) for seed in range(count // 500)]
ArtifactLM(session, None)._loglikelihood_tokens([(None, list(ids[:1]), list(ids[1:])) for ids in asked])
"""


COMPARE = """
from lfm2_export.parity.detail import Details, TokenDivergence
from lfm2_export.parity.report import ParityReport, RuntimeReport
from lfm2_export.report import outputs
from lfm2_export.report.compare import compare
details = Details(tokens=TokenDivergence(kld=[0.001] * count, position=list(range(count))))
manifest = artifact.manifest
report = ParityReport(
    artifact="made", recipe="xnnpack-int4", source="narrow", weights_sha256=manifest.source.weights_sha256,
    random_weights=True, text="random ids", size_bytes=1, versions=manifest.versions,
    runtimes=[RuntimeReport(runtime="executorch", details=details)],
)
written = [folder.with_name(f"{count}-compared.{kind}") for kind in ("json", "html")]
outputs.write(report, written, force=True)
assert compare(folder, written[0]).rows
"""


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An artifact with the true vocabulary and little else, and its checkpoint."""
    from lfm2_export.model.random_init import SIZES, init_checkpoint
    from lfm2_export.pipeline import export

    folder = tmp_path_factory.mktemp("narrow")
    config = replace(
        SIZES["350m"],
        hidden_size=128,
        intermediate_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        layer_types=("conv", "full_attention"),
    )
    assert config.vocab_size == 65536
    init_checkpoint(config, folder / "checkpoint")
    made, _ = export(str(folder / "checkpoint"), "xnnpack-int4", folder / "made", verify=False)
    return made.folder, folder / "checkpoint"


def _peak(work: str, folder: Path, checkpoint: Path, tokens: int) -> int:
    """Kilobytes at the most, of a process that does this with so many tokens."""
    program = PEAK.replace("{work}", work)
    command = [sys.executable, "-c", program, str(folder), str(checkpoint), str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
@pytest.mark.parametrize("work", ["proof and reports", "tune", "score", "compare and its page"])
def test_the_peak_does_not_depend_on_the_amount_of_text(work: str, narrow: tuple[Path, Path]) -> None:
    if work == "score":
        pytest.importorskip("lm_eval")
    if "page" in work:
        pytest.importorskip("matplotlib")
    program = {"proof and reports": PROOF, "tune": TUNE, "score": SCORE, "compare and its page": COMPARE}[work]
    few, tries = _peak(program, *narrow, 500), list[int]()
    while len(tries) < TRIES and (not tries or min(tries) >= 1.05 * few):
        tries.append(_peak(program, *narrow, 4000))
    assert min(tries) < 1.05 * few, (few, tries)
