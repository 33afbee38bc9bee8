"""Stands in for ExecuTorch's qnn_executor_runner: its options, its files, and the real program through ExecuTorch.

FAKE_PHONE_FAULT=crash makes it die of a signal, =refuse end with a status; =wrong spoils what it computes.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  registers attention and cache kernels
from executorch.extension.pybindings import portable_lib
from executorch.kernels import quantized  # noqa: F401  registers the quantized embedding's kernels

from lfm2_export.device.proof import method_names
from lfm2_export.qualcomm import sdk

DTYPES = {3: torch.int32, 4: torch.int64, 6: torch.float32, 15: torch.bfloat16}  # executorch's ScalarType

parser = argparse.ArgumentParser()
for name in ("model_path", "input_list_path", "output_folder_path", "input_shape_path", "output_shape_path"):
    parser.add_argument(f"--{name}", default="")
parser.add_argument("--method_index", type=int, default=0)
options = parser.parse_args()
fault = os.environ.get("FAKE_PHONE_FAULT")
if os.environ["LD_LIBRARY_PATH"] != "." or os.environ["ADSP_LIBRARY_PATH"] != ".":
    sys.exit("the libraries beside the runner would not be found")
if fault == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if fault == "refuse":
    print("E 00:00:00 Failed to create device handle, error 14001")
    sys.exit(3)

method = method_names(Path(options.model_path))[options.method_index]
if method != "forward":
    sdk.prepare()  # an NPU's program: the emulator runs it
module = portable_lib._load_for_executorch(options.model_path)
meta = module.method_meta(method)
specs = [meta.input_tensor_meta(i) for i in range(meta.num_inputs())]
shapes = [list(spec.sizes()) for spec in specs]
if options.input_shape_path:
    lines = Path(options.input_shape_path).read_text().splitlines()
    shapes = [[int(size) for size in line.split(", ")] for line in lines]
for number, line in enumerate(Path(options.input_list_path).read_text().splitlines()):
    inputs = []
    for file, spec, shape in zip(line.split(" "), specs, shapes, strict=True):
        dtype = DTYPES[spec.dtype()]
        data = bytearray(Path(file).read_bytes())
        wanted = torch.Size(shape).numel() * dtype.itemsize
        if len(data) != wanted:
            sys.exit(f"input size mismatch: {len(data)} bytes, {wanted} expected")
        inputs.append(torch.frombuffer(data, dtype=dtype).reshape(shape))
    for index, output in enumerate(module.run_method(method, inputs)):
        spoil = np.float32(fault == "wrong") * np.arange(output.numel(), dtype=np.float32)
        values = output.numpy().reshape(-1) + spoil
        values.tofile(f"{options.output_folder_path}/output_{number}_{index}.raw")
