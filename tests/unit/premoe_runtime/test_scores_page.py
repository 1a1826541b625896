import pytest
import scores_page

from premoe_runtime.offline.profile.scores import SCORES


def test_the_page_is_what_the_registry_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert scores_page.main(["--check"]) == 0, capsys.readouterr().err
    page = scores_page.page()
    assert all(f"`{name}`" in page for name in SCORES)


def test_a_stale_page_names_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scores_page, "HEAD", "# Other\n")
    assert scores_page.main(["--check"]) == 1
    assert "python tools/scores_page.py" in capsys.readouterr().err
