"""The recordings of one gateway process: found again, bounded together, forgotten in time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from math import ceil

from spotinference.gateway.config import GatewaySettings
from spotinference.gateway.errors import Code, GatewayError
from spotinference.gateway.replay import EVENT_IDS, IDEMPOTENCY_KEY, Asked, Recording, gone

CLOSE_S = 3.0
KEY_SHARE = 0.75
"""Of the bounds, the most that one API key may take: no tenant leaves the others without."""


class Replays:
    """The recordings of this process, by request id and by idempotency key; bounded."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._by_request: dict[str, Recording] = {}
        self._by_key: dict[tuple[str, str], Recording] = {}

    def find(self, owner: str, wanted: Asked, digest: bytes) -> Recording | None:
        """The recording to join; None: there is none here. `idempotency_key_reused`."""
        if wanted.last is not None:
            recording = self._by_request.get(wanted.last[0])
            if recording is not None and recording.owner != owner:
                raise gone()
            return recording
        if wanted.idempotency is None:
            return None
        recording = self._by_key.get((owner, wanted.idempotency))
        if recording is not None and recording.digest != digest:
            raise GatewayError(
                Code.IDEMPOTENCY_KEY_REUSED,
                f"{IDEMPOTENCY_KEY} was used for another request body or path. Choose a new one.",
                param=IDEMPOTENCY_KEY,
            )
        return recording

    def record(
        self,
        recording: Recording,
        wanted: Asked,
        run: Coroutine[None, None, None],
    ) -> asyncio.Task[None]:
        """Lets the request run on its own; it ends early when nobody has come back for it."""
        try:
            mine = [r for r in self._by_request.values() if r.owner == recording.owner]
            self._make_room(mine, KEY_SHARE)
            self._make_room(list(self._by_request.values()), 1.0)
        except GatewayError:
            run.close()
            raise
        self._by_request[recording.request_id] = recording
        if wanted.idempotency is not None:
            self._by_key[recording.owner, wanted.idempotency] = recording
        task = asyncio.get_running_loop().create_task(self._run(recording, wanted, run))
        recording.task = task
        return task

    def left(self, recording: Recording) -> None:
        """A player has gone. Without another within `resume_s`, an unfinished answer ends."""
        if recording.over or recording.players:
            return

        def give_up() -> None:
            if not recording.over and not recording.players and recording.task is not None:
                recording.task.cancel()

        recording.then(self._settings.resume_s, give_up)

    async def _run(
        self, recording: Recording, wanted: Asked, run: Coroutine[None, None, None]
    ) -> None:
        keep_s = self._settings.resume_s
        try:
            await run
        except GatewayError as error:
            recording.refused = error
        finally:
            if not recording.over:
                recording.refused = recording.refused or GatewayError(
                    Code.INTERNAL_ERROR, "The request ended without an answer."
                )
                recording.finish()
            if recording.refused is not None:  # a retry is to be tried anew
                self._forget_key(recording, wanted)
            elif recording.size > self._settings.max_recording_bytes:
                keep_s = 0.0  # those who wait for it have it
            elif wanted.idempotency is not None:
                keep_s = self._settings.idempotency_s
            recording.then(keep_s, lambda: self._forget(recording, wanted))

    async def close(self) -> None:
        """Ends what still runs; after the drain, or when the process fails."""
        tasks = [recording.task for recording in self._by_request.values() if recording.task]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S)

    def _forget_key(self, recording: Recording, wanted: Asked) -> None:
        if wanted.idempotency is not None:
            at = (recording.owner, wanted.idempotency)
            if self._by_key.get(at) is recording:
                del self._by_key[at]

    def _forget(self, recording: Recording, wanted: Asked) -> None:
        self._forget_key(recording, wanted)
        self._by_request.pop(recording.request_id, None)

    def _make_room(self, known: list[Recording], share: float) -> None:
        """Room for one more than these within this share of the bounds: the oldest finished answers
        go; `recordings_full` when there is none even so.
        """
        settings = self._settings
        most = settings.max_recording_bytes
        size = most + sum(r.size if r.over else most for r in known)
        size_bound = max(most, ceil(settings.max_recorded_bytes * share))
        count, count_bound = 1 + len(known), ceil(settings.max_recordings * share)
        for recording in known:
            if count <= count_bound and size <= size_bound:
                return
            if recording.over and not recording.players:
                size -= recording.size
                count -= 1
                self._drop(recording)
        if count > count_bound or size > size_bound:
            raise GatewayError(
                Code.RECORDINGS_FULL,
                "Too many answers are being recorded. Retry, or ask without "
                f"{IDEMPOTENCY_KEY} and {EVENT_IDS}.",
                retry_after_s=settings.parked_retry_after_s,
            )

    def _drop(self, recording: Recording) -> None:
        """Before its time."""
        del self._by_request[recording.request_id]
        recording.then(0.0, None)
        for at in [at for at, other in self._by_key.items() if other is recording]:
            del self._by_key[at]
