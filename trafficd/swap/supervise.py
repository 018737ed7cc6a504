"""A small parent for one swap command, run as a script of its own: it outlives the daemon.

    python -I -S supervise.py RUN_DIR LOCK_FILE TIMEOUT GRACE -- ARGV...

It leads its own session and process group, holds LOCK_FILE while the command runs (so that a second one
for the same upstream cannot run beside it), and leaves in RUN_DIR

    process   "PID START\n"       who leads the group; START in clock ticks since boot
    output    what the command wrote to stdout and stderr
    exit      "exit N" | "signal N" | "timeout" | "ended" | "busy" | "error TEXT"; written last, by a rename

TERM ends the command: TERM to the group, and KILL after GRACE seconds. Only the standard library, and as
little of it as possible: this starts for every swap, and the deploy waits for it.
"""

import fcntl
import os
import signal
import sys
import time


def main(arguments):  # type: ignore[no-untyped-def]
    run_dir, lock_file, timeout, grace = arguments[0], arguments[1], float(arguments[2]), float(arguments[3])
    argv = arguments[5:]
    watched = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    lock = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        leave(run_dir, "exit", "busy")
        return
    leave(run_dir, "process", f"{os.getpid()} {start_time()}")
    output = os.open(os.path.join(run_dir, "output"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)  # noqa: PTH118
    child = spawn(argv, output)
    if isinstance(child, str):
        leave(run_dir, "exit", "error " + child)
        return
    leave(run_dir, "exit", wait(child, watched, timeout, grace))


def spawn(argv, output):  # type: ignore[no-untyped-def]
    """The child's pid, or what went wrong."""
    null = os.open(os.devnull, os.O_RDONLY)
    actions = [
        (os.POSIX_SPAWN_DUP2, null, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
    ]
    defaults = [signal.SIGPIPE, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD]
    try:
        return os.posix_spawnp(
            argv[0], argv, os.environ, file_actions=actions, setsigmask=(), setsigdef=defaults
        )
    except OSError as error:
        return f"{argv[0]}: {error.strerror}"


def wait(child, watched, timeout, grace):  # type: ignore[no-untyped-def]
    """Wait for the child; the word for how it ended."""
    deadline = time.monotonic() + timeout
    word = ""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return word or describe(os.waitstatus_to_exitcode(status))
        left = deadline - time.monotonic()
        if left <= 0:
            if word:
                kill_group(child)
                return word
            word = "timeout"
        else:
            got = signal.sigtimedwait(watched, left)
            if got is None or got.si_signo == signal.SIGCHLD or word:
                continue
            word = "ended"
        deadline = time.monotonic() + grace
        os.killpg(0, signal.SIGTERM)


def kill_group(child):  # type: ignore[no-untyped-def]
    """KILL every other member of the group; we are in it too, so the child goes first and is reaped."""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    own = os.getpid()
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit() and int(name) != own:
            try:
                if os.getpgid(int(name)) == own:
                    os.kill(int(name), signal.SIGKILL)
            except OSError:
                continue


def describe(code):  # type: ignore[no-untyped-def]
    return f"exit {code}" if code >= 0 else f"signal {-code}"


def start_time():  # type: ignore[no-untyped-def]
    with open("/proc/self/stat", "rb") as stat:  # noqa: PTH123
        return stat.read().rpartition(b")")[2].split()[19].decode()


def leave(run_dir, name, text):  # type: ignore[no-untyped-def]
    path = os.path.join(run_dir, name)  # noqa: PTH118
    with open(path + ".new", "w") as file:  # noqa: PTH123
        file.write(text + "\n")
    os.rename(path + ".new", path)  # noqa: PTH104


if __name__ == "__main__":
    main(sys.argv[1:])
