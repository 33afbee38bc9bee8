"""An installable shell of the Android app, made with Debian's tools: packaged, dexed, aligned and signed.

What Gradle would add is missing: fbjni and soloader, and ExecuTorch's own Java classes, whose class files (Java 11) are
too new for Debian's dx. So it installs nowhere useful; it shows that manifest, code and native library go together.
"""

from __future__ import annotations

import struct
import zipfile

import android_tools
import pytest
from android_tools import APP

pytestmark = pytest.mark.slow  # Kotlin is compiled first

PAGE = 16384  # bytes, of memory pages on newer phones


@pytest.fixture(scope="module")
def apk(tmp_path_factory):
    android_tools.need()
    folder = tmp_path_factory.mktemp("apk")
    plain, aligned, signed = folder / "plain.apk", folder / "aligned.apk", folder / "signed.apk"
    classes = [android_tools.compiled_app(tmp_path_factory), android_tools.compiled_kit(tmp_path_factory)]
    _package(folder, plain)
    with zipfile.ZipFile(plain, "a") as package:
        package.write(_dex(classes, folder), "classes.dex", zipfile.ZIP_DEFLATED)
        package.write(android_tools.EXECUTORCH_LIBRARY, "lib/arm64-v8a/libexecutorch.so", zipfile.ZIP_STORED)
    android_tools.debian("zipalign", "-f", PAGE, plain, aligned)
    _sign(folder, aligned, signed)
    return signed


def _package(folder, apk):
    """The manifest in binary form; Gradle writes the package's name into it, from `namespace`."""
    source = (APP / "src/main/AndroidManifest.xml").read_text()
    manifest = folder / "AndroidManifest.xml"
    manifest.write_text(source.replace("<manifest ", '<manifest package="org.lfm2export.demo" '))
    android_tools.debian(
        "aapt", "package", "-f", "-M", manifest, "-I", android_tools.ANDROID_JAR, "-F", apk,
        "--min-sdk-version", 26, "--target-sdk-version", 35, "--version-code", 1, "--version-name", "1",
    )  # fmt: skip


def _dex(classes, folder):
    libraries, dex = folder / "kotlin.jar", folder / "classes.dex"
    with zipfile.ZipFile(libraries, "w") as kept:
        for library in (android_tools.KOTLIN_STDLIB, android_tools.COROUTINES_JAR):
            with zipfile.ZipFile(library) as all_of_it:
                for name in all_of_it.namelist():
                    if name.endswith(".class") and not name.startswith("META-INF/"):  # Java 9's module descriptions
                        kept.writestr(name, all_of_it.read(name))
    options = ["--dex", "--min-sdk-version=26", f"--output={dex}"]
    android_tools.java([android_tools.DX_JAR], "com.android.dx.command.Main", *options, *classes, libraries)
    return dex


def _sign(folder, unsigned, signed):
    store = folder / "throwaway.p12"
    android_tools.keytool(
        "-genkeypair", "-keystore", store, "-storetype", "PKCS12", "-storepass", "throwaway", "-alias", "test",
        "-keyalg", "RSA", "-keysize", 2048, "-dname", "CN=test", "-validity", 2,
    )  # fmt: skip
    android_tools.java(
        [android_tools.APKSIGNER_JAR, android_tools.APKSIG_JAR], "com.android.apksigner.ApkSignerTool", "sign",
        "--ks", store, "--ks-pass", "pass:throwaway", "--out", signed, unsigned,
    )  # fmt: skip


def test_signature_verifies(apk):
    tool = "com.android.apksigner.ApkSignerTool"
    jars = [android_tools.APKSIGNER_JAR, android_tools.APKSIG_JAR]
    report = android_tools.java(jars, tool, "verify", "--verbose", apk)
    assert "Verifies" in report
    assert "v2 scheme (APK Signature Scheme v2): true" in report


def test_altered_package_no_longer_verifies(apk, tmp_path):
    altered = bytearray(apk.read_bytes())
    altered[len(altered) // 2] ^= 1
    (tmp_path / "altered.apk").write_bytes(altered)
    jars = [android_tools.APKSIGNER_JAR, android_tools.APKSIG_JAR]
    with pytest.raises(AssertionError, match="DOES NOT VERIFY"):
        android_tools.java(jars, "com.android.apksigner.ApkSignerTool", "verify", tmp_path / "altered.apk")


def test_manifest_names_the_activity_that_was_compiled(apk):
    badging = android_tools.debian("aapt", "dump", "badging", apk)
    assert "package: name='org.lfm2export.demo'" in badging
    assert "launchable-activity: name='org.lfm2export.demo.screen.MainActivity'" in badging
    assert "uses-permission" not in badging
    with zipfile.ZipFile(apk) as package:
        dex = package.read("classes.dex")
    assert dex.startswith(b"dex\n")
    assert b"Lorg/lfm2export/demo/screen/MainActivity;" in dex


def test_native_library_suits_pages_of_16_kilobytes(apk):
    """Stored, on a page's boundary in the package, its segments aligned to pages: it is mapped, not unpacked."""
    android_tools.debian("zipalign", "-c", PAGE, apk)
    with zipfile.ZipFile(apk) as package, apk.open("rb") as raw:
        entry = package.getinfo("lib/arm64-v8a/libexecutorch.so")
        assert entry.compress_type == zipfile.ZIP_STORED
        raw.seek(entry.header_offset + 26)
        name, extra = struct.unpack("<HH", raw.read(4))
        assert (entry.header_offset + 30 + name + extra) % PAGE == 0
        raw.seek(entry.header_offset + 30 + name + extra)
        assert _load_alignments(raw.read(8192)) == {PAGE}


def _load_alignments(elf):
    """Alignment of every LOAD segment of a 64-bit ELF file, given its beginning."""
    assert elf[:5] == b"\x7fELF\x02"
    table = struct.unpack_from("<Q", elf, 32)[0]
    count = struct.unpack_from("<H", elf, 56)[0]
    headers = [elf[table + 56 * at : table + 56 * (at + 1)] for at in range(count)]
    return {struct.unpack_from("<Q", header, 48)[0] for header in headers if struct.unpack_from("<I", header)[0] == 1}
