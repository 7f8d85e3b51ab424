"""API keys: shown once, kept as a hash, revoked for good."""

import hashlib
import re

import pytest
from sqlalchemy import func, inspect, select
from typer.testing import CliRunner, Result

from api import keys
from api.cli import app
from api.db import transaction
from api.errors import AppError
from api.models import APIKey, Owner

pytestmark = pytest.mark.usefixtures("environment")


def create(owner: str = "alice") -> str:
    with transaction() as session:
        return keys.create(session, owner)


def name_of(key: str) -> str:
    with transaction() as session:
        return keys.authenticate(session, key).name


def refused(key: str) -> bool:
    with pytest.raises(AppError) as error:
        name_of(key)
    return (error.value.status, error.value.code) == (401, "UNAUTHENTICATED")


def test_only_the_hash_is_kept() -> None:
    key = create()
    assert re.fullmatch(r"sg_[0-9a-f]{8}_[\w-]{43}", key)
    secret = key.split("_", 2)[2]
    with transaction() as session:
        row = session.scalars(select(APIKey)).one()
        kept = {each.key: getattr(row, each.key) for each in inspect(APIKey).column_attrs}
    assert kept["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert kept["prefix"] == key[:11]
    assert not any(secret in str(value) for value in kept.values())


def test_it_names_its_owner() -> None:
    first, second, other = create("alice"), create("alice"), create("bob")
    assert [name_of(key) for key in (first, second, other)] == ["alice", "alice", "bob"]
    with transaction() as session:
        assert session.scalar(select(func.count()).select_from(Owner)) == 2
        one, same = (keys.authenticate(session, key) for key in (first, second))
        assert (one.owner_id, one.key_sha256 != same.key_sha256) == (same.owner_id, True)
        listed = keys.listing(session)
    assert [(key.prefix, owner) for key, owner in listed] == [
        *((key[:11], "alice") for key in (first, second)),
        (other[:11], "bob"),
    ]


def test_a_revoked_key_is_refused_and_others_are_not() -> None:
    first, second = create(), create()
    with transaction() as session:
        assert keys.revoke(session, first[:11]) == 1
        assert keys.revoke(session, first[:11]) == 0
        assert keys.revoke(session, "sg_nothing") == 0
        assert keys.revoke(session, "") == 0
    assert refused(first)
    assert name_of(second) == "alice"


def test_what_is_no_key_is_refused() -> None:
    key = create()
    with transaction() as session:
        digest = session.scalars(select(APIKey.sha256)).one()
    for odd in ("", key[:11], digest, key + " ", key.upper(), "%", "\0", "ü" * 1000):
        assert refused(odd)


def owners(*words: str) -> Result:
    return CliRunner().invoke(app, ["owners", *words])


def test_limits_are_set_shown_and_lifted() -> None:
    for name in ("bob", "alice"):
        create(name)
    assert owners("list").output.splitlines() == ["alice  limit none", "bob  limit none"]
    assert owners("limit", "bob", "4").exit_code == 0
    assert owners("list").output.splitlines() == ["alice  limit none", "bob  limit 4"]
    assert owners("limit", "bob").exit_code == 0
    assert owners("list").output.splitlines() == ["alice  limit none", "bob  limit none"]


def test_of_what_can_be_no_limit_it_says_so_and_nothing_changes() -> None:
    create("alice")
    assert owners("limit", "alice", "4").exit_code == 0
    unknown = owners("limit", "Alice", "2")
    assert unknown.exit_code == 1
    assert unknown.stderr == "expected an owner's name, got 'Alice'\n"
    for none in ("0", "-1", "many"):
        assert owners("limit", "alice", "--", none).exit_code == 2
    assert owners("list").output == "alice  limit 4\n"
