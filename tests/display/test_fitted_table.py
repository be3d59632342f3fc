import io

import pytest
from rich.console import Console

from robustbench_local.display.fitted_table import Row, fitted_table

HEADING = Row("name", ("one", "two", "three"))
LAYOUTS = (((0,), (1,), (2,)), ((0, 1), (2,)), ((0, 1, 2),))


def rendered(rows, width):
    screen = Console(file=io.StringIO(), width=width)
    screen.print(fitted_table(HEADING, rows, LAYOUTS, width, name=15))
    return screen.file.getvalue()


@pytest.mark.parametrize("width", range(25, 70))
def test_no_number_is_cut_off_at_any_width(width):
    rows = [Row(f"a-name-of-many-letters-{n}", (f"{n}1234", f"{n}5678", f"{n}9012")) for n in range(3)]
    text = rendered([*rows, Row("all", ("1", "", "22"), total=True)], width)
    for row in (HEADING, *rows):
        for cell in row.cells:
            assert cell in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_the_widest_layout_that_fits_is_used():
    rows = [Row("short", ("1234567", "1234567", "1234567"))]
    # Three columns of seven letters with two spaces before each, and the name.
    full = 3 * (7 + 2) + 15
    assert any("one" in line and "three" in line for line in rendered(rows, full).splitlines())
    assert not any("one" in line and "three" in line for line in rendered(rows, full - 1).splitlines())


def test_foreign_names_stay_text():
    text = rendered([Row("[red]x[/]\x1b[31m", ("1", "2", "3"))], 60)
    assert "[red]x[/]" in text
    assert "\x1b" not in text
