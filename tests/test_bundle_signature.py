"""Signed bundles: only the owner of the key can have signed exactly this one, in whatever form it lies here."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from small_bundles import archived, described, small_artifact, small_contents, unpacked

from lfm2_export import verify
from lfm2_export.bundle import signature
from lfm2_export.cli.main import run
from lfm2_export.errors import BundleError, MissingDependencyError, UsageError


def write_keys(folder: Path, name: str, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> tuple[Path, Path]:
    """(private, public), as `openssl ecparam -genkey` and `openssl ec -pubout` write them."""
    secret, public = folder / f"{name}.pem", folder / f"{name}.pub"
    plain = serialization.NoEncryption()
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return secret, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "mine", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def signed(keys: tuple[Path, Path], tmp_path: Path) -> Path:
    files = described(small_contents(tmp_path / "source"))
    path = archived(files, tmp_path / "a.zip")
    path.with_name("a.zip.sig").write_bytes(signature.sign(files["bundle.json"], keys[0]))
    return path


def test_the_signature_holds_for_the_archive_and_for_the_unpacked_folder(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    assert verify(signed, public_key=keys[1]).signed
    assert not verify(signed).signed
    folder = unpacked(described(small_contents(tmp_path / "again")), tmp_path / "folder")
    assert verify(folder, public_key=keys[1], signature=Path(f"{signed}.sig")).signed


def test_another_key_another_bundle_and_an_altered_signature_fail(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    other = write_keys(tmp_path, "other", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(BundleError, match="does not hold"):
        verify(signed, public_key=other[1])
    contents = small_contents(tmp_path / "second")
    forged = archived(described({**contents, "golden.json": contents["golden.json"] + b"\n"}), tmp_path / "b.zip")
    assert verify(forged).golden_cases == 1
    with pytest.raises(BundleError, match="does not hold"):
        verify(forged, public_key=keys[1], signature=Path(f"{signed}.sig"))
    good = json.loads(Path(f"{signed}.sig").read_bytes())
    text = good["dsseEnvelope"]["signatures"][0]["sig"]
    good["dsseEnvelope"]["signatures"][0]["sig"] = text[:20] + ("A" if text[20] != "A" else "B") + text[21:]
    (tmp_path / "altered.sig").write_text(json.dumps(good))
    for content in (json.dumps(good), "{}", "", "[" * 10_000, "\0"):
        (tmp_path / "altered.sig").write_text(content)
        with pytest.raises(BundleError, match="does not hold") as caught:
            verify(signed, public_key=keys[1], signature=tmp_path / "altered.sig")
        assert str(caught.value).isprintable()


def test_an_altered_byte_fails_whoever_signed(signed: Path, keys: tuple[Path, Path]) -> None:
    data = bytearray(signed.read_bytes())
    data[data.index(b"LFM Open")] ^= 1
    signed.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        verify(signed, public_key=keys[1])


def test_no_signature_and_unusable_keys_are_one_line(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    unsigned = signed.with_name("moved.zip")
    signed.rename(unsigned)
    with pytest.raises(BundleError, match="no signature"):
        verify(unsigned, public_key=keys[1])
    with pytest.raises(UsageError, match="not a public key"):
        verify(unsigned, public_key=keys[0], signature=Path(f"{signed}.sig"))
    with pytest.raises(UsageError, match="no such key"):
        verify(unsigned, public_key=tmp_path / "none", signature=Path(f"{signed}.sig"))
    strange = write_keys(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))[0]
    for key in (tmp_path / "none", keys[1], strange):
        with pytest.raises(UsageError, match="cannot sign with"):
            signature.sign(b"{}", key)


def test_an_artifact_folder_has_no_signature_to_check(keys: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="not signed"):
        verify(small_artifact(tmp_path / "artifact"), public_key=keys[1])


def test_without_the_library_the_command_names_the_extra(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'lfm2-export\[sign\]'"):
        verify(signed, public_key=keys[1])


def test_the_commands_sign_and_check(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lfm2_export.bundle import pack

    class Tokenizer:
        has_template, eos_ids = True, (7,)

    golden = json.loads(small_contents(tmp_path / "given")["golden.json"])
    monkeypatch.setattr(pack, "golden_cases", lambda artifact, tokenizer: golden)
    monkeypatch.setattr(pack.ChatTokenizer, "load", lambda folder, config: Tokenizer())
    small = small_artifact(tmp_path / "app" / "small")

    def code(*arguments: str | Path) -> int:
        with pytest.raises(SystemExit) as left:
            run([str(argument) for argument in arguments])
        return int(left.value.code or 0)

    assert code("bundle", small, "--for", "android", "--sign", tmp_path / "none", "--quiet") == 2
    assert [path.name for path in small.parent.iterdir()] == ["small"]
    assert code("bundle", small, "--for", "android", "--sign", keys[0], "--quiet") == 0
    assert sorted(path.name for path in small.parent.iterdir()) == [
        "small",
        "small-android.zip",
        "small-android.zip.sig",
    ]
    capsys.readouterr()
    assert code("verify", small.parent / "small-android.zip", "--public-key", keys[1]) == 0
    assert "signature: holds" in capsys.readouterr().out
