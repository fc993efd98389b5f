"""HTTP to a metadata server: one bounded request at a time, every failure mapped to a typed error.

Redirects are not followed, proxies not asked, bodies bounded: the server may be anything that answers at a link-local address.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

import aiohttp
import msgspec

from architect.errors import PeerError, UnavailableError

BODY_BYTES_MAX = 256 << 10
_NEXT_STEP = "see that this host is an instance of that cloud and that nothing blocks its metadata address"


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def date_s(self) -> float | None:
        """What time it is at the server, in seconds since 1970; None if it does not say."""
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            return parsedate_to_datetime(self.headers["date"]).timestamp() if "date" in self.headers else None
        return None


class MetadataConnection:
    """Requests to one metadata server.

    :param thing: how errors name it.
    :param url: where it answers, without a path.
    """

    def __init__(self, thing: str, url: str) -> None:
        self.thing = thing
        self._url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self, method: str, path: str, *, headers: Mapping[str, str], timeout_s: float, body: bytes | None = None
    ) -> Reply:
        """Send one request and return its answer, whatever its status.

        Raises:
            UnavailableError: no whole answer in time.
            PeerError: what came back is no HTTP, or too long.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with self._session.request(
                method, self._url + path, headers=headers, data=body, timeout=timeout, allow_redirects=False
            ) as response:
                content = await _bounded(response.content)
                head = {name.lower(): value for name, value in response.headers.items()}
                reply = Reply(response.status, head, content)
        except TimeoutError as error:
            raise UnavailableError(self.thing, f"no answer in {timeout_s:g} s", _NEXT_STEP) from error
        except (aiohttp.ClientResponseError, aiohttp.ClientPayloadError, ValueError) as error:
            raise PeerError(self.thing, f"answers no HTTP ({type(error).__name__}: {error})", _NEXT_STEP) from error
        except (aiohttp.ClientError, OSError) as error:
            raise UnavailableError(self.thing, f"does not answer ({error})", _NEXT_STEP) from error
        if len(content) > BODY_BYTES_MAX:
            raise PeerError(self.thing, f"answers with over {BODY_BYTES_MAX} bytes", _NEXT_STEP)
        return reply

    def unexpected(self, reply: Reply) -> UnavailableError | PeerError:
        """The error for a status that means no answer to the question."""
        cause = f"answers with status {reply.status}"
        if reply.status >= 500 or reply.status in (408, 410, 429):
            return UnavailableError(self.thing, cause, _NEXT_STEP)
        return PeerError(self.thing, cause, _NEXT_STEP)

    def nonsense(self, what: str) -> PeerError:
        """The error for an answer that cannot be understood."""
        return PeerError(self.thing, f"answers nonsense ({what[:200]})", _NEXT_STEP)

    async def close(self) -> None:
        """Close connections; the next request opens them again. Idempotent."""
        if self._session is not None:
            await self._session.close()
            self._session = None


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    """The body, or its first bytes if it is longer than any answer can be."""
    parts = bytearray()
    async for part in content.iter_any():
        parts += part
        if len(parts) > BODY_BYTES_MAX:
            break
    return bytes(parts)
