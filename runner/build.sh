#!/usr/bin/env bash
# Compiles lfm2_runner into FOLDER/<kind>/lfm2_runner. Kinds: x86_64, aarch64, and x86_64-asan, which stops at the first
# bad access or undefined behaviour. What it needs beside a g++ was put into FOLDER by fetch.sh.
# usage: build.sh FOLDER PYTHON KIND
set -euo pipefail
folder=$(realpath "$1") python=$2 kind=$3
debian=$folder/debian
sources=$(dirname "$(realpath "$0")")
here=$("$python" -c 'from importlib.util import find_spec; print(find_spec("executorch").submodule_search_locations[0])')
version=$("$python" -c 'from importlib.metadata import version; print(version("executorch"))')
flags=(-std=c++17 -O3 -Wall -Wextra)  # -O3: attention's sums stay in registers
crypto=(-lcrypto)
case $kind in
  x86_64) wheel=$here compiler=(g++) triple=x86_64-linux-gnu ;;
  x86_64-asan)
    wheel=$here compiler=(g++) triple=x86_64-linux-gnu
    flags=(-std=c++17 -O1 -g1 -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
    ;;
  aarch64)
    wheel=$folder/aarch64-wheel/executorch compiler=("$debian/usr/bin/aarch64-linux-gnu-g++" --sysroot="$debian")
    triple=aarch64-linux-gnu
    crypto=("$debian/usr/lib/$triple/libcrypto.so.3" -Wl,-rpath,"$debian/usr/lib/$triple")
    export LD_LIBRARY_PATH=$debian/usr/lib/x86_64-linux-gnu  # the cross binutils' own
    ;;
  *) echo "unknown kind $kind" >&2; exit 2 ;;
esac
out=$folder/$kind
mkdir -p "$out"
includes=(-isystem "$wheel/include" -isystem "$wheel/include/executorch/runtime/core/portable_type/c10"
  -isystem "$debian/usr/include" -isystem "$debian/usr/include/$triple")
defines=(-DC10_USING_CUSTOM_GENERATED_MACROS -DET_USE_THREADPOOL -DLFM2_EXECUTORCH_VERSION="\"$version\"")
compile() { "${compiler[@]}" "${flags[@]}" "${defines[@]}" "${includes[@]}" -c "$1" -o "$out/$(basename "$1" .cpp).o"; }
running=0
for source in "$sources"/*.cpp; do
  compile "$source" &
  if (( ++running >= $(nproc) )); then wait -n; fi
done
failed=0
while (( running-- > 0 )); do wait -n || { [[ $? == 127 ]] || failed=1; }; done
(( failed == 0 ))
"${compiler[@]}" "${flags[@]}" "$out"/*.o -o "$out/lfm2_runner.new" -L"$wheel/lib" -Wl,-rpath,"$wheel/lib" \
  -Wl,--no-as-needed -lexecutorch -lexecutorch_kernels_optimized -lexecutorch_kernels_quantized \
  -lexecutorch_backend_xnnpack -lexecutorch_threadpool -Wl,--as-needed -Wl,--allow-shlib-undefined "${crypto[@]}" -lpthread
rm "$out"/*.o
mv "$out/lfm2_runner.new" "$out/lfm2_runner"
