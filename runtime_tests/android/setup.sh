#!/usr/bin/env bash
# The toolchain of the Android tests, unpacked into the folder named: Debian's Android tools and Java (no root, nothing
# installed), the Kotlin compiler and ExecuTorch's Android classes from npm. About 200 MB of downloads.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
target=$1

packages=(
    openjdk-17-jre-headless                     # runs the compiler, the tests and Debian's tools
    libandroid-23-java                          # android.jar, API 23
    libandroid-json-java                        # org.json as Android has it, for tests on the JVM
    junit4 libhamcrest-java
    dalvik-exchange                             # dx: class files to dex
    aapt zipalign apksigner libapksig-java
    # what aapt and zipalign are linked with
    android-libaapt android-libandroidfw android-libbase android-libcutils android-liblog android-libutils
    android-libziparchive android-libbacktrace android-libunwind libzopfli1 libprotobuf-lite32 p7zip-full
)

for tool in apt-get dpkg-deb npm; do
    command -v "$tool" > /dev/null && continue
    echo "the Android tests take their tools from Debian's and npm's packages, and there is no $tool: they will be skipped" >&2
    if [ -n "${CI:-}" ]; then exit 1; else exit 0; fi # in CI a test that cannot run has failed
done

rm -rf "$target"
mkdir -p "$target"/{apt/lists/partial,apt/cache,packages,root}
target=$(cd "$target" && pwd)

apt=(apt-get --quiet=2 -o "Dir::Etc::SourceList=$here/debian.sources" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$target/apt/lists" -o "Dir::Cache=$target/apt/cache" -o Acquire::Languages=none
    -o APT::Architecture=amd64 -o APT::Sandbox::User=root -o Acquire::Retries=3)
"${apt[@]}" update
(cd "$target/packages" && "${apt[@]}" download "${packages[@]}")
for package in "$target"/packages/*.deb; do dpkg-deb --extract "$package" "$target/root"; done

# Java's configuration lies in /etc and is linked to from there by absolute paths
find "$target/root/usr/lib/jvm" -type l -lname '/etc/*' | while read -r link; do
    ln -sf "$target/root$(readlink "$link")" "$link"
done

cp "$here/package.json" "$here/package-lock.json" "$here/.npmrc" "$target"
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error --prefix "$target"
rm -rf "$target/packages" "$target/apt"
