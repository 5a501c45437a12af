"""Reading in a process of its own. Promise: a file that kills its reader, or holds it for ever, costs one input.

C libraries trust the files they map: a damaged one can end the process that reads it. The child sends what came of each
input; when it dies, the input that it was at is a reject, and a new child goes on behind it.
"""

from collections.abc import Iterator
from multiprocessing.connection import Connection

from vlbert_data.build.processes import follow_parent, spawn_context
from vlbert_data.errors import VlbError
from vlbert_data.importers.reading import Outcome, Reading
from vlbert_data.sources.base import SourceReject

# No record takes so long to read; a child that is silent for this long hangs.
SILENCE_S = 300.0


def outcomes_apart(reading: Reading, start: int, stop: int, *, silence_s: float = SILENCE_S) -> Iterator[Outcome]:
    """Yield what comes of inputs `start` to `stop` - 1, in order, read by a child process.

    Raises:
        VlbError: what the child raised.
    """
    while start < stop:
        for outcome in _one_child(reading, start, stop, silence_s):
            yield outcome
            start = outcome.number + 1
        if start < stop:
            detail = "the process that read it died or hung; the file is damaged here, or attacks its reader"
            reject = SourceReject(number=start, where=f"input {start}", reason="reader crashed", detail=detail)
            yield Outcome(number=start, where=reject.where, reject=reject)
            start += 1


def _one_child(reading: Reading, start: int, stop: int, silence_s: float) -> Iterator[Outcome]:
    """Yield outcomes until the range or the child ends."""
    context = spawn_context()
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_read, args=(send, reading, start, stop), daemon=True)
    child.start()
    send.close()
    try:
        receive.recv()  # the child has started, which may take long on a busy machine
        while receive.poll(silence_s):
            answer = receive.recv()
            if isinstance(answer, VlbError):
                raise answer
            yield answer
    except EOFError:
        return
    finally:
        child.kill()
        child.join()
        receive.close()


def _read(send: Connection, reading: Reading, start: int, stop: int) -> None:
    """Send every outcome of the range; the child's whole life."""
    follow_parent()
    send.send(None)
    try:
        for outcome in reading.outcomes(start, stop):
            send.send(outcome)
    except VlbError as error:
        send.send(error)
