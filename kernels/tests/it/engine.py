"""An engine's process in Python, as real ones are: NVIDIA's own cuda-bindings on whatever libcuda is found.

It owns a cache, hands out its names, and answers a line with a line:
``read HANDLE..`` waits in its stream for the node's events and copies the cache out behind them, ``dump FILE`` waits for
that copy and writes the bytes to a file.

Arguments: socket, file with the cache's first bytes, 0 or 1 for mapped pieces, bytes before each part in its allocation,
bytes of each part with commas between.
"""

import ctypes
import socket
import sys

from cuda.bindings import driver as cuda

PIECE = 2 << 20


def check(answer):
    """The values of a call, if it succeeded."""
    code, *values = answer
    if code != cuda.CUresult.CUDA_SUCCESS:
        raise RuntimeError(code)
    return values[0] if len(values) == 1 else values


def text(handle):
    """The 64 bytes of a handle; not every version of the bindings has them as an attribute."""
    return ctypes.string_at(handle.getPtr(), 64).hex()


class Slab:
    """One allocation, plain or mapped from pieces."""

    def __init__(self, device, size, mapped):
        self.fds, self.handle = [], None
        if not mapped:
            self.at = int(check(cuda.cuMemAlloc(size)))
            return
        properties = cuda.CUmemAllocationProp()
        properties.type = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        properties.requestedHandleTypes = cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        properties.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        properties.location.id = int(device)
        pieces = -(-size // PIECE)
        self.at = int(check(cuda.cuMemAddressReserve(pieces * PIECE, 0, 0, 0)))
        for index in range(pieces):
            at = self.at + index * PIECE
            made = check(cuda.cuMemCreate(PIECE, properties, 0))
            check(cuda.cuMemMap(at, PIECE, 0, made, 0))
            check(cuda.cuMemRelease(made))
        access = cuda.CUmemAccessDesc()
        access.location = properties.location
        access.flags = cuda.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
        check(cuda.cuMemSetAccess(self.at, pieces * PIECE, [access], 1))
        kind = cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        for index in range(pieces):
            # As for memory that a framework's allocator made: the address is all that is known of it.
            retained = check(cuda.cuMemRetainAllocationHandle(self.at + index * PIECE))
            self.fds.append(int(check(cuda.cuMemExportToShareableHandle(retained, kind, 0))))
            check(cuda.cuMemRelease(retained))

    def name(self):
        if self.fds:
            return f"{len(self.fds)}x{PIECE}"
        return text(check(cuda.cuIpcGetMemHandle(self.at)))


def main():
    path, file, mapped, offset, parts = sys.argv[1:]
    mapped, offset, parts = mapped == "1", int(offset), [int(part) for part in parts.split(",")]
    check(cuda.cuInit(0))
    device = check(cuda.cuDeviceGet(check(cuda.cuDeviceGetCount()) - 1))
    check(cuda.cuCtxSetCurrent(check(cuda.cuDevicePrimaryCtxRetain(device))))
    stream = check(cuda.cuStreamCreateWithPriority(1, 0))
    slabs = [Slab(device, offset + part, mapped) for part in parts]
    host = ctypes.create_string_buffer(sum(parts))
    with open(file, "rb") as first:
        host.raw = first.read()
    base = ctypes.addressof(host)
    check(cuda.cuMemHostRegister(base, len(host), 0))

    def places():
        at = base
        for slab, part in zip(slabs, parts):
            yield at, slab.at + offset, part
            at += part

    for at, to, part in places():
        check(cuda.cuMemcpyHtoDAsync(to, at, part, stream))
    # Without timing, and for other processes.
    written = check(cuda.cuEventCreate(2 | 4))
    check(cuda.cuEventRecord(written, stream))
    event = text(check(cuda.cuIpcGetEventHandle(written)))
    name = check(cuda.cuDeviceGetName(64, device)).split(b"\0")[0].decode()
    node = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    node.connect(path)
    line = f"{' '.join(slab.name() for slab in slabs)}|{event}|{name}\n".encode()
    fds = [fd for slab in slabs for fd in slab.fds]
    socket.send_fds(node, [line], fds) if fds else node.sendall(line)

    for line in node.makefile():
        command, *words = line.split()
        if command == "read":
            for word in words:
                handle = cuda.CUipcEventHandle()
                ctypes.memmove(handle.getPtr(), bytes.fromhex(word), 64)
                check(cuda.cuStreamWaitEvent(stream, check(cuda.cuIpcOpenEventHandle(handle)), 0))
            for to, at, part in places():
                check(cuda.cuMemcpyDtoHAsync(to, at, part, stream))
        elif command == "dump":
            check(cuda.cuStreamSynchronize(stream))
            with open(words[0], "wb") as out:
                out.write(host.raw)
        else:
            raise ValueError(line)
        node.sendall(b"done\n")


main()
