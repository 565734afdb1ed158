"""What a release promises: versions, changelogs and sibling ranges in order, and no public name changed without a note."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import public_names
import release

LIBRARIES = [package.name for package in release.packages() if package.has_api]


def test_versions_changelogs_licences_and_sibling_ranges_are_in_order():
    assert not release.check()


def test_listing_tells_signatures(tmp_path, monkeypatch):
    lines = public_names.listing("nanochat_tokenizer")
    assert "train_tokenizer(texts: 'Iterable[str]', *, vocab_size: 'int') -> 'Tokenizer'" in lines
    assert "convert.from_nanochat(path: 'str | Path') -> 'Tokenizer'" in lines
    assert "testing.byte_tokenizer() -> 'Tokenizer'" in lines
    assert "Tokenizer.bos_id" in lines
    assert "SPECIAL_TOKENS: tuple" in lines


@pytest.fixture
def package(tmp_path: Path) -> release.Package:
    directory = tmp_path / "nanochat-tokenizer"
    directory.mkdir()
    (directory / "pyproject.toml").write_text('[project]\nname = "nanochat-tokenizer"\nversion = "0.1.0"\n')
    (directory / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.1.0\n\nThe first.\n")
    release.record_api(release.Package(directory), first=True)
    return release.Package(directory)


def test_a_name_that_changes_without_a_note_fails(package, monkeypatch):
    now = public_names.listing("nanochat_tokenizer")
    assert not release.check_api(dataclass_with_root(package, monkeypatch))
    changed = [line.replace("max_tokens", "limit") for line in now if not line.startswith("visualize")]
    monkeypatch.setattr(public_names, "listing", lambda _: [*changed, "shiny() -> 'None'"])
    problems = "\n".join(release.check_api(package))
    for name in ("visualize", "render_conversation", "shiny"):
        assert f"the public name {name} is not as API.txt has it" in problems
    with pytest.raises(SystemExit, match="does not name `shiny`"):
        release.record_api(package, first=False)
    noted = "Removed `visualize`. Added `shiny`. `render_conversation` and `convert.save_transformers` and "
    noted += "`convert.to_transformers` say `limit`."
    package.changelog.write_text(package.changelog.read_text().replace("Unreleased\n", f"Unreleased\n\n{noted}\n"))
    release.record_api(package, first=False)
    assert not release.check_api(package)


def dataclass_with_root(package, monkeypatch):
    """The package with the script looking for its files, and its tags, where it is."""
    monkeypatch.setattr(release, "ROOT", package.directory.parent)
    return package


def test_a_bump_writes_version_changelog_and_ranges(tmp_path, monkeypatch):
    for folder, name, requires in (
        ("packages/nanochat-model", "nanochat-model", "[]"),
        ("packages/nanochat-engine", "nanochat-engine", '["nanochat-model[onnx]>=0.1,<0.2"]'),
        ("apps", "nanochat-apps", '["nanochat-engine>=0.1,<0.2"]'),
    ):
        directory = tmp_path / folder
        directory.mkdir(parents=True)
        (directory / "pyproject.toml").write_text(
            f'[project]\nname = "{name}"\nversion = "0.1.3"\ndependencies = {requires}\n'
        )
        (directory / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n\n## 0.1.3\n\nThe first.\n")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    monkeypatch.setattr(release.subprocess, "run", lambda *_, **__: None)
    with pytest.raises(SystemExit, match="says nothing; a release needs a word"):
        release.bump(release.find("nanochat-model"), "minor")
    changelog = release.find("nanochat-model").changelog
    changelog.write_text(changelog.read_text().replace("Unreleased\n", "Unreleased\n\nFaster.\n"))
    release.bump(release.find("nanochat-model"), "minor")
    assert str(release.find("nanochat-model").version) == "0.2.0"
    sections = release.find("nanochat-model").sections()
    assert list(sections) == ["Unreleased", "0.2.0", "0.1.3"]
    assert (sections["Unreleased"], sections["0.2.0"]) == ("", "Faster.")
    [sibling] = release.find("nanochat-engine").siblings()
    assert str(sibling) == "nanochat-model[onnx]<0.3,>=0.1"
    assert "nanochat-engine>=0.1,<0.2" in release.find("nanochat-apps").pyproject.read_text()
    engine = release.find("nanochat-engine")
    engine.changelog.write_text(engine.changelog.read_text().replace("Unreleased\n", "Unreleased\n\nBroken.\n"))
    release.bump(engine, "minor", with_siblings=True)
    assert "nanochat-engine>=0.2,<0.3" in release.find("nanochat-apps").pyproject.read_text()
