"""A small parent for one swap command, run as a script of its own: it outlives the daemon.

    python -I -S supervise.py RUN_DIR LOCK_FILE TIMEOUT GRACE -- ARGV...

It leads its own session and process group. Everything is decided while it holds LOCK_FILE, which there is
one of per upstream, so that two commands never work on one upstream at once:

- RUN_DIR/exit is there already: the command ran to its end under an earlier supervisor; nothing is done.
- LOCK_FILE names a supervisor that was killed: what is left of its process group is ended first.
- Otherwise the command runs, once.

It leaves

    LOCK_FILE        "PID START EPOCH RUN\n" while the command runs, else empty: who leads the group. START is
                     in clock ticks since boot, EPOCH the boot and the pid namespace that PID is of
    RUN_DIR/output   what the command wrote to stdout and stderr: the end of it, when it wrote too much
    RUN_DIR/exit     "exit N" | "signal N" | "timeout" | "ended" | "error TEXT"; written last, by a rename

TERM ends the command: TERM to the group, and KILL after GRACE seconds. A command that ends by itself may
leave processes behind: they are the new instance, and nobody's business here. Only the standard library,
and as little of it as possible: this starts for every swap, and the deploy waits for it.
"""

import fcntl
import os
import signal
import sys
import time

BUSY, GIVEN_UP = 75, 76  # exit statuses: LOCK_FILE was never free; told to end before the command began
OUTPUT_KEPT = 16_384  # bytes
OUTPUT_CAP = 1 << 20  # bytes; more than that is cut to OUTPUT_KEPT, so that no command fills the disk
KILLED_BY = 5.0  # s that a killed process is given to vanish; one in an uninterruptible wait takes longer
POLL = 0.02

CHILD = {signal.SIGCHLD}
END = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
# Python ignores the first two; the command must find all of them as any program does.
DEFAULTS = [signal.SIGPIPE, signal.SIGXFSZ, *END, *CHILD]


def main(arguments: list[str]) -> int:
    run_dir, lock_file, timeout, grace = arguments[0], arguments[1], float(arguments[2]), float(arguments[3])
    argv = arguments[5:]
    signal.pthread_sigmask(signal.SIG_BLOCK, CHILD | END)
    close_inherited()
    lock = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    # Whoever holds it ends within its own time-out and grace.
    refusal = acquire(lock, timeout + 2 * (grace + KILLED_BY))
    if refusal:
        return refusal
    if ended(run_dir):
        return 0
    os.makedirs(run_dir, mode=0o700, exist_ok=True)  # noqa: PTH103
    former = orphans(lock)
    if former and not end_group(former, grace):
        leave(run_dir, f"error processes of the command before it cannot be ended (process group {former})")
        return 0
    os.pwrite(lock, f"{os.getpid()} {stat(os.getpid())[1]} {epoch()} {run_dir}\n".encode(), 0)
    word = run(run_dir, argv, timeout, grace)
    leave(run_dir, word)
    if word not in ("timeout", "ended") or not members(os.getpid()):
        os.ftruncate(lock, 0)
    return 0


def ended(run_dir: str) -> bool:
    """Whether the end is known. A power loss may leave the file and nothing in it."""
    try:
        return os.stat(os.path.join(run_dir, "exit")).st_size > 0  # noqa: PTH116, PTH118
    except OSError:
        return False


def close_inherited() -> None:
    """Nothing that the daemon had open (sockets given to it by systemd, say) is the command's."""
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        if int(name) > 2:
            try:
                os.close(int(name))
            except OSError:
                continue


def acquire(lock: int, patience: float) -> int:
    """Take the lock; 0, or the exit status to end with."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() > deadline:
                return BUSY
            if signal.sigtimedwait(END, POLL):
                return GIVEN_UP
        else:
            return 0


def run(run_dir: str, argv: list[str], timeout: float, grace: float) -> str:
    """Run the command to its end; the word for how it ended."""
    if timeout <= 0:
        return "timeout"
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    output = os.open(os.path.join(run_dir, "output"), flags, 0o600)  # noqa: PTH118
    try:
        child = spawn(argv, output)
    except OSError as error:
        return f"error {error.strerror}"
    word = wait(child, time.monotonic() + timeout, output)
    if word in ("timeout", "ended"):
        end_group(os.getpid(), grace)
    trim(output, OUTPUT_KEPT)
    return word


def spawn(argv: list[str], output: int) -> int:
    """The child's pid. Raises OSError."""
    null = os.open(os.devnull, os.O_RDONLY)
    actions = [
        (os.POSIX_SPAWN_DUP2, null, 0),
        (os.POSIX_SPAWN_DUP2, output, 1),
        (os.POSIX_SPAWN_DUP2, output, 2),
    ]
    return os.posix_spawnp(argv[0], argv, os.environ, file_actions=actions, setsigmask=(), setsigdef=DEFAULTS)


def wait(child: int, deadline: float, output: int) -> str:
    """Wait for the child, the deadline or a signal to end."""
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return f"exit {code}" if code >= 0 else f"signal {-code}"
        left = deadline - time.monotonic()
        if left <= 0:
            return "timeout"
        got = signal.sigtimedwait(CHILD | END, min(left, 1.0))
        if got is not None and got.si_signo != signal.SIGCHLD:
            return "ended"
        trim(output, OUTPUT_CAP)


def trim(output: int, cap: int) -> None:
    """Cut the output to its end when it is longer than `cap`. It is open for appending, so the command
    writes on behind what is kept."""
    size = os.fstat(output).st_size
    if size > cap:
        kept = os.pread(output, OUTPUT_KEPT, size - OUTPUT_KEPT)
        os.ftruncate(output, 0)
        os.write(output, kept)


def orphans(lock: int) -> int | None:
    """The process group of a supervisor that was killed, if members are left of it.

    A group's number is given to no other process while the group has members. So if another process has
    it now, the group is gone; and a number of another boot or pid namespace means nothing here.
    """
    try:
        pid, start, age, _ = os.pread(lock, 4096, 0).decode(errors="replace").split(" ", 3)
        group = int(pid)
    except ValueError:
        return None
    state, now, _ = stat(group)
    if age != epoch() or (now not in ("", start)) or (now and state != "Z"):
        return None
    return group if members(group) else None


def end_group(group: int, grace: float) -> bool:
    """TERM to all members of a group but us, KILL to those left after `grace`; whether all are gone."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, KILLED_BY)):
        deadline = time.monotonic() + patience
        left = members(group)
        for pid in left:
            send(pid, number)
        while left:
            if time.monotonic() > deadline:
                break
            time.sleep(POLL)
            left = members(group)
            if number == signal.SIGKILL:
                for pid in left:  # those forked while we looked
                    send(pid, number)
        if not left:
            return True
    return False


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:
        return  # it has gone, or is another user's: then it is still a member afterwards


def members(group: int) -> list[int]:
    """The live processes of a group, without ourselves."""
    found = []
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit() and int(name) != os.getpid():
            state, _, its_group = stat(int(name))
            if its_group == str(group) and state not in "ZX":
                found.append(int(name))
    return found


def stat(pid: int) -> tuple[str, str, str]:
    """State, start time and process group of a process; empty texts when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            fields = file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return "", "", ""
    return fields[0], fields[19], fields[2]


def epoch() -> str:
    """Names the boot and the pid namespace, within which a pid and a start time name a process."""
    with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123
        boot = file.read().strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116


def leave(run_dir: str, word: str) -> None:
    path = os.path.join(run_dir, "exit")  # noqa: PTH118
    with open(path + ".new", "w") as file:  # noqa: PTH123
        file.write(word + "\n")
    os.rename(path + ".new", path)  # noqa: PTH104


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
