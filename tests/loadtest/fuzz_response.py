"""Fuzzes the response reader: `python -m tests.loadtest.fuzz_response [--seconds 600] [--seed N]`.

Damaged responses, cut into pieces at random: the reader never fails otherwise than by `BadResponseError`, always comes
to an end, and the end does not depend on the pieces. Exits 1 with the bytes that showed otherwise.
"""

from __future__ import annotations

import random
import sys
import time

import click

from tests.loadtest.test_response import CHUNKED, OK, pieces_of, read

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
)


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
                text[at:at] = luck.choice(WORDS)
            case _:
                text[at:at] = luck.randbytes(luck.randrange(1, 5))
    return bytes(text)


@click.command()
@click.option("--seconds", type=float, default=600.0, show_default=True)
@click.option("--seed", type=int, default=None, help="[the time]")
def main(seconds: float, seed: int | None) -> None:
    """Look for a response that the reader takes otherwise in pieces than as a whole."""
    seed = time.time_ns() if seed is None else seed
    luck, cases, slowest = random.Random(seed), 0, 0.0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text, head = damaged(luck), luck.random() < 0.1
        cuts = [luck.randrange(10_000) for _ in range(luck.randrange(9))]
        begun = time.monotonic()
        try:
            whole = read([text], head=head)
            parts = read(pieces_of(text, cuts), head=head)
        except Exception as error:  # whatever it is, it is the finding
            sys.exit(f"seed {seed}, case {cases}: {error!r} from {text!r}, head={head}, cut at {cuts}")
        slowest = max(slowest, time.monotonic() - begun)
        # What comes after the end is seen or not, as the pieces have it.
        if parts._replace(keep=whole.keep) != whole:
            sys.exit(f"seed {seed}, case {cases}: {whole} but {parts} from {text!r}, head={head}, cut at {cuts}")
        cases += 1
    click.echo(f"{cases} damaged responses, each whole and in pieces, without a finding (seed {seed})")
    click.echo(f"the slowest took {1e3 * slowest:.1f} ms")


if __name__ == "__main__":
    main()
