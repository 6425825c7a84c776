"""What the plugin needs of NVIDIA's driver, by ctypes: neither torch nor a toolkit, so an emulator tests it as it is.

Addresses and streams are plain numbers: a tensor's ``data_ptr()``, a torch stream's ``cuda_stream``. They are good here
since torch works in the device's primary context, which this retains too.
Functions and constants: <https://docs.nvidia.com/cuda/cuda-driver-api/>.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from typing import Any, Final

LIBRARY_VARIABLE: Final = "LARDER_LIBCUDA"
"""Where the driver's library lies, if not where the loader finds it; the node has the same variable."""
HANDLE_BYTES: Final = 64
"""Of the names by which other processes open memory and events."""

NOT_READY: Final = 600

_STREAM_NON_BLOCKING: Final = 1
_EVENT_BLOCKING_SYNC: Final = 1
_EVENT_DISABLE_TIMING: Final = 2
_EVENT_INTERPROCESS: Final = 4
"""The driver has it only together with the one before."""
_CAPTURE_RELAXED: Final = 2
_REGISTER_READ_ONLY: Final = 8
_DESCRIPTOR: Final = 1
_MAPPING_SIZE: Final = 18
_MAPPING_BASE: Final = 19

_Handle = c_ubyte * HANDLE_BYTES


class _ByValue(ctypes.Structure):
    _fields_ = [("bytes", _Handle)]


_FUNCTIONS: Final[dict[str, list[Any]]] = {
    "cuInit": [c_uint],
    "cuGetErrorName": [c_int, POINTER(c_char_p)],
    "cuDeviceGet": [POINTER(c_int), c_int],
    "cuDeviceGetUuid_v2": [POINTER(c_ubyte * 16), c_int],
    "cuDevicePrimaryCtxRetain": [POINTER(c_void_p), c_int],
    "cuCtxGetCurrent": [POINTER(c_void_p)],
    "cuCtxSetCurrent": [c_void_p],
    "cuThreadExchangeStreamCaptureMode": [POINTER(c_int)],
    "cuStreamCreateWithPriority": [POINTER(c_void_p), c_uint, c_int],
    "cuStreamSynchronize": [c_void_p],
    "cuStreamWaitEvent": [c_void_p, c_void_p, c_uint],
    "cuEventCreate": [POINTER(c_void_p), c_uint],
    "cuEventDestroy_v2": [c_void_p],
    "cuEventRecord": [c_void_p, c_void_p],
    "cuEventQuery": [c_void_p],
    "cuEventSynchronize": [c_void_p],
    "cuIpcGetEventHandle": [POINTER(_ByValue), c_void_p],
    "cuIpcOpenEventHandle": [POINTER(c_void_p), _ByValue],
    "cuIpcGetMemHandle": [POINTER(_ByValue), c_uint64],
    "cuMemGetAddressRange_v2": [POINTER(c_uint64), POINTER(c_size_t), c_uint64],
    "cuPointerGetAttribute": [c_void_p, c_int, c_uint64],
    "cuMemRetainAllocationHandle": [POINTER(c_uint64), c_void_p],
    "cuMemExportToShareableHandle": [POINTER(c_int), c_uint64, c_int, c_uint64],
    "cuMemRelease": [c_uint64],
    "cuMemHostRegister_v2": [c_void_p, c_size_t, c_uint],
    "cuMemHostUnregister": [c_void_p],
    "cuMemcpyHtoDAsync_v2": [c_uint64, c_void_p, c_size_t, c_void_p],
    "cuMemcpyDtoHAsync_v2": [c_void_p, c_uint64, c_size_t, c_void_p],
}
"""Every function and its arguments; each answers a code, 0 for success."""


class NoDriver(Exception):
    """There is no usable driver; the message says why."""


class CudaFault(Exception):
    """A call of the driver failed."""

    def __init__(self, call: str, code: int, name: str) -> None:
        super().__init__(f"{call}: {name} ({code})")
        self.call, self.code = call, code


class Driver:
    """The driver's library, every function looked up before the first is called."""

    def __init__(self, path: str | None = None) -> None:
        """Opens it and begins; raises ``NoDriver``."""
        path = path or os.environ.get(LIBRARY_VARIABLE) or "libcuda.so.1"
        try:
            library = ctypes.CDLL(path)
            self._calls = {}
            for name, arguments in _FUNCTIONS.items():
                call = getattr(library, name)
                call.argtypes, call.restype = arguments, c_int
                self._calls[name] = call
        except (OSError, AttributeError) as fault:
            raise NoDriver(f"no driver at {path}: {fault}") from fault
        try:
            self("cuInit", 0)
        except CudaFault as fault:
            raise NoDriver(f"the driver at {path} does not start: {fault}") from fault

    def __call__(self, name: str, *arguments: Any) -> None:
        """Calls a function; raises ``CudaFault`` on any code but 0. The interpreter is free meanwhile."""
        code = self._calls[name](*arguments)
        if code:
            raise self._fault(name, code)

    def _fault(self, call: str, code: int) -> CudaFault:
        text = c_char_p()
        known = self._calls["cuGetErrorName"](code, byref(text)) == 0 and text.value
        return CudaFault(call, code, known.decode() if known else "a code without a name")

    def device(self, ordinal: int) -> "Device":
        """The GPU with a number, as torch counts them in this process."""
        return Device(self, ordinal)


class Device:
    """One GPU, by its primary context, which stays as long as the process: torch has it too."""

    def __init__(self, driver: Driver, ordinal: int) -> None:
        self._driver = driver
        device, context, uuid = c_int(), c_void_p(), (c_ubyte * 16)()
        driver("cuDeviceGet", byref(device), ordinal)
        driver("cuDeviceGetUuid_v2", byref(uuid), device)
        driver("cuDevicePrimaryCtxRetain", byref(context), device)
        self._context = context
        self.uuid = bytes(uuid)
        """By which another process finds it, whatever number it has there."""

    # === threads

    def bind(self) -> None:
        """Makes the calling thread, one of this plugin's, work on this GPU.

        Relaxed: while torch captures a graph in another thread, calls of this one must not end the capture.
        """
        self._driver("cuCtxSetCurrent", self._context)
        mode = c_int(_CAPTURE_RELAXED)
        self._driver("cuThreadExchangeStreamCaptureMode", byref(mode))

    @contextmanager
    def current(self) -> Iterator[None]:
        """For a thread of the engine's: whatever context it has is its again afterwards."""
        had = c_void_p()
        self._driver("cuCtxGetCurrent", byref(had))
        other = had.value != self._context.value
        if other:
            self._driver("cuCtxSetCurrent", self._context)
        try:
            yield
        finally:
            if other:
                self._driver("cuCtxSetCurrent", had)

    # === streams and events

    def stream(self) -> int:
        """A stream that does not wait for the default stream, nor makes it wait."""
        stream = c_void_p()
        self._driver("cuStreamCreateWithPriority", byref(stream), _STREAM_NON_BLOCKING, 0)
        return stream.value or 0

    def drain(self, stream: int) -> None:
        """Waits for all that a stream was given."""
        self._driver("cuStreamSynchronize", stream)

    def event(self, shared: bool) -> "Event":
        """A new event; ``shared``: one that another process may open."""
        kind = _EVENT_INTERPROCESS if shared else _EVENT_BLOCKING_SYNC
        event = c_void_p()
        self._driver("cuEventCreate", byref(event), _EVENT_DISABLE_TIMING | kind)
        return Event(self._driver, event.value or 0)

    def open_event(self, name: bytes) -> "Event":
        """Another process's event."""
        event = c_void_p()
        self._driver("cuIpcOpenEventHandle", byref(event), _ByValue(_Handle(*name)))
        return Event(self._driver, event.value or 0)

    # === copies

    def copy_in(self, to: int, source: int, count: int, stream: int) -> None:
        """Host to device. Asynchronous only from pinned memory."""
        self._driver("cuMemcpyHtoDAsync_v2", to, source, count, stream)

    def copy_out(self, to: int, source: int, count: int, stream: int) -> None:
        """Device to host. Asynchronous only to pinned memory."""
        self._driver("cuMemcpyDtoHAsync_v2", to, source, count, stream)

    def pin(self, address: int, count: int, read_only: bool) -> None:
        """Pins host memory. Of what is mapped read-only the driver must be told so, and not every machine can do it."""
        self._driver("cuMemHostRegister_v2", address, count, _REGISTER_READ_ONLY if read_only else 0)

    def unpin(self, address: int) -> None:
        self._driver("cuMemHostUnregister", address)

    # === names of memory for another process

    def allocation(self, address: int) -> tuple[int, int]:
        """Where the allocation begins in which an address lies, and its bytes."""
        base, count = c_uint64(), c_size_t()
        self._driver("cuMemGetAddressRange_v2", byref(base), byref(count), address)
        return base.value, count.value

    def memory_name(self, base: int) -> bytes:
        """Names a plain allocation; fails for one that is mapped from pieces."""
        name = _ByValue()
        self._driver("cuIpcGetMemHandle", byref(name), base)
        return bytes(name.bytes)

    def piece(self, address: int) -> tuple[int, int]:
        """Of mapped memory: where the piece begins in which an address lies, and its bytes."""
        base, count = c_uint64(), c_uint64()
        self._driver("cuPointerGetAttribute", ctypes.addressof(base), _MAPPING_BASE, address)
        self._driver("cuPointerGetAttribute", ctypes.addressof(count), _MAPPING_SIZE, address)
        return base.value, count.value

    def piece_descriptor(self, address: int) -> int:
        """A descriptor of a piece, the caller's to close; only of memory that was made to be exported."""
        handle, descriptor = c_uint64(), c_int(-1)
        self._driver("cuMemRetainAllocationHandle", byref(handle), address)
        try:
            self._driver("cuMemExportToShareableHandle", byref(descriptor), handle, _DESCRIPTOR, 0)
        finally:
            self._driver("cuMemRelease", handle)
        return descriptor.value


class Event:
    """A point in a stream's work. Until it is first recorded it counts as reached."""

    def __init__(self, driver: Driver, event: int) -> None:
        self._driver, self._event = driver, event

    def record(self, stream: int) -> None:
        """Puts it behind all that the stream was given."""
        self._driver("cuEventRecord", self._event, stream)

    def hold(self, stream: int) -> None:
        """What the stream is given from now on comes after the point where this was recorded last."""
        self._driver("cuStreamWaitEvent", stream, self._event, 0)

    def is_reached(self) -> bool:
        try:
            self._driver("cuEventQuery", self._event)
        except CudaFault as fault:
            if fault.code == NOT_READY:
                return False
            raise
        return True

    def wait(self) -> None:
        """Blocks the calling thread until it is reached."""
        self._driver("cuEventSynchronize", self._event)

    def name(self) -> bytes:
        """Names it for another process."""
        name = _ByValue()
        self._driver("cuIpcGetEventHandle", byref(name), self._event)
        return bytes(name.bytes)

    def close(self) -> None:
        self._driver("cuEventDestroy_v2", self._event)
