"""How long OpenMP's threads wait for each other before they sleep.

torch's threads meet after every operation. GNU OpenMP lets those that are early run an empty loop for milliseconds, so
that on a machine with other work they take the time that the late ones need. With the number below a training step on
two cores takes half as long beside two other processes, and as long as before on an idle machine
(`python -m benchmarks busy`).
"""

from collections.abc import MutableMapping

SPINS = "10000"
"""Rounds of the loop: some ten microseconds, in which the other threads of an idle machine arrive."""
VARIABLE, POLICY = "GOMP_SPINCOUNT", "OMP_WAIT_POLICY"


def wait_briefly(environment: MutableMapping[str, str]) -> None:
    """Set the number of rounds, for this process if torch is not loaded yet and for those that it starts, unless the
    user says how to wait."""
    if POLICY not in environment:
        environment.setdefault(VARIABLE, SPINS)
