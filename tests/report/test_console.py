"""What reaches the terminal."""

from __future__ import annotations

from qcomp.report import console


def test_names_of_strangers_cannot_steer_the_terminal(capsys):
    table = console.table("Name")
    console.row(table, "a\x1b[2Jb\x07 [red]é")
    console.show(table)
    assert capsys.readouterr().out.splitlines()[-1] == "a?[2Jb? [red]é"
