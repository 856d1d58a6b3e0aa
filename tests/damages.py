"""Ways to damage files, for fuzzing.py and fuzzing_runs.py: bytes, whole files, and values in JSON."""

import json
import signal
from contextlib import contextmanager

VALUES = (
    None, True, False, -1, 0, 1, 3, 0.5, -0.5, 10**9, 10**30, -(10**30), 1e308, float("nan"), float("inf"), "", "x",
    "1", "\ud7ff", "x" * 10_000, [], [0], [[]], {}, {"x": 1}, [1.0, None], "../../etc", "</script>",
)  # fmt: skip
TEXTS = (b"", b"{", b"[]", b"null", b"\0" * 100, b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b'{"a": 1}', b"{}\n" * 3)


class Hung(BaseException):
    """The watchdog's."""


@contextmanager
def watched(seconds):
    """Ends what hangs."""

    def bark(number, frame):
        raise Hung

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def places(value, path=()):
    """All paths in a JSON value."""
    yield path
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(inner, (*path, key))


def changed(rng, value):
    """A JSON value in which one thing is another, is missing, or is there twice."""
    value = json.loads(json.dumps(value))
    *way, last = rng.choice([path for path in places(value) if path])
    inner = value
    for key in way:
        inner = inner[key]
    if rng.random() < 0.2:
        del inner[last]
    elif isinstance(inner, dict) and rng.random() < 0.1:
        inner[f"{last}x"] = rng.choice(VALUES)
    else:
        inner[last] = rng.choice(VALUES)
    return value


def truncate(rng, path):
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def flip(rng, path):
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 1, 8])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def overwrite(rng, path):
    data, at = path.read_bytes(), rng.randrange(path.stat().st_size)
    path.write_bytes(data[:at] + rng.choice([bytes(64), rng.randbytes(64)]) + data[at + rng.choice([0, 64]) :])


def replace_whole(rng, path):
    path.write_bytes(rng.choice(TEXTS))


def remove(rng, path):
    path.unlink()


def become_a_folder(rng, path):
    path.unlink()
    path.mkdir()
