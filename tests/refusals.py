"""What a command that refuses its input looks like."""


def refused(result, *parts):
    """Exit code 2 and one line on stderr that holds these parts."""
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    (only,) = result.stderr.splitlines()
    assert only.startswith("nplex: ")
    assert [part for part in parts if str(part) not in only] == []
