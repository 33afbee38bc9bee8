#!/usr/bin/env bash
# A GPU in software for the WebGPU tests, unpacked into FOLDER: Mesa's lavapipe, the Vulkan loader and what they are
# linked with, from Debian's packages. No root, nothing installed. `. FOLDER/environment` lets a shell's programs use it.
# usage: setup.sh FOLDER
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=$1

for tool in apt-get dpkg-deb; do
    command -v "$tool" > /dev/null && continue
    echo "the WebGPU tests take their driver from Debian's packages, and there is no $tool: they will be skipped" >&2
    if [ -n "${CI:-}" ]; then exit 1; else exit 0; fi # in CI a test that cannot run has failed
done

rm -rf "$target"
mkdir -p "$target"/{apt/lists/partial,apt/cache,packages,root,shaders}
target=$(cd "$target" && pwd)

options=(--quiet=2 -o "Dir::Etc::SourceList=$here/debian.sources" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$target/apt/lists" -o "Dir::Cache=$target/apt/cache" -o Acquire::Languages=none
    -o APT::Architecture=amd64 -o APT::Sandbox::User=root -o Acquire::Retries=3)
apt-get "${options[@]}" update
# their libraries, however many a machine has already; the C and C++ runtimes are the system's
mapfile -t packages < <(apt-cache "${options[@]}" -o APT::Default-Release=bookworm-backports depends --recurse \
    --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances mesa-vulkan-drivers libvulkan1 |
    grep -E '^[a-z]' | grep -vE '^(libc6|libgcc-s1|libstdc\+\+6|gcc-12-base|libcrypt1|debconf.*|dpkg|tar|perl-base|install-info)$' | sort -u)
(cd "$target/packages" && apt-get "${options[@]}" -t bookworm-backports download "${packages[@]}")
for package in "$target"/packages/*.deb; do dpkg-deb --extract "$package" "$target/root"; done
rm -rf "$target/packages" "$target/apt"

# one folder of libraries, and a driver description with an absolute path
mkdir "$target/lib"
find "$target/root/usr/lib/x86_64-linux-gnu" "$target/root/lib/x86_64-linux-gnu" -maxdepth 1 -name '*.so*' \
    ! -name 'libvulkan_[!l]*' -exec cp -P {} "$target/lib" \; 2> /dev/null || true
cat > "$target/lavapipe.json" << END
{"file_format_version": "1.0.0", "ICD": {"library_path": "$target/lib/libvulkan_lvp.so", "api_version": "1.4.305"}}
END
rm -rf "$target/root"
cat > "$target/environment" << END
export LD_LIBRARY_PATH="$target/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
export VK_ICD_FILENAMES="$target/lavapipe.json"
export MESA_SHADER_CACHE_DIR="$target/shaders"
END
