"""Identity of annotators: a pseudonym, a code for signing in again, and a signed cookie.

A pseudonym belongs to the person who took it first. A code, shown only on their own page, signs
them in from another browser. Cookies are signed with a secret of the store, so they survive a
restart of the server, and visits renew them. A changed consent line must be accepted again.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
import unicodedata
from collections.abc import Mapping

from mmrlhf.labeling.store import DuplicateError, Event, Store
from mmrlhf.records import InputError

DAY_SECONDS = 24 * 3600
COOKIE_SECONDS = 30 * DAY_SECONDS
COOKIE = re.compile(r"([0-9]{1,9})\.([0-9]{1,12})\.([0-9a-f]{64})")
"""The annotator, when it was issued (seconds since 1970), and a signature of both."""
NAME = re.compile(r"[^\W_](?:[\w .-]{0,38}[\w.-])?")
"""Letters and digits of any script, with spaces, dots and hyphens inside."""
CODE_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
"""Characters that are not easily confused."""


class Sessions:
    """Signs annotators in, and recognises them by their cookies.

    access_token: required from everybody to sign in, None if the server is for this machine only.
    """

    def __init__(self, store: Store, access_token: str | None, consent: str) -> None:
        self._store, self.access_token, self.consent = store, access_token, consent
        self._secret = bytes.fromhex(store.setting("secret"))
        self._consents = {event.annotator: event.content["consent"] for event in store.events("joined")}
        """By annotator, the consent line that they accepted last."""
        # Browsers share cookies between the ports of a machine, on which several servers may run.
        self.cookie_name = f"label_{hashlib.sha256(self._secret).hexdigest()[:8]}"

    def is_access_token(self, token: str) -> bool:
        """Return whether an access token is valid."""
        return self.access_token is None or hmac.compare_digest(token.encode(), self.access_token.encode())

    def join(self, name: str, code: str, token: str, has_consented: bool) -> int:
        """Return the annotator with this pseudonym, new or returning.

        Raises InputError if they may not sign in, StorageError if a new one cannot be written.
        """
        if not self.is_access_token(token):
            raise InputError("this is not the token of this server: use the link that you were sent")
        name = _tidy(name)
        if not NAME.fullmatch(name):
            raise InputError("choose a name of 1 to 40 letters, digits, spaces, dots or hyphens")
        found = self._store.find_annotator(pseudonym(name))
        if found is not None:
            if not hmac.compare_digest(code.strip().lower().encode(), found[1].encode()):
                raise InputError(f"{name} is taken: give the code of {name} to come back, or choose another name")
            if has_consented:
                self.accept(found[0])
            return found[0]
        if not has_consented:
            raise InputError("to take part, tick the box that says that your labels may be stored")
        try:
            annotator = self._store.add_annotator(pseudonym(name), _new_code(), time.time(), self.consent)
        except DuplicateError:  # somebody took the name in this moment
            raise InputError(f"{name} is taken: choose another name") from None
        self._consents[annotator] = self.consent
        return annotator

    def has_accepted(self, annotator: int) -> bool:
        """Return whether an annotator has accepted the current consent line."""
        return self._consents.get(annotator) == self.consent

    def accept(self, annotator: int) -> None:
        """Record that an annotator accepts the consent line, if it is new to them. Raises
        StorageError if that cannot be written."""
        if not self.has_accepted(annotator):
            content = {"consent": self.consent}
            self._store.append_all([Event(0, "joined", annotator, None, None, None, time.time(), None, content)])
            self._store.flush()
            self._consents[annotator] = self.consent

    def cookie_for(self, annotator: int) -> str:
        """Return the cookie's value for an annotator, which is valid for COOKIE_SECONDS."""
        issued = int(time.time())
        return f"{annotator}.{issued}.{self._sign(f'cookie of {issued}', annotator)}"

    def is_to_renew(self, cookie: str | None) -> bool:
        """Return whether a valid cookie is older than a day, so that it should be renewed."""
        parts = COOKIE.fullmatch(cookie or "")
        return parts is not None and time.time() >= int(parts[2]) + DAY_SECONDS

    def annotator_of(self, cookie: str | None) -> int | None:
        """Return a cookie's annotator, None if it is missing, forged, too old, or from the
        future."""
        annotator = self._signed_annotator(cookie or "")
        return annotator if annotator is not None and self._store.code_of(annotator) is not None else None

    def has_cookie(self, cookies: Mapping[str, str]) -> bool:
        """Return whether a browser sent a cookie of this server, by its signature."""
        return self._signed_annotator(cookies.get(self.cookie_name, "")) is not None

    def _signed_annotator(self, cookie: str) -> int | None:
        parts = COOKIE.fullmatch(cookie)
        if parts is None:
            return None
        annotator, issued = int(parts[1]), int(parts[2])
        if not hmac.compare_digest(parts[3], self._sign(f"cookie of {issued}", annotator)):
            return None
        return annotator if issued - DAY_SECONDS <= time.time() < issued + COOKIE_SECONDS else None

    def form_key(self, annotator: int) -> str:
        """Return the secret in the forms of an annotator's own pages, which no other site knows."""
        return self._sign("form", annotator)

    def is_form_key(self, annotator: int, key: str) -> bool:
        """Return whether a form came from a page of this annotator."""
        return hmac.compare_digest(key.encode(), self.form_key(annotator).encode())

    def _sign(self, purpose: str, annotator: int) -> str:
        return hmac.new(self._secret, f"{purpose} {annotator}".encode(), hashlib.sha256).hexdigest()


def pseudonym(name: str) -> str:
    """Return a name as the store has it, the same for other case, spaces and forms of letters."""
    return _tidy(name).casefold()


def _tidy(name: str) -> str:
    return unicodedata.normalize("NFKC", " ".join(name.split()))


def consent_key(line: str) -> str:
    """Return the hash of the consent line that a form contains."""
    return hashlib.sha256(line.encode(errors="surrogatepass")).hexdigest()[:16]


def _new_code() -> str:
    return "-".join("".join(secrets.choice(CODE_LETTERS) for _ in range(5)) for _ in range(2))
