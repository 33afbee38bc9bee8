#!/usr/bin/env bash
# strace for the injected faults, unpacked into the folder named from Debian's packages (no root, nothing is installed);
# one that is installed will do. usage: setup.sh FOLDER
set -euo pipefail
target=$1

command -v strace > /dev/null && exit 0
for tool in apt-get dpkg-deb; do
    command -v "$tool" > /dev/null && continue
    echo "the fault tests need strace, which is not installed, and there is no $tool to fetch it with" >&2
    if [ -n "${CI:-}" ]; then exit 1; else exit 0; fi # in CI a test that cannot run has failed
done

rm -rf "$target"
mkdir -p "$target"/{apt/lists/partial,apt/cache/archives/partial,packages}
target=$(cd "$target" && pwd)
apt=(apt-get --quiet=2 -o "Dir::State::Lists=$target/apt/lists" -o "Dir::Cache=$target/apt/cache"
    -o Acquire::Languages=none -o "APT::Sandbox::User=$(id -un)" -o Acquire::Retries=3)
"${apt[@]}" update
(cd "$target/packages" && "${apt[@]}" download strace libunwind8)
for package in "$target"/packages/*.deb; do dpkg-deb --extract "$package" "$target"; done
rm -rf "$target/packages" "$target/apt"
