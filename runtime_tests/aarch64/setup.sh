#!/usr/bin/env bash
# A Python for Linux on ARM64 with this project's dependencies, unpacked into FOLDER (5 GB: PyPI's torch for ARM64 is
# built for CUDA), and FOLDER/bin/python, which runs it under qemu. Debian's packages and PyPI's wheels; no root, nothing
# is installed. How to use it: docs/install.md.
# usage: setup.sh FOLDER PYTHON      PYTHON has uv, which takes the wheels that pip would take on ARM64
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
project=$(cd "$here/../.." && pwd)
target=$(realpath -m "$1") python=$2

rm -rf "$target"
mkdir -p "$target"/{apt/lists/partial,apt/cache/archives/partial,packages,root,bin}
apt=(--quiet=2 -o "Dir::Etc::SourceList=$here/debian.sources" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$target/apt/lists" -o "Dir::Cache=$target/apt/cache" -o Acquire::Languages=none
    -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o "APT::Sandbox::User=$(id -un)" -o Acquire::Retries=3)
apt-get "${apt[@]}" update
mapfile -t packages < <(apt-cache "${apt[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts \
    --no-breaks --no-replaces --no-enhances python3.11:arm64 libstdc++6:arm64 libgomp1:arm64 |
    grep -E '^[a-z].*:arm64$' | sort -u)
(cd "$target/packages" && apt-get "${apt[@]}" download "${packages[@]}" qemu-user-static)
for package in "$target"/packages/*.deb; do dpkg-deb --extract "$package" "$target/root"; done
rm -rf "$target/packages" "$target/apt"
find "$target/root/usr/bin" -name 'qemu-*' ! -name qemu-aarch64-static -delete

# what PyTorch reads about the processor, and crashes on where it is this machine's: a Neoverse N1
mkdir -p "$target/root/proc"
for core in $(seq 0 $(($(nproc) - 1))); do
    printf '%s\t: %s\n' processor "$core" BogoMIPS 50.00 \
        Features 'fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp' \
        'CPU implementer' 0x41 'CPU architecture' 8 'CPU variant' 0x3 'CPU part' 0xd0c 'CPU revision' 1
    echo
done > "$target/root/proc/cpuinfo"

emulated() { # PROGRAM SCRIPT: a script that runs the ARM64 program, under the script's own name
    printf '#!/bin/sh\nexec "%s" -cpu neoverse-n1 -L "%s" -0 "$0" "%s" "$@"\n' \
        "$target/root/usr/bin/qemu-aarch64-static" "$target/root" "$1" > "$2"
    chmod +x "$1" "$2"
}
emulated "$target/root/usr/bin/python3.11" "$target/bin/python"
echo "home = $target/root/usr/bin" > "$target/pyvenv.cfg" # so it is a virtual environment

arm64=(--quiet --python-version 3.11 --python-platform aarch64-manylinux_2_28 --only-binary torch)
"$python" -m uv pip compile "${arm64[@]}" "$project/pyproject.toml" --output-file "$target/requirements.txt" > /dev/null
packages=$target/lib/python3.11/site-packages
"$python" -m uv pip install "${arm64[@]}" --python "$python" --no-deps --target "$packages" \
    --requirement "$target/requirements.txt"
mv "$packages/executorch/data/bin/flatc" "$target/bin/flatc-arm64" # ExecuTorch starts it
emulated "$target/bin/flatc-arm64" "$packages/executorch/data/bin/flatc"
