"""The `sepgate` command: serve everything, protect a file, keys, the demo."""

import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, OperationalError

from api import adoption, keys, logs, revision, workers
from api.commands import doctor, launcher
from api.commands.demo import run as run_demo
from api.commands.protect import protect_file
from api.db import missing_file, reading, transaction
from api.models import Queue
from api.routes.bodies import ProtectionIn
from api.settings import Settings, settings

MOST_STEPS = 2**31 - 1
"""That an owner can be limited to: what PostgreSQL holds as an INTEGER."""

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)
keys_app = typer.Typer(no_args_is_help=True, help="API keys: make, list, revoke.")
app.add_typer(keys_app, name="keys")
owners_app = typer.Typer(no_args_is_help=True, help="Owners: list, limit.")
app.add_typer(owners_app, name="owners")


@app.callback(invoke_without_command=True)
def _told(
    version: Annotated[bool, typer.Option("--version", help="tell the version and end")] = False,
) -> None:
    if version:
        typer.echo(f"sepgate {metadata.version('sepgate')}")
        raise typer.Exit


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="address to listen at")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one", min=0, max=65_535)] = 8000,
) -> None:
    """Start everything on this machine and leave it running until Ctrl-C."""
    try:
        with launcher.service(host, port) as service:
            _greet(service)
            service.watch()
    except launcher.ServiceError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from error


def _greet(service: launcher.Service) -> None:
    key = launcher.first_key()
    typer.echo(f"sepgate serves {service.url}  (API: {service.url}/docs)")
    typer.echo(f"data folder: {settings().data_dir.absolute()}  logs: {service.logs}")
    if key is None:
        typer.echo("API keys exist; `sepgate keys create --owner NAME` makes another")
    else:
        typer.echo(f"API key, shown this once: {key}")


@app.command()
def worker(
    queue: Annotated[Queue, typer.Option(help="what to serve")] = Queue.GPU,
) -> None:
    """Serve a queue: `gpu` by a process for each GPU that is there, or by the CPU."""
    workers.work(queue)


@app.command()
def migrate() -> None:
    """Bring the database's tables up to date."""
    logs.configure()
    revision.migrate()


@app.command("doctor")
def examine() -> None:
    """Look at every part, from the database to blobs and GPUs, and say what to mend."""
    found = list(doctor.examine())
    for finding in found:
        typer.echo(f"{finding.state:<5} {finding.part:<9} {finding.text}")
    raise typer.Exit(int(any(finding.state == "fail" for finding in found)))


@app.command()
def adopt_storage() -> None:
    """Let this database say which blobs are kept, whosever they were; the others go in time."""
    need_tables()
    adoption.adopt()
    days = settings().orphan_grace_seconds / 86_400
    typer.echo(f"blobs that this database does not know are collected after {days:g} days")


@app.command()
def protect(
    data: Annotated[Path, typer.Argument(help="zip of class folders", exists=True, dir_okay=False)],
    url: Annotated[str, typer.Option(envvar="SEPGATE_URL")] = "http://127.0.0.1:8000",
    key: Annotated[str, typer.Option(envvar="SEPGATE_API_KEY", help="API key")] = "",
    out: Annotated[Path, typer.Option(help="folder for the results", file_okay=False)] = Path(
        "sepgate-output"
    ),
    preset: Annotated[str, typer.Option(help="auto, quick, fast, hardened or paper")] = "auto",
    config: Annotated[str, typer.Option(help="fields in place of the preset's, as JSON")] = "{}",
    evaluation: Annotated[
        str, typer.Option(help="networks, countermeasures and seeds that judge, as JSON")
    ] = "{}",
    require_worked: Annotated[
        bool, typer.Option("--require-worked", help="status 3 where the protection does not hold")
    ] = False,
) -> None:
    """Upload a file to a running service, protect it, download archive and report.

    Interrupted, it leaves the protection running, at the address that it told of.
    """
    fields = {"preset": preset} | _json_object("--config", config)
    asked = {"config": fields, "evaluation": _json_object("--evaluation", evaluation)}
    _check_request(asked)
    key = key.strip()
    if not key:
        raise typer.BadParameter("expected an API key in --key or SEPGATE_API_KEY, got none")
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise typer.BadParameter(
            "expected an API key as it was shown, got characters that none has"
        )
    raise typer.Exit(protect_file(url, key, data, asked, out, require_worked=require_worked))


def _check_request(asked: dict[str, Any]) -> None:
    """As far as that can be done before hours of uploading."""
    try:
        ProtectionIn.model_validate(asked | {"dataset_id": UUID(int=0)})
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()
        )
        raise typer.BadParameter(wrong) from error


def _json_object(option: str, text: str) -> dict[str, Any]:
    try:
        return TypeAdapter(dict[str, Any]).validate_json(text)
    except ValidationError as error:
        raise typer.BadParameter(f"{option}: expected a JSON object, got {text!r}") from error


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(help="zip of class folders of your own", exists=True, dir_okay=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the results")] = Path("demo-output"),
) -> None:
    """The whole job on real photographs: start, upload, protect, download, verdict, stop."""
    raise typer.Exit(run_demo.demo(data, out))


@keys_app.callback()
@owners_app.callback()
def need_tables() -> None:
    """Of a database that is there: none is made by asking."""
    path = missing_file()
    if path is not None:
        told = "start the service first, or call this in its folder or with its SEPGATE_DATA_DIR"
        typer.echo(f"expected a database at {path}, got none: {told}", err=True)
        raise typer.Exit(1)
    with reading() as session:
        objection = revision.objection(session.connection())
    if objection is not None:
        typer.echo(objection, err=True)
        raise typer.Exit(1)


@keys_app.command("create")
def keys_create(owner: Annotated[str, typer.Option(help="who the key is for")]) -> None:
    """Make a key and show it, once."""
    if not owner.strip():
        raise typer.BadParameter(f"expected a name in --owner, got {owner!r}")
    with transaction() as session:
        key = keys.create(session, owner.strip())
    typer.echo(key)


@keys_app.command("list")
def keys_list() -> None:
    """List prefixes, owners and dates."""
    with transaction() as session:
        for key, owner in keys.listing(session):
            state = f"revoked {key.revoked_at:%Y-%m-%d}" if key.revoked_at else "valid"
            typer.echo(f"{key.prefix}  {owner}  made {key.created_at:%Y-%m-%d}  {state}")


@keys_app.command("revoke")
def keys_revoke(prefix: Annotated[str, typer.Argument(help="as `keys list` shows it")]) -> None:
    """Revoke a key."""
    with transaction() as session:
        revoked = keys.revoke(session, prefix)
    if not revoked:
        typer.echo(f"expected the prefix of a valid key, got {prefix!r}", err=True)
        raise typer.Exit(1)


@owners_app.command("list")
def owners_list() -> None:
    """List owners and how many steps of theirs a queue runs at once."""
    with transaction() as session:
        for owner in keys.owners(session):
            typer.echo(f"{owner.name}  limit {owner.max_running or 'none'}")


@owners_app.command("limit")
def owners_limit(
    owner: Annotated[str, typer.Argument(help="as `owners list` shows it")],
    steps: Annotated[
        int | None, typer.Argument(min=1, max=MOST_STEPS, help="at once in a queue; none: any")
    ] = None,
) -> None:
    """Limit how many steps of an owner a queue runs at once; without a number, end the limit."""
    with transaction() as session:
        known = keys.limit(session, owner, steps)
    if not known:
        typer.echo(f"expected an owner's name, got {owner!r}", err=True)
        raise typer.Exit(1)


def main() -> None:
    """Entry point."""
    try:
        if "--help" not in sys.argv:
            _check_settings()
        app()
    except OperationalError as error:
        typer.echo(f"the database at SEPGATE_DATABASE_URL said: {error.orig}", err=True)
        raise SystemExit(1) from error


def _check_settings() -> None:
    """What the environment says can be; nothing is kept, since the demo changes some of it."""
    try:
        make_url(Settings().database).get_dialect().import_dbapi()
    except ValidationError as error:
        for each in error.errors(include_url=False):
            told = f"SEPGATE_{'_'.join(map(str, each['loc'])).upper()}: {each['msg']}"
            typer.echo(f"{told}, got {each['input']!r}", err=True)
        raise SystemExit(2) from error
    except (ArgumentError, ImportError, ValueError) as error:
        told = "expected a URL of sqlite or postgresql+psycopg, got another"
        typer.echo(f"SEPGATE_DATABASE_URL: {told} ({type(error).__name__})", err=True)
        raise SystemExit(2) from error
