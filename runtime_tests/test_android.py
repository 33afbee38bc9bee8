"""Android's library and app without a phone: compiled, documented, tested on the JVM, of one version throughout."""

from __future__ import annotations

import re
import zipfile

import android_tools
import pytest
from android_tools import APP, KIT, PROJECT

pytestmark = pytest.mark.slow  # Kotlin is compiled first


def test_every_source_compiles_for_android(kit, tmp_path_factory):
    app = android_tools.compiled_app(tmp_path_factory)
    for module, classes in ((KIT, kit), (APP, app)):
        packages = {path.parent.name for path in (module / "src/main/kotlin").rglob("*.kt")}
        assert {path.parent.name for path in classes.rglob("*.class")} == packages
    assert (app / "org/lfm2export/demo/screen/MainActivity.class").is_file()


def test_whatever_the_library_shows_is_documented():
    shown = re.compile(r"^(?!private|internal)(?:\w+ )*(?:class|interface|object|fun|val) [\w.]+", re.MULTILINE)
    found = 0
    for path in (KIT / "src/main/kotlin").rglob("*.kt"):
        source = path.read_text()
        for match in shown.finditer(source):
            found += 1
            assert source[: match.start()].endswith("*/\n"), f"{path.name}: {match[0]}"
    assert found > 30


def test_unit_tests_pass_on_the_jvm(classpath, capsys):
    folder = classpath[0]
    tests = [str(path.relative_to(folder).with_suffix("")).replace("/", ".") for path in folder.rglob("*Test.class")]
    report = android_tools.java(classpath, "org.junit.runner.JUnitCore", *sorted(tests))
    count = re.search(r"OK \((\d+) tests\)", report)
    assert count, report[-3000:]
    written = sum(path.read_text().count("@Test") for path in (KIT / "src/test/kotlin").rglob("*.kt"))
    assert int(count[1]) == written
    with capsys.disabled():
        print(f"\nAndroid library: {count[1]} unit tests in {len(tests)} classes passed on the JVM")


def test_one_version_of_each_library_throughout():
    pinned = re.search(r'"executorch==([\d.]+)"', (PROJECT / "pyproject.toml").read_text())[1]
    constant = (KIT / "src/main/kotlin/org/lfm2export/kit/device/ExecuTorch.kt").read_text()
    assert re.search(r'EXECUTORCH_VERSION = "([\d.]+)"', constant)[1] == pinned
    gradle = (KIT / "build.gradle.kts").read_text()
    assert re.findall(r"executorch-android:([\d.]+)", gradle) == [pinned]
    with zipfile.ZipFile(android_tools.COROUTINES_JAR) as coroutines:
        version = coroutines.read("META-INF/kotlinx_coroutines_core.version").decode()
    assert re.findall(r"kotlinx-coroutines-core:([\d.]+)", gradle) == [version]
