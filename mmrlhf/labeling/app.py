"""The routes of the annotators' page.

A form comes from the page's script, which asks for JSON and keeps the form until it is saved, or
from a browser without scripts, which is sent on to the next page.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from mmrlhf.labeling.assignments import ANSWERS, Assignments
from mmrlhf.labeling.database import FileGoneError, NotOnDiskError, StorageError
from mmrlhf.labeling.forms import parse_label, parse_note
from mmrlhf.labeling.guard import BodyTooLargeError, Guard, wants_json
from mmrlhf.labeling.images import displayable
from mmrlhf.labeling.pages import FOLDER, Pages, person_context
from mmrlhf.labeling.sessions import COOKIE_SECONDS, Sessions, consent_key
from mmrlhf.labeling.typed_facts import facts_from_sentence
from mmrlhf.records import InputError

MAX_FIELDS = 500
MAX_SENTENCE = 2000


class Refusal(Exception):
    """A request that is answered with a status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


def create_app(assignments: Assignments, sessions: Sessions, pages: Pages) -> Guard:
    """Return the app, guarded: what a server runs."""
    handlers = _Handlers(assignments, sessions, pages)
    get, post = partial(_get, pages.title), partial(_post, pages.title)
    routes = [
        Route("/", partial(get, handlers.task_page)),
        Route("/join", partial(post, handlers.join), methods=["POST"]),
        Route("/consent", partial(post, handlers.consent), methods=["POST"]),
        Route("/answer", partial(post, handlers.answer), methods=["POST"]),
        Route("/undo", partial(post, handlers.undo), methods=["POST"]),
        Route("/leave", partial(post, handlers.leave), methods=["POST"]),
        Route("/facts", partial(post, handlers.facts), methods=["POST"]),
        Route("/images/{sha256}", partial(get, handlers.image)),
        Mount("/static", _CachedFiles(directory=FOLDER / "static")),
    ]
    return Guard(Starlette(routes=routes), loopback_only=sessions.access_token is None, is_annotator=sessions.has_cookie)


class _CachedFiles(StaticFiles):
    """The package's own files, which browsers may cache between tasks."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["cache-control"] = "max-age=600"
        return response


async def _get(title: str, handle: Callable[[Request], Response], request: Request) -> Response:
    try:
        return await run_in_threadpool(handle, request)
    except Refusal as refusal:
        return _refused(title, request, refusal)
    except StorageError as error:
        return _refused(title, request, _storage_refusal(error, "{}: tell the person who runs it, and load the page again"))


async def _post(title: str, handle: Callable[[Request, Mapping[str, str]], Response], request: Request) -> Response:
    try:
        form = _parse_form(await request.body(), request.headers.get("content-type", ""))
        return await run_in_threadpool(handle, request, form)
    except Refusal as refusal:
        return _refused(title, request, refusal)
    except BodyTooLargeError as error:
        return _refused(title, request, Refusal(413, str(error)))
    except InputError as error:
        return _refused(title, request, Refusal(400, str(error)))
    except StorageError as error:
        sentence = "nothing was saved, because {}: tell the person who runs it, and save again"
        if isinstance(error, NotOnDiskError):
            sentence = "this may not be saved, because {}: tell the person who runs it, and save again once it has been restarted"
        return _refused(title, request, _storage_refusal(error, sentence))


def _storage_refusal(error: StorageError, sentence: str) -> Refusal:
    """Return a refusal, with the reason in {} of `sentence`; print the cause for the lead."""
    with suppress(OSError):  # the output may be a file on the same full disk
        print(f"error: {error}: {error.advice}", flush=True)
    if isinstance(error, FileGoneError):
        return Refusal(503, sentence.format("the server's file was deleted or replaced"))
    if isinstance(error, NotOnDiskError):
        return Refusal(507, sentence.format("the server could not write to its disk"))
    return Refusal(507, sentence.format("the server cannot use its file"))


def _parse_form(body: bytes, content_type: str) -> dict[str, str]:
    """Return the fields of a form. Raises Refusal if it is not one."""
    if content_type.partition(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Refusal(415, "the body must be a form")
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="strict")
    except ValueError:
        raise Refusal(400, "the form cannot be read: load the page again") from None
    return {name: value.replace("\r\n", "\n") for name, value in pairs}


def _refused(title: str, request: Request, refusal: Refusal) -> Response:
    if wants_json(request.headers):
        return JSONResponse({"error": refusal.sentence}, refusal.status)
    pages: Pages = Pages(title, "", "")
    return HTMLResponse(pages.message("That did not work", refusal.sentence), refusal.status)


def _done(request: Request, note: str = "") -> Response:
    return JSONResponse({"next": "/", "note": note}) if wants_json(request.headers) else RedirectResponse("/", 303)


@dataclass(frozen=True)
class _Handlers:
    assignments: Assignments
    sessions: Sessions
    pages: Pages

    # ---- pages ---------------------------------------------------------------------------------

    def task_page(self, request: Request) -> Response:
        annotator = self._annotator(request)
        if annotator is None:
            token = request.query_params.get("token", "")
            return HTMLResponse(self.pages.join(self.sessions.access_token is not None, token))
        if self.sessions.has_accepted(annotator):
            shown, person = self.assignments.current(annotator), self._person(annotator)
            page = self.pages.nothing_left(person) if shown is None else self.pages.task(shown, person)
        else:
            page = self.pages.ask_again(self.sessions.form_key(annotator))
        response = HTMLResponse(page)
        if self.sessions.is_to_renew(request.cookies.get(self.sessions.cookie_name)):
            self._set_cookie(request, response, annotator)
        return response

    def image(self, request: Request) -> Response:
        """Return an image of a task by its hash."""
        if self._annotator(request) is None:
            raise Refusal(401, "open the labelling page first")
        source = self.assignments.store.image(request.path_params["sha256"])
        if source is None:
            raise Refusal(404, "there is no such picture in the tasks")
        try:
            content, media_type = displayable(source)
        except InputError:
            raise Refusal(410, "this picture has changed or is gone since the task was added: flag the task") from None
        return Response(content, media_type=media_type, headers={"cache-control": "private, max-age=86400, immutable"})

    # ---- forms ---------------------------------------------------------------------------------

    def join(self, request: Request, form: Mapping[str, str]) -> Response:
        name = form.get("name", "")
        try:
            annotator = self.sessions.join(name, form.get("code", ""), form.get("token", ""), self._has_consented(form))
        except InputError as error:
            page = self.pages.join(self.sessions.access_token is not None, form.get("token", ""), str(error), name[:80])
            return HTMLResponse(page, 403)
        response = RedirectResponse("/", 303)
        self._set_cookie(request, response, annotator)
        return response

    def consent(self, request: Request, form: Mapping[str, str]) -> Response:
        """Accept a changed consent line."""
        annotator = self._require_own_form(request, form)
        try:
            if not self._has_consented(form):
                raise InputError("to go on, tick the box that says that your labels may be stored")
        except InputError as error:
            return HTMLResponse(self.pages.ask_again(self.sessions.form_key(annotator), str(error)), 403)
        self.sessions.accept(annotator)
        return RedirectResponse("/", 303)

    def _has_consented(self, form: Mapping[str, str]) -> bool:
        """Return whether a form accepts the consent line. Raises InputError unless its page showed
        the current line."""
        if form.get("consent") != "yes":
            return False
        if "consent_line" not in form:
            raise InputError("this form does not say which line you agree to: read it on this page, and tick the box")
        if form["consent_line"] != consent_key(self.sessions.consent):
            raise InputError("what you agree to has changed since this page was loaded: read it again, and tick the box")
        return True

    def leave(self, request: Request, form: Mapping[str, str]) -> Response:
        self._require_own_form(request, form)
        response = RedirectResponse("/", 303)
        response.delete_cookie(self.sessions.cookie_name, httponly=True, samesite="lax")
        return response

    def answer(self, request: Request, form: Mapping[str, str]) -> Response:
        """Record a label, a skip or a flag, once."""
        annotator = self._require_annotator(request, form)
        kind = form.get("kind", "label")
        shown = self.assignments.find(annotator, form.get("token", ""))
        if kind not in ANSWERS or shown is None:
            raise Refusal(400, "this form is not one that you were given: load the page again")
        content: dict[str, Any] = parse_label(shown, form, self.pages.lexicon) if kind == "label" else dict(parse_note(form))
        event = self.assignments.submit(annotator, shown, kind, content, _seconds(form))
        return _done(request, "" if event is not None else "this task has your answer already")

    def undo(self, request: Request, form: Mapping[str, str]) -> Response:
        annotator = self._require_annotator(request, form)
        answer = form.get("answer", "")
        is_number = answer.isascii() and answer.isdecimal() and len(answer) < 19  # an id of SQLite
        shown = self.assignments.undo(annotator, int(answer)) if is_number else None
        return _done(request, "" if shown is not None else "there is nothing to take back")

    def facts(self, request: Request, form: Mapping[str, str]) -> Response:
        """Return the facts of a typed sentence, for the page to show."""
        self._require_annotator(request, form)
        sentence = form.get("sentence", "")
        if len(sentence) > MAX_SENTENCE:
            raise Refusal(400, f"the sentence has {len(sentence):,} characters: shorten it to {MAX_SENTENCE:,}")
        facts = facts_from_sentence(sentence, lexicon=self.pages.lexicon)
        return JSONResponse({"facts": [{"kind": fact.kind, "text": fact.text} for fact in facts]})

    # ---- who asks ------------------------------------------------------------------------------

    def _annotator(self, request: Request) -> int | None:
        return self.sessions.annotator_of(request.cookies.get(self.sessions.cookie_name))

    def _set_cookie(self, request: Request, response: Response, annotator: int) -> None:
        response.set_cookie(
            self.sessions.cookie_name,
            self.sessions.cookie_for(annotator),
            max_age=COOKIE_SECONDS,
            httponly=True,
            samesite="lax",
            secure=request.headers.get("x-forwarded-proto") == "https",
        )

    def _require_annotator(self, request: Request, form: Mapping[str, str]) -> int:
        """Return a form's sender, who must have accepted the consent line. Raises Refusal."""
        annotator = self._require_own_form(request, form)
        if not self.sessions.has_accepted(annotator):
            raise Refusal(403, "the line that you agreed to has changed: open the page in another tab, read it, and save again")
        return annotator

    def _require_own_form(self, request: Request, form: Mapping[str, str]) -> int:
        annotator = self._annotator(request)
        if annotator is None:
            raise Refusal(401, "you are not signed in here any more: open the page in another tab, come in again, and save again")
        if not self.sessions.is_form_key(annotator, form.get("form_key", "")):
            raise Refusal(403, "this form is not from your own page: load the page again")
        return annotator

    def _person(self, annotator: int) -> dict[str, Any]:
        store = self.assignments.store
        name = store.annotators()[annotator]
        progress = self.assignments.progress(annotator)
        return person_context(name, store.code_of(annotator) or "", self.sessions.form_key(annotator), progress)


def _seconds(form: Mapping[str, str]) -> float | None:
    """Return how long the task was visible, as the page measured it; None for invalid values."""
    try:
        seconds = float(form.get("seconds", ""))
    except ValueError:
        return None
    return seconds if 0 <= seconds < 1e6 else None
