"""The grammar: any words are a command, help, or one line; never anything else."""

from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from architect.cli.main import main
from architect.cli.parser import parse
from architect.errors import UsageError

COMMANDS = "up down host ls add drain rm run ps inspect logs exec stop migrate events local preempt kill"
OPTIONS = "--json --name --cpus 2 --memory 512M --publish 8080:80 --env A=b --to -f -it -- --help --version --notice 30 --force"
WORDS = st.sampled_from(f"{COMMANDS} {OPTIONS} web aws-1 oci:x --state-dir /nonexistent".split())


@settings(max_examples=400, deadline=None)
@given(st.lists(WORDS | st.text(max_size=8), max_size=8))
def test_any_words_parse_or_are_a_usage_error(words: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(UsageError):
        parse(words)


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS | st.text(max_size=8), max_size=8).filter(lambda words: not {"up", "down", "control"} & set(words)))
def test_any_words_end_in_an_exit_status_and_at_most_one_line(words: list[str]) -> None:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["--state-dir", "/nonexistent/architect", *words])
    assert status in (0, 2, 3, 7), err.getvalue()
    assert "Traceback" not in err.getvalue()
    assert err.getvalue().count("\n") == (0 if status == 0 else 1)


def test_what_follows_the_dashes_belongs_to_the_vm() -> None:
    options = parse(["run", "oci:x", "--", "sh", "-c", "--", "--json"])
    assert options is not None
    assert (options.words, options.json) == (["sh", "-c", "--", "--json"], False)


@pytest.mark.parametrize("words", [["--json", "ps"], ["ps", "--json"]])
def test_json_goes_before_and_after_the_command(words: list[str]) -> None:
    options = parse(words)
    assert options is not None and options.json


def test_a_word_that_is_not_utf8_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "\udcff"]) == 2
    assert "is not UTF-8" in capsys.readouterr().err


def test_an_empty_target_is_refused_by_the_name_of_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", "web", "--to", ""]) == 2
    assert "--to: is empty" in capsys.readouterr().err
