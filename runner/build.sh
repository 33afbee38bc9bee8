#!/usr/bin/env bash
# Compiles lfm2_runner into FOLDER/<kind>/lfm2_runner, and beside it lfm2_text.so, which its commands `chat` and `text`
# load. Kinds: x86_64, aarch64, and x86_64-asan, which stops at the first bad access or undefined behaviour. What it needs
# beside a g++ was put into FOLDER by fetch.sh.
# usage: build.sh FOLDER PYTHON KIND
set -euo pipefail
folder=$(realpath "$1") python=$2 kind=$3
debian=$folder/debian
sources=$(dirname "$(realpath "$0")")
package() { "$python" -c "from importlib.util import find_spec; print(find_spec('$1').submodule_search_locations[0])"; }
version=$("$python" -c 'from importlib.metadata import version; print(version("executorch"))')
flags=(-std=c++17 -O3 -Wall -Wextra)  # -O3: attention's sums stay in registers
crypto=(-lcrypto)
case $kind in
  x86_64 | x86_64-asan)
    wheel=$(package executorch) tokenizers=$(package pytorch_tokenizers) compiler=(g++) nm=nm triple=x86_64-linux-gnu
    [[ $kind == x86_64 ]] ||
      flags=(-std=c++17 -O1 -g1 -Wall -Wextra -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer)
    ;;
  aarch64)
    wheel=$folder/aarch64-wheel/executorch tokenizers=$folder/aarch64-wheel/pytorch_tokenizers
    compiler=("$debian/usr/bin/aarch64-linux-gnu-g++" --sysroot="$debian") nm=$debian/usr/bin/aarch64-linux-gnu-nm
    triple=aarch64-linux-gnu
    crypto=("$debian/usr/lib/$triple/libcrypto.so.3" -Wl,-rpath,"$debian/usr/lib/$triple")
    export LD_LIBRARY_PATH=$debian/usr/lib/x86_64-linux-gnu  # the cross binutils' own
    ;;
  *) echo "unknown kind $kind" >&2; exit 2 ;;
esac
out=$folder/$kind
rm -rf "$out/objects"
mkdir -p "$out/objects/text"
jinja=$folder/node_modules/llama.rn/cpp
library=$(ls "$tokenizers"/pytorch_tokenizers_cpp*.so)
includes=(-isystem "$wheel/include" -isystem "$wheel/include/executorch/runtime/core/portable_type/c10"
  -isystem "$debian/usr/include" -isystem "$debian/usr/include/$triple")
# the engine's own JSON library first, as its interface has that type
text_includes=(-isystem "$jinja" -isystem "$jinja/common" -isystem "$tokenizers/include" -isystem "$debian/usr/include")
defines=(-DC10_USING_CUSTOM_GENERATED_MACROS -DET_USE_THREADPOOL -DLFM2_EXECUTORCH_VERSION="\"$version\"")

# The tokenizer library is built as a module of Python. Its C++ is exported and needs no Python; what its bindings ask of
# Python is never called here, but has to be somewhere when it is loaded.
python_symbols=$out/objects/text/python.cpp
"$nm" -D --undefined-only "$library" | sed -nE 's/^ +U (_?Py[A-Za-z0-9_]+)$/char \1[64];/p' > "$python_symbols"

compile() { "${compiler[@]}" "${flags[@]}" "${defines[@]}" "${includes[@]}" -c "$1" -o "$out/objects/$(basename "$1" .cpp).o"; }
compile_text() { "${compiler[@]}" "${flags[@]}" -O1 -fPIC "${text_includes[@]}" -c "$1" -o "$out/objects/text/$(basename "$1" .cpp).o" "${@:2}"; }
running=0
start() {
  "$@" &
  if (( ++running >= $(nproc) )); then wait -n; fi
}
for source in "$sources"/*.cpp; do start compile "$source"; done
for source in "$sources"/text/*.cpp "$sources"/json_fields.cpp "$python_symbols"; do start compile_text "$source"; done
for source in "$jinja"/common/{unicode,jinja/lexer,jinja/parser,jinja/runtime,jinja/string,jinja/value}.cpp; do
  start compile_text "$source" -w  # warnings are for its authors
done
failed=0
while (( running-- > 0 )); do wait -n || { [[ $? == 127 ]] || failed=1; }; done
(( failed == 0 ))
"${compiler[@]}" "${flags[@]}" "$out"/objects/*.o -o "$out/lfm2_runner.new" -L"$wheel/lib" -Wl,-rpath,"$wheel/lib" \
  -Wl,--no-as-needed -lexecutorch -lexecutorch_kernels_optimized -lexecutorch_kernels_quantized \
  -lexecutorch_backend_xnnpack -lexecutorch_threadpool -Wl,--as-needed -Wl,--allow-shlib-undefined "${crypto[@]}" -lpthread
echo '{ global: lfm2_text_serve; Py*; _Py*; local: *; };' > "$out/objects/exported"
"${compiler[@]}" "${flags[@]}" -shared "$out"/objects/text/*.o -o "$out/lfm2_text.so.new" -L"$tokenizers" -l:"$(basename "$library")" \
  -Wl,-rpath,"$tokenizers" -Wl,--version-script="$out/objects/exported"
rm -r "$out/objects"
mv "$out/lfm2_text.so.new" "$out/lfm2_text.so"
mv "$out/lfm2_runner.new" "$out/lfm2_runner"
