"""Settings: which source wins, what is refused, and what is never shown."""

from pathlib import Path

import pytest
from msgspec import structs

from modelkeep import settings
from modelkeep.core import errors, values
from modelkeep.settings import Settings

pytestmark = pytest.mark.req("U1")


def test_flags_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    """The nearer source wins, setting by setting; a flag that was not given says nothing."""
    file = tmp_path / "modelkeep.toml"
    file.write_text('port = 1\ngateway_port = 1\nlog_level = "DEBUG"\nhost_names = ["a", "b"]\n')
    env = {"MODELKEEP_CONFIG": str(file), "MODELKEEP_PORT": "2", "MODELKEEP_GATEWAY_PORT": "2", "PATH": "x"}
    found = settings.load({"port": 3, "data": None}, env)
    assert (found.port, found.gateway_port, found.log_level) == (3, 2, "DEBUG")
    assert found.host_names == ("a", "b")
    assert found.data == Settings().data


def test_words_of_the_environment_become_values() -> None:
    """Numbers and lists are written as words there."""
    found = settings.load({}, {"MODELKEEP_TIMEOUT_S": "2.5", "MODELKEEP_HOST_NAMES": "a.example,b.example"})
    assert (found.timeout_s, found.host_names) == (2.5, ("a.example", "b.example"))


@pytest.mark.parametrize("name", [field.name for field in structs.fields(Settings)])
def test_every_setting_can_be_said_in_the_environment_and_in_the_file(name: str, tmp_path: Path) -> None:
    """A variable and a line of the file mean the same, for each there is."""
    words = {
        "auth": "token", "log_level": "DEBUG", "port": "1", "gateway_port": "1", "gateway_fronts": "2",
        "gateway_open": "true", "gateway_allow_code": "true", "gateway_environments": "locked",
        "gateway_memory_budget": "2GiB", "gateway_worker_memory": "4GiB", "gateway_idle_timeout_s": "60",
        "gateway_device": "cpu", "webhook_http": "true", "webhook_ports": "8443",
        "webhook_allow": "10.0.0.0/8",
    }  # fmt: skip
    word = words.get(name, "7" if name == "timeout_s" else "word")
    file = tmp_path / "modelkeep.toml"
    several = name in ("host_names", "webhook_allow", "webhook_ports", "gateway_cors_origins")
    file.write_text(f'{name} = ["{word}"]\n' if several else f'{name} = "{word}"\n')
    more = {"MODELKEEP_AUTH": "token"} if name == "host" else {}
    said = settings.load({}, more | {f"MODELKEEP_{name.upper()}": word})
    assert said == settings.load({}, more | {"MODELKEEP_CONFIG": str(file)})
    assert getattr(said, name) != getattr(settings.load({}, more), name)


@pytest.mark.parametrize(
    ("flags", "env", "word"),
    [
        ({}, {"MODELKEEP_PROT": "1"}, "MODELKEEP_PROT"),
        ({}, {"MODELKEEP_PORT": "many"}, "port"),
        ({}, {"MODELKEEP_PORT": "many"}, "the environment"),
        ({"nonsense": 1}, {}, "the command line"),
        ({"port": 70_000}, {}, "port"),
        ({"gateway_port": -1}, {}, "gateway_port"),
        ({"auth": "none"}, {}, "auth"),
        ({"gateway_memory_budget": "much"}, {}, "2GiB"),
        ({"gateway_worker_memory": "many"}, {}, "'many' is no size"),
        ({"gateway_idle_timeout_s": -1.0}, {}, "gateway_idle_timeout_s"),
        ({"host": "0.0.0.0"}, {}, "--auth token"),
        ({"host": "::"}, {}, "--auth token"),
        ({"log_level": "LOUD"}, {}, "log_level"),
        ({"timeout_s": 0}, {}, "timeout_s"),
        ({"nonsense": 1}, {}, "nonsense"),
        ({}, {"MODELKEEP_CONFIG": "/no/such/file"}, "/no/such/file"),
    ],
)
def test_what_does_not_fit_is_named(flags: dict[str, object], env: dict[str, str], word: str) -> None:
    """A misspelt name or an impossible value stops the start, in a sentence that names it."""
    with pytest.raises(errors.InvalidSetting) as refused:
        settings.load(flags, env)
    assert word in str(refused.value)


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    """The message names the file, also when it is TOML and says what cannot be."""
    file = tmp_path / "modelkeep.toml"
    for text in (b"port = \xff", b"prot = 1", b'port = "many"', b"[server]\nport = 1"):
        file.write_bytes(text)
        with pytest.raises(errors.InvalidSetting, match=r"modelkeep\.toml"):
            settings.load({}, {"MODELKEEP_CONFIG": str(file)})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_no_authentication(host: str) -> None:
    """Beyond the loopback address a token is asked for; on it, and with tokens, anything goes."""
    assert settings.load({"host": host}, {}).auth == "local"
    assert settings.load({"host": "0.0.0.0", "auth": "token"}, {}).host == "0.0.0.0"


def test_places_follow_the_data_folder() -> None:
    """What is not named lies in the data folder."""
    found = settings.load({"data": "/d"}, {})
    assert found.database_url == "sqlite:////d/modelkeep.db"
    assert (found.blobs_place, found.gateway_folder) == ("/d/blobs", Path("/d/gateway"))
    named = settings.load({"data": "/d", "database": "postgresql://x", "blobs": "s3://b"}, {})
    assert (named.database_url, named.blobs_place) == ("postgresql://x", "s3://b")


def test_secrets_are_not_shown() -> None:
    """What could open a door is printed as stars, and what is not set as nothing."""
    secret = {"MODELKEEP_TOKEN": "mk_secret", "MODELKEEP_DATABASE": "postgresql://u:secret@h/d"}
    shown = settings.shown(settings.load({"s3_secret_access_key": "secret"}, secret))
    assert "secret" not in " ".join(shown.values())
    assert (shown["token"], shown["database"], shown["s3_secret_access_key"]) == ("***",) * 3
    assert settings.shown(settings.load({}, {}))["token"] == "None"


def test_the_user_has_a_name_that_can_be_one() -> None:
    """Whatever the system calls its user, the owner's name is a name."""
    assert values.check_name(settings.load({}, {}).user, "user")
