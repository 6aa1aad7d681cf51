"""
Many clients at once against a running demo: answers, errors, seconds per answer, memory of the server.

    python -m tests.space.load http://127.0.0.1:7860 --pid SERVER_PID --clients 20 --seconds 60
"""

import argparse
import random
import statistics
import threading
import time
from collections import Counter
from pathlib import Path

from gradio_client import Client

from space.app import read_examples
from space.inputs import place_of, read_sequence


def questions(source: random.Random) -> list[tuple]:
    """(endpoint, arguments) of one round of a visitor, on real sequences."""
    examples = read_examples()
    one, other = source.sample(examples, 2)
    first = place_of(read_sequence(one["fasta"], len(one["sequence"])))[1]
    return [
        ("/tokens", one["fasta"]),
        ("/fill_mask", one["fasta"], first + source.randrange(len(one["sequence"]))),
        ("/similarity", one["fasta"], other["fasta"]),
        ("/variant", one["fasta"], one["variant"]),
        ("/embed", one["fasta"] + other["fasta"]),
    ]


def visit(url: str, seed: int, until: float, seconds: list[float], errors: Counter):
    """Ask until the time is over."""
    source = random.Random(seed)
    try:
        client = Client(url, verbose=False)
    except Exception as error:  # a visitor who does not get in is an error, too
        errors[f"connecting: {error}"[:200]] += 1
        return
    while time.monotonic() < until:
        for endpoint, *arguments in questions(source):
            start = time.monotonic()
            try:
                client.predict(*arguments, api_name=endpoint)
                seconds.append(time.monotonic() - start)
            except Exception as error:  # whatever it is, it is counted and shown
                errors[f"{endpoint}: {error}"[:200]] += 1


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    seconds: list[float] = []
    errors: Counter = Counter()
    until = time.monotonic() + options.seconds
    arguments = [(options.url, seed, until, seconds, errors) for seed in range(options.clients)]
    threads = [threading.Thread(target=visit, args=row) for row in arguments]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        print(f"{len(seconds):6,} answers, {errors.total()} errors, {resident_mb(options.pid):,.0f} MB", flush=True)
        time.sleep(10)
    for thread in threads:
        thread.join()
    print(f"{options.clients} clients, {options.seconds:.0f} s: {len(seconds):,} answers, {errors.total()} errors")
    if seconds:
        print(f"median {statistics.median(seconds):.2f} s, slowest {max(seconds):.2f} s")
    for error, count in errors.most_common(5):
        print(count, error)


if __name__ == "__main__":
    main()
