"""What docs say is what was measured."""

import pytest

from benchmarks.report import SECTIONS, ReportPart


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: f"{section.file}:{section.name}")
def test_the_tables_are_what_the_results_say(section: ReportPart) -> None:
    text, wanted = section.apply()
    assert text == wanted, "python -m benchmarks.report writes it anew"


def test_a_section_without_its_lines_is_refused() -> None:
    with pytest.raises(ValueError, match=r"README.md has no lines <!-- none:begin -->"):
        ReportPart("README.md", "none", str).apply()
