"""The GPUs that Vulkan's loader offers, by name and driver: its C interface through ctypes, which needs no library.

What Linux and Android have below WebGPU. An empty list where there is no loader, no driver or no device.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char, c_char_p, c_uint8, c_uint32, c_void_p
from typing import Any, NamedTuple

_LOADER = "libvulkan.so.1"
_VERSION_1_1 = (1 << 22) | (1 << 12)
_KINDS = ("other", "integrated", "discrete", "virtual", "software")  # VkPhysicalDeviceType
_PREFERENCE = ("discrete", "integrated", "virtual", "other", "software")  # Dawn's, when asked for high performance


class Gpu(NamedTuple):
    """A device and its driver."""

    name: str
    driver: str
    software: bool  # computed on the CPU

    def __str__(self) -> str:
        return f"{self.name}, driver {self.driver}" + (" (software)" if self.software else "")


class _Application(Structure):
    _fields_ = (
        ("sType", c_uint32),
        ("pNext", c_void_p),
        ("pApplicationName", c_char_p),
        ("applicationVersion", c_uint32),
        ("pEngineName", c_char_p),
        ("engineVersion", c_uint32),
        ("apiVersion", c_uint32),
    )


class _Instance(Structure):
    _fields_ = (
        ("sType", c_uint32),
        ("pNext", c_void_p),
        ("flags", c_uint32),
        ("pApplicationInfo", POINTER(_Application)),
        ("enabledLayerCount", c_uint32),
        ("ppEnabledLayerNames", c_void_p),
        ("enabledExtensionCount", c_uint32),
        ("ppEnabledExtensionNames", c_void_p),
    )


class _Driver(Structure):
    _fields_ = (
        ("sType", c_uint32),
        ("pNext", c_void_p),
        ("driverID", c_uint32),
        ("driverName", c_char * 256),
        ("driverInfo", c_char * 256),
        ("conformanceVersion", c_uint8 * 4),
    )


class _Device(Structure):
    _fields_ = (
        ("sType", c_uint32),
        ("pNext", c_void_p),
        ("apiVersion", c_uint32),
        ("driverVersion", c_uint32),
        ("vendorID", c_uint32),
        ("deviceID", c_uint32),
        ("deviceType", c_uint32),
        ("deviceName", c_char * 256),
        ("rest", c_uint8 * 1024),  # limits and more, which end before
    )


def gpus() -> list[Gpu]:
    """Return every device, in the order in which Dawn, WebGPU's implementation, prefers them."""
    try:
        loader = ctypes.CDLL(_LOADER)
    except OSError:
        return []
    application = _Application(sType=0, apiVersion=_VERSION_1_1)
    wanted = _Instance(sType=1, pApplicationInfo=ctypes.pointer(application))
    instance = c_void_p()
    if loader.vkCreateInstance(byref(wanted), None, byref(instance)) != 0:
        return []
    try:
        found = [_described(loader, device) for device in _devices(loader, instance)]
    finally:
        loader.vkDestroyInstance(instance, None)
    return [gpu for _, gpu in sorted(found, key=lambda each: _PREFERENCE.index(each[0]))]


def _devices(loader: Any, instance: c_void_p) -> list[int | None]:
    count = c_uint32()
    if loader.vkEnumeratePhysicalDevices(instance, byref(count), None) != 0 or count.value == 0:
        return []
    devices = (c_void_p * count.value)()
    loader.vkEnumeratePhysicalDevices(instance, byref(count), devices)
    return list(devices)[: count.value]


def _described(loader: Any, device: int | None) -> tuple[str, Gpu]:
    driver = _Driver(sType=1000196000)
    properties = _Device(sType=1000059001, pNext=ctypes.cast(ctypes.pointer(driver), c_void_p))
    loader.vkGetPhysicalDeviceProperties2.restype = None
    loader.vkGetPhysicalDeviceProperties2(c_void_p(device), byref(properties))
    kind = _KINDS[properties.deviceType] if properties.deviceType < len(_KINDS) else "other"
    named = f"{driver.driverName.decode(errors='replace')} {driver.driverInfo.decode(errors='replace')}".strip()
    return kind, Gpu(properties.deviceName.decode(errors="replace"), named or "unknown", kind == "software")
