"""The routes below /train-studio/v1. None of them waits for the host's lock or for a running job."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Header, Query
from starlette.responses import Response

from ..config.methods import METHOD_CONFIGS, artefact_kind
from ..config.presets import AUTO, FAMILY_NAMES, PRESETS, preset_reasons, preset_values
from ..config.tools import dump_job
from ..errors import ConfigError
from ..jobs.access import LISTED_KINDS
from ..jobs.status import JobStatus
from ..jobs.store import REQUESTS
from ..jobs.votes import Votes
from ..ports import BaseModel, Credentials, Host
from . import schema
from .adding import JSON_BODY, add_get, add_post
from .answers import Answer, error_responses, guarded_route, shown_by
from .auth import Guard
from .page import Fragment, add_page_routes
from .requests import read_count, read_object, read_picture, read_text, read_word
from .tools import add_tool_routes
from .trial import add_trial_routes
from .votes import add_vote_routes

if TYPE_CHECKING:
    from ..jobs.manager import JobManager

PREFIX = "/train-studio/v1"
MAX_EVENTS = 5000


def add_routes(
    app: FastAPI, manager: JobManager, host: Host, credentials: Credentials, fragment: Fragment | None = None
) -> None:
    """Add our routes to an app that has none of them yet; `fragment` makes the parts of the page, if there is one."""
    if any(getattr(route, "path", "").startswith(PREFIX) for route in app.routes):
        return
    router = APIRouter(prefix=PREFIX, tags=["Train Studio"], route_class=guarded_route(Guard(app, credentials)))
    routes = Routes(manager, host)
    _add_reading(router, routes)
    _add_changing(router, routes)
    add_tool_routes(router, manager, host)
    add_trial_routes(router, host)
    add_vote_routes(router, Votes(manager, host))
    if fragment is not None:
        add_page_routes(router, fragment)
    app.include_router(router)


class Routes:
    """One method a route; its docstring is the route's description."""

    def __init__(self, manager: JobManager, host: Host) -> None:
        self._manager = manager
        self._host = host

    def presets(self, family: str = Query(AUTO, enum=[AUTO, *FAMILY_NAMES])) -> Response:
        """`presets` are built in, here for base models of `family`: name one as a job's `preset`.

        `user_presets` are partial job tables to build on; `reasons` say why each number of the built-in ones is it.

        `unreadable` are presets whose file is damaged, each with what is wrong.
        """
        from ..jobs.user_presets import UserPresets

        saved = UserPresets(self._host.folders().presets)
        usable, unreadable = {}, {}
        for name in saved.names():
            try:
                usable[name] = saved.load(name)
            except ConfigError as error:
                unreadable[name] = error.message
        known = read_word({"family": family}, "family", (AUTO, *FAMILY_NAMES))
        found = {name: preset_values(name, known) for name in PRESETS}
        reasons = {name: {path: each.reason for path, each in preset_reasons(name, known).items()} for name in PRESETS}
        return self._answer({"presets": found, "reasons": reasons, "user_presets": usable, "unreadable": unreadable})

    def settings(self) -> Response:
        """The JSON schema of a job: every setting with type, default, range, choices, unit and meaning."""
        return Answer(schema.job_schema())

    def host(self) -> Response:
        """The program Train Studio runs in: its models, its folders for results, what may be named."""
        folders, access = self._host.folders(), self._host.access()
        selected = self._host.selected_base_model()
        return self._answer(
            {
                "name": self._host.name,
                "has_prompt": self._host.has_prompt,
                "base_models": _listed(self._host.base_models()),
                "model_files": {kind: _listed(self._host.model_files(kind)) for kind in LISTED_KINDS},
                "selected_base_model": str(selected) if selected else None,
                "result_folders": {kind: str(folders.results[artefact_kind(kind)]) for kind in METHOD_CONFIGS},
                "unusable_methods": dict(self._host.unusable_methods()),
                "access": {
                    "roots": None if access.roots is None else [str(root) for root in access.roots],
                    "allow_pickles": access.allow_pickles,
                    "hide_paths": access.hide_paths,
                },
            }
        )

    def jobs(self) -> Response:
        """The newest first, without their curves."""
        return self._answer({"jobs": [_summary(status) for status in self._manager.statuses()]})

    def job(self, job_id: str) -> Response:
        """State, step, loss, time left, results, and the curves as pairs of step and loss."""
        status = self._manager.status(job_id)
        content = shown_by(self._host, _summary(status))
        return Answer({**content, "curve": status.curve, "validation": status.validation})

    def events(self, job_id: str, after: int = Query(0, ge=0, description="A sequence number.")) -> Response:
        """The events with a sequence number above `after`, at most 5000; ask again after the last one."""
        events = self._manager.events(job_id, after)
        return self._answer({"events": [event.to_json() for event in events[:MAX_EVENTS]]})

    def config(self, job_id: str) -> Response:
        """The job's settings, defaults filled in; a job can be submitted again from them."""
        return self._answer(dump_job(self._manager.folder(job_id).config()))

    def picture(self, job_id: str, file: str, if_none_match: str = Header("")) -> Response:
        """`grid.png`, `base-<prompt>.png` or `<step>-<prompt>.png`; they are rewritten, so ask again with the ETag."""
        content, tag = read_picture(self._manager.folder(job_id).path, file)
        headers = {"Cache-Control": "no-cache", "ETag": tag, "X-Content-Type-Options": "nosniff"}
        if tag in if_none_match:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type="image/png", headers=headers)

    def check(self, body: Any = JSON_BODY) -> Response:
        """What the job would train on and cost, and what would stop it. Trains nothing and writes nothing."""
        from ..jobs.check import check_job
        from ..jobs.submission import prepare_job

        config = prepare_job(read_object(body), self._host)
        return self._answer(check_job(config, self._host).to_json())

    def like(self, body: Any = JSON_BODY) -> Response:
        """The settings that a file speaks of, as a partial job, with what of them does not map and why.

        A LoRA, an embedding, a job file, a config of sd-scripts or of OneTrainer on the machine of the WebUI.
        """
        from ..jobs.access import check_file
        from ..jobs.like import recipe_of_file

        table = read_object(body, ("file", "num_pictures"))
        path = check_file(read_text(table, "file"), self._host.access(), self._host)
        count = None if table.get("num_pictures") is None else read_count(table, "num_pictures", 1)
        return self._answer(recipe_of_file(path, num_pictures=count).to_json())

    def submit(self, body: Any = JSON_BODY) -> Response:
        """Queue a job: one is trained at a time. What is left out comes from the preset, and from the host."""
        from ..jobs.submission import prepare_job

        return Answer({"job_id": self._manager.submit(prepare_job(read_object(body), self._host))}, 202)

    def ask(self, job_id: str, body: Any = JSON_BODY) -> Response:
        """Save, preview, pause, resume, stop (the result is kept) or discard; done at the end of the step.

        A tool can be paused, resumed and stopped; it then writes nothing.
        """
        word = read_word(read_object(body, ("request",)), "request", REQUESTS)
        self._manager.ask(job_id, word)
        return Answer({"job_id": job_id, "request": word}, 202)

    def continue_job(self, job_id: str, body: Any = JSON_BODY) -> Response:
        """Queue a job that was stopped, failed or interrupted again, or extend a finished training to more steps.

        A tool starts from the beginning.
        """
        table = read_object(body, ("max_train_steps",))
        steps = None if table.get("max_train_steps") is None else read_count(table, "max_train_steps", 1)
        self._manager.continue_run(job_id, steps)
        return Answer({"job_id": job_id}, 202)

    def keep(self, job_id: str, body: Any = JSON_BODY) -> Response:
        """Keep the result of one step and delete the job's other result files."""
        step = read_count(read_object(body, ("step",)), "step", 0)
        deleted = self._manager.delete_results(job_id, step)
        return self._answer({"job_id": job_id, "deleted": [str(path) for path in deleted]})

    def forget(self, job_id: str, body: Any = JSON_BODY) -> Response:
        """Delete the run folder: state, events and previews. Result files stay."""
        read_object(body, ())
        self._manager.forget(job_id)
        return Answer({"job_id": job_id})

    def _answer(self, content: Any) -> Answer:
        return Answer(shown_by(self._host, content))


def _listed(files: Iterable[BaseModel]) -> list[dict[str, str]]:
    return [{"title": file.title, "path": str(file.path)} for file in files]


def _summary(status: JobStatus) -> dict[str, Any]:
    """A status without its curves, which can be long."""
    content = dataclasses.replace(status, curve=(), validation=()).to_json()
    return {key: value for key, value in content.items() if key not in ("curve", "validation")}


def _add_reading(router: APIRouter, routes: Routes) -> None:
    add_get(router, "/presets", routes.presets, "Start values by purpose and model family", 400)
    add_get(router, "/settings", routes.settings, "All settings")
    add_get(router, "/host", routes.host, "The host")
    add_get(router, "/jobs", routes.jobs, "All jobs")
    add_get(router, "/jobs/{job_id}", routes.job, "A job", 404)
    add_get(router, "/jobs/{job_id}/events", routes.events, "What a job has said", 400, 404)
    add_get(router, "/jobs/{job_id}/config", routes.config, "A job's settings", 404)
    router.add_api_route(
        "/jobs/{job_id}/previews/{file}",
        routes.picture,
        methods=["GET"],
        summary="A preview picture",
        response_class=Response,
        response_model=None,
        responses={
            200: {"description": "The picture.", "content": {"image/png": {}}},
            304: {"description": "It has not changed."},
            **error_responses(401, 404),
        },
    )


def _add_changing(router: APIRouter, routes: Routes) -> None:
    job = schema.job_schema()
    add_post(router, "/check", routes.check, "Check a job before it starts", job, 200, 503)
    add_post(router, "/like", routes.like, "The settings of a file", schema.LIKE_SCHEMA, 200)
    add_post(router, "/jobs", routes.submit, "Queue a job", job, 202, 409, 507)
    add_post(router, "/jobs/{job_id}/ask", routes.ask, "Ask something of a job", schema.ASK_SCHEMA, 202, 404, 409)
    add_post(
        router, "/jobs/{job_id}/continue", routes.continue_job, "Resume or extend a job", schema.CONTINUE_SCHEMA, 202,
        404, 409,
    )  # fmt: skip
    add_post(router, "/jobs/{job_id}/keep", routes.keep, "Keep one result", schema.KEEP_SCHEMA, 200, 404, 409)
    add_post(router, "/jobs/{job_id}/forget", routes.forget, "Delete a run folder", schema.EMPTY_SCHEMA, 200, 404, 409)
