"""Versions, changelogs and public names of the packages: `check` what must hold, `bump` a version, note the `api`, set `urls`.

    uv run python scripts/release.py check
    uv run python scripts/release.py api nanochat-model            # after changing a public name and noting it in CHANGELOG.md
    uv run python scripts/release.py bump nanochat-model minor      # or all, which then need each other's new versions
    uv run python scripts/release.py urls https://host/owner/repo  # the base of every URL in the packages' metadata

A release of a package is a commit with the tag <package>-v<version>.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).parent))
import public_names

ROOT = Path(__file__).parent.parent
UNRELEASED = "Unreleased"
NEEDED = ("description", "readme", "license", "license-files", "requires-python", "classifiers", "authors", "keywords")


@dataclass(frozen=True)
class Package:
    """One folder of the workspace that is published by itself."""

    directory: Path

    @property
    def name(self) -> str:
        return f"nanochat-{self.directory.name.removeprefix('nanochat-')}"

    @property
    def has_api(self) -> bool:
        """Libraries promise names; the programs promise flags."""
        return self.name != "nanochat-apps"

    @property
    def api_file(self) -> Path:
        return self.directory / "API.txt"

    @property
    def project(self) -> dict[str, Any]:
        project: dict[str, Any] = tomllib.loads(self.pyproject.read_text(encoding="utf-8"))["project"]
        return project

    @property
    def pyproject(self) -> Path:
        return self.directory / "pyproject.toml"

    @property
    def changelog(self) -> Path:
        return self.directory / "CHANGELOG.md"

    @property
    def version(self) -> Version:
        return Version(self.project["version"])

    @property
    def tag(self) -> str:
        return f"{self.name}-v{self.version}"

    def siblings(self) -> list[Requirement]:
        """What it requires of the workspace, extras included, itself left out."""
        project = self.project
        lines = [
            *project["dependencies"],
            *(r for extra in project.get("optional-dependencies", {}).values() for r in extra),
        ]
        required = (Requirement(line) for line in lines)
        return [r for r in required if r.name.startswith("nanochat-") and r.name != self.name]

    def sections(self) -> dict[str, str]:
        """The changelog by heading, newest first."""
        if not self.changelog.exists():
            return {}
        parts = re.split(r"^## (.+)$", self.changelog.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
        return {heading.split(" ")[0]: text.strip() for heading, text in zip(parts[::2], parts[1::2], strict=True)}

    def released_api(self) -> list[str] | None:
        """The listing at the tag of the current version; None if there is no such tag here."""
        path = self.api_file.relative_to(ROOT).as_posix()
        shown = subprocess.run(
            ["git", "show", f"{self.tag}:{path}"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return shown.stdout.splitlines() if shown.returncode == 0 else None


def packages() -> list[Package]:
    return [
        Package(path.parent) for path in sorted([*ROOT.glob("packages/*/pyproject.toml"), ROOT / "apps/pyproject.toml"])
    ]


def find(name: str) -> Package:
    found = {package.name: package for package in packages()}
    if name not in found:
        raise SystemExit(f"no package {name}; there are {', '.join(found)}")
    return found[name]


def check() -> list[str]:
    """What does not hold, one line each."""
    problems = []
    versions = {package.name: package.version for package in packages()}
    for package in packages():
        project, sections = package.project, package.sections()
        problems += [f"{package.name}: pyproject.toml lacks {field}" for field in NEEDED if field not in project]
        headings = list(sections)
        if headings[:2] != [UNRELEASED, str(package.version)]:
            problems.append(
                f"{package.name}: CHANGELOG.md must begin with '## {UNRELEASED}' and '## {package.version}', not {headings[:2]}"
            )
        licence = package.directory / "LICENSE"
        if not licence.exists() or licence.read_bytes() != (ROOT / "LICENSE").read_bytes():
            problems.append(f"{package.name}: its LICENSE must be the repository's")
        for sibling in package.siblings():
            operators = {specifier.operator for specifier in sibling.specifier}
            if operators != {">=", "<"}:
                problems.append(f"{package.name}: {sibling} must be a range with >= and <")
            elif versions[sibling.name] not in sibling.specifier:
                problems.append(f"{package.name}: {sibling} leaves out the current version {versions[sibling.name]}")
        if package.has_api:
            problems += check_api(package)
    return problems


def check_api(package: Package) -> list[str]:
    """The listing in API.txt must be that of the code, and what changed since the release must be noted."""
    recorded = package.api_file.read_text(encoding="utf-8").splitlines() if package.api_file.exists() else []
    current = public_names.listing(package.name.replace("-", "_"))
    problems = [
        f"{package.name}: the public name {name} is not as API.txt has it; note it under '## {UNRELEASED}' in CHANGELOG.md "
        f"and run: uv run python scripts/release.py api {package.name}"
        for name in public_names.changed(recorded, current)
    ]
    released = package.released_api()
    if released is not None:
        problems += unnoted(package, released, current)
    return problems


def unnoted(package: Package, before: list[str], after: list[str]) -> list[str]:
    """Names that changed without being named in the changelog's newest section; a class's name covers its members."""
    note = package.sections().get(UNRELEASED, "")

    def is_noted(name: str) -> bool:
        in_module = name.split(".")[1:] if name[0].islower() else []  # schedules.Schedule is Schedule too
        return any(f"`{part}" in note for part in (name, name.rpartition(".")[0], *in_module[:1]) if part)

    return [
        f"{package.name}: the public name {name} changed, but '## {UNRELEASED}' in CHANGELOG.md does not name `{name}`"
        for name in public_names.changed(before, after)
        if not is_noted(name)
    ]


def record_api(package: Package, *, first: bool) -> None:
    """Writes API.txt once every change of a public name is noted."""
    before = package.api_file.read_text(encoding="utf-8").splitlines() if package.api_file.exists() else []
    after = public_names.listing(package.name.replace("-", "_"))
    problems = [] if first else unnoted(package, before, after)
    if problems:
        raise SystemExit("\n".join(problems))
    package.api_file.write_text("\n".join(after) + "\n", encoding="utf-8")


def bump(package: Package, part: str, *, with_siblings: bool = False) -> None:
    """A new version: pyproject.toml, changelog, the ranges of siblings that would leave it out, the lock.

    A sibling keeps its oldest allowed version, unless it is released with the package and may need what is new.
    """
    numbers = list(package.version.release)
    index = ("major", "minor", "patch").index(part)
    numbers[index:] = [numbers[index] + 1, *(0 for _ in numbers[index + 1 :])]
    new = Version(".".join(map(str, numbers)))
    if not package.sections().get(UNRELEASED):
        raise SystemExit(f"{package.name}: '## {UNRELEASED}' in CHANGELOG.md says nothing; a release needs a word")
    replace(package.pyproject, rf'^version = "{re.escape(str(package.version))}"$', f'version = "{new}"')
    today = datetime.date.today().isoformat()
    replace(package.changelog, rf"^## {UNRELEASED}$", f"## {UNRELEASED}\n\n## {new} ({today})")
    for other in packages():
        for sibling in other.siblings():
            if sibling.name == package.name and new not in sibling.specifier:
                oldest = next(s.version for s in sibling.specifier if s.operator == ">=")
                lowest = f"{new.major}.{new.minor}" if with_siblings else oldest
                replace(
                    other.pyproject,
                    rf'"({re.escape(package.name)}(?:\[[^]]*\])?)>=[^"]*"',
                    rf'"\g<1>>={lowest},<{next_breaking(new)}"',
                )
    subprocess.run(["uv", "lock", "--quiet"], cwd=ROOT, check=True)
    print(f"{package.name} {new}: scripts/check_published.py says if the oldest allowed siblings still do")
    print(f"Commit, then: git tag {package.name}-v{new}")


def next_breaking(version: Version) -> str:
    """The first version that may break what works with this one."""
    return f"0.{version.minor + 1}" if version.major == 0 else f"{version.major + 1}"


def write_urls(repository: str) -> None:
    """[project.urls] of every package, all under the repository's address."""
    base = repository.rstrip("/")
    for package in packages():
        folder = package.directory.relative_to(ROOT).as_posix()
        table = (
            f'[project.urls]\nRepository = "{base}"\nDocumentation = "{base}/blob/main/{folder}/README.md"\n'
            f'Changelog = "{base}/blob/main/{folder}/CHANGELOG.md"\n'
        )
        text = re.sub(r"\[project\.urls\]\n(?:\S.*\n)*\n", "", package.pyproject.read_text(encoding="utf-8"))
        place = text.index("[dependency-groups]")
        package.pyproject.write_text(f"{text[:place]}{table}\n{text[place:]}", encoding="utf-8")


def replace(path: Path, pattern: str, new: str) -> None:
    text, count = re.subn(pattern, new, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if not count:
        raise SystemExit(f"{path}: found nothing like {pattern}")
    path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="say what does not hold")
    api = commands.add_parser("api", help="record a package's public names")
    api.add_argument("package")
    api.add_argument("--first", action="store_true", help="without asking for notes, before the first release")
    bumping = commands.add_parser("bump", help="give a package a new version")
    bumping.add_argument("package")
    bumping.add_argument("part", choices=("major", "minor", "patch"))
    commands.add_parser("urls", help="set the metadata's URLs").add_argument("repository")
    given = parser.parse_args()
    if given.command == "check":
        problems = check()
        print("\n".join(problems) or "versions, changelogs, sibling ranges and public names are in order")
        sys.exit(bool(problems))
    elif given.command == "api":
        record_api(find(given.package), first=given.first)
    elif given.command == "bump":
        for package in packages() if given.package == "all" else [find(given.package)]:
            bump(package, given.part, with_siblings=given.package == "all")
    else:
        write_urls(given.repository)


if __name__ == "__main__":
    main()
