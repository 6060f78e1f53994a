"""What changes while we run: the token, and the certificates. Read again when it is time to."""

from __future__ import annotations

import asyncio
import contextvars
import ssl
from dataclasses import replace
from typing import Final

import structlog

from kaito.clock import Clock
from kaito.errors import InvalidSettings
from kaito.kube.config import ClusterConfig, tls_context, tls_files
from kaito.kube.tokens import Token, TokenSource

log = structlog.get_logger()

_LOOK_SECONDS: Final = 60.0
_EXPIRY_MARGIN_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 10.0  # a token that is always about to expire: not per request


class Credentials:
    """The token in use. What was read last stays in use when it cannot be read again.

    ``source``: None when we say nothing.
    """

    def __init__(self, source: TokenSource | None, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._token: Token | None = None
        self._read_at = 0.0
        self._reading: asyncio.Task[Token] | None = None

    async def current(self, rejected: Token | None = None) -> Token:
        """The token to send now, another than ``rejected``; while it is good, the one in use.

        All who need a new one share a reading, also one in vain: they get a copy of the old one. It
        is nobody's own: a caller who gives up, as the election's do early, does not end it.

        Raises:
            InvalidSettings: it was never readable.
        """
        known, now = self._token, self._clock.now()
        if known is not None and known is not rejected:
            age = self._clock.monotonic() - self._read_at
            is_ending = now >= known.expires - _EXPIRY_MARGIN_SECONDS and age >= _PAUSE_SECONDS
            if is_ending and now < known.expires:
                self._read_beside()
                return known
            if age < known.max_age and not is_ending:
                return known
        return await asyncio.shield(self._read_beside())

    async def close(self) -> None:
        """End a reading that is under way."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])

    def _read_beside(self) -> asyncio.Task[Token]:
        if self._reading is None or self._reading.done():
            loop, context = asyncio.get_running_loop(), contextvars.Context()
            self._reading = loop.create_task(self._read(), context=context)
            self._reading.add_done_callback(lambda read: read.cancelled() or read.exception())
        return self._reading

    async def _read(self) -> Token:
        try:
            token = await self._source.read() if self._source is not None else Token("")
        except InvalidSettings as err:
            if self._token is None:
                raise
            log.warning("kept the old credentials", error=str(err))
            token = replace(self._token)
        self._token, self._read_at = token, self._clock.monotonic()
        return token


class Tls:
    """The SSL context in use, made anew when a certificate has changed; open connections stay."""

    def __init__(self, config: ClusterConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._context: ssl.SSLContext | None = None
        self._made_of: object = None
        self._certificate = b""
        self._looked_at = 0.0
        self._making = asyncio.Lock()

    async def context(self, certificate: bytes = b"") -> ssl.SSLContext | bool:
        """The context for the next connection; True: aiohttp's, as plain HTTP needs none.

        ``certificate``: see ``tls_context``.

        Raises:
            InvalidSettings: a CA or client certificate could never be used.
        """
        if not self._config.host.startswith("https:"):
            return True
        async with self._making:
            age = self._clock.monotonic() - self._looked_at
            if not self._context or certificate != self._certificate or age >= _LOOK_SECONDS:
                try:
                    await asyncio.to_thread(self._renew, certificate)
                except InvalidSettings as err:  # being replaced just now; looked at again
                    if self._context is None:
                        raise
                    log.warning("kept the old certificates", error=str(err))
                # Only now: a caller that was cancelled meanwhile has looked at nothing.
                self._looked_at, self._certificate = self._clock.monotonic(), certificate
            assert self._context is not None
            return self._context

    def _renew(self, certificate: bytes) -> None:
        found = (tls_files(self._config), certificate)  # first: a change since is seen next time
        if found != self._made_of:
            self._context = tls_context(self._config, certificate)
            self._made_of = found
