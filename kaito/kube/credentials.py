"""Credentials and certificates that change while we run: read again when it is time to."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from typing import Final

import structlog

from kaito.clock import Clock
from kaito.errors import InvalidSettings
from kaito.kube.config import ClusterConfig, Token, TokenSource, tls_context, tls_files

log = structlog.get_logger()

_LOOK_SECONDS: Final = 60.0
_EXPIRY_MARGIN_SECONDS: Final = 60.0
_PLUGIN_PAUSE_SECONDS: Final = 10.0  # a token that is always about to expire: not per request


class Credentials:
    """The token in use. What was read last stays in use when it cannot be read again."""

    def __init__(self, source: TokenSource, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._token: Token | None = None
        self._read_at = 0.0
        self._reading = asyncio.Lock()

    async def current(self) -> Token:
        """The token to send now, read again when it is too old.

        Raises:
            InvalidSettings: it was never readable.
        """
        token = self._token
        return await self.replace(token) if token is None or self._is_old(token) else token

    async def replace(self, known: Token | None) -> Token:
        """Read anew, unless another call has since ``known``, in vain or not: they share it.

        Raises:
            InvalidSettings: it was never readable.
        """
        async with self._reading:
            if self._token is not known and self._token is not None:
                return self._token
            try:
                token = await self._source.read()
            except InvalidSettings as err:
                if self._token is None:
                    raise
                log.warning("kept the old credentials", error=str(err))
                token = replace(self._token)  # a copy: to all that wait, this was a reading too
            self._token, self._read_at = token, self._clock.monotonic()
            return token

    def _is_old(self, token: Token) -> bool:
        age = self._clock.monotonic() - self._read_at
        expires_soon = self._clock.now() >= token.expires - _EXPIRY_MARGIN_SECONDS
        return age >= token.max_age or (expires_soon and age >= _PLUGIN_PAUSE_SECONDS)


class Tls:
    """The SSL context in use, made anew when its files have changed; open connections stay."""

    def __init__(self, config: ClusterConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._context: ssl.SSLContext | None = None
        self._files: tuple[object, ...] = ()
        self._looked_at = 0.0
        self._making = asyncio.Lock()

    async def context(self) -> ssl.SSLContext:
        """The context for the next connection.

        Raises:
            InvalidSettings: a CA or client certificate could never be used.
        """
        if self._context is not None and not self._is_time_to_look():
            return self._context
        async with self._making:
            if self._context is None:
                return await self._renew()
            if self._is_time_to_look():
                self._looked_at = self._clock.monotonic()
                await self._look_again()
            return self._context

    def _is_time_to_look(self) -> bool:
        return self._clock.monotonic() - self._looked_at >= _LOOK_SECONDS

    async def _look_again(self) -> None:
        try:
            if await asyncio.to_thread(tls_files, self._config) != self._files:
                await self._renew()
        except InvalidSettings as err:  # being replaced just now; looked at again
            log.warning("kept the old certificates", error=str(err))

    async def _renew(self) -> ssl.SSLContext:
        files, context = await asyncio.to_thread(self._make)
        self._files, self._context = files, context
        self._looked_at = self._clock.monotonic()
        return context

    def _make(self) -> tuple[tuple[object, ...], ssl.SSLContext]:
        files = tls_files(self._config)  # first: a change in between is seen next time
        return files, tls_context(self._config)
