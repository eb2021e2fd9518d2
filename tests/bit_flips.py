"""Files with one bit flipped, from a seed."""

import random


def flipped(path, count, seed=0):
    """Yields (place, bit) after flipping one bit of a file at a time; the file is whole again at the end.

    Half of the flips are anywhere, the others within 200 bytes of the ends, where sizes and directories are.
    """
    content, rng = path.read_bytes(), random.Random(seed)
    for number in range(count):
        place = rng.randrange(len(content))
        if number % 2:
            place = rng.choice([place % 200, -1 - place % 200]) % len(content)
        bit = rng.randrange(8)
        damaged = bytearray(content)
        damaged[place] ^= 1 << bit
        path.write_bytes(damaged)
        yield place, bit
    path.write_bytes(content)
