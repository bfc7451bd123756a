"""Takes from the process that runs a student's notebook what it has no business with, then becomes a Jupyter kernel.

Started by `execute` as a script, with its settings as JSON in the first argument; it imports nothing but the standard
library before the walls are up. Linux only, no privileges needed, each layer where the kernel has it:

    files      Landlock: Python, the package and /usr to be read, one scratch folder to be written, nothing else
    network    seccomp: no sockets but Unix and netlink sockets. Landlock and a network namespace besides, where there are
    processes  a process namespace: no other process is seen, and all of the notebook's end with it. Or Landlock's scope
    memory     RLIMIT_AS, of each process; RLIMIT_FSIZE of each file; no core dumps
    time       RLIMIT_CPU of each process; the clock is watched from outside

`available()` says which of them this machine has.
"""

import contextlib
import ctypes
import functools
import json
import os
import platform
import resource
import runpy
import shutil
import struct
import subprocess
import sys

# ------------------------------------------------------------------------------------------------------------- Landlock

# linux/landlock.h. System calls have these numbers on every architecture.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, READ_FILE, READ_DIR, IOCTL_DEV = 1 << 0, 1 << 2, 1 << 3, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
ON_FILES = EXECUTE | READ_FILE | 1 << 1 | 1 << 14 | IOCTL_DEV  # of all rights, those that a file can have
ALL_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
SCOPES = 0b11  # neither abstract Unix sockets nor signals to processes outside
TCP = 0b11  # neither bind nor connect
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/sys/devices/system/cpu", "/dev/urandom", "/dev/random")
DEVICES = ("/dev/null", "/dev/zero", "/dev/shm")

_libc = ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """0 where there is no Landlock."""
    return max(0, _libc.syscall(CREATE_RULESET, None, 0, 1)) if sys.platform == "linux" else 0


def _restrict_files(readable: list[str], writable: list[str]) -> None:
    version = landlock_version()
    rights = ALL_RIGHTS[min(version, 5)]
    handled = struct.pack("QQQ", rights, TCP if version >= 4 else 0, SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _checked(_libc.syscall(CREATE_RULESET, handled, size, 0))
    for paths, granted in ((readable, READ & rights), (writable, rights)):
        for path in filter(os.path.exists, paths):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = granted if os.path.isdir(path) else granted & ON_FILES
            _checked(_libc.syscall(ADD_RULE, rules, 1, struct.pack("=Qi", allowed, place), 0))
            os.close(place)
    _checked(_libc.syscall(RESTRICT_SELF, rules, 0))
    os.close(rules)


# -------------------------------------------------------------------------------------------------------------- seccomp

# linux/audit.h, and the numbers of socket and io_uring_setup: architecture -> (audit's name for it, socket, io_uring_setup)
CALLS = {"x86_64": (0xC000003E, 41, 425), "aarch64": (0xC00000B7, 198, 425)}
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # of classic BPF
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 13  # 13: permission denied
UNIX, NETLINK = (
    1,
    16,
)  # families of sockets; ZeroMQ asks the latter for the names of network interfaces, and dies without
X32 = 0x40000000  # system calls of another numbering on x86_64


def _refuse_sockets() -> None:
    """socket() gives permission denied for all families but two; io_uring, which could go around it, always does."""
    audit, socket, io_uring = CALLS[platform.machine()]
    # (code, value, how many to skip if so, if not); offsets into struct seccomp_data: number 0, architecture 4, argument 16
    program = [
        (LOAD, 4, 0, 0), (EQUAL, audit, 0, 8),
        (LOAD, 0, 0, 0), (AT_LEAST, X32, 6, 0), (EQUAL, io_uring, 5, 0), (EQUAL, socket, 0, 3),
        (LOAD, 16, 0, 0), (EQUAL, UNIX, 1, 0), (EQUAL, NETLINK, 0, 1),
        (RETURN, ALLOW, 0, 0), (RETURN, REFUSE, 0, 0),
    ]  # fmt: skip
    code = b"".join(struct.pack("HBBI", kind, yes, no, value) for kind, value, yes, no in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _checked(_libc.prctl(22, 2, header, 0, 0))  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


# ----------------------------------------------------------------------------------------------------------- namespaces

NAMESPACES = "unshare --user --map-root-user --net --pid --fork --kill-child --mount --mount-proc".split()


@functools.cache
def has_namespaces() -> bool:
    """Whether this user may make them; some distributions forbid it."""
    if not shutil.which("unshare"):
        return False
    return subprocess.run([*NAMESPACES, "true"], check=False, capture_output=True).returncode == 0


def available() -> dict[str, bool]:
    """What is kept from a student's notebook on this machine: files, network, processes, memory."""
    linux, landlock = sys.platform == "linux", landlock_version()
    return {
        "files": landlock > 0,
        "network": has_namespaces() or (linux and platform.machine() in CALLS),
        "processes": has_namespaces() or landlock >= 6,
        "memory": linux,
    }


# ----------------------------------------------------------------------------------------------------- becoming a kernel


def command(settings: dict) -> list[str]:
    """What starts this file as a sandboxed kernel.

    settings: "connection_file", "readable", "writable" (lists of paths), "memory" (bytes), "seconds" (of computing).
    """
    start = [sys.executable, "-P", os.path.abspath(__file__), json.dumps(settings)]
    return NAMESPACES + start if has_namespaces() else start


def enter(settings: dict) -> None:
    """Give up what `available` says. There is no way back, for this process and for all that it starts."""
    limits = {
        resource.RLIMIT_AS: settings["memory"],
        resource.RLIMIT_CPU: settings["seconds"],
        resource.RLIMIT_FSIZE: 200_000_000,
        resource.RLIMIT_CORE: 0,
    }
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    _checked(_libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
    if os.getpid() == 1:  # in a namespace of its own
        # Landlock does not speak of Unix sockets, and /run is where services have theirs.
        _checked(_libc.mount(b"none", b"/run", b"tmpfs", 0, None))
    if landlock_version():
        python = [sys.prefix, sys.base_prefix, *settings["readable"]]
        _restrict_files([*SYSTEM, *python], [*DEVICES, *settings["writable"]])
    if platform.machine() in CALLS:
        _refuse_sockets()


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    os.environ.pop("JPY_PARENT_PID", None)  # in a namespace the parent has another number, and the kernel would end
    with contextlib.suppress(AttributeError):
        _libc.prctl(1, 9)  # PR_SET_PDEATHSIG: SIGKILL when whoever started this is gone
    enter(chosen)
    sys.argv = ["ipykernel_launcher", "-f", chosen["connection_file"], "--HistoryManager.hist_file=:memory:"]
    runpy.run_module("ipykernel_launcher", run_name="__main__")
