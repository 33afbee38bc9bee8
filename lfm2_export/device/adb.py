"""A phone at the end of `adb`: find it, put files there, run a command, get files back. Every failure is one line."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lfm2_export.errors import DeviceError

_STATUS = "lfm2-export-status="  # adb before Android 7 does not hand on a command's exit status
_TRANSFER_SECONDS = 1800


class Phone:
    """One connected device. DeviceError from any method when adb or the phone refuses."""

    def __init__(self, adb: str | None = None, serial: str | None = None) -> None:
        """`adb` defaults to the one on PATH, `serial` to the only phone that is ready."""
        found = shutil.which(adb or "adb")
        if found is None:
            raise DeviceError(f"no {adb or 'adb'}: install Android's platform-tools, or pass --adb PATH")
        self._adb = found
        self.serial = _choose(self._devices(), serial)

    def describe(self) -> str:
        """Model, SoC and Android version, for the report."""
        names = ("ro.product.model", "ro.soc.model", "ro.build.version.release")
        model, soc, release = (self.shell(f"getprop {name}", timeout=60) or "unknown" for name in names)
        return f"{model}, {soc}, Android {release}"

    def push(self, paths: Sequence[Path], folder: str) -> None:
        """Copy files and folders into a folder of the phone, which must exist."""
        done = self._run("-s", self.serial, "push", *map(str, paths), f"{folder}/", timeout=_TRANSFER_SECONDS)
        if done.returncode:
            said = done.stdout + done.stderr
            why = "its storage is full" if "no space left" in said.lower() else _last_line(said)
            raise DeviceError(f"{self.serial}: cannot copy to {folder}: {why}")

    def pull(self, folder: str, destination: Path) -> None:
        """Copy a folder of the phone into `destination`, which must exist."""
        done = self._run("-s", self.serial, "pull", folder, str(destination), timeout=_TRANSFER_SECONDS)
        if done.returncode:
            raise DeviceError(f"{self.serial}: cannot copy {folder} back: {_last_line(done.stdout + done.stderr)}")

    def shell(self, command: str, timeout: float) -> str:
        """Run a command; what it printed, stdout and stderr together. DeviceError for a status other than 0."""
        wrapped = f"{{ {command}; }} 2>&1; status=$?; echo; echo {_STATUS}$status"
        done = self._run("-s", self.serial, "shell", wrapped, timeout=timeout)
        said, marker, status = done.stdout.rpartition(_STATUS)
        if done.returncode or not marker:
            raise DeviceError(f"{self.serial}: the connection broke: {_last_line(done.stdout + done.stderr)}")
        if int(status):
            raise DeviceError(f"{self.serial}: {_outcome(int(status))}: {_complaint(said)}")
        return said.strip()

    def _devices(self) -> dict[str, str]:
        """Serial → state of everything that adb sees."""
        done = self._run("devices", timeout=60)
        if done.returncode:
            raise DeviceError(f"{self._adb} devices failed: {_last_line(done.stdout + done.stderr)}")
        rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
        return {serial: state.strip() for serial, state, *_ in rows}

    def _run(self, *arguments: str, timeout: float) -> subprocess.CompletedProcess[str]:
        command = [self._adb, *arguments]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise DeviceError(f"adb {_verb(arguments)} did not finish within {timeout:g} seconds") from error
        except OSError as error:
            raise DeviceError(f"cannot run {self._adb}: {error.strerror}") from error


def _choose(devices: dict[str, str], serial: str | None) -> str:
    listed = ", ".join(f"{name} ({state})" for name, state in devices.items())
    if serial is not None:
        if serial not in devices:
            raise DeviceError(f"no phone {serial} is connected; adb sees: {listed or 'none'}")
        if devices[serial] != "device":
            raise DeviceError(f"{serial} is {devices[serial]}: unlock the phone and allow USB debugging")
        return serial
    ready = [name for name, state in devices.items() if state == "device"]
    if not ready:
        hint = (
            f"not ready: {listed}; unlock it and allow USB debugging" if devices else "connect one with USB debugging"
        )
        raise DeviceError(f"no phone: {hint}")
    if len(ready) > 1:
        raise DeviceError(f"several phones: {', '.join(ready)}; choose one with --serial")
    return ready[0]


def quoted(text: str) -> str:
    """Quote a word for the phone's shell."""
    return shlex.quote(text)


def _outcome(status: int) -> str:
    """In words; a shell reports a process that died of signal n as 128 + n."""
    if status > 128 and status - 128 in set(signal.Signals):
        return f"crashed with {signal.Signals(status - 128).name}"
    return f"failed with status {status}"


def _verb(arguments: Sequence[str]) -> str:
    return arguments[2] if arguments[0] == "-s" else arguments[0]


def _complaint(text: str) -> str:
    """The last line that speaks of an error; libraries that say goodbye afterwards would hide it."""
    errors = [line for line in text.splitlines() if "error" in line.lower()]
    return _last_line(errors[-1] if errors else text)


def _last_line(text: str) -> str:
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"
