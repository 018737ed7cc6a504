"""Fuzzes the response reader: `python -m tests.loadtest.fuzz_response [--seconds 600] [--seed N]`.

Damaged responses, cut into pieces at random: the reader never fails otherwise than by `BadResponseError`, always comes
to an end, and the end depends neither on the pieces nor on what was read before. Exits 1 with the bytes that showed
otherwise, or when no response came to one of the possible ends.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from collections import Counter
from types import FrameType

import click

from tests.loadtest.test_response import CHUNKED, OK, judge

CORPUS = (
    OK + b"Content-Length: 5\r\nX-Served-By: a\r\n\r\nhello",
    OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello",
    CHUNKED + b"5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\nDigest: x\r\n\r\n",
    OK + b"\r\nuntil the end",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n..",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
    OK + b"Transfer-Encoding: gzip, chunked\r\nContent-Length: 3\r\nX: a\r\n b\r\n\r\n1\r\n.\r\n0\r\n\r\n",
)
WORDS = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"0\r\n\r\n",
    b":",
    b" ",
    b"\0",
    b"HTTP/1.1 200 OK\r\n",
    b"\xff",
    b"9" * 18,
    b"HTTP/1.1 103 Early Hints\r\n\r\n",
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"X: a\r\n b\r\n",
)
LONG = (b"a" * 16_390, b"a" * 262_200, b"X: a\r\n" * 43_700)  # about the limits of a line and of a head
_PATIENCE = 10  # s for one response: the longest take some milliseconds


def damaged(luck: random.Random) -> bytes:
    """One or two of the corpus, spliced, with bytes flipped, put in and taken out."""
    text = bytearray(luck.choice(CORPUS))
    if luck.random() < 0.3:
        other = luck.choice(CORPUS)
        text[luck.randrange(len(text) + 1) :] = other[luck.randrange(len(other) + 1) :]
    for _ in range(luck.choice((0, 1, 1, 2, 3, 8))):
        at = luck.randrange(len(text) + 1)
        match luck.randrange(4):
            case 0 if at < len(text):
                text[at] ^= 1 << luck.randrange(8)
            case 1:
                del text[at : at + luck.randrange(1, 9)]
            case 2:
                text[at:at] = luck.choice(WORDS if luck.random() < 0.999 else LONG)
            case _:
                text[at:at] = luck.randbytes(luck.randrange(1, 5))
    return bytes(text)


def give_up(number: int, frame: FrameType | None) -> None:
    raise TimeoutError(f"no end after {_PATIENCE} s")


@click.command()
@click.option("--seconds", type=float, default=600.0, show_default=True)
@click.option("--seed", type=int, default=None, help="[the time]")
def main(seconds: float, seed: int | None) -> None:
    """Look for a response that the reader takes otherwise in pieces than as a whole."""
    seed = time.time_ns() if seed is None else seed
    luck, slowest = random.Random(seed), 0.0
    ends: Counter[str] = Counter()
    signal.signal(signal.SIGALRM, give_up)
    end = time.monotonic() + seconds
    while (begun := time.monotonic()) < end:
        text, head = damaged(luck), luck.random() < 0.1
        cuts = [luck.randrange(len(text) + 1) for _ in range(luck.randrange(9))]
        signal.alarm(_PATIENCE)
        try:
            ends[judge(text, cuts, head=head).end] += 1
        except Exception as error:  # whatever it is, it is the finding
            sys.exit(f"seed {seed}, case {ends.total()}: {error!r} from {text!r}, head={head}, cut at {cuts}")
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.monotonic() - begun)
    click.echo(f"{ends.total()} damaged responses, each whole and in pieces, without a finding (seed {seed})")
    click.echo(
        f"{', '.join(f'{count} {name}' for name, count in ends.items())}; the slowest took {1e3 * slowest:.1f} ms"
    )
    if len(ends) < 3:
        sys.exit("they did not come to all of the ends there are: this proves nothing")


if __name__ == "__main__":
    main()
