"""The unpacked toolchain of the Android tests (`make .venv/installed-android`): compile, run on the JVM, package."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

PROJECT = Path(__file__).parents[1]
KIT = PROJECT / "android_demo" / "kit"
APP = PROJECT / "android_demo" / "app"
TOOLS = PROJECT / ".venv" / "android"
_ROOT = TOOLS / "root"
_JARS = _ROOT / "usr/share/java"
_MODULES = TOOLS / "node_modules"
ANDROID_JAR = _ROOT / "usr/lib/android-sdk/platforms/android-23/android.jar"
EXECUTORCH_JAR = _MODULES / "react-native-executorch/android/libs/classes.jar"
EXECUTORCH_LIBRARY = _MODULES / "react-native-executorch/third-party/android/libs/executorch/arm64-v8a/libexecutorch.so"
KOTLIN_STDLIB = _MODULES / "kotlin-compiler/lib/kotlin-stdlib.jar"
COROUTINES_JAR = _MODULES / "kotlin-compiler/lib/kotlinx-coroutines-core-jvm.jar"
DX_JAR = _JARS / "com.android.dx.jar"
APKSIGNER_JAR = _JARS / "apksigner.jar"
APKSIG_JAR = _JARS / "apksig.jar"
JUNIT_JARS = (_JARS / "junit4.jar", _JARS / "hamcrest-all.jar")
JSON_JAR = _JARS / "com.android.json.jar"  # android.jar has only stubs
_JAVA = _ROOT / "usr/lib/jvm/java-17-openjdk-amd64/bin"
_SECONDS = 600  # a tenth of it on a machine of one's own


def need() -> None:
    """Skip (in CI: fail) where the toolchain is missing."""
    if (TOOLS / "node_modules").is_dir() and (_JAVA / "java").is_file():
        return
    reason = "the Android toolchain is missing; runtime_tests/android/setup.sh .venv/android"
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (in CI a test that cannot run has failed)")
    pytest.skip(reason)


def compiled_kit(folders: pytest.TempPathFactory) -> Path:
    """The library's class files, compiled once for all workers of a test run. That is the type check, too.

    It sees Android's classes (of API 23), ExecuTorch's and none of the JDK's: what Android 6 lacks does not compile.
    """
    return _of_android(folders, KIT, [ANDROID_JAR, EXECUTORCH_JAR, COROUTINES_JAR])


def compiled_app(folders: pytest.TempPathFactory) -> Path:
    """The app's class files, compiled as the library's are, against what the library shows to others."""
    return _of_android(folders, APP, [compiled_kit(folders), ANDROID_JAR, COROUTINES_JAR])


def classpath_of_tests(folders: pytest.TempPathFactory) -> list[Path]:
    """The library's unit tests, and its parts for Python, to be run on the JVM; the tests' own classes come first."""
    kit = compiled_kit(folders)
    libraries = [kit, JSON_JAR, *JUNIT_JARS, EXECUTORCH_JAR, COROUTINES_JAR]
    sources = [KIT / "src/test/kotlin", PROJECT / "runtime_tests/android/CrossCheck.kt"]
    return [_compiled(folders, "tests", sources, libraries, f"-Xfriend-paths={kit}"), *libraries, KOTLIN_STDLIB]


def _of_android(folders: pytest.TempPathFactory, module: Path, classpath: Sequence[Path]) -> Path:
    return _compiled(
        folders, module.name, [module / "src/main/kotlin"], classpath, "-no-jdk", "-module-name", module.name
    )


def _compiled(
    folders: pytest.TempPathFactory, name: str, sources: Sequence[Path], classpath: Sequence[Path], *options: str
) -> Path:
    need()
    own = folders.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    output = shared / f"android-{name}"
    with FileLock(shared / f"android-{name}.lock"):
        if not output.is_dir():
            partial = folders.mktemp("android") / name
            compile_kotlin(partial, sources, classpath, *options)
            partial.rename(output)
    return output


def compile_kotlin(output: Path, sources: Sequence[Path], classpath: Sequence[Path], *options: str) -> None:
    """Class files for Java 8, without `invokedynamic`, which Debian's dx needs; a warning is an error."""
    compiler = _MODULES / "kotlin-compiler/lib"
    java(
        [compiler / "kotlin-preloader.jar"],
        "org.jetbrains.kotlin.preloading.Preloader", "-cp", compiler / "kotlin-compiler.jar",
        "org.jetbrains.kotlin.cli.jvm.K2JVMCompiler", "-kotlin-home", compiler.parent, *sources, "-d", output,
        "-cp", _joined(classpath), "-no-reflect", "-jvm-target", "1.8", "-Xlambdas=class", "-Xsam-conversions=class",
        "-Xstring-concat=inline", "-Werror", *options,
    )  # fmt: skip


def java(classpath: Sequence[Path], main: str, *arguments: object) -> str:
    """What a Java program prints; an assertion with its last words where it fails."""
    return run(*_java(classpath), main, *arguments)


def keytool(*arguments: object) -> None:
    run(_JAVA / "keytool", *arguments)


def debian(tool: str, *arguments: object) -> str:
    """What one of Debian's Android tools prints; its libraries are unpacked beside it."""
    libraries = [_ROOT / "usr/lib" / folder for folder in ("x86_64-linux-gnu/android", "x86_64-linux-gnu", "", "p7zip")]
    return run(_ROOT / "usr/bin" / tool, *arguments, LD_LIBRARY_PATH=_joined(libraries))


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True, text=True, timeout=_SECONDS, env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command[0]}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


class CrossCheck:
    """The library's Kotlin in a process of its own, one JSON job a line (`android/CrossCheck.kt`)."""

    def __init__(self, classpath: Sequence[Path]) -> None:
        command = [*_java(classpath), "org.lfm2export.crosscheck.CrossCheckKt"]
        self._process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def __call__(self, do: str, answer: Callable[[Any], dict[str, Any]] | None = None, **job: Any) -> Any:
        """The result of a job; `answer` is asked for what Kotlin wants of ExecuTorch meanwhile.

        Refused, for a refusal, which is one line.
        """
        line = self._exchange({"do": do, **job})
        while "call" in line:
            assert answer is not None
            line = self._exchange(answer(line["call"]))
        if "refused" in line:
            assert "\n" not in line["refused"]
            raise Refused(line["refused"])
        return line["result"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def _exchange(self, line: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        assert reply, "the Kotlin process ended; its traceback is on standard error"
        return dict(json.loads(reply))


class Refused(Exception):  # noqa: N818  the app's own word for it
    """The app refused its input, in one line."""


def _java(classpath: Sequence[Path]) -> list[object]:
    # the first compiler of Java's is enough for seconds, and one thread is all a test may use
    fast = ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx1g", "-Dfile.encoding=UTF-8"]
    return [_JAVA / "java", *fast, "-cp", _joined(classpath)]


def _joined(paths: Sequence[Path]) -> str:
    return ":".join(str(path) for path in paths)
