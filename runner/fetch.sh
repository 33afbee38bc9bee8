#!/usr/bin/env bash
# What compiles lfm2_runner for two processors and runs the ARM64 one here, unpacked into FOLDER. No root, nothing is
# installed: Debian's packages through apt's own checks of signatures, ExecuTorch's and its tokenizers' ARM64 wheels
# through pip, llama.cpp's Jinja engine through npm.
# usage: fetch.sh FOLDER PYTHON
set -euo pipefail
folder=$(realpath -m "$1") python=$2
debian=$folder/debian
sources=$(dirname "$(realpath "$0")")
mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache/archives/partial" "$folder/wheels" "$debian"

command -v apt-get > /dev/null || { echo "fetch.sh needs Debian's apt-get and dpkg-deb" >&2; exit 2; }
with_apt() {
  local tool=$1
  shift
  "$tool" -o Dir::State::lists="$folder/apt/lists" -o Dir::Cache="$folder/apt/cache" -o Acquire::Languages=none \
    -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o APT::Sandbox::User="$(id -un)" "$@"
}
with_apt apt-get update -qq
# the cross compiler is many packages; of what they depend on, the rest belongs to any machine with a g++
cross=$(with_apt apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
  --no-enhances g++-aarch64-linux-gnu | grep -E '^[a-z].*(aarch64-linux-gnu|arm64-cross|cross-base)' | grep -v ':' | sort -u)
mkdir -p "$folder/debs"
# shellcheck disable=SC2086  # a list of names
(cd "$folder/debs" && with_apt apt-get download -qq $cross qemu-user-static nlohmann-json3-dev libre2-dev \
  libssl-dev:amd64 libssl-dev:arm64 libssl3:arm64)
for package in "$folder"/debs/*.deb; do dpkg-deb -x "$package" "$debian"; done
rm -rf "$folder/debs" "$folder/apt"
find "$debian/usr/bin" -name 'qemu-*' ! -name qemu-aarch64-static -delete

python_version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
for package in executorch pytorch-tokenizers; do
  version=$("$python" -c "from importlib.metadata import version; print(version('$package'))")
  python3 -m pip download --quiet --no-deps --only-binary :all: --platform manylinux_2_28_aarch64 \
    --python-version "$python_version" --dest "$folder/wheels" "$package==$version"
done
for wheel in "$folder"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$folder/aarch64-wheel"; done
rm -rf "$folder/wheels"

# Of llama.rn, llama.cpp's sources for React Native, only the Jinja engine is compiled: 5 MB, where llama-cpp-python's
# archive of the same files is 77. The lock file pins version and checksum.
cp "$sources"/text/{package.json,package-lock.json,.npmrc} "$folder"
PATH="$(dirname "$(realpath -s "$python")"):$PATH" npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --prefix "$folder"
